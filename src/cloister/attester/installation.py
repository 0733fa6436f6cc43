"""What a Python installation consists of: the things that a worker started from it can run.

Workers are started with ``-I -S`` and an explicit import path (`Installation.import_path`):
no ``.pth`` file, ``sitecustomize``, user directory or ``PYTHON*`` variable takes part. So what
can run is the interpreter, its standard library, and what lies in ``site-packages`` or in the
source directory of an editable installation. All of it is listed here; `measure` hashes it.
"""

from __future__ import annotations

import csv
import json
import os
import posixpath
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.attester.tree import Entry, list_tree
from cloister.errors import BuildError

QUERY_TIMEOUT_S: Final = 30.0

_QUERY: Final = """
import os, sys
maps = open("/proc/self/maps").read().splitlines() if os.path.exists("/proc/self/maps") else []
shared = sorted({line.split(None, 5)[5] for line in maps if "/libpython" in line})
version = "{}.{}.{}".format(*sys.version_info[:3]) + (
    "" if sys.version_info[3] == "final" else "{}{}".format(*sys.version_info[3:]))
answer = [version, os.path.realpath(sys.executable), os.path.dirname(os.__file__)]
os.write(1, "\\0".join([*answer, "", *sys.path, "", *shared]).encode("utf-8", "surrogateescape"))
"""
"""Imports nothing that is not in the interpreter already, so nothing is compiled for it."""

_UNMEASURED_METADATA: Final = frozenset(
    {
        # Lists the files with their hashes, among them those of scripts in bin/, which begin
        # with this machine's path to the interpreter. It decides which distribution a file
        # counts for, so a change in it shows as files that moved.
        "RECORD",
        "INSTALLER",  # "pip" or "uv": who unpacked the files, not what they are
        "REQUESTED",  # whether a person asked for the distribution by name
        "direct_url.json",  # where the files came from: a path on this machine, or a URL
        "uv_build.json",  # settings and times of uv's build cache
        "uv_cache.json",
    }
)
"""Files of a ``*.dist-info`` directory that differ between machines with the same packages.

None of them is executable or read by a worker. Everything else there counts, in particular
``entry_points.txt``, which names code to load.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python interpreter: the files that make it up and the import path it begins with."""

    python: str
    """What is executed, maybe a link in a virtual environment."""
    executable: str
    """The binary behind it."""
    libraries: tuple[str, ...]
    """``libpython``, where the binary does not hold the interpreter itself."""
    version: str
    stdlib: str
    import_path: tuple[str, ...]
    """Existing entries of ``sys.path`` under ``-I -S``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """An installed distribution and every file of it that counts."""

    name: str
    """Normalised as in PEP 503."""
    version: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unowned:
    """A file in ``site-packages``, or a directory of such, that no distribution lists."""

    name: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Everything that a worker can import."""

    interpreter: Interpreter
    stdlib: tuple[Entry, ...]
    distributions: tuple[Distribution, ...]
    unowned: tuple[Unowned, ...]
    import_path: tuple[str, ...]
    """``sys.path`` of the worker: the interpreter's, site-packages, editable sources."""


def inspect_installation(python: Path) -> Installation:
    """List what the interpreter `python` can import, without importing any of it.

    Raises:
        BuildError: the installation cannot be measured (codes ``measure.python``,
            ``measure.tree``, ``measure.metadata``).
    """
    interpreter = _query(python)
    site = _site_packages(python, interpreter)
    files = {entry.relative: entry for entry in list_tree(site)}
    distributions: list[Distribution] = []
    owned: set[str] = set()
    editable_roots: list[str] = []
    # At the top alone: some packages bring others along, with their metadata, inside themselves.
    folders = {name.partition("/")[0] for name in files if "/" in name}
    for folder in sorted(folder for folder in folders if folder.endswith(".dist-info")):
        distribution, recorded, roots = _distribution(site, folder, files)
        distributions.append(distribution)
        owned |= recorded
        editable_roots += roots
    names = [distribution.name for distribution in distributions]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise BuildError(
            f"installed twice: {', '.join(sorted(twice))}; reinstall", code="measure.metadata"
        )
    return Installation(
        interpreter=interpreter,
        stdlib=tuple(_stdlib(interpreter)),
        distributions=tuple(sorted(distributions, key=lambda found: found.name)),
        unowned=tuple(_unowned(files, owned)),
        import_path=(*interpreter.import_path, site, *dict.fromkeys(editable_roots)),
    )


def find_package(python: Path, package: str, *, suffix: str) -> tuple[Path, ...]:
    """The files of an installed `package` whose names end in `suffix`, without importing it.

    Raises:
        BuildError: `python` is no interpreter that can be measured.
    """
    site = Path(_site_packages(python, _query(python)))
    return tuple(sorted((site / package).glob(f"**/*{suffix}")))


def _query(python: Path) -> Interpreter:
    # `-X pycache_prefix` here too: not even the question may be answered by old bytecode.
    flags = ("-I", "-S", "-B", "-X", "pycache_prefix=/nonexistent", "-c", _QUERY)
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter that the operator named
            (str(python), *flags),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=QUERY_TIMEOUT_S,
            env={},
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        raise BuildError(f"{python} does not run as Python", code="measure.python") from None
    try:
        head, paths, shared = _split(done.stdout.decode("utf-8", "surrogateescape").split("\0"))
        version, executable, stdlib = head
    except ValueError:
        raise BuildError(f"{python} does not answer as Python", code="measure.python") from None
    return Interpreter(
        python=os.path.abspath(python),  # noqa: PTH100 - resolving would lose the environment
        executable=executable,
        libraries=tuple(shared),
        version=version,
        stdlib=stdlib,
        import_path=tuple(path for path in paths if Path(path).exists()),
    )


