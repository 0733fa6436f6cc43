"""One sealed exchange from request to the head of the answer. No I/O.

The only place that decides about sending again: once after "unknown key", which nobody
authenticates, and once after the worker's own "wrong date". Both carry the same idempotency key
inside the seal, so that a prompt runs once however often it is sent.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

from cloister.channel.bhttp import ResponseHead
from cloister.channel.ohttp import (
    CHUNKED_REQUEST_MEDIA_TYPE,
    CHUNKED_RESPONSE_MEDIA_TYPE,
    KEY_PROBLEM_TYPE,
)
from cloister.client.commands import Attest, Command, Discard, Outcome, Post, Read, Reply
from cloister.client.exchange import SealedExchange
from cloister.client.opening import ResponseOpening
from cloister.client.request import InnerRequest
from cloister.client.session import Session
from cloister.client.settings import ClientSettings, Effects
from cloister.errors import ChannelError
from cloister.verifier.result import AffirmedAttester

DATE_PROBLEM_TYPE = "https://iana.org/assignments/http-problem-types#date"
PROBLEM_MEDIA_TYPE = "application/problem+json"
_OVERLOADED = frozenset({429, 503})

Steps = Generator[Command, Outcome, "Opened"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An answer whose head is authenticated; the reply is still open for the rest."""

    head: ResponseHead
    opening: ResponseOpening
    early: tuple[bytes, ...] = field(repr=False)
    """Content that arrived together with the head."""
    ended: bool
    """Whether the whole answer was read, and `ResponseOpening.finish` called, already."""


class Sessions:
    """The session of the worker affirmed last, and how far its clock is from ours."""

    def __init__(self, *, settings: ClientSettings, effects: Effects) -> None:
        self.settings = settings
        self.effects = effects
        self._session: Session | None = None
        self._date_offset = 0.0

    def get(self, attester: AffirmedAttester) -> Session:
        """A session with `attester`, made at most once for each."""
        session = self._session
        if session is None or session.attester is not attester:
            session = Session(attester, settings=self.settings, effects=self.effects)
            self._session = session
        return session

    def date(self) -> float:
        """Unix time as the worker counts it, as far as it told us."""
        return self.effects.wall() + self._date_offset

    def correct(self, date: float) -> None:
        """Remember that the worker's clock says `date` now."""
        self._date_offset = date - self.effects.wall()


def exchange(sessions: Sessions, inner: InnerRequest, *, url: str) -> Steps:
    """Seal and send `inner`; the generator returns the answer once its head is open.

    Raises:
        ChannelError: no sealed answer came, or one that does not open. Codes:
            ``channel.unsealed``, ``channel.overloaded``, ``channel.unknown_key``, and those of
            `ResponseOpening`.
        CloisterError: what verifying the worker raises, see `Attestation.handshake`.
    """
    renewed = redated = False
    attempts = 0
    attester = _attester((yield Attest()))
    while True:
        attempts += 1
        sealed = sessions.get(attester).seal(
            inner,
            date=sessions.date(),
            exchange=SealedExchange(attester=attester, attempts=attempts),
        )
        reply = yield Post(
            url=url,
            content_type=CHUNKED_REQUEST_MEDIA_TYPE,
            accept=CHUNKED_RESPONSE_MEDIA_TYPE,
            pieces=sealed.pieces,
            length=sealed.length,
        )
        if not isinstance(reply, Reply):
            raise TypeError("the driver answered a post with something else")
        if reply.status == 200 and reply.content_type == CHUNKED_RESPONSE_MEDIA_TYPE:
            opened = yield from _open_head(sealed.opening)
            if redated or not _may_be_date_problem(opened.head):
                return opened
            opened = yield from _read_to_end(opened, sessions.settings.max_problem)
            date = _worker_date(opened)
            if date is None:
                return opened
            sessions.correct(date)
            redated = True
            continue
        problem = yield from _read_problem(reply, sessions.settings.max_problem)
        if problem != KEY_PROBLEM_TYPE:
            raise _unsealed(reply.status)
        if renewed:
            raise ChannelError(
                "the worker says that it does not have the key it attested to (unauthenticated)",
                code="channel.unknown_key",
            )
        attester = _attester((yield Attest(stale=attester)))
        renewed = True


def _attester(outcome: Outcome) -> AffirmedAttester:
    if not isinstance(outcome, AffirmedAttester):
        raise TypeError("the driver answered with something other than an affirmed worker")
    return outcome


def _open_head(opening: ResponseOpening) -> Steps:
    early: list[bytes] = []
    ended = False
    while opening.head is None:
        data = yield Read()
        if data is None:
            early += opening.finish()
            ended = True
            break
        early += opening.receive(_bytes(data))
    if opening.head is None:
        raise ChannelError("the sealed answer has no head", code="channel.malformed")
    return Opened(head=opening.head, opening=opening, early=tuple(early), ended=ended)


def _read_to_end(opened: Opened, limit: int) -> Steps:
    """Read a small answer whole; one larger than `limit` is given back unread."""
    content = list(opened.early)
    ended = opened.ended
    while not ended and sum(map(len, content)) <= limit:
        data = yield Read()
        if data is None:
            content += opened.opening.finish()
            ended = True
        else:
            content += opened.opening.receive(_bytes(data))
    if ended:
        yield Discard()
    return Opened(head=opened.head, opening=opened.opening, early=tuple(content), ended=ended)


def _read_problem(reply: Reply, limit: int) -> Generator[Command, Outcome, str | None]:
    """The type of an unsealed problem document; ``None`` if it is anything else.

    Nothing of it is shown to anyone: whoever sits in between may have written it.
    """
    if reply.status != 400 or reply.content_type != PROBLEM_MEDIA_TYPE:
        yield Discard()
        return None
    body = b""
    while len(body) <= limit:
        data = yield Read()
        if data is None:
            break
        body += _bytes(data)
    yield Discard()
    return _problem_type(body) if len(body) <= limit else None


def _problem_type(body: bytes) -> str | None:
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return None
    kind = problem.get("type") if isinstance(problem, dict) else None
    return kind if isinstance(kind, str) else None


def _may_be_date_problem(head: ResponseHead) -> bool:
    return head.status == 400 and _field(head, b"content-type").startswith(
        PROBLEM_MEDIA_TYPE.encode("ascii")
    )


def _worker_date(opened: Opened) -> float | None:
    """The worker's clock, if `opened` is its whole "wrong date" (RFC 9458 section 6.5.2)."""
    if not opened.ended or _problem_type(b"".join(opened.early)) != DATE_PROBLEM_TYPE:
        return None
    try:
        return parsedate_to_datetime(_field(opened.head, b"date").decode("ascii")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _field(head: ResponseHead, name: bytes) -> bytes:
    return next((value for key, value in head.headers if key == name), b"")


def _bytes(outcome: Outcome) -> bytes:
    if not isinstance(outcome, bytes):
        raise TypeError("the driver answered a read with something other than bytes")
    return outcome


def _unsealed(status: int) -> ChannelError:
    if status in _OVERLOADED:
        return ChannelError(
            f"the worker, or something in front of it, says that it is overloaded (HTTP {status},"
            " unauthenticated)",
            code="channel.overloaded",
        )
    return ChannelError(
        f"what came back is not sealed (HTTP {status}, unauthenticated); it is not the worker's"
        " answer",
        code="channel.unsealed",
    )
