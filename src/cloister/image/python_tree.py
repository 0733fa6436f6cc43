"""Cloister and the Python packages that it needs, unpacked into a root.

They lie in a virtual environment's layout, ``/opt/cloister``, so that the worker's own inspection
of its installation finds them. Wheels are unpacked as the binary distribution format says
(packaging.python.org, "Binary distribution format"), scripts left out: a sealed image is started
by its init alone.
"""

from __future__ import annotations

import base64
import hashlib
import posixpath
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from cloister.errors import BuildError
from cloister.image.lock import Wheel
from cloister.image.toolbox import Toolbox
from cloister.image.tree import Item, Tree

HOME: Final = "opt/cloister"
INTERPRETER: Final = f"/{HOME}/bin/python"
LEFT_OUT_FOLDERS: Final = frozenset({"__pycache__", "tests", "testing"})
"""``testing`` of Cloister makes simulated platforms, which a sealed worker must not have."""
LEFT_OUT_SUFFIXES: Final = (".pyc", ".pyi", ".pyx", ".pxd", ".c", ".h", ".gguf")
"""Sources of extension modules and types; the demonstration model, which goes on a model disk."""


def site_packages(python: str) -> str:
    """Where packages lie, for a Python such as ``3.11``."""
    return f"{HOME}/lib/python{python}/site-packages"


def add_environment(tree: Tree, python: str) -> None:
    """The virtual environment itself: a link to the interpreter and where that is."""
    link = Item(link=f"/usr/bin/python{python}", origin="cloister", why="starts the worker")
    tree.add(f"{HOME}/bin/python", link)
    tree.text(
        f"{HOME}/pyvenv.cfg",
        "home = /usr/bin\ninclude-system-site-packages = false\n",
        why="tells Python where its packages are",
    )


def add_wheel(tree: Tree, path: Path, wheel: Wheel, python: str) -> None:
    """Unpack a wheel. BuildError if it is none (``image.wheel``)."""
    site = site_packages(python)
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                target = _placed(name)
                if name.endswith("/") or target is None or _left_out(target):
                    continue
                item = Item(
                    content=archive.read(name),
                    origin=wheel.name,
                    why=f"Python package {wheel.name}",
                )
                tree.add(f"{site}/{target}", item)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise BuildError(
            f"{wheel.filename} is no wheel that can be unpacked ({type(error).__name__})",
            code="image.wheel",
        ) from None


def _placed(name: str) -> str | None:
    """Where a wheel's file goes below site-packages; None if it stays out."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError("a path leads outside")
    first, _, rest = name.partition("/")
    if first.endswith(".data"):
        kind, _, inner = rest.partition("/")
        return inner if kind in {"purelib", "platlib"} else None
    return name


def add_cloister(tree: Tree, python: str, source: Path | None = None) -> None:
    """This Cloister: its sources, and metadata that names its version."""
    root = cloister_source() if source is None else source
    site = site_packages(python)
    paths = []
    for relative in source_files(root):
        paths.append(f"cloister/{relative}")
        content = (root / relative).read_bytes()
        item = Item(content=content, origin="cloister", why="Cloister")
        tree.add(f"{site}/cloister/{relative}", item)
    number = version("cloister")
    folder = f"cloister-{number}.dist-info"
    tree.text(
        f"{site}/{folder}/METADATA",
        f"Metadata-Version: 2.1\nName: cloister\nVersion: {number}\n",
        why="says which version of Cloister this is",
    )
    paths.append(f"{folder}/METADATA")
    record = "".join(_recorded(tree, site, path) for path in paths) + f"{folder}/RECORD,,\n"
    tree.text(f"{site}/{folder}/RECORD", record, why="lists Cloister's files")


def cloister_source() -> Path:
    """The directory of this Cloister's sources."""
    return Path(__file__).parents[1]


def source_files(root: Path) -> Iterator[str]:
    """What goes into an image of the sources in `root`, by relative path, sorted."""
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root).as_posix()
        if path.is_file() and not _left_out(relative) and not relative.startswith("image/locks/"):
            yield relative


def _recorded(tree: Tree, site: str, path: str) -> str:
    content = tree.items[f"{site}/{path}"].content
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(content)}\n"


def _left_out(path: str) -> bool:
    folders = posixpath.dirname(path).split("/")
    return not LEFT_OUT_FOLDERS.isdisjoint(folders) or path.endswith(LEFT_OUT_SUFFIXES)


def compile_bytecode(root: Path, python: str, folders: Sequence[str]) -> None:
    """Compile all modules below `folders` with the root's own interpreter.

    The bytecode names the hash of its source and is not compared with it at run time (PEP 552,
    unchecked): both lie on the same verified disk, and starting stays quick. One process, files in
    order and a fixed hash seed, because the order in which objects are met shows in the bytes.
    """
    command = (f"/usr/bin/python{python}", "-S", "-c", _COMPILE, *(f"/{one}" for one in folders))
    Toolbox(tree=root).run(command, writes={"root": root}, environment={"PYTHONHASHSEED": "0"})


_COMPILE: Final = """
import os, py_compile, sys
for top in sys.argv[1:]:
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                try:
                    py_compile.compile(
                        "/build/root" + path, dfile=path, doraise=True, quiet=1,
                        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
                except py_compile.PyCompileError:
                    pass  # templates that only look like modules
"""
