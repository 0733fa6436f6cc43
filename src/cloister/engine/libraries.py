"""Which files of the host an interpreter and a native library need in order to run.

The sandbox's root holds these and nothing else: the interpreter, its standard library, and the
shared libraries that the dynamic linker names for them. They get fixed places, so that nothing
inside depends on where the host keeps them.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import SandboxError

_NAMED = re.compile(r"^\s+(\S+) => (/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_LOADER = re.compile(r"^\s+(/\S+/ld-\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_MISSING = re.compile(r"^\s+(\S+) => not found$", re.MULTILINE)
_LDD: Final = ("/usr/bin/ldd", "/bin/ldd")
_LOADERS: Final = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
_TIMEOUT: Final = 60.0  # seconds; it takes a few hundredths, and much longer where emulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A Python interpreter as the sandbox sees it: (host path, path inside) pairs, read-only.

    `hidden` are directories inside that are covered with nothing: other people's packages that
    lie below the standard library's directory.
    """

    interpreter: str
    binds: tuple[tuple[Path, str], ...]
    hidden: tuple[str, ...]


def find_runtime() -> Runtime:
    """Find the interpreter that runs this code, and its standard library.

    The base installation is used, not the virtual environment: the packages in there stay
    outside. SandboxError if it is laid out in a way we do not know.
    """
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    stdlib = Path(sysconfig.get_path("stdlib"))
    inside = f"/python/lib/{version}"
    if not _readable(executable) or not _readable(stdlib / "os.py"):
        raise SandboxError(
            f"the Python installation at {sys.base_prefix} has no interpreter and standard "
            "library where they are expected, or this user may not read them: use a CPython from "
            "the distribution, pyenv or uv, in a place that this user can read",
            code="sandbox.python",
        )
    binds = [(executable, "/python/bin/python3"), (stdlib, inside)]
    dynload = Path(sysconfig.get_config_var("DESTSHARED") or stdlib / "lib-dynload")
    if dynload.is_dir() and not dynload.is_relative_to(stdlib):
        binds.append((dynload, f"/python/{sys.platlibdir}/{version}/lib-dynload"))
    hidden = tuple(
        f"{inside}/{name}"
        for name in ("site-packages", "dist-packages", "test", "ensurepip", "idlelib")
        if (stdlib / name).is_dir() and not (stdlib / name).is_symlink()
    )
    return Runtime(interpreter="/python/bin/python3", binds=tuple(binds), hidden=hidden)


def _readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def stdlib_extensions(names: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the files of those extension modules that are files (others are built in)."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    folder = Path(sysconfig.get_config_var("DESTSHARED") or stdlib / "lib-dynload")
    return tuple(path for name in names for path in sorted(folder.glob(f"{name}.*.so")))


def shared_libraries(files: tuple[Path, ...]) -> tuple[tuple[Path, str], ...]:
    """Return (host path, path inside) of every shared library that `files` need.

    Asks the system's ``ldd``, or the dynamic linker itself on a system without a shell to run that
    script (a machine image). All go to ``/lib``, the dynamic linker to the path that programs
    name. SandboxError names a library that is missing, and the Debian package that has it.
    """
    ldd = next((path for path in _LDD if Path(path).exists()), None)
    loader = next((path for path in _LOADERS if Path(path).exists()), None)
    if ldd is not None:
        return parse_ldd(_answer(ldd, *map(str, files)))
    if loader is None:
        raise SandboxError("ldd is not installed (Debian: libc-bin)", code="sandbox.ldd")
    # One file each time, and it names itself only to those that name it as their interpreter.
    answers = [_answer(loader, "--list", str(file)) for file in files]
    return parse_ldd("".join((*answers, f"\t{loader} (0x0)\n")))


def _answer(*command: str) -> str:
    try:
        return subprocess.run(  # noqa: S603 - a fixed program on our own files
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        raise SandboxError("ldd does not answer", code="sandbox.ldd") from None


def parse_ldd(answer: str) -> tuple[tuple[Path, str], ...]:
    """Read the output of glibc's ``ldd`` for one or several files."""
    missing = sorted(set(_MISSING.findall(answer)))
    if missing:
        raise SandboxError(
            f"shared libraries are missing: {', '.join(missing)} "
            "(Debian: apt-get install libgomp1 libstdc++6)",
            code="sandbox.library",
        )
    found = {f"/lib/{name}": Path(path) for name, path in _NAMED.findall(answer) if "/" not in name}
    for path in _LOADER.findall(answer):
        found[path] = Path(path)
    if not any(Path(inside).name.startswith(("ld-linux", "ld64.")) for inside in found):
        raise SandboxError(
            f"the dynamic linker is not found; only glibc systems are supported, this is "
            f"{platform.libc_ver()[0] or 'another C library'}",
            code="sandbox.libc",
        )
    return tuple((path, inside) for inside, path in sorted(found.items()))
