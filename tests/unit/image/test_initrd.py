"""The initial RAM disk and the order of the modules in it."""

from __future__ import annotations

import io
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from cloister.errors import BuildError
from cloister.image.initrd import build_initrd
from cloister.image.modules import Module, read_module, select_modules

SIGNED = b"~Module signature appended~\n"


def module_file(depends: str, *, signed: bool = True) -> bytes:
    """An ELF file with a section ``.modinfo`` and one of names, and nothing else."""
    names = b"\0.modinfo\0.shstrtab\0"
    info = b"license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
    table = 64 + len(names) + len(info)
    header = b"\x7fELF\x02\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = [(0, 0, 0), (1, 64 + len(names), len(info)), (10, 64, len(names))]
    content = header + names + info
    for name, offset, size in sections:
        content += struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size).ljust(64, b"\0")
    return content + (SIGNED if signed else b"")


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    for name, depends in {
        "virtio": "",
        "virtio-pci": "virtio,virtio-ring",
        "virtio-ring": "virtio",
        "dm-verity": "dm-mod",
        "dm-mod": "",
        "unused": "",
    }.items():
        path = tmp_path / "kernel" / name[:2] / f"{name}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(module_file(depends))
    return tmp_path


def test_what_a_module_needs_comes_before_it(kernel: Path) -> None:
    chosen = select_modules(kernel, ("virtio_pci", "dm_verity", "virtio", "built_in"))
    assert [one.name for one in chosen] == [
        "virtio",
        "virtio_ring",
        "virtio_pci",
        "dm_mod",
        "dm_verity",
    ]


def test_one_that_is_missing(kernel: Path) -> None:
    assert select_modules(kernel, ("virtio_pci",))
    (kernel / "kernel" / "vi" / "virtio-ring.ko").unlink()
    with pytest.raises(BuildError, match="needs virtio_ring"):
        select_modules(kernel, ("virtio_pci",))


def test_two_that_need_one_another(kernel: Path) -> None:
    (kernel / "kernel" / "vi" / "virtio.ko").write_bytes(module_file("virtio_pci"))
    with pytest.raises(BuildError, match="in turn"):
        select_modules(kernel, ("virtio_pci",))


def test_one_without_a_signature(kernel: Path) -> None:
    assert select_modules(kernel, ("unused",))
    (kernel / "kernel" / "un" / "unused.ko").write_bytes(module_file("", signed=False))
    with pytest.raises(BuildError, match="not signed"):
        select_modules(kernel, ("unused",))
    assert select_modules(kernel, ("unused",), unsigned=True)


def test_packed_modules_go_unpacked(kernel: Path) -> None:
    """Newer kernels pack theirs; the signature is behind what was packed."""
    plain = kernel / "kernel" / "vi" / "virtio.ko"
    packed = plain.with_suffix(".ko.xz")
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    expected = plain.read_bytes()
    plain.unlink()
    chosen = select_modules(kernel, ("virtio_pci",))
    assert chosen[0].name == "virtio"
    assert chosen[0].data == expected

    whole = packed.read_bytes()
    for broken in (whole[:-1], whole + b"x", b"no xz", b""):
        packed.write_bytes(broken)
        with pytest.raises(BuildError, match="does not unpack") as caught:
            select_modules(kernel, ("virtio_pci",))
        assert caught.value.code == "image.module"


def test_a_module_that_unpacks_without_end(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = kernel / "kernel" / "vi" / "virtio.ko"
    plain.with_suffix(".ko.xz").write_bytes(lzma.compress(plain.read_bytes()))
    size = len(plain.read_bytes())
    plain.unlink()
    monkeypatch.setattr("cloister.image.modules.MAX_MODULE_BYTES", size + 1)
    assert select_modules(kernel, ("virtio",))
    monkeypatch.setattr("cloister.image.modules.MAX_MODULE_BYTES", size - 1)
    with pytest.raises(BuildError, match="does not unpack"):
        select_modules(kernel, ("virtio",))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF",
        module_file("")[:70],
        b"x" * 4096,
        module_file("")[:40] + b"\xff" * 8 + module_file("")[48:],
    ],
    ids=["empty", "magic", "cut", "text", "far table"],
)
def test_what_is_no_module(data: bytes) -> None:
    assert read_module("x", module_file("a,b-c")).depends == ("a", "b_c")
    with pytest.raises(BuildError) as caught:
        read_module("x", data)
    assert caught.value.code == "image.module"


MODULES = tuple(
    Module(name=name, data=name.encode() * 7, depends=()) for name in ("zz_first", "aa_second")
)


def test_the_archive_is_read_by_cpio(tmp_path: Path) -> None:
    program = shutil.which("cpio")
    if program is None:
        pytest.skip("cpio is not installed")
    archive = build_initrd(b"\x7fELF init", MODULES, command_line="quiet")
    subprocess.run(
        [program, "-id", "--quiet", "--no-absolute-filenames", "--nonmatching", "dev/console"],
        input=archive,
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "init").read_bytes() == b"\x7fELF init"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "modules/list").read_text() == "00-zz_first.ko\n01-aa_second.ko\n"
    assert (tmp_path / "modules/01-aa_second.ko").read_bytes() == b"aa_second" * 7
    assert (tmp_path / "etc/cmdline").read_text() == "quiet\n"


def records(archive: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """Name, mode, content and device of every record, by the format's description."""
    found: list[tuple[str, int, bytes, tuple[int, int]]] = []
    stream = io.BytesIO(archive)
    while True:
        head = stream.read(110)
        assert head[:6] == b"070701"
        fields = [int(head[at : at + 8], 16) for at in range(6, 110, 8)]
        name = stream.read(fields[11])[:-1].decode()
        stream.seek(-stream.tell() % 4, 1)
        data = stream.read(fields[6])
        stream.seek(-stream.tell() % 4, 1)
        if name == "TRAILER!!!":
            return found
        assert fields[2] == fields[3] == fields[5] == 0  # owner, group, time
        found.append((name, fields[1], data, (fields[9], fields[10])))


def test_the_archive_holds_the_init_the_modules_and_nothing_else() -> None:
    archive = build_initrd(b"init", MODULES)
    found = records(archive)
    assert [name for name, *_ in found] == [
        "dev",
        "dev/console",
        "init",
        "modules",
        "modules/00-zz_first.ko",
        "modules/01-aa_second.ko",
        "modules/list",
    ]
    assert next(device for name, _, _, device in found if name == "dev/console") == (5, 1)
    assert len(archive) % 512 == 0
    assert archive == build_initrd(b"init", MODULES)
    assert archive != build_initrd(b"init", MODULES[::-1])
