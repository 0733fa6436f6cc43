"""Limits for all processes of a sandbox together, by Linux control groups.

Used where this process may make groups below its own: version 2 with the controllers delegated
(systemd: ``Delegate=yes`` with ``DelegateSubgroup=``), or version 1 as root. Elsewhere there is no
group, and only the limits remain that need none. A limit protects the machine, and so whether
others are served; it is not part of what is measured.

Linux ``Documentation/admin-guide/cgroup-v2.rst`` and ``cgroup-v1/{memory,pids}.rst``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
OWN: Final = Path("/proc/self/cgroup")

#: Goes into the groups, then becomes the command: everything that it starts is in them.
_ENTER: Final = (
    "import os, sys\n"
    "at = sys.argv.index('--')\n"
    "for path in sys.argv[1:at]:\n"
    "    with open(path, 'w') as file:\n"
    "        file.write('0')\n"
    "os.execv(sys.argv[at + 1], sys.argv[at + 1:])\n"
)


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """One group, or one of each controller (version 1)."""

    folders: tuple[Path, ...]

    @classmethod
    def make(
        cls, *, memory: int, processes: int, root: Path = ROOT, own: Path = OWN
    ) -> ControlGroup | None:
        """Make a group with these limits (bytes, count; 0 for none), or None where that is not
        allowed or nothing is limited.
        """
        wanted = {"memory": memory, "pids": processes}
        wanted = {controller: limit for controller, limit in wanted.items() if limit}
        if not wanted:
            return None
        name = f"cloister-{os.getpid()}-{secrets.token_hex(8)}"
        places = dict(_places(own))
        if "" in places and (group := _version_2(root, places[""], name, wanted)) is not None:
            return group
        return _version_1(root, places, name, wanted)

    def enter(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` inside the group."""
        entries = [str(folder / "cgroup.procs") for folder in self.folders]
        # Bytecode beside the standard library was not measured, and is not read.
        flags = ("-I", "-S", "-B", "-X", "pycache_prefix=/nonexistent")
        return [sys.executable, *flags, "-c", _ENTER, *entries, "--", *command]

    def remove(self) -> None:
        """Remove it; whatever ran in it has to have ended."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _places(own: Path) -> Iterator[tuple[str, str]]:
    """This process's group for each controller; ``""`` stands for version 2."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path.lstrip("/")


def _version_2(root: Path, path: str, name: str, wanted: dict[str, int]) -> ControlGroup | None:
    files = {"memory": ("memory.max", "memory.swap.max"), "pids": ("pids.max",)}
    place = root / path
    # A group with processes may hand no controller down, so the one above is tried as well.
    for parent in (place, place.parent):
        folder = parent / name
        if not (parent / "cgroup.procs").exists() or not _make(folder):
            continue
        if _limit(
            folder,
            {file: limit for key, limit in wanted.items() for file in files[key][:1]},
        ):
            if "memory" in wanted:
                _limit(folder, {files["memory"][1]: 0})
            return ControlGroup((folder,))
        with contextlib.suppress(OSError):
            folder.rmdir()
    return None


def _version_1(
    root: Path, places: dict[str, str], name: str, wanted: dict[str, int]
) -> ControlGroup | None:
    files = {"memory": "memory.limit_in_bytes", "pids": "pids.max"}
    made: list[Path] = []
    for controller, limit in wanted.items():
        if controller not in places:
            continue
        folder = root / controller / places[controller] / name
        if not _make(folder):
            continue
        if _limit(folder, {files[controller]: limit}):
            made.append(folder)
        else:
            with contextlib.suppress(OSError):
                folder.rmdir()
    return ControlGroup(tuple(made)) if made else None


def _sweep(parent: Path) -> None:
    """Remove what a worker that was killed left; the kernel keeps a group that is in use."""
    for folder in parent.glob("cloister-*-*"):
        maker = folder.name.split("-")[1]
        if maker.isdigit() and not Path("/proc", maker).exists():
            with contextlib.suppress(OSError):
                folder.rmdir()


def _make(folder: Path) -> bool:
    _sweep(folder.parent)
    try:
        folder.mkdir()
    except OSError:
        return False
    if os.access(folder / "cgroup.procs", os.W_OK):
        return True
    folder.rmdir()
    return False


def _limit(folder: Path, limits: dict[str, int]) -> bool:
    """Write the limits; False where the kernel does not offer one."""
    try:
        for name, limit in limits.items():
            with (folder / name).open("r+") as file:
                file.write(str(limit))
    except OSError:
        return False
    return True
