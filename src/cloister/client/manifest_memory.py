"""What a client remembers of manifests: the highest version it accepted under each pin.

::

    {"format": "cloister/manifest-memory/1",
     "pins": {"sha256:<pin>": {"version": 3, "sha256": "<digest>",
                               "overlap": {"sha256": "<digest>", "until": "2026-12-01T18:00:00Z"}}}}

``overlap`` is there where version 3 lets the one before be served for a while.

Whoever can take the file away, or put an older one in its place, can show the client an older
manifest that is still in force; a minimum version in the pin helps against that, and nothing else.
A damaged file is an error, never an empty one.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from cloister.client import locked_file
from cloister.errors import AuthenticationError, ConfigurationError, MalformedError
from cloister.manifest.model import encode_time, parse_time
from cloister.manifest.pin import Overlap, Remembered
from cloister.strictjson import (
    JsonObject,
    canonical,
    expect_hex,
    expect_int,
    expect_keys,
    expect_object,
    parse_json_object,
)

FORMAT: Final = "cloister/manifest-memory/1"
MAX_BYTES: Final = 1024 * 1024

_CODE: Final = "manifest.memory"
_WHAT: Final = "the memory of manifests"


class ManifestMemory(Protocol):
    """Remembers versions, and never goes back."""

    def recall(self, pin_id: str) -> Remembered | None:
        """The highest version accepted under a pin (`SignerPin.pin_id`)."""

    def remember(self, pin_id: str, accepted: Remembered) -> None:
        """Keep what was accepted. Raises AuthenticationError if a higher or other one is kept."""


@dataclass(slots=True)
class ProcessMemory:
    """Remembers as long as the process lives; for programs that have nowhere to write."""

    _pins: dict[str, Remembered] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def recall(self, pin_id: str) -> Remembered | None:
        """As the protocol says."""
        return self._pins.get(pin_id)

    def remember(self, pin_id: str, accepted: Remembered) -> None:
        """As the protocol says."""
        with self._lock:
            check_rises(self._pins.get(pin_id), accepted)
            self._pins[pin_id] = accepted


@dataclass(frozen=True, slots=True)
class FileMemory:
    """Remembers in a file, for all processes of one user.

    Raises:
        ConfigurationError: the file cannot be used, is damaged, or others may write to it (code
            ``manifest.memory``).
    """

    path: Path

    def recall(self, pin_id: str) -> Remembered | None:
        """As the protocol says."""
        with _usable(self.path):
            return self._load().get(pin_id)

    def remember(self, pin_id: str, accepted: Remembered) -> None:
        """As the protocol says; the file is replaced whole, and only where something is new."""
        with _usable(self.path):
            if self._load().get(pin_id) == accepted:
                return
            with locked_file.held(self.path):
                pins = self._load()  # another process may have written meanwhile
                check_rises(pins.get(pin_id), accepted)
                pins[pin_id] = accepted
                locked_file.replace(self.path, _encode(pins))

    def _load(self) -> dict[str, Remembered]:
        data = locked_file.read(self.path, MAX_BYTES)
        if data is None:
            return {}
        _check_private(self.path)
        try:
            return _parse(data)
        except MalformedError as error:
            raise ConfigurationError(
                f"{self.path}: {error}. Find out what happened to it before you remove it: without"
                " it, older manifests are accepted again",
                code=_CODE,
            ) from None


def default_path() -> Path:
    """``$XDG_STATE_HOME/cloister/manifests.json``."""
    base = os.environ.get("XDG_STATE_HOME")
    state = Path(base) if base else Path("~/.local/state").expanduser()
    return state / "cloister" / "manifests.json"


def check_rises(kept: Remembered | None, accepted: Remembered) -> None:
    """AuthenticationError unless `accepted` is `kept`, or a later version.

    What is accepted was compared with the memory before; this finds who accepted another one in
    the meantime.
    """
    if kept is None or kept == accepted or kept.version < accepted.version:
        return
    raise AuthenticationError(
        f"version {kept.version} of the manifest was accepted at the same time as version"
        f" {accepted.version}: verify again",
        code="manifest.rollback" if kept.version > accepted.version else "manifest.fork",
    )


def _encode(pins: dict[str, Remembered]) -> bytes:
    listed: JsonObject = {
        pin_id: {"version": one.version, "sha256": one.sha256, **_encode_overlap(one.overlap)}
        for pin_id, one in pins.items()
    }
    return canonical({"format": FORMAT, "pins": listed})


def _encode_overlap(overlap: Overlap | None) -> JsonObject:
    if overlap is None:
        return {}
    return {"overlap": {"sha256": overlap.sha256, "until": encode_time(overlap.until)}}


def _parse(data: bytes) -> dict[str, Remembered]:
    members = parse_json_object(data, limit=MAX_BYTES, what=_WHAT)
    expect_keys(members, _WHAT, required={"format", "pins"})
    if members["format"] != FORMAT:
        raise MalformedError(f"{_WHAT} is not of the format {FORMAT}")
    pins = expect_object(members["pins"], "pins")
    return {pin_id: _remembered(entry) for pin_id, entry in pins.items()}


def _remembered(value: object) -> Remembered:
    members = expect_object(value, "a remembered manifest")
    required = {"version", "sha256"}
    expect_keys(members, "a remembered manifest", required=required, optional={"overlap"})
    return Remembered(
        version=expect_int(members["version"], "a version", low=1),
        sha256=expect_hex(members["sha256"], "a digest", size=32).hex(),
        overlap=_overlap(members["overlap"]) if "overlap" in members else None,
    )


def _overlap(value: object) -> Overlap:
    members = expect_object(value, "an overlap")
    expect_keys(members, "an overlap", required={"sha256", "until"})
    return Overlap(
        sha256=expect_hex(members["sha256"], "a digest", size=32).hex(),
        until=parse_time(members["until"], "until"),
    )


def _check_private(path: Path) -> None:
    """Whoever can write here can make the client forget."""
    if sys.platform == "win32":
        return
    found = path.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(
            f"others may write to {path}; name a file of your own with --manifest-memory",
            code=_CODE,
        )


@contextlib.contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"which manifests were accepted cannot be kept in {path}"
            f" ({error.strerror or 'another process holds it'}); name another file with"
            " --manifest-memory",
            code=_CODE,
        ) from None
