"""Where a managed engine is installed, and which directories it needs in order to run.

A program in a virtual environment needs the environment and the interpreter that it was made from;
one that lies elsewhere its own directory, for the libraries beside it. The system's ``/usr`` is
always visible. What is found is measured as it is shown: each directory as a tree, or the program
alone where it belongs to the system.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.engine.command_lines import DISTRIBUTIONS, PROGRAMS, ManagedKind
from cloister.errors import ConfigurationError

_SYSTEM: Final = (Path("/usr"), Path("/bin"), Path("/lib"), Path("/lib64"), Path("/sbin"))
_TOO_WIDE: Final = frozenset(
    map(Path, ("/", "/boot", "/dev", "/etc", "/home", "/media", "/mnt", "/opt", "/proc", "/root"))
) | frozenset(map(Path, ("/run", "/srv", "/sys", "/tmp", "/var", "/usr")))  # noqa: S108
_TAKEN: Final = ("/cloister", "/model", "/triton", "/run/engine", "/dev", "/proc", "/sys", "/etc")
_HOME = re.compile(r"^home\s*=\s*(/.+?)\s*$", re.MULTILINE)
_PYTHON: Final = "/usr/bin/python3"
_SEARCHED: Final = "/usr/local/bin:/usr/bin:/bin:/opt/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """An engine's program, the directories it is shown, and the version these name.

    `version` is empty where no metadata names one: then the digest of what is measured is all
    there is.
    """

    kind: ManagedKind
    program: Path
    roots: tuple[Path, ...]
    version: str

    @property
    def words(self) -> tuple[str, ...]:
        """What the command line begins with."""
        program = str(self.program)
        return (_PYTHON, "-s", program) if program.endswith(".py") else (program,)

    @property
    def measured(self) -> Mapping[str, Path]:
        """Component name → the directory or file that is hashed for it."""
        if any(self.program.is_relative_to(root) for root in self.roots):
            return {f"{self.kind.value}/{at}": root for at, root in enumerate(self.roots)}
        return {
            f"{self.kind.value}/program": self.program,
            **{f"{self.kind.value}/{at}": root for at, root in enumerate(self.roots)},
        }

    def describe(self) -> Mapping[str, object]:
        """For the measured configuration: nothing in it depends on where things lie."""
        return {
            "version": self.version,
            "program": self._relative(),
            "measured": sorted(self.measured),
            "not_measured": ["the system's /usr", "the kernel and its drivers"],
        }

    def _relative(self) -> str:
        for at, root in enumerate(self.roots):
            if self.program.is_relative_to(root):
                return f"{self.kind.value}/{at}:{self.program.relative_to(root)}"
        return f"{self.kind.value}/program"


def restored(
    kind: ManagedKind, described: Mapping[str, object], measured: Mapping[str, Path]
) -> Installation:
    """The installation that `describe` told of, from the places that were measured.

    KeyError, TypeError or ValueError if they do not fit.
    """
    prefix = f"{kind.value}/"
    names = [name for name in measured if name.startswith(prefix)]
    roots = tuple(
        measured[name]
        for name in sorted(
            (name for name in names if name != f"{prefix}program"),
            key=lambda name: int(name.removeprefix(prefix)),
        )
    )
    component, _, relative = str(described["program"]).partition(":")
    program = measured[component] / relative if relative else measured[component]
    if ".." in Path(relative).parts:
        raise ValueError("the program lies outside what was measured")
    return Installation(kind=kind, program=program, roots=roots, version=_version(kind, roots))


def find_installation(
    kind: ManagedKind,
    *,
    program: Path | None = None,
    further: Sequence[Path] = (),
    search_path: str = _SEARCHED,
) -> Installation:
    """Find `kind`, or take `program` for it; `further` directories are shown besides.

    ConfigurationError if it is not there, or would need a directory that holds too much.
    """
    found = program.expanduser() if program is not None else _found(kind, search_path)
    if found is None or not found.is_file():
        raise ConfigurationError(
            f"{kind.value} is not installed"
            + (f" at {program}" if program is not None else "")
            + ": name its program with --engine-program",
            code="configuration.engine_missing",
        )
    path = found.resolve()
    roots: list[Path] = []
    for root in (*_needed(path, kind), *(one.expanduser().resolve() for one in further)):
        _check(root)
        if not any(root.is_relative_to(other) for other in (*roots, *_SYSTEM)):
            roots.append(root)
    kept = tuple(roots)
    return Installation(kind=kind, program=path, roots=kept, version=_version(kind, kept))


def _found(kind: ManagedKind, search_path: str) -> Path | None:
    name = PROGRAMS[kind]
    if name.startswith("/"):
        return Path(name)
    found = shutil.which(name, path=search_path)
    return None if found is None else Path(found)


def _needed(program: Path, kind: ManagedKind) -> list[Path]:
    environment = program.parent.parent
    settings = environment / "pyvenv.cfg"
    if settings.is_file():
        base = _HOME.search(settings.read_text(encoding="utf-8", errors="replace"))
        python = environment / "bin" / "python3"
        homes = [Path(base[1]).parent] if base else []
        if python.exists():
            homes.append(python.resolve().parent.parent)
        # An interpreter of the system's has nothing of its own.
        return [environment, *(home.resolve() for home in homes if home != Path("/"))]
    if kind is ManagedKind.TRITON and program.match("*/python/openai/openai_frontend/main.py"):
        return [program.parents[3]]
    return [program.parent]


def _check(root: Path) -> None:
    wide = root in _TOO_WIDE or (root.parent == Path("/home"))
    taken = any(root.is_relative_to(place) for place in _TAKEN)
    if not root.is_dir() or (wide and root != Path("/usr")) or taken:
        raise ConfigurationError(
            f"the engine would have to see {root}, which holds more than an engine, or which the "
            "sandbox makes itself: install it into a directory of its own",
            code="configuration.engine_root",
        )


def _version(kind: ManagedKind, roots: Sequence[Path]) -> str:
    distribution = DISTRIBUTIONS.get(kind)
    if distribution is None:
        return ""
    for root in roots:
        for found in sorted(root.glob(f"lib/python3*/site-packages/{distribution}-*.dist-info")):
            return found.name.removeprefix(f"{distribution}-").removesuffix(".dist-info")
    return ""
