"""The hash tree behind a disk, against cryptsetup's own where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cloister.errors import BuildError, MalformedError
from cloister.image.footer import BLOCK
from cloister.image.verity import PER_BLOCK, SALT, read_footer, root_hash_of, seal_disk

# One block; one and a bit; exactly one block of hashes; one more; three levels.
SIZES = (1, BLOCK, BLOCK + 1, PER_BLOCK * BLOCK, (PER_BLOCK + 1) * BLOCK, 300 * BLOCK + 5)


def disk_of(path: Path, size: int) -> Path:
    path.write_bytes((b"%09d" % size) * (size // 9) + b"x" * (size % 9))
    return path


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sealed_is_found_again(tmp_path: Path, size: int) -> None:
    disk = disk_of(tmp_path / "disk", size)
    footer = seal_disk(disk, kind="root", fs="squashfs")
    assert read_footer(disk) == footer
    assert root_hash_of(disk, footer.data_blocks) == footer.root_hash
    assert disk.stat().st_size % BLOCK == 0


@pytest.mark.parametrize("size", SIZES)
def test_the_tree_is_the_one_that_cryptsetup_makes(tmp_path: Path, size: int) -> None:
    if shutil.which("veritysetup") is None:
        pytest.skip("needs veritysetup (Debian: cryptsetup-bin)")
    disk = disk_of(tmp_path / "disk", size)
    footer = seal_disk(disk, kind="root", fs="squashfs")
    sealed = disk.read_bytes()
    other = tmp_path / "other"
    other.write_bytes(sealed[: footer.data_blocks * BLOCK])
    told = subprocess.run(
        [
            *("veritysetup", "format", other, other, "--no-superblock", "--hash=sha256"),
            *("--data-block-size=4096", "--hash-block-size=4096"),
            f"--data-blocks={footer.data_blocks}",
            f"--hash-offset={footer.data_blocks * BLOCK}",
            f"--salt={SALT.hex()}",
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert re.search(r"Root hash:\s+(\w+)", told)[1] == footer.root_hash  # type: ignore[index]
    assert other.read_bytes() == sealed[:-BLOCK]


def test_one_byte_changes_the_root_hash(tmp_path: Path) -> None:
    disk = disk_of(tmp_path / "disk", 5 * BLOCK)
    footer = seal_disk(disk, kind="model", fs="erofs")
    altered = bytearray(disk.read_bytes())
    altered[3 * BLOCK + 7] ^= 1
    disk.write_bytes(altered)
    assert root_hash_of(disk, footer.data_blocks) != footer.root_hash


def test_nothing_and_no_disk_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    with pytest.raises(BuildError, match="nothing to seal"):
        seal_disk(empty, kind="root", fs="squashfs")
    with pytest.raises(BuildError, match="cannot be read"):
        read_footer(empty)
    empty.write_bytes(bytes(2 * BLOCK))
    with pytest.raises(MalformedError):
        read_footer(empty)
