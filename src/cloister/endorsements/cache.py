"""Endorsements on disk, shared by every process of one user.

::

    objects/<sha256>        the bytes of an artefact
    index/<identity>.json   which artefact answers a request, and the newest issue ever seen
    locks/<identity>        held while the artefact is fetched

Files are replaced whole, so a reader sees the old or the new one. One process fetches while the
others wait for it, or go on with the copy they have. Only what was signed under a pinned root is
admitted, and nothing older than what was seen before: whoever can answer in a vendor's place
cannot bring back the time before a revocation. Every time is an argument; the operating system's
clock is only asked how old leftover files are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from cloister.endorsements.artefact import MAX_BYTES, Artefact, ArtefactKind, ArtefactRequest
from cloister.endorsements.contents import make_artefact
from cloister.endorsements.freshness import Freshness
from cloister.endorsements.genuine import UNSIGNED_HERE, check_genuine
from cloister.endorsements.roots import Roots
from cloister.errors import (
    AuthenticationError,
    CloisterError,
    ConfigurationError,
    FetchError,
    MalformedError,
)
from cloister.strictjson import (
    JsonObject,
    canonical,
    expect_int,
    expect_str,
    parse_json_object,
)

MAX_INDEX_BYTES: Final = 64 * 1024
MAX_ENTRIES: Final = 4096
LEFTOVER_S: Final = 3600.0
"""Age in seconds at which an object that no index names is removed: whoever wrote it would have
named it by then."""
_POLL_S: Final = 0.05
_FOLDERS: Final = ("objects", "index", "locks")


class FetchesArtefacts(Protocol):
    """`cloister.endorsements.fetch.fetcher.Fetcher`."""

    def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
        """Fetch what `request` names."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedArtefact:
    """A copy, and why it is not a newer one if it should be."""

    artefact: Artefact
    stale_because: str | None = None
    """A sentence, when the copy was due for renewal and no newer one could be had."""
    stale_code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """Which issue of an artefact something is."""

    issued_at: datetime
    number: int | None

    def precedes(self, other: Issue) -> bool:
        """Whether this one is older than `other`, by date or by number."""
        if self.issued_at < other.issued_at:
            return True
        return other.number is not None and (self.number is None or self.number < other.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What the disk has for a request; the artefact is missing when its file is damaged."""

    artefact: Artefact | None = None
    newest: Issue | None = None


@dataclass(slots=True)
class EndorsementCache:
    """Artefacts in a folder; safe to use from several threads and processes.

    Raises:
        ConfigurationError: the folder cannot be used, or others may write to it
            (``endorsement.cache``).
    """

    folder: Path
    roots: Roots
    freshness: Freshness = field(default_factory=Freshness)
    wait_s: float = 120.0
    """How long to wait for another process that fetches the same artefact."""
    retry_after: timedelta = timedelta(minutes=1)
    """After a failure, how long to go without asking again."""
    sleep: Callable[[float], None] = time.sleep
    _failures: dict[str, tuple[datetime, CloisterError]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        with _usable(self.folder):
            for folder in (self.folder, *(self.folder / name for name in _FOLDERS)):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _check_private(folder)

    def get(
        self, request: ArtefactRequest, fetcher: FetchesArtefacts, *, at: datetime
    ) -> CachedArtefact:
        """The artefact for `request`: the copy here if that is fresh, else a fetched one.

        When fetching fails, the copy here is returned with the reason, as long as its own dates
        and the maximum age allow.

        Raises:
            FetchError: there is no copy that may be used, and none can be fetched.
            AuthenticationError: what came is not genuine (``endorsement.signature``), or older
                than what came before (``endorsement.rolled_back``), and no copy may be used.
            ConfigurationError: as for the class, and as for `Fetcher.fetch`.
        """
        found = self.peek(request)
        if found is not None and not self.freshness.is_due(found, at):
            return CachedArtefact(artefact=found)
        usable = found is not None and self.freshness.is_usable(found, at)
        with self._lock(request, wait=not usable) as locked:
            if not locked and found is not None and usable:
                return CachedArtefact(
                    artefact=found,
                    stale_because="another process is fetching a newer copy",
                    stale_code="endorsement.renewing",
                )
            if not locked:
                raise FetchError(
                    f"another process has been fetching {request.kind} for more than"
                    f" {self.wait_s:.0f} seconds",
                    code="fetch.timeout",
                )
            return self._renew(request, fetcher, at)

    def peek(self, request: ArtefactRequest) -> Artefact | None:
        """The copy here, of whatever age; ``None`` when there is none or it is damaged."""
        return self._load(request).artefact

    def put(self, artefact: Artefact) -> None:
        """Keep `artefact` if it is genuine and no older than what was kept before.

        Raises:
            AuthenticationError: it is not (``endorsement.signature``,
                ``endorsement.rolled_back``).
            FetchError: another process holds the entry for too long (``fetch.timeout``).
        """
        with self._lock(artefact.request, wait=True) as locked:
            if not locked:
                raise FetchError("the cache is busy", code="fetch.timeout")
            self._admit(artefact, self._load(artefact.request).newest)

    def entries(self) -> Iterator[Artefact]:
        """Every artefact that is whole, in the order of kind and key."""
        found = []
        for path in sorted((self.folder / "index").glob("*.json"))[:MAX_ENTRIES]:
            request = self._request_in(path)
            artefact = None if request is None else self.peek(request)
            if artefact is not None:
                found.append(artefact)
        yield from sorted(found, key=lambda one: (one.kind, one.key))

    def _renew(
        self, request: ArtefactRequest, fetcher: FetchesArtefacts, at: datetime
    ) -> CachedArtefact:
        held = self._load(request)  # another process may have fetched it meanwhile
        if held.artefact is not None and not self.freshness.is_due(held.artefact, at):
            return CachedArtefact(artefact=held.artefact)
        try:
            artefact = self._fetch(request, fetcher, held, at)
        except (FetchError, AuthenticationError) as error:
            if held.artefact is None or not self.freshness.is_usable(held.artefact, at):
                raise
            return CachedArtefact(
                artefact=held.artefact, stale_because=str(error), stale_code=error.code
            )
        return CachedArtefact(artefact=artefact)

    def _fetch(
        self, request: ArtefactRequest, fetcher: FetchesArtefacts, held: _Held, at: datetime
    ) -> Artefact:
        last = self._failures.get(request.identity)
        if last is not None and at - self.retry_after < last[0] <= at:
            raise last[1].with_traceback(None)
        try:
            artefact = fetcher.fetch(request, at=at)
            if artefact.request != request:
                raise FetchError("something else was fetched", code="fetch.content")
            self._admit(artefact, held.newest)
        except (FetchError, AuthenticationError) as error:
            self._failures[request.identity] = (at, error)
            raise
        self._failures.pop(request.identity, None)
        return artefact

    def _admit(self, artefact: Artefact, newest: Issue | None) -> None:
        check_genuine(artefact, self.roots)
        issue = Issue(issued_at=artefact.issued_at, number=artefact.number)
        if artefact.kind in UNSIGNED_HERE:
            newest = None
        if newest is not None and issue.precedes(newest):
            raise AuthenticationError(
                f"{artefact.kind} {artefact.key} from {artefact.source} was issued at"
                f" {artefact.issued_at:%Y-%m-%d %H:%M} UTC (number {artefact.number}), and one of"
                f" {newest.issued_at:%Y-%m-%d %H:%M} UTC (number {newest.number}) was seen before",
                code="endorsement.rolled_back",
            )
        with _usable(self.folder):
            _replace(self.folder / "objects" / artefact.sha256, artefact.data)
            _replace(self._index(artefact.request), _encode(artefact, issue))
            self._sweep()

    def _load(self, request: ArtefactRequest) -> _Held:
        """What is on disk. Damage is not an error: it means that there is no copy."""
        data = _read(self._index(request), MAX_INDEX_BYTES)
        if data is None:
            return _Held()
        try:
            members = parse_json_object(data, limit=MAX_INDEX_BYTES, what="an index entry")
            newest = _newest(members)
        except (MalformedError, ValueError, OverflowError):
            return _Held()
        try:
            return _Held(artefact=self._artefact(request, members), newest=newest)
        except (MalformedError, ValueError, OverflowError):
            return _Held(newest=newest)

    def _artefact(self, request: ArtefactRequest, members: JsonObject) -> Artefact | None:
        digest = expect_str(members.get("sha256"), "sha256", limit=64)
        data = _read(self.folder / "objects" / digest, MAX_BYTES[request.kind])
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            return None
        return make_artefact(
            request,
            data,
            source=expect_str(members.get("source"), "source"),
            fetched_at=_time(members.get("fetched_at")),
            issuer_chain=expect_str(
                members.get("issuer_chain"), "issuer_chain", limit=MAX_INDEX_BYTES
            ).encode("ascii"),
        )

    def _request_in(self, path: Path) -> ArtefactRequest | None:
        data = _read(path, MAX_INDEX_BYTES)
        if data is None:
            return None
        try:
            members = parse_json_object(data, limit=MAX_INDEX_BYTES, what="an index entry")
            return ArtefactRequest(
                kind=ArtefactKind(expect_str(members.get("kind"), "kind")),
                key=expect_str(members.get("key"), "key"),
            )
        except (MalformedError, ConfigurationError, ValueError):
            return None

    def _index(self, request: ArtefactRequest) -> Path:
        return self.folder / "index" / f"{request.identity}.json"

    def _sweep(self) -> None:
        """Remove objects that no index names any more."""
        named = set()
        for path in (self.folder / "index").glob("*.json"):
            with contextlib.suppress(MalformedError):
                data = _read(path, MAX_INDEX_BYTES) or b""
                members = parse_json_object(data, limit=MAX_INDEX_BYTES, what="an index entry")
                named.add(members.get("sha256"))
        for path in (self.folder / "objects").iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process sweeps too
                if path.name not in named and time.time() - path.stat().st_mtime > LEFTOVER_S:
                    path.unlink()

    @contextlib.contextmanager
    def _lock(self, request: ArtefactRequest, *, wait: bool) -> Iterator[bool]:
        """Hold the entry against other processes and threads; yields whether it is held."""
        with _usable(self.folder):
            file = os.open(self.folder / "locks" / request.identity, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            deadline = time.monotonic() + self.wait_s
            held = _try_lock(file)
            while not held and wait and time.monotonic() < deadline:
                self.sleep(_POLL_S)
                held = _try_lock(file)
            yield held
        finally:
            os.close(file)  # which also lets go of the lock


def _encode(artefact: Artefact, newest: Issue) -> bytes:
    return canonical(
        {
            "kind": str(artefact.kind),
            "key": artefact.key,
            "sha256": artefact.sha256,
            "issuer_chain": artefact.issuer_chain.decode("ascii"),
            "source": artefact.source,
            "fetched_at": int(artefact.fetched_at.timestamp()),
            "newest_issued_at": int(newest.issued_at.timestamp()),
            "newest_number": None if newest.number is None else str(newest.number),
        }
    )


def _newest(members: JsonObject) -> Issue:
    number = members.get("newest_number")
    return Issue(
        issued_at=_time(members.get("newest_issued_at")),
        # A CRL number has up to 20 bytes (RFC 5280 section 5.2.3), more than JSON's integers.
        number=None if number is None else int(expect_str(number, "newest_number", limit=49)),
    )


def _time(value: object) -> datetime:
    return datetime.fromtimestamp(expect_int(value, "a time", high=1 << 40), UTC)


def _read(path: Path, limit: int) -> bytes | None:
    """The file, or nothing when it is absent, too long or not to be read."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError:
        return None
    return data if len(data) <= limit else None


def _replace(path: Path, data: bytes) -> None:
    """Put `data` in the place of `path`, all at once and lasting."""
    file, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # mode 0600
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _check_private(folder: Path) -> None:
    """Whoever can write here can remove what was seen, and so bring back old issues."""
    if sys.platform == "win32":
        return
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(
            f"others may write to {folder}; keep endorsements in a folder of your own",
            code="endorsement.cache",
        )


@contextlib.contextmanager
def _usable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"the endorsements in {folder} cannot be kept: {error.strerror}",
            code="endorsement.cache",
        ) from None


def _try_lock(file: int) -> bool:
    """Take the lock if it is free. It is the open file's own, so threads exclude each other."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
