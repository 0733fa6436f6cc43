"""A whole image, built twice by different users in different folders: the same bytes.

Long (some minutes) and from the network the first time: `make image-check`. The everyday run has
the same for small trees (`tests/unit/image/test_disks.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.cli.image_build import work_directory
from cloister.image.compare import first_difference
from cloister.image.disks import FileSystem, unpack_disk
from cloister.image.outputs import MAX_BOOT_AND_ROOT
from cloister.image.system_tree import FORBIDDEN
from cloister.image.tree import list_files
from cloister.image.verity import read_footer, root_hash_of
from support.host_tools import HostTools

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

NOBODY = 65534
CONFIGURATION = """
configuration = 1
name = "demo"
version = "1"
[[model]]
name = "demo"
file = "demo"
[engine]
context = 512
[network]
listen = [8440]
"""


def built(folder: Path, store: Path, *, user: int | None) -> Path:
    """Build in `folder` as `user`, with packages from `store`; the image's folder."""
    work = folder / "work"
    work.mkdir(parents=True)
    (folder / "image.toml").write_text(CONFIGURATION)
    (work / "store").symlink_to(store)
    command = [str(Path(sys.executable).parent / "cloister"), "image", "build", "image.toml"]
    command += ["--out", "image", "--work", "work"]
    if user is not None:
        folder.parent.chmod(0o755)
        for path in (folder, work, folder / "image.toml"):
            os.chown(path, user, user)
        command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        env={**os.environ, "HOME": str(folder), "TZ": "Asia/Tokyo" if user else "UTC"},
        umask=0o077 if user else 0o022,
    )
    assert done.returncode == 0, done.stderr
    return folder / "image"


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A folder that another user can enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="cloister-images-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def images(base: Path) -> tuple[Path, Path]:
    """Two builds. The packages are fetched once, into the cache that other builds share."""
    if shutil.which("bwrap") is None:
        pytest.skip("needs bubblewrap")
    store = work_directory() / "store"
    store.mkdir(parents=True, exist_ok=True)
    first = built(base / "one", store, user=None)
    time.sleep(2)  # another second in every time stamp
    copy = base / "packages"
    shutil.copytree(store, copy)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    other = NOBODY if os.geteuid() == 0 and shutil.which("setpriv") else None
    second = built(base / "elsewhere" / "deeper", copy, user=other)
    return first, second


def test_two_builds_are_equal_byte_for_byte(images: tuple[Path, Path]) -> None:
    first, second = images
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert {"root.img", "application.img", "model.img", "uki.efi", "esp.img"} <= set(names)
    assert first_difference(first, second, names, HostTools()) is None


def test_the_image_is_small_and_each_disk_is_what_its_footer_says(
    images: tuple[Path, Path],
) -> None:
    image = images[0]
    assert sum((image / n).stat().st_size for n in ("uki.efi", "root.img")) <= MAX_BOOT_AND_ROOT
    for name in ("root.img", "application.img", "model.img"):
        footer = read_footer(image / name)
        assert footer.kind == name.removesuffix(".img")
        assert root_hash_of(image / name, footer.data_blocks) == footer.root_hash
    assert read_footer(image / "root.img").argument().encode() in (image / "uki.efi").read_bytes()


def test_the_root_holds_what_is_listed_and_no_shell(
    images: tuple[Path, Path], tmp_path: Path
) -> None:
    image = images[0]
    unpack_disk(image / "root.img", tmp_path / "root", FileSystem.SQUASHFS, HostTools())
    found = {name for name, what in list_files(tmp_path / "root") if what != "directory"}
    listed = {one["path"] for one in json.loads((image / "contents.json").read_text())["files"]}
    compiled = {name for name in found - listed if name.endswith(".pyc")}
    assert found == listed | compiled
    assert not {Path(name).name for name in found} & FORBIDDEN
    programs = {name for name in found if name.startswith(("usr/bin/", "usr/sbin/"))}
    assert programs == {
        "usr/bin/python3",
        "usr/bin/python3.11",
        "usr/bin/bwrap",
        "usr/sbin/nft",
    }


def test_check_finds_the_one_byte_that_somebody_changed(images: tuple[Path, Path]) -> None:
    first, second = images
    altered = second.parent / "altered"
    shutil.copytree(second, altered)
    disk = bytearray((altered / "application.img").read_bytes())
    disk[100] ^= 1
    (altered / "application.img").write_bytes(disk)
    names = sorted(path.name for path in first.iterdir())
    found = first_difference(first, altered, names, HostTools())
    assert found is not None
    assert found.file == "application.img"
