"""What an enclave image of ours is made of, and which register says so."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cloister.errors import BuildError, ConfigurationError
from cloister.image import initrd
from cloister.image.eif import EifMeasurements, read_eif
from cloister.image.eif_image import (
    ENCLAVE_IMAGE,
    EnclaveFiles,
    enclave_parts,
    measurements_of,
    read_enclave_image,
    signed_parts,
)
from cloister.image.eif_write import write_eif
from cloister.image.footer import BLOCK, DiskFooter
from cloister.image.initrd import Entry, archive
from cloister.image.modules import Module

ROOT = DiskFooter(
    kind="root", fs="squashfs", data_blocks=1, hash_start=1, root_hash="11" * 32, salt="22" * 32
)
APPLICATION = {"worker.json": b"{}", "broker/policy.toml": b"x = 1"}

Make = Callable[..., EifMeasurements]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes an image, and says which registers an enclave of it has."""

    def made(**changes: object) -> EifMeasurements:
        for name, content in {
            "kernel": b"a kernel",
            "root.img": bytes(BLOCK) + ROOT.encode(),
            "model": b"a model",
        }.items():
            (tmp_path / name).write_bytes(content)
        values: dict[str, object] = {
            "kernel": tmp_path / "kernel",
            "init": b"an init",
            "modules": (Module(name="nsm", data=b"a module", depends=()),),
            "root": tmp_path / "root.img",
            "application": APPLICATION,
            "models": {"demo.gguf": tmp_path / "model"},
            "name": "demo",
            "version": "7",
        }
        files = EnclaveFiles(**{**values, **changes})  # type: ignore[arg-type]  # as tests say
        (tmp_path / "image").mkdir(exist_ok=True)
        write_eif(enclave_parts(files, tmp_path), tmp_path / "image" / ENCLAVE_IMAGE)
        return measurements_of(read_enclave_image(tmp_path / "image" / ENCLAVE_IMAGE))

    return made


def unpacked(image: Path, number: int, folder: Path) -> Mapping[str, bytes]:
    """The files of a ramdisk, as cpio finds them."""
    sections = read_eif(io.BytesIO(image.read_bytes())).sections
    section = sections[3 + number]
    data = image.read_bytes()[section.offset : section.offset + section.size]
    folder.mkdir()
    command = ("cpio", "--extract", "--make-directories", "--quiet", "--no-preserve-owner")
    subprocess.run(command, cwd=folder, input=data, check=True, capture_output=True)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_what_lies_in_which_ramdisk(make: Make, tmp_path: Path) -> None:
    make()
    image = tmp_path / "image" / ENCLAVE_IMAGE
    line = read_enclave_image(image).cmdline
    first = unpacked(image, 0, tmp_path / "first")
    assert first["etc/cmdline"] == line + b"\n", "no register fixes the length of the line"
    assert first["init"] == b"an init"
    assert first["modules/list"] == b"00-nsm.ko\n"
    assert unpacked(image, 1, tmp_path / "second") == {
        "ramdisk/root.img": (tmp_path / "root.img").read_bytes(),
        "ramdisk/application/worker.json": b"{}",
        "ramdisk/application/broker/policy.toml": b"x = 1",
        "ramdisk/model/demo.gguf": b"a model",
    }
    words = line.decode().split(" ")
    assert f"cloister.root={ROOT.argument()}" in words
    assert {
        "cloister.platform=nitro",
        "cloister.application=ramdisk",
        "cloister.model=ramdisk",
        "rootfstype=ramfs",
    } <= set(words)


def test_equal_files_give_equal_images(make: Make, tmp_path: Path) -> None:
    make()
    first = (tmp_path / "image" / ENCLAVE_IMAGE).read_bytes()
    make()
    assert (tmp_path / "image" / ENCLAVE_IMAGE).read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"init": b"another"}, {"pcr0", "pcr1"}),
        ({"application": {**APPLICATION, "worker.json": b"{ }"}}, {"pcr0", "pcr2"}),
        ({"application": {**APPLICATION, "more": b""}}, {"pcr0", "pcr2"}),
        ({"models": {}}, {"pcr0", "pcr2"}),
        ({"debug": True}, {"pcr0", "pcr1"}),
        ({"version": "8"}, set()),
    ],
    ids=["init", "application", "a file more", "model", "debug", "version"],
)
def test_what_moves_which_register(make: Make, changes: dict[str, object], moved: set[str]) -> None:
    before, after = make(), make(**changes)
    differ = {
        name for name in ("pcr0", "pcr1", "pcr2") if getattr(before, name) != getattr(after, name)
    }
    assert differ == moved


def test_a_root_without_a_footer_makes_none(make: Make, tmp_path: Path) -> None:
    make()
    (tmp_path / "other").write_bytes(bytes(2 * BLOCK))
    with pytest.raises(Exception, match=r"footer|disk") as caught:
        make(root=tmp_path / "other")
    assert getattr(caught.value, "code", None)


def test_a_file_that_the_format_cannot_say_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    monkeypatch.setattr(initrd, "MAX_FILE_BYTES", BLOCK)
    with pytest.raises(BuildError, match=r"root\.img has 8,192 bytes") as caught:
        make()
    assert caught.value.code == "image.ramdisk"


def test_archives_of_files_are_those_of_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    lying = archive([Entry(name="x", mode=0o100444, data=tmp_path / "x")])
    assert lying == archive([Entry(name="x", mode=0o100444, data=b"12345")])


def test_signing_moves_no_register_but_that_of_the_signer(make: Make, tmp_path: Path) -> None:
    before = make()
    (tmp_path / "work").mkdir()
    again = signed_parts(tmp_path / "image", tmp_path / "work", None)
    write_eif(again, tmp_path / "again.eif")
    assert measurements_of(read_enclave_image(tmp_path / "again.eif")) == before
    assert (tmp_path / "again.eif").read_bytes() == (
        tmp_path / "image" / ENCLAVE_IMAGE
    ).read_bytes()


def test_a_folder_without_an_enclave_image(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match='platform = "nitro"') as caught:
        signed_parts(tmp_path, tmp_path, None)
    assert caught.value.code == "image.folder"
