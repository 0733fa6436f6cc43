"""What an operator states about a seal inside an application: ``seal.toml``, read once.

::

    version = 1
    platform = "sev-snp"                    # as in a report's tee_type
    model = "NAME"                          # as the application calls it
    prefix_cache = "salted"                 # vLLM; or "off"
    api_keys = "/etc/cloister/api-keys.json"

and, where they are wanted, ``model_file`` (a file whose digest is that of the model),
``endorsements`` (the folder that ``cloister endorsements`` keeps, to be sent along),
``context_length``, ``serves`` (``embeddings``, ``rerank``, ``tokenize``), ``health`` (paths that
answer in clear, with a status and nothing else), ``open = true`` instead of ``api_keys``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloister.attester.machine import PLATFORMS
from cloister.errors import ConfigurationError
from cloister.worker import wire

MAX_FILE_BYTES: Final = 64 * 1024
VERSION: Final = 1
_PATH: Final = re.compile(r"/[A-Za-z0-9._~/-]{1,63}")
_RESERVED: Final = (wire.OHTTP_PATH, wire.KEYS_PATH)
_TYPES: Final[Mapping[str, type]] = {
    "version": int,
    "platform": str,
    "model": str,
    "prefix_cache": str,
    "api_keys": str,
    "open": bool,
    "model_file": str,
    "endorsements": str,
    "context_length": int,
    "serves": list,
    "health": list,
}
_REQUIRED: Final = ("version", "platform", "model", "prefix_cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """A seal's settings. ConfigurationError (``configuration.seal``) where they make no sense."""

    platform: str
    """One of `cloister.attester.machine.PLATFORMS`: what the machine proves itself with."""
    model: str
    cache_salt: bool
    """The application is a vLLM; otherwise it was started without prefix caching."""
    api_keys: Path | None = None
    open: bool = False
    """Whether anybody may ask. Without it a table of API keys is needed."""
    model_file: Path | None = None
    endorsements: Path | None = None
    context_length: int = 0
    serves: frozenset[str] = frozenset()
    """Paths besides chat and completions: ``/v1/embeddings``, …"""
    health: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.model or not self.model.isprintable() or len(self.model) > 512:
            raise _refused("the model's name is empty, too long or not printable")
        if self.open is (self.api_keys is not None):
            raise _refused("name api_keys, or say open = true for everybody: one of the two")
        if any(path is not None and not path.is_absolute() for path in self._paths):
            raise _refused("its paths have to be absolute")
        for path in self.health:
            if not _PATH.fullmatch(path) or path in _RESERVED or path.startswith("/v1/"):
                raise _refused(f"{path!r} cannot be a path that answers in clear")

    @property
    def _paths(self) -> tuple[Path | None, ...]:
        return (self.api_keys, self.model_file, self.endorsements)


def load_seal(path: Path) -> Seal:
    """Read a file; ConfigurationError (``configuration.seal``) if it cannot be, or is none."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _refused(f"{path} cannot be read (errno {error.errno})") from None
    return parse_seal(data)


def parse_seal(data: bytes) -> Seal:
    """Decode the file's bytes; ConfigurationError (``configuration.seal``) otherwise."""
    if len(data) > MAX_FILE_BYTES:
        raise _refused(f"it has more than {MAX_FILE_BYTES} bytes")
    try:
        members = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _refused("it is not TOML in UTF-8") from None
    _check_members(members)
    return Seal(
        platform=members["platform"],
        model=members["model"],
        cache_salt=members["prefix_cache"] == "salted",
        api_keys=_path(members.get("api_keys")),
        open=members.get("open", False),
        model_file=_path(members.get("model_file")),
        endorsements=_path(members.get("endorsements")),
        context_length=members.get("context_length", 0),
        serves=frozenset(f"/v1/{name}" for name in members.get("serves", ())),
        health=frozenset(members.get("health", ())),
    )


def _check_members(members: Mapping[str, Any]) -> None:
    missing = [name for name in _REQUIRED if name not in members]
    if missing:
        raise _refused(f"it lacks {', '.join(missing)}")
    for name, value in members.items():
        if name not in _TYPES:
            raise _refused("it has a member that this version does not know")
        if type(value) is not _TYPES[name]:
            raise _refused(f"{name} is of another type than it has to be")
        if isinstance(value, list) and not all(isinstance(one, str) for one in value):
            raise _refused(f"{name} is not a list of texts")
    if members["version"] != VERSION:
        raise _refused(f"it is not of version {VERSION}")
    if members["platform"] not in PLATFORMS:
        raise _refused(f"platform is none of {', '.join(PLATFORMS)}")
    if members["prefix_cache"] not in ("salted", "off"):
        raise _refused('prefix_cache is neither "salted" nor "off"')
    if members.get("context_length", 0) < 0:
        raise _refused("context_length is below zero")


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(f"the seal's settings are refused: {why}", code="configuration.seal")
