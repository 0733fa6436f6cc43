"""Disk tools of this machine in the locked tools' place, for trees of a few files."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cloister.errors import BuildError

NEEDED = {"mksquashfs": "squashfs-tools", "mkfs.erofs": "erofs-utils"}


class HostTools:
    """A `cloister.image.toolbox.Tools` without confinement; skips where a program is missing."""

    def run(
        self,
        command: Sequence[str],
        *,
        reads: Mapping[str, Path] | None = None,
        writes: Mapping[str, Path] | None = None,
        environment: Mapping[str, str] | None = None,
        folder: str = "",
    ) -> str:
        program = command[0]
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (Debian: {NEEDED.get(program, program)})")
        named = {**(reads or {}), **(writes or {})}
        with tempfile.TemporaryDirectory() as work:
            for name, path in named.items():
                (Path(work) / name).symlink_to(path.resolve())
            command = [_absolute(word, named) for word in command]
            done = subprocess.run(
                command,
                cwd=Path(work) / folder,
                check=False,
                capture_output=True,
                text=True,
                timeout=60,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **(environment or {})},
            )
        if done.returncode:
            raise BuildError(f"{program} failed: {done.stderr.strip()[-200:]}", code="image.tool")
        return done.stdout


def _absolute(word: str, named: Mapping[str, Path]) -> str:
    """Real paths, where programs want a directory or a file and no link to one."""
    option, equals, last = word.rpartition("=")
    return f"{option}{equals}{named[last].resolve()}" if last in named else word
