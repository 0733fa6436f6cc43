"""Disks: equal trees give equal bytes, whoever wrote them where; and differences are named."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from cloister.errors import BuildError
from cloister.image.compare import first_difference
from cloister.image.disks import FileSystem, make_disk
from cloister.image.outputs import MAX_BOOT_AND_ROOT, refuse_too_large
from cloister.image.tree import Item, Tree, list_files, normalise
from support.host_tools import HostTools

TOOLS = HostTools()
FILES = {"etc/a": b"first", "usr/bin/tool": b"program", "z": random.Random(1).randbytes(40_000)}


def tree_of(**changed: bytes) -> Tree:
    tree = Tree()
    for path, content in {**FILES, **changed}.items():
        runs = path.startswith("usr/bin")
        tree.add(path, Item(content=content, executable=runs, origin="test", why="test"))
    tree.add("link", Item(link="etc/a", origin="test", why="test"))
    tree.directories.add("proc")
    return tree


def disk_of(folder: Path, tree: Tree, fs: FileSystem, name: str = "root.img") -> Path:
    """A disk made in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tree.write(folder / "tree")
    make_disk(folder / "tree", folder / name, kind="root", file_system=fs, tools=TOOLS)
    return folder / name


@pytest.mark.parametrize("fs", FileSystem)
def test_folder_time_order_and_umask_do_not_show(tmp_path: Path, fs: FileSystem) -> None:
    first = disk_of(tmp_path / "one", tree_of(), fs)
    before = os.umask(0o077)
    try:
        other = Tree()
        for path, item in reversed(tree_of().items.items()):
            other.add(path, item)
        other.directories.add("proc")
        second = disk_of(tmp_path / "elsewhere" / "deeper", other, fs)
    finally:
        os.umask(before)
    for written in (tmp_path / "elsewhere").rglob("*"):
        if not written.is_symlink():
            os.utime(written, (10**9, 10**9))
    again = tmp_path / "again.img"
    make_disk(second.parent / "tree", again, kind="root", file_system=fs, tools=TOOLS)
    assert first.read_bytes() == second.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("fs", FileSystem)
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"z": b"other"}, "/z"),
        ({"etc/b": b"new"}, "/etc/b is in one of them only"),
        ({"usr/bin/tool": b"Program"}, "/usr/bin/tool"),
    ],
)
def test_the_first_file_that_differs_is_named(
    tmp_path: Path, fs: FileSystem, changed: dict[str, bytes], named: str
) -> None:
    disk_of(tmp_path / "ours", tree_of(), fs)
    disk_of(tmp_path / "same", tree_of(), fs)
    disk_of(tmp_path / "theirs", tree_of(**changed), fs)
    compared = (tmp_path / "ours", tmp_path / "same", ["root.img"], TOOLS)
    assert first_difference(*compared) is None
    found = first_difference(tmp_path / "ours", tmp_path / "theirs", ["root.img"], TOOLS)
    assert str(found) == f"root.img: {named}"


def test_a_mode_and_the_hash_tree_are_part_of_it(tmp_path: Path) -> None:
    ours = disk_of(tmp_path / "ours", tree_of(), FileSystem.SQUASHFS)
    theirs = disk_of(tmp_path / "theirs", tree_of(), FileSystem.SQUASHFS)
    altered = bytearray(theirs.read_bytes())
    altered[-4096 - 1] ^= 1
    theirs.write_bytes(altered)
    names = ["root.img"]
    found = first_difference(ours.parent, theirs.parent, names, TOOLS)
    assert str(found) == "root.img: its hash tree or footer"
    (theirs.parent / "tree" / "z").chmod(0o755)
    make_disk(
        theirs.parent / "tree", theirs, kind="root", file_system=FileSystem.SQUASHFS, tools=TOOLS
    )
    assert str(first_difference(ours.parent, theirs.parent, names, TOOLS)) == "root.img: /z"


def test_a_disk_that_cannot_be_read_is_a_difference_too(tmp_path: Path) -> None:
    ours = disk_of(tmp_path / "ours", tree_of(), FileSystem.SQUASHFS)
    theirs = disk_of(tmp_path / "theirs", tree_of(), FileSystem.SQUASHFS)
    assert first_difference(ours.parent, theirs.parent, ["root.img"], TOOLS) is None
    theirs.write_bytes(b"x" + theirs.read_bytes()[1:])
    found = first_difference(ours.parent, theirs.parent, ["root.img"], TOOLS)
    assert found is not None
    assert found.inside.startswith("cannot be taken apart")


def test_records_and_other_files_are_compared_too(tmp_path: Path) -> None:
    for folder, value in (("ours", 1), ("theirs", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "build.json").write_text(json.dumps({"a": 1, "b": [{"c": value}]}))
        (tmp_path / folder / "esp.img").write_bytes(bytes(5000) + bytes([value]))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert first_difference(ours, ours, ["build.json", "esp.img"], TOOLS) is None
    assert str(first_difference(ours, theirs, ["build.json"], TOOLS)) == "build.json: b[0].c"
    both = first_difference(ours, theirs, ["build.json", "esp.img"], TOOLS)
    assert str(both) == "esp.img: byte 5000"
    (theirs / "esp.img").unlink()
    assert str(first_difference(ours, theirs, ["esp.img"], TOOLS)) == "esp.img: is missing"


def test_a_tree_lists_what_counts(tmp_path: Path) -> None:
    tree_of().write(tmp_path / "tree")
    (tmp_path / "tree" / "z").chmod(0o600)
    normalise(tmp_path / "tree")
    listed = dict(list_files(tmp_path / "tree"))
    assert listed["link"] == "link etc/a"
    assert listed["proc"] == "directory"
    assert listed["z"].startswith("644 ")
    assert listed["usr/bin/tool"].startswith("755 ")


def test_an_image_that_is_too_large_is_refused(tmp_path: Path) -> None:
    for name, size in (("uki.efi", 1000), ("root.img", MAX_BOOT_AND_ROOT - 1000)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    refuse_too_large(tmp_path)
    with (tmp_path / "uki.efi").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BuildError, match="lists what is in the root"):
        refuse_too_large(tmp_path)