def _split(answer: Sequence[str]) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    first = answer.index("")
    second = answer.index("", first + 1)
    return answer[:first], answer[first + 1 : second], answer[second + 1 :]


def _site_packages(python: Path, interpreter: Interpreter) -> str:
    environment = Path(interpreter.python).parent.parent
    config = environment / "pyvenv.cfg"
    if not config.is_file():
        site = Path(interpreter.stdlib) / "site-packages"
    else:
        if re.search(r"(?im)^include-system-site-packages\s*=\s*true", config.read_text()):
            raise BuildError(
                f"{environment} borrows the system's packages; make a virtual environment"
                " without --system-site-packages",
                code="measure.python",
            )
        site = environment / "lib" / Path(interpreter.stdlib).name / "site-packages"
    if not site.is_dir():
        raise BuildError(f"{python} has no site-packages at {site}", code="measure.python")
    return str(site)


def _stdlib(interpreter: Interpreter) -> Iterator[Entry]:
    """The standard library: all of the path under ``-I -S``, a zip file on it included."""
    nested = tuple(path + os.sep for path in interpreter.import_path)
    for path in interpreter.import_path:
        if path.startswith(nested):
            continue  # lib-dynload, normally, which lies in the standard library
        name = Path(path).name
        if Path(path).is_file():
            yield Entry(name, path)
            continue
        # Third-party directories in it are not on a worker's path, and cannot be imported
        # through it: no module name has a hyphen.
        for entry in list_tree(path, skip={"site-packages", "dist-packages"}.__contains__):
            yield Entry(
                entry.relative if path == interpreter.stdlib else f"{name}/{entry.relative}",
                entry.path,
                entry.link,
                entry.external,
            )


def _distribution(
    site: str, folder: str, files: dict[str, Entry]
) -> tuple[Distribution, set[str], list[str]]:
    """One distribution, the paths it lists, and its source directories if it is editable."""
    name, version = _name_and_version(Path(site) / folder / "METADATA")
    recorded = set(_recorded(Path(site) / folder / "RECORD"))
    recorded |= {f"{folder}/{unmeasured}" for unmeasured in _UNMEASURED_METADATA}
    excluded = {f"{folder}/{unmeasured}" for unmeasured in _UNMEASURED_METADATA}
    roots: list[str] = []
    if _is_editable(Path(site) / folder / "direct_url.json"):
        for pth in sorted(path for path in recorded if path.endswith(".pth") and path in files):
            found = _directories_named(Path(site) / pth)
            if found:
                # Nothing but this machine's path to the sources, which are measured instead.
                excluded.add(pth)
                roots += found
    entries = [files[path] for path in recorded - excluded if path in files]
    sources = {root: list_tree(root) for root in roots}
    for listed in sources.values():
        entries += listed
    # An empty directory does not show in the digest, so it must not be on the worker's path.
    roots = [root for root, listed in sources.items() if listed]
    return Distribution(name=name, version=version, entries=tuple(entries)), recorded, roots


def _name_and_version(metadata: Path) -> tuple[str, str]:
    fields: dict[str, str] = {}
    try:
        for line in metadata.read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines():
            key, colon, value = line.partition(":")
            if colon:
                fields.setdefault(key.lower(), value.strip())
        return re.sub(r"[-_.]+", "-", fields["name"]).lower(), fields["version"]
    except (OSError, UnicodeDecodeError, KeyError):
        raise BuildError(
            f"{metadata} names no distribution and version; reinstall", code="measure.metadata"
        ) from None


def _recorded(record: Path) -> Iterator[str]:
    """Paths listed in a RECORD (PEP 627) that lie in site-packages."""
    try:
        text = record.read_text(encoding="utf-8")
    except FileNotFoundError:
        return  # then every file of it shows up as owned by nobody
    except (OSError, UnicodeDecodeError):
        raise BuildError(f"{record} cannot be read", code="measure.metadata") from None
    for row in csv.reader(text.splitlines()):
        path = posixpath.normpath(row[0]) if row else ""
        if path and not path.startswith(("../", "/")):
            yield path


def _is_editable(direct_url: Path) -> bool:
    """Whether the distribution's sources lie elsewhere (PEP 610)."""
    try:
        told = json.loads(direct_url.read_text(encoding="utf-8"))
        return told["dir_info"]["editable"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _directories_named(pth: Path) -> list[str]:
    """The directories that a ``.pth`` file of nothing else names; otherwise none.

    An editable installation by an import hook is not followed: its file is measured as it is
    and never runs, so its sources cannot be imported by a worker.
    """
    lines = [line.strip() for line in pth.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines or any(line.startswith(("import ", "import\t")) for line in lines):
        return []
    directories = [(pth.parent / line).resolve() for line in lines]
    if not all(directory.is_dir() for directory in directories):
        return []
    return [str(directory) for directory in directories]


def _unowned(files: dict[str, Entry], owned: set[str]) -> Iterator[Unowned]:
    """Files that no distribution lists; a directory that holds no others is one entry."""
    populated = {folder for path in owned & files.keys() for folder in _folders_of(path)}
    groups: dict[str, list[Entry]] = {}
    for path in files.keys() - owned:
        name = next((folder for folder in _folders_of(path) if folder not in populated), path)
        groups.setdefault(name, []).append(files[path])
    for name, entries in sorted(groups.items()):
        yield Unowned(name=name, entries=tuple(entries))


def _folders_of(path: str) -> Iterable[str]:
    """``a/b/c.py`` → ``a/``, ``a/b/``."""
    parts = path.split("/")[:-1]
    return ("/".join(parts[: depth + 1]) + "/" for depth in range(len(parts)))
