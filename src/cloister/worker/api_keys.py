"""API keys: who is served. Checked inside the seal, stored as keyed hashes.

The table is operator data, not measured: the operator may decide who is served, never what is
seen. It is a JSON file with mode 0600 that holds a random key and, per API key, the
HMAC-SHA256 of it under that key; the API keys themselves are shown once and stored nowhere.
A revoked key stays in the table, so that revoking the last one does not open the worker.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cloister.errors import ConfigurationError
from cloister.worker.logs import EventLog

KEY_PREFIX: Final = "clst_"
KEY_BYTES: Final = 32
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_NAME: Final = 128
_VERSION: Final = 1
_HASH_KEY_SIZE: Final = 32
_RELOAD_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyEntry:
    """One key of the table."""

    key_id: str
    name: str
    mac: bytes = field(repr=False)
    created: int
    """Unix time in seconds."""
    revoked: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyTable:
    """All keys of one file."""

    hash_key: bytes = field(repr=False)
    entries: tuple[ApiKeyEntry, ...] = ()

    def mac(self, api_key: bytes) -> bytes:
        """The keyed hash under which `api_key` would be stored."""
        return hmac.new(self.hash_key, api_key, hashlib.sha256).digest()

    def encode(self) -> bytes:
        """The file's bytes."""
        return json.dumps(
            {
                "version": _VERSION,
                "hash_key": base64.b64encode(self.hash_key).decode(),
                "keys": [
                    {
                        "id": entry.key_id,
                        "name": entry.name,
                        "mac": entry.mac.hex(),
                        "created": entry.created,
                        "revoked": entry.revoked,
                    }
                    for entry in self.entries
                ],
            },
            indent=1,
        ).encode()


