"""Which packages an image is made of, each with the digest of its file.

A build takes what its lock names and nothing else: the same lock gives the same image, whatever
has appeared in an archive since. `cloister image lock` writes one (`resolve`).

Three kinds of Debian packages: ``root`` (some of their files are in the image), ``boot`` (kernel,
modules, the stub that starts them) and ``tools`` (what the build runs; none of it is in the image,
all of it decides the bytes).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Final

from cloister.errors import ConfigurationError, MalformedError
from cloister.strictjson import (
    JsonObject,
    expect_hex,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)

LOCK_VERSION: Final = "cloister/image-lock/1"
MAX_LOCK_BYTES: Final = 4 << 20
MAX_PACKAGES: Final = 4096
DEFAULT_LOCK: Final = "bookworm.json"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,127}")
_PATH: Final = re.compile(r"pool/[A-Za-z0-9.+_~%/-]{1,300}\.deb")
_WHEEL: Final = re.compile(r"[A-Za-z0-9_.+!-]{1,200}\.whl")


class Use(StrEnum):
    """What a Debian package is for."""

    ROOT = "root"
    BOOT = "boot"
    TOOLS = "tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianPackage:
    """A ``.deb`` in an archive."""

    name: str
    version: str
    archive: str
    """``debian`` or ``debian-security``."""
    path: str
    """Below the archive: ``pool/…``."""
    size: int
    sha256: str
    uses: tuple[Use, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A Python package, built, as an index names it."""

    name: str
    version: str
    filename: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLock:
    """Everything that goes into a build besides Cloister, the model and the configuration."""

    release: str
    """``bookworm``."""
    resolved_at: str
    """``20261129T180000Z``: the archive held these packages then, and snapshots of it do."""
    python: str
    """``3.11``: the interpreter that the wheels are for."""
    debian: tuple[DebianPackage, ...]
    wheels: tuple[Wheel, ...]

    def of(self, use: Use) -> tuple[DebianPackage, ...]:
        """The Debian packages for one purpose, by name."""
        return tuple(package for package in self.debian if use in package.uses)

    def dump(self) -> str:
        """The file's text; equal locks give equal bytes."""
        document: JsonObject = {
            "version": LOCK_VERSION,
            "release": self.release,
            "resolved_at": self.resolved_at,
            "python": self.python,
            "debian": [
                {
                    "name": one.name,
                    "version": one.version,
                    "archive": one.archive,
                    "path": one.path,
                    "size": one.size,
                    "sha256": one.sha256,
                    "uses": [use.value for use in one.uses],
                }
                for one in sorted(self.debian, key=lambda one: one.name)
            ],
            "wheels": [
                {
                    "name": one.name,
                    "version": one.version,
                    "filename": one.filename,
                    "sha256": one.sha256,
                }
                for one in sorted(self.wheels, key=lambda one: one.name)
            ],
        }
        return json.dumps(document, indent=1) + "\n"


def parse_lock(data: bytes) -> ImageLock:
    """Decode a lock file. Raises MalformedError."""
    document = parse_json_object(data, limit=MAX_LOCK_BYTES, what="image lock")
    expect_keys(
        document,
        "image lock",
        required={"version", "release", "resolved_at", "python", "debian", "wheels"},
    )
    if document["version"] != LOCK_VERSION:
        raise MalformedError(f"an image lock has the version {LOCK_VERSION}")
    debian = expect_list(document["debian"], "debian", limit=MAX_PACKAGES)
    wheels = expect_list(document["wheels"], "wheels", limit=MAX_PACKAGES)
    lock = ImageLock(
        release=_matching(_NAME, document["release"], "release"),
        resolved_at=_matching(re.compile(r"\d{8}T\d{6}Z"), document["resolved_at"], "resolved_at"),
        python=_matching(re.compile(r"3\.\d{1,2}"), document["python"], "python"),
        debian=tuple(_debian(expect_object(one, "package")) for one in debian),
        wheels=tuple(_wheel(expect_object(one, "wheel")) for one in wheels),
    )
    for names in ([one.name for one in lock.debian], [one.name for one in lock.wheels]):
        twice = next(_repeated(names), None)
        if twice is not None:
            raise MalformedError(f"the image lock names {twice} twice")
    return lock


def read_lock(path: Path | None) -> ImageLock:
    """The lock in a file, or the one that Cloister brings. Raises ConfigurationError."""
    try:
        if path is None:
            data = resources.files("cloister.image").joinpath("locks", DEFAULT_LOCK).read_bytes()
        else:
            data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the lock {path or DEFAULT_LOCK} cannot be read: {error.strerror}",
            code="image.lock",
        ) from None
    try:
        return parse_lock(data)
    except MalformedError as error:
        raise ConfigurationError(
            f"{path or DEFAULT_LOCK} is no image lock: {error}; `cloister image lock` writes one",
            code="image.lock",
        ) from None


def _debian(one: JsonObject) -> DebianPackage:
    expect_keys(
        one,
        "package",
        required={"name", "version", "archive", "path", "size", "sha256", "uses"},
    )
    uses = expect_list(one["uses"], "uses", limit=len(Use))
    archive = expect_str(one["archive"], "archive")
    if archive not in {"debian", "debian-security"}:
        raise MalformedError("a package's archive is debian or debian-security")
    path = _matching(_PATH, one["path"], "path")
    if ".." in path.split("/"):
        raise MalformedError("a package's path leads out of its archive")
    try:
        of_kind = tuple(sorted(Use(expect_str(use, "use")) for use in uses))
    except ValueError:
        raise MalformedError(f"a package is for one of {', '.join(Use)}") from None
    if not of_kind:
        raise MalformedError("a package is for nothing")
    return DebianPackage(
        name=_matching(_NAME, one["name"], "name"),
        version=expect_str(one["version"], "version", limit=128),
        archive=archive,
        path=path,
        size=expect_int(one["size"], "size", low=1),
        sha256=expect_hex(one["sha256"], "sha256", size=32).hex(),
        uses=of_kind,
    )


def _wheel(one: JsonObject) -> Wheel:
    expect_keys(one, "wheel", required={"name", "version", "filename", "sha256"})
    return Wheel(
        name=_matching(_NAME, one["name"], "name"),
        version=_matching(re.compile(r"[A-Za-z0-9.+!_-]{1,64}"), one["version"], "version"),
        filename=_matching(_WHEEL, one["filename"], "filename"),
        sha256=expect_hex(one["sha256"], "sha256", size=32).hex(),
    )


def _matching(pattern: re.Pattern[str], value: object, what: str) -> str:
    text = expect_str(value, what)
    if pattern.fullmatch(text) is None:
        raise MalformedError(f"the image lock's {what} is not written as it should be")
    return text


def _repeated(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)
