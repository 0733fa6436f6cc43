"""Trees made of locked packages: the build's own programs, and what a machine boots from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import BuildError
from cloister.image.deb import files_of
from cloister.image.toolbox import MOUNT_POINTS
from cloister.image.tree import Item, Tree

MERGED_LINKS: Final = {name: f"usr/{name}" for name in ("bin", "lib", "lib64", "sbin")}
STUB: Final = "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
_BOOT_FOLDERS: Final = ("boot/", "usr/lib/modules/")
_UNUSED_BY_TOOLS: Final = ("usr/share/", "etc/", "var/")


def tools_tree(packages: Mapping[str, Path]) -> Tree:
    """The programs that a build runs, in a tree that `cloister.image.toolbox` can enter."""
    tree = Tree()
    for name, path in packages.items():
        for file in files_of(path):
            if not file.path.startswith(_UNUSED_BY_TOOLS):
                item = Item(
                    content=file.content,
                    executable=file.executable,
                    link=file.link,
                    origin=name,
                    why="builds the image",
                )
                tree.items.setdefault(file.path, item)
    for link, target in MERGED_LINKS.items():
        tree.items[link] = Item(link=target, origin="cloister", why="a merged system's layout")
    # The package's own link comes from a script of its.
    tree.items.setdefault(
        "usr/bin/sh", Item(link="dash", origin="dash", why="musl-gcc is a script")
    )
    tree.directories |= set(MOUNT_POINTS)
    return tree


def boot_tree(packages: Mapping[str, Path]) -> Tree:
    """Kernel, modules and stub."""
    tree = Tree()
    for name, path in packages.items():
        for file in files_of(path):
            if file.link is None and (file.path == STUB or file.path.startswith(_BOOT_FOLDERS)):
                item = Item(content=file.content, origin=name, why="boots the image")
                tree.add(file.path, item)
    return tree


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFiles:
    """Where the parts of a boot image lie in an unpacked `boot_tree`."""

    kernel: Path
    modules: Path
    """``…/modules/<version>``."""
    stub: Path

    @classmethod
    def find(cls, tree: Path) -> BootFiles:
        """BuildError unless there is exactly one kernel with its modules, and the stub."""
        return cls(
            kernel=_only((tree / "boot").glob("vmlinuz-*"), "kernel"),
            modules=_only((tree / "usr/lib/modules").glob("*"), "folder of modules"),
            stub=_only(iter([tree / STUB]), "stub"),
        )


def _only(found: Iterable[Path], what: str) -> Path:
    paths = [path for path in found if path.exists()]
    if len(paths) != 1:
        raise BuildError(
            f"the locked packages hold {len(paths)} of what an image has one of: a {what}",
            code="image.boot",
        )
    return paths[0]
