"""The root: which files of which packages are in it, and why.

Packages bring thousands of files that a sealed worker has no use for, a shell among their
dependencies. So the image names what it takes: a few programs, the interpreter and its standard
library. Libraries follow from what these need (`elf`); nothing else comes along.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import BuildError
from cloister.image.deb import PackagedFile, files_of, merged
from cloister.image.elf import is_elf, needs_of
from cloister.image.tree import Item, Tree

LIBRARIES: Final = ("usr/lib/x86_64-linux-gnu/", "usr/lib64/")
"""Where Debian's loader looks without being told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Files that the root takes by name."""

    paths: tuple[str, ...]
    """Patterns as in fnmatch(3); ``*`` crosses directories."""
    why: str


CHOSEN: Final = (
    Choice(paths=("usr/bin/python3.11",), why="runs the worker"),
    Choice(paths=("usr/lib/python3.11/*",), why="Python's standard library"),
    Choice(paths=("usr/sbin/nft",), why="loads the network rules"),
    Choice(paths=("usr/bin/bwrap",), why="confines the engine"),
)

LEFT_OUT: Final = (
    # Tests, editors, installers, graphics.
    *(f"usr/lib/python3.11/{name}/*" for name in (
        "test", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "distutils",
        "pydoc_data", "curses", "dbm", "sqlite3", "config-3.11-x86_64-linux-gnu", "__pycache__",
    )),
    "*/__pycache__/*",
    "usr/lib/python3.11/pydoc.py",
    "usr/lib/python3.11/turtle.py",
    "usr/lib/python3.11/sitecustomize.py",
    "usr/lib/python3.11/LICENSE.txt",
    # Extension modules that would bring a terminal, databases and name services along.
    *(f"usr/lib/python3.11/lib-dynload/{name}.cpython-*" for name in (
        "_crypt", "_curses", "_curses_panel", "_dbm", "_sqlite3", "_test*", "_ctypes_test",
        "_xx*", "audioop", "nis", "ossaudiodev", "readline", "xx*", "_tkinter",
    )),
)  # fmt: skip
"""Patterns of chosen files that stay out all the same."""

FORBIDDEN: Final = frozenset(
    {"sh", "bash", "dash", "ash", "zsh", "busybox", "perl", "apt", "apt-get", "dpkg", "rpm", "pip"}
    | {"pip3", "sshd", "ssh", "login", "getty", "agetty", "su", "sudo", "mount", "insmod"}
    | {"modprobe", "kexec", "gcc", "cc", "ld", "curl", "wget", "nc", "dhclient"}
)
"""Programs whose presence would make the image something else."""

FIXED: Final[tuple[tuple[str, str, str], ...]] = (
    ("etc/passwd", "root:x:0:0::/run:/nonexistent\nworker:x:990:990::/run:/nonexistent\n",
     "names of users; none can log in"),
    ("etc/group", "root:x:0:\nworker:x:990:\n", "names of groups"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", "the only name that has an address"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n", "nothing asks a network"),
)  # fmt: skip

LINKS: Final = {
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "tmp": "run",
    "usr/bin/python3": "python3.11",
}
MOUNT_POINTS: Final = ("proc", "sys", "dev", "run", "application", "model")
"""Where init mounts what is not in the root. Writable is only ``/run``, which is memory."""


def choose(packages: Mapping[str, Path]) -> tuple[Tree, Mapping[str, tuple[PackagedFile, str]]]:
    """The root's chosen files, and every library that packages could add, by path.

    `packages` are the ``.deb`` files by package name.
    """
    tree = Tree()
    libraries: dict[str, tuple[PackagedFile, str]] = {}
    for name, path in packages.items():
        for file in files_of(path):
            choice = next((one for one in CHOSEN if _matches(file.path, one.paths)), None)
            if choice is not None and not _matches(file.path, LEFT_OUT):
                tree.add(file.path, _item(file, name, choice.why))
            elif file.path.startswith(LIBRARIES):
                libraries[file.path] = (file, name)
    for choice in CHOSEN:
        if not any(_matches(path, choice.paths) for path in tree.items):
            raise BuildError(
                f"no locked package has {choice.paths[0]}: resolve anew with `cloister image lock`",
                code="image.root",
            )
    return tree, libraries


def furnish(tree: Tree) -> None:
    """Add what no package brings: links of a merged system, users, mount points."""
    for path, content, why in FIXED:
        tree.text(path, content, why=why)
    for path, target in LINKS.items():
        tree.add(path, Item(link=target, origin="cloister", why="a merged system's layout"))
    tree.directories |= set(MOUNT_POINTS)


def close(tree: Tree, libraries: Mapping[str, tuple[PackagedFile, str]]) -> None:
    """Add the libraries that the tree's programs and libraries need, and those that these need.

    Raises BuildError if one is in no package.
    """
    pending = [path for path, item in tree.items.items() if is_elf(item.content)]
    while pending:
        path = pending.pop()
        item = tree.items[path]
        if item.link is not None or not is_elf(item.content):
            continue
        needs = needs_of(item.content, f"/{path}")
        for name in needs.libraries:
            if not any(known.endswith(f"/{name}") for known in tree.items):
                places = [folder + name for folder in LIBRARIES]
                pending += _add_library(tree, libraries, places, needed_by=path)
        if needs.interpreter is not None:
            places = [merged(needs.interpreter)]
            pending += _add_library(tree, libraries, places, needed_by=path)


def _add_library(
    tree: Tree,
    libraries: Mapping[str, tuple[PackagedFile, str]],
    places: Sequence[str],
    *,
    needed_by: str,
) -> list[str]:
    """Add the library at one of `places` and the file behind its link; the paths that are new."""
    found = next((place for place in places if place in libraries), None)
    if found is None:
        name = posixpath.basename(places[0])
        raise BuildError(
            f"/{needed_by} needs {name}, which no locked package brings", code="image.library"
        )
    added = []
    while found is not None and found not in tree.items:
        file, package = libraries[found]
        tree.add(found, _item(file, package, f"needed by /{needed_by}"))
        added.append(found)
        found = _behind(found, file.link)
    return added


def _behind(path: str, link: str | None) -> str | None:
    """Where a library's link leads, in a merged system."""
    if link is None:
        return None
    if link.startswith("/"):
        return merged(link)
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def refuse_forbidden(paths: Iterable[str]) -> None:
    """Raise BuildError if a shell, package manager or the like is among `paths`."""
    found = sorted(path for path in paths if posixpath.basename(path) in FORBIDDEN)
    if found:
        raise BuildError(
            f"the root would hold /{found[0]}, which a sealed image must not", code="image.root"
        )


def _item(file: PackagedFile, package: str, why: str) -> Item:
    return Item(
        content=file.content, executable=file.executable, link=file.link, origin=package, why=why
    )


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
