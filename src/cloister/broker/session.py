"""Sessions: a challenge that needs no memory, and the row that remembers its one answer.

Asking for a challenge writes nothing, so a flood of requests cannot fill the database: the cookie
itself carries nonce, secret and expiry under the broker's MAC. The row appears when evidence was
affirmed, and outlives the cookie, so no challenge is answered twice. Brokers behind one name
share the MAC key through the store.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import and_, bindparam, delete, insert, select

from cloister.broker import tables
from cloister.broker.database import Change
from cloister.broker.denial import Denied
from cloister.broker.master import MasterKey
from cloister.broker.statements import Connection, Prepared, Row
from cloister.channel.resource_uri import ResourceUri
from cloister.errors import AuthenticationError, MalformedError
from cloister.strictjson import JsonObject, canonical, parse_json_object

CHALLENGE_S: Final = 120
"""From a challenge to its answer: a thousand workers may wait for their turn meanwhile."""
TOKEN_S: Final = 120
"""From an affirmed answer to the release."""
KEEP_S: Final = CHALLENGE_S + TOKEN_S + 60
"""For how long a row stays after its token ended."""
_MAC_SIZE: Final = 32
MAX_COOKIE: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What a cookie carries."""

    nonce: bytes = field(repr=False)
    tee: str
    uri: ResourceUri | None
    """None for stock clients, who name a secret later."""
    version: int | None
    expires: int

    @property
    def stock(self) -> bool:
        """Whether a stock client asked."""
        return self.uri is None

    @property
    def name(self) -> str:
        """How the audit log names the session."""
        return name_of(self.nonce)


def name_of(nonce: bytes) -> str:
    """A session's name in the audit log: no part of its cookie or nonce."""
    return hashlib.sha256(b"cloister.broker.session\0" + nonce).hexdigest()[:16]


def encode_cookie(challenge: Challenge, master: MasterKey) -> str:
    """The value of ``kbs-session-id``: MAC and payload, base64url."""
    payload = canonical(
        {
            "nonce": challenge.nonce.hex(),
            "tee": challenge.tee,
            "uri": None if challenge.uri is None else str(challenge.uri),
            "version": challenge.version,
            "expires": challenge.expires,
        }
    )
    return base64.urlsafe_b64encode(master.mac(payload) + payload).rstrip(b"=").decode("ascii")


def parse_cookie(cookie: str | None, master: MasterKey) -> Challenge:
    """Read a cookie that this store's brokers made. Raises Denied (``session``).

    Whether it is still current is for `check_current`.
    """
    try:
        if cookie is None or len(cookie) > MAX_COOKIE:
            raise ValueError
        data = base64.b64decode(cookie + "=" * (-len(cookie) % 4), altchars=b"-_", validate=True)
        mac, payload = data[:_MAC_SIZE], data[_MAC_SIZE:]
        if not hmac.compare_digest(mac, master.mac(payload)):
            raise ValueError
        members = parse_json_object(payload, limit=MAX_COOKIE, what="the session")
    except (ValueError, MalformedError):
        raise Denied("session", "there is no such session") from None
    uri, version = members["uri"], members["version"]
    return Challenge(
        nonce=bytes.fromhex(str(members["nonce"])),
        tee=str(members["tee"]),
        uri=None if uri is None else ResourceUri.parse(str(uri)),
        version=version if isinstance(version, int) else None,
        expires=int(str(members["expires"])),
    )