def parse_table(data: bytes) -> ApiKeyTable:
    """Decode the file's bytes; ConfigurationError if it is not such a table."""
    try:
        document = json.loads(data)
        if document["version"] != _VERSION:
            raise ValueError
        hash_key = base64.b64decode(document["hash_key"], validate=True)
        entries = tuple(_entry(item) for item in document["keys"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise ConfigurationError(
            "the API key file is not a table of API keys", code="keys.malformed"
        ) from None
    if len(hash_key) != _HASH_KEY_SIZE:
        raise ConfigurationError("the API key file has no proper hash key", code="keys.malformed")
    return ApiKeyTable(hash_key=hash_key, entries=entries)


def _entry(item: Any) -> ApiKeyEntry:
    revoked = item["revoked"]
    return ApiKeyEntry(
        key_id=str(item["id"]),
        name=str(item["name"]),
        mac=bytes.fromhex(item["mac"]),
        created=int(item["created"]),
        revoked=None if revoked is None else int(revoked),
    )


def load_table(path: Path) -> ApiKeyTable | None:
    """Read the table; ``None`` when there is no file.

    Raises ConfigurationError when others may read or change the file, or it does not decode.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError:
        raise ConfigurationError(
            "the API key file cannot be opened", code="keys.unreadable"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise ConfigurationError(
                "the API key file must be a regular file that only its owner can read (0600)",
                code="keys.permissions",
            )
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigurationError("the API key file is too large", code="keys.malformed")
    return parse_table(data)


class ApiKeyFile:
    """Adds, lists and revokes keys in one file; what `cloister keys` does."""

    def __init__(self, path: Path, *, random: Callable[[int], bytes] = os.urandom) -> None:
        self._path = path
        self._random = random

    def entries(self) -> tuple[ApiKeyEntry, ...]:
        """All keys, revoked ones too."""
        table = load_table(self._path)
        return () if table is None else table.entries

    def add(self, name: str, *, at: int) -> tuple[ApiKeyEntry, str]:
        """Make a key called `name`; return its entry and the key itself, which is kept nowhere."""
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise ConfigurationError(
                f"a key's name has 1 to {MAX_NAME} printable characters", code="keys.name"
            )
        secret = base64.urlsafe_b64encode(self._random(KEY_BYTES)).rstrip(b"=").decode()
        api_key = KEY_PREFIX + secret
        with self._locked():
            table = load_table(self._path) or ApiKeyTable(hash_key=self._random(_HASH_KEY_SIZE))
            entry = ApiKeyEntry(
                key_id=f"key_{self._random(8).hex()}",
                name=name,
                mac=table.mac(api_key.encode()),
                created=at,
            )
            self._write(replace(table, entries=(*table.entries, entry)))
        return entry, api_key

    def revoke(self, key_id: str, *, at: int) -> ApiKeyEntry:
        """Revoke the key called `key_id`; ConfigurationError if there is none in force."""
        with self._locked():
            table = load_table(self._path)
            entries = () if table is None else table.entries
            for index, entry in enumerate(entries):
                if entry.key_id == key_id and entry.revoked is None and table is not None:
                    revoked = replace(entry, revoked=at)
                    changed = (*entries[:index], revoked, *entries[index + 1 :])
                    self._write(replace(table, entries=changed))
                    return revoked
        raise ConfigurationError("no key in force has this id", code="keys.unknown")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(
            self._path.with_name(self._path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, table: ApiKeyTable) -> None:
        temporary = self._path.with_name(f"{self._path.name}.{self._random(6).hex()}.new")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(table.encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


class Gatekeeper:
    """Decides who is served, from a table that may change while the worker runs.

    With no key ever made, anybody is served if `open_when_empty` (the worker listens on the
    loopback only), and nobody otherwise. A table that was there and cannot be read any more
    leaves the last one in force; one that cannot be read from the first opens nothing.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        open_when_empty: bool,
        steady: Callable[[], float],
        log: EventLog,
    ) -> None:
        self._path = path
        self._open_when_empty = open_when_empty
        self._steady = steady
        self._log = log
        self._stamp = self._file_stamp()  # before reading: a change in between is noticed later
        self._table = None if path is None else load_table(path)
        self._unread = False  # a table is there, and what it says is not known
        self._in_force: dict[bytes, ApiKeyEntry] = {}
        self._index()
        self._checked = steady()

    @property
    def empty(self) -> bool:
        """Whether no key was ever made, as far as anybody can tell."""
        self._reload()
        return not self._unread and (self._table is None or not self._table.entries)

    @property
    def open(self) -> bool:
        """Whether anybody is served."""
        return self._open_when_empty and self.empty

    def credential(self, api_key: bytes | None) -> bytes | None:
        """The credential behind a presented key: its keyed hash; ``None`` refuses.

        ``b""`` stands for everybody on an open worker. The time this takes depends on the
        presented key only through a keyed hash of it.
        """
        self._reload()
        if self.open:
            return b""
        if api_key is None or self._table is None:
            return None
        mac = self._table.mac(api_key)
        entry = self._in_force.get(mac)
        stored = entry.mac if entry is not None else bytes(len(mac))
        return mac if hmac.compare_digest(stored, mac) and entry is not None else None

    def credentials(self) -> frozenset[bytes]:
        """The credentials in force."""
        return frozenset(self._in_force)

    def _reload(self) -> None:
        now = self._steady()
        if self._path is None or now - self._checked < _RELOAD_EVERY_S:
            return
        self._checked = now
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            table = load_table(self._path)
        except ConfigurationError as error:
            self._unread = True
            self._log.event("keys.reload_failed", code=error.code)
            return
        if table is None:
            self._log.event("keys.reload_failed", code="keys.gone")
            return
        self._table, self._unread = table, False
        self._index()
        self._log.event("keys.reloaded", in_force=len(self._in_force))

    def _index(self) -> None:
        entries = () if self._table is None else self._table.entries
        self._in_force = {entry.mac: entry for entry in entries if entry.revoked is None}

    def _file_stamp(self) -> tuple[int, ...] | None:
        if self._path is None:
            return None
        try:
            status = self._path.stat()
        except OSError:
            return None
        # The change time, because a mode or an owner that is put right changes nothing else.
        return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
