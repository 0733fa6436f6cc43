"""The root: what is taken out of packages, what that needs, and what must not be there."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

from cloister.errors import BuildError
from cloister.image import system_tree
from cloister.image.deb import files_of, merged
from cloister.image.elf import is_elf, needs_of
from cloister.image.tree import Item, Tree
from support.debian_packages import deb

PROGRAM = Path("/bin/ls").resolve()


def test_a_package_is_read_without_its_scripts(tmp_path: Path) -> None:
    package = deb(
        tmp_path / "x.deb",
        {"./usr/bin/tool": b"program", "./lib/data": b"data"},
        {"./lib64/ld.so": "/lib/ld.so"},
    )
    found = {file.path: file for file in files_of(package)}
    assert found.keys() == {"usr/bin/tool", "usr/lib/data", "usr/lib64/ld.so"}
    assert found["usr/bin/tool"].content == b"program"
    assert found["usr/lib64/ld.so"].link == "/lib/ld.so"


def test_a_package_cannot_lead_outside(tmp_path: Path) -> None:
    deb(tmp_path / "good.deb", {"./etc/x": b""})
    assert list(files_of(tmp_path / "good.deb"))
    with pytest.raises(BuildError):
        list(files_of(deb(tmp_path / "bad.deb", {"../../etc/x": b""})))
    with pytest.raises(ValueError, match="outside"):
        merged("usr/../../x")


@pytest.mark.parametrize("fault", ["cut", "zst", "none", "magic"])
def test_what_is_no_package_is_refused(tmp_path: Path, fault: str) -> None:
    assert list(files_of(deb(tmp_path / "good.deb", {"./a": b"a"})))
    package = deb(tmp_path / "x.deb", {"./a": b"a"}, data="zst" if fault == "zst" else "xz")
    if fault == "magic":
        package.write_bytes(package.read_bytes().replace(b"!<arch>", b"!<thin>"))
    if fault == "cut":
        package.write_bytes(package.read_bytes()[:-30])
    if fault == "none":
        package.write_bytes(b"not a package")
    with pytest.raises(BuildError, match="no Debian package that can be read"):
        list(files_of(package))


@pytest.mark.timeout(30)
def test_a_member_that_ends_before_it_begins(tmp_path: Path) -> None:
    """A size below zero must not lead back to the same member for ever."""
    package = deb(tmp_path / "x.deb", {"./a": b"a"})
    assert list(files_of(package))
    data = package.read_bytes()
    package.write_bytes(data.replace(f"{4:<10}`".encode(), f"{-60:<10}`".encode(), 1))
    with pytest.raises(BuildError, match="no Debian package that can be read"):
        list(files_of(package))


def test_a_hard_link_to_nothing(tmp_path: Path) -> None:
    def linked(target: str) -> Path:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("./a"))
            link = tarfile.TarInfo("./b")
            link.type, link.linkname = tarfile.LNKTYPE, target
            archive.addfile(link)
        content = packed.getvalue()
        head = f"{'data.tar':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        path = tmp_path / "x.deb"
        path.write_bytes(b"!<arch>\n" + head + content)
        return path

    assert [file.path for file in files_of(linked("./a"))] == ["a", "b"]
    with pytest.raises(BuildError, match="no Debian package that can be read"):
        list(files_of(linked("./missing")))


@pytest.mark.skipif(sys.platform != "linux", reason="reads a program of this machine")
def test_a_broken_program_is_refused_as_one() -> None:
    """Whatever one byte of its tables says."""
    content = PROGRAM.read_bytes()
    offset, count = int.from_bytes(content[32:40], "little"), content[56]
    assert needs_of(content, "ls").libraries
    refused = 0
    for at in range(16, offset + 56 * count):
        for byte in (0, 1, 0x80, 0xFF):
            broken = content[:at] + bytes([byte]) + content[at + 1 : 1 << 16]
            try:
                needs_of(broken, "ls")
            except BuildError as error:
                refused += error.code == "image.elf"
    assert refused


@pytest.mark.skipif(sys.platform != "linux", reason="reads a program of this machine")
def test_a_program_names_its_libraries_and_loader() -> None:
    content = PROGRAM.read_bytes()
    assert is_elf(content)
    needs = needs_of(content, "ls")
    assert "libc.so.6" in needs.libraries
    assert needs.interpreter is not None
    with pytest.raises(BuildError, match="broken"):
        needs_of(content[:2000], "ls")


def root_of(*paths: str) -> Tree:
    tree = Tree()
    for path in paths:
        tree.add(path, Item(content=b"x", origin="test", why="test"))
    return tree


@pytest.mark.parametrize("name", ["usr/bin/sh", "usr/bin/dash", "usr/bin/apt", "usr/sbin/sshd"])
def test_a_root_with_a_shell_is_refused(name: str) -> None:
    system_tree.refuse_forbidden(root_of("usr/bin/python3.11").items)
    with pytest.raises(BuildError, match="must not"):
        system_tree.refuse_forbidden(root_of("usr/bin/python3.11", name).items)


def test_a_missing_library_is_named() -> None:
    tree = Tree()
    content = PROGRAM.read_bytes()
    tree.add("usr/bin/ls", Item(content=content, executable=True, origin="coreutils", why="test"))
    with pytest.raises(BuildError, match="/usr/bin/ls needs"):
        system_tree.close(tree, {})


def test_two_packages_must_not_bring_one_file() -> None:
    tree = root_of("a")
    tree.add("a", Item(content=b"x", origin="same content", why="test"))
    with pytest.raises(BuildError, match="comes from"):
        tree.add("a", Item(content=b"y", origin="other", why="test"))