def check_current(challenge: Challenge, now: float) -> None:
    """Raise Denied (``stale``) if the challenge is too old."""
    if now >= challenge.expires:
        raise Denied("stale", "the challenge is too old; ask for another")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A challenge that was answered with evidence that the broker affirmed."""

    nonce: bytes = field(repr=False)
    stock: bool
    uri: ResourceUri | None
    version: int | None
    wrapping_key: bytes
    statement: bytes
    facts: bytes
    """Canonical JSON, for the audit log."""
    evidence: bytes | None = field(default=None, repr=False)
    """A stock client's, which is appraised again for each secret's own terms."""
    rules: int
    """The entry of the audit log that changed policies or revocations last, when the evidence
    was appraised."""
    expires: int
    spent: bool = False
    """Whether it was given the secret that it is looked up for."""


_ANSWERED: Final = Prepared(
    select(tables.sessions.c.expires).where(tables.sessions.c.nonce == bindparam("of_nonce"))
)
_ADD: Final = Prepared(insert(tables.sessions))
_WITH_GIVEN: Final = select(tables.sessions, tables.releases.c.at.label("given")).outerjoin(
    tables.releases,
    and_(
        tables.releases.c.nonce == tables.sessions.c.nonce,
        tables.releases.c.uri == bindparam("of_uri"),
    ),
)
_BY_TOKEN: Final = Prepared(
    _WITH_GIVEN.where(tables.sessions.c.token_sha256 == bindparam("of_token"))
)
_BY_NONCE: Final = Prepared(_WITH_GIVEN.where(tables.sessions.c.nonce == bindparam("of_nonce")))
_COLUMNS: Final = tuple(str(column.name) for column in tables.sessions.c if column.name != "tag")
_SPEND: Final = Prepared(insert(tables.releases))
FORGET_EVERY: Final = 256
"""Answers between two removals of old rows."""


def is_answered(nonce: bytes, connection: Connection) -> bool:
    """Whether the challenge with this nonce was answered."""
    return connection.first(_ANSWERED, of_nonce=nonce) is not None


def add_session(change: Change, session: Session, token: str, master: MasterKey) -> None:
    """Remember an answered challenge, and forget those of long ago.

    Raises Denied (``replayed``) if it was answered before.
    """
    if is_answered(session.nonce, change.connection):
        raise replayed()
    if session.nonce[0] % FORGET_EVERY == 0:
        _forget(change)
    row: dict[str, Any] = {
        "nonce": session.nonce,
        "token_sha256": token_digest(token),
        "stock": session.stock,
        "uri": None if session.uri is None else str(session.uri),
        "version": session.version,
        "wrapping_key": session.wrapping_key,
        "statement": session.statement,
        "facts": session.facts,
        "evidence": session.evidence,
        "rules": session.rules,
        "expires": session.expires,
    }
    change.connection.run(_ADD, **row, tag=_tag(row, master))


def replayed() -> Denied:
    """The denial of a second answer."""
    return Denied("replayed", "this challenge was answered before")


def find_by_token(
    token: str, uri: ResourceUri, connection: Connection, master: MasterKey
) -> Session | None:
    """The session that a token belongs to, and whether it was given the secret `uri`.

    AuthenticationError (``broker.store``) if it is not as a broker of this store wrote it.
    """
    row = connection.first(_BY_TOKEN, of_token=token_digest(token), of_uri=str(uri))
    return None if row is None else _session(row, master)


def find_by_nonce(
    nonce: bytes, uri: ResourceUri, connection: Connection, master: MasterKey
) -> Session | None:
    """The session of a challenge; otherwise as `find_by_token`."""
    row = connection.first(_BY_NONCE, of_nonce=nonce, of_uri=str(uri))
    return None if row is None else _session(row, master)


def spend(change: Change, session: Session, uri: ResourceUri, version: int) -> None:
    """Write down that the session is given this secret; the key of the row forbids it twice."""
    change.connection.run(_SPEND, nonce=session.nonce, uri=str(uri), version=version, at=change.at)


def facts_of(session: Session) -> JsonObject:
    """What the audit log keeps of the worker."""
    return parse_json_object(session.facts, limit=64 * 1024, what="the facts of a session")


def _session(row: Row, master: MasterKey) -> Session:
    columns = {name: getattr(row, name) for name in _COLUMNS}
    columns["stock"] = bool(row.stock)  # SQLite has numbers only
    if not hmac.compare_digest(row.tag, _tag(columns, master)):
        raise AuthenticationError(
            "a session of the store was not written by its brokers: the database was altered",
            code="broker.store",
        )
    return Session(
        nonce=row.nonce,
        stock=columns["stock"],
        uri=None if row.uri is None else ResourceUri.parse(row.uri),
        version=row.version,
        wrapping_key=row.wrapping_key,
        statement=row.statement,
        facts=row.facts,
        evidence=row.evidence,
        rules=row.rules,
        expires=row.expires,
        spent=row.given is not None,
    )


def _tag(columns: dict[str, Any], master: MasterKey) -> bytes:
    """The MAC over a row. No cookie's payload, which is JSON, begins like this."""
    covered = {
        name: value.hex() if isinstance(value, bytes) else value for name, value in columns.items()
    }
    return master.mac(b"row\0" + canonical(covered))


def _forget(change: Change) -> None:
    """Remove rows of sessions whose challenge nobody could answer any more."""
    old = tables.sessions.c.expires < change.at - KEEP_S
    gone = select(tables.sessions.c.nonce).where(old)
    change.connection.run(delete(tables.releases).where(tables.releases.c.nonce.in_(gone)))
    change.connection.run(delete(tables.sessions).where(old))


def token_digest(token: str) -> bytes:
    """What the store keeps of a token."""
    return hashlib.sha256(token.encode()).digest()
