"""Runs the build's programs inside a tree of locked packages, without network and without root.

Bubblewrap shows them nothing of this machine: their own files read-only, an empty ``/tmp``, and
below ``/build`` what a step hands in. So the bytes that they write do not depend on the builder's
distribution, user, folders or clock, and what a builder has installed decides nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from cloister.errors import BuildError

WORK: Final = "/build"
TIMEOUT_S: Final = 3600.0
"""For a disk of hundreds of gigabytes."""

ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": "/tmp"}  # noqa: S108 - inside
MOUNT_POINTS: Final = ("build", "dev", "proc", "tmp")


class Tools(Protocol):
    """Runs programs; see `Toolbox.run`."""

    def run(
        self,
        command: Sequence[str],
        *,
        reads: Mapping[str, Path] | None = None,
        writes: Mapping[str, Path] | None = None,
        environment: Mapping[str, str] | None = None,
        folder: str = "",
    ) -> str:
        """Run `command` and return its standard output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolbox:
    """Programs in a directory with a system's layout; it needs the folders `MOUNT_POINTS`."""

    tree: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(
        self,
        command: Sequence[str],
        *,
        reads: Mapping[str, Path] | None = None,
        writes: Mapping[str, Path] | None = None,
        environment: Mapping[str, str] | None = None,
        folder: str = "",
    ) -> str:
        """Run `command` in ``/build/<folder>`` and return its standard output.

        `reads` and `writes` appear as ``/build/<name>``: files or directories that exist.
        Raises BuildError if it fails (``image.tool``) or cannot be confined (``image.sandbox``).
        """
        bubblewrap = shutil.which("bwrap")
        if bubblewrap is None:
            raise BuildError(
                "bubblewrap is missing (Debian: apt-get install bubblewrap); the build's programs "
                "run inside it",
                code="image.sandbox",
            )
        confined = (bubblewrap, *self._confinement(environment or {}))
        binds = (
            *_binds("--ro-bind", reads or {}),
            *_binds("--bind", writes or {}),
        )
        try:
            done = subprocess.run(  # noqa: S603 - words of our own
                (*confined, *binds, "--chdir", f"{WORK}/{folder}", "--", *command),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{command[0]} does not finish: {error}", code="image.tool") from None
        if done.returncode != 0:
            raise _failed(command[0], done.stderr.decode(errors="replace"))
        return done.stdout.decode(errors="replace")

    def _confinement(self, environment: Mapping[str, str]) -> tuple[str, ...]:
        variables = {**ENVIRONMENT, **self.environment, **environment}
        return (
            *("--unshare-all", "--die-with-parent", "--new-session", "--clearenv"),
            *(word for item in variables.items() for word in ("--setenv", *item)),
            *("--ro-bind", str(self.tree), "/"),
            *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", WORK),  # noqa: S108
        )


def _binds(option: str, named: Mapping[str, Path]) -> tuple[str, ...]:
    return tuple(
        word
        for name, path in named.items()
        for word in (option, str(path.resolve()), f"{WORK}/{name}")
    )


def _failed(program: str, said: str) -> BuildError:
    lines = [line for line in said.splitlines() if line.strip()] or ["it says nothing"]
    if lines[-1].startswith("bwrap: ") and "execvp" not in lines[-1]:
        return BuildError(
            f"the build's programs cannot be confined here ({lines[-1]}): user namespaces have to "
            "be allowed",
            code="image.sandbox",
        )
    return BuildError(f"{program} failed: {' | '.join(lines[-5:])}", code="image.tool")
