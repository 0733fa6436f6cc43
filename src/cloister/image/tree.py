"""A directory tree as it will be in an image: each file with where it is from and why it is there.

Trees are made in memory first, so that what is left out never lies on a disk, and written with
modes that do not depend on the builder: 0755 for directories and programs, 0644 for files.
"""

from __future__ import annotations

import hashlib
import posixpath
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.errors import BuildError
from cloister.strictjson import JsonObject

DIRECTORY_MODE: Final = 0o755
PROGRAM_MODE: Final = 0o755
FILE_MODE: Final = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file or symbolic link of a tree."""

    content: bytes = field(default=b"", repr=False)
    executable: bool = False
    link: str | None = None
    origin: str
    """The package that it is from, or ``cloister``."""
    why: str
    """What the image needs it for."""


class Tree:
    """Files and links by path (no leading slash), and directories that stay empty."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.directories: set[str] = set()

    def add(self, path: str, item: Item) -> None:
        """Put a file in; BuildError if another is there already."""
        known = self.items.get(path)
        if known is not None and (known.content, known.link) != (item.content, item.link):
            raise BuildError(
                f"/{path} comes from {known.origin} and from {item.origin}", code="image.tree"
            )
        self.items[path] = item

    def text(self, path: str, content: str, *, why: str) -> None:
        """Put a text of our own in."""
        self.add(path, Item(content=content.encode(), origin="cloister", why=why))

    def resolve(self, path: str) -> str | None:
        """The path of the file behind `path`, through links to files; None if there is none."""
        for _ in range(8):
            item = self.items.get(path)
            if item is None or item.link is None:
                return path if item is not None else None
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), item.link))
            path = path.lstrip("/")
        return None

    def write(self, target: Path) -> None:
        """Write the tree into the new directory `target`."""
        target.mkdir(parents=True)
        target.chmod(DIRECTORY_MODE)
        for folder in sorted({*self.directories, *self._folders()}):
            path = target / folder
            path.mkdir()
            path.chmod(DIRECTORY_MODE)
        for name, item in self.items.items():
            path = target / name
            if item.link is not None:
                path.symlink_to(item.link)
                continue
            path.write_bytes(item.content)
            path.chmod(PROGRAM_MODE if item.executable else FILE_MODE)

    def _folders(self) -> Iterator[str]:
        for path in [*self.items, *self.directories]:
            folder = posixpath.dirname(path)
            while folder:
                yield folder
                folder = posixpath.dirname(folder)


def normalise(directory: Path) -> None:
    """Give everything below `directory` the modes above, whoever wrote it with which umask."""
    for path in [directory, *directory.rglob("*")]:
        if path.is_symlink():
            continue
        if path.is_dir():
            path.chmod(DIRECTORY_MODE)
        else:
            path.chmod(PROGRAM_MODE if path.stat().st_mode & 0o100 else FILE_MODE)


def list_files(directory: Path) -> Iterator[tuple[str, str]]:
    """Each file and link below `directory` with what it is, sorted by path.

    A file is ``<mode> <sha256>``, a link ``link <target>``, a directory ``directory``: two trees
    with equal lists give equal images.
    """
    for path in sorted(directory.rglob("*"), key=lambda path: path.relative_to(directory).parts):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            yield name, f"link {path.readlink()}"
        elif path.is_dir():
            yield name, "directory"
        else:
            mode = "755" if path.stat().st_mode & 0o100 else "644"
            with path.open("rb") as opened:
                yield name, f"{mode} {hashlib.file_digest(opened, 'sha256').hexdigest()}"


def tree_digest(directory: Path) -> str:
    """One digest for all of `list_files`."""
    lines = "".join(f"{what}  {name}\n" for name, what in list_files(directory))
    return hashlib.sha256(lines.encode()).hexdigest()


def contents_json(tree: Tree) -> list[JsonObject]:
    """Every file with its size, its origin and its reason, sorted by path."""
    return [
        {"path": path, "size": len(item.content), "origin": item.origin, "why": item.why}
        for path, item in sorted(tree.items.items())
    ]


def remove(directory: Path) -> None:
    """Remove a tree of ours if it is there."""
    shutil.rmtree(directory, ignore_errors=True)
