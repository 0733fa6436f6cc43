"""What the gateway asks of a way in: one request on its way, and the answer's writer.

There are two ways: sealed (`cloister.worker.sealed`), and inside a TLS connection that ends in
this process (`cloister.worker.tls_arrival`). They differ in what protects a request and in what
its answer is wrapped in. Everything else is the gateway's, once for both.
"""

from __future__ import annotations

from typing import Protocol

from cloister.worker import problems, wire
from cloister.worker.context import Context
from cloister.worker.hashing import RequestHash
from cloister.worker.keys import Generation
from cloister.worker.problems import Problem, RefusedError
from cloister.worker.request import RequestFields
from cloister.worker.response import Scope, Send


class AnswerWriter(Protocol):
    """Writes one answer. The head goes with the first piece."""

    sealed: bool
    """Whether the answer ends in a trailer that carries its receipt, and holds a nonce."""
    collects: bool
    """Whether pieces are kept until the end, instead of being sent at once."""
    status: int
    """0 before `head`."""
    ended: bool
    pieces: int
    blocked_since: float
    """When the send now waiting began (loop time); 0 while none waits."""

    def head(self, status: int, headers: wire.Headers) -> None:
        """Take the status and the fields."""

    async def data(self, data: bytes) -> None:
        """Send content, which must not be empty, as one piece."""

    def hold(self, data: bytes) -> None:
        """Take content that is sent together with the end."""

    def end_content(self) -> bytes:
        """End the content and return the SHA-256 that goes into the receipt."""

    async def end(self, trailers: wire.Headers, *, pad_to: int) -> None:
        """Send what is left, and the end."""


class Arrival(Protocol):
    """One request on its way in.

    Nothing of it may be acted on before `finish` has returned: until then its sender may
    still be somebody who cut it short. (Refusing it earlier is no action.)
    """

    fields: RequestFields | None
    """Set once the head is there and whoever asks has been admitted."""
    credential: bytes

    @property
    def anthropic(self) -> bool:
        """Whether errors have Anthropic's shape."""

    @property
    def generation(self) -> Generation:
        """The keys that the answer is given under."""

    def begin(self) -> None:
        """Before anything of the body has arrived. RefusedError says what to answer."""

    def receive(self, data: bytes) -> None:
        """Take more of the body. RefusedError says what to answer."""

    def finish(self) -> None:
        """The body has ended. RefusedError unless the request is whole, and admitted."""

    def admit(self) -> Problem | None:
        """Admit the whole request, or say why not. No await: two copies cannot both pass."""

    def take_body(self) -> bytes:
        """Hand over the content, whole; nothing of it stays here."""

    def take_hash(self) -> RequestHash:
        """What the receipt says was received; its pieces are let go of."""

    def inside(self, problem: Problem) -> bool:
        """Whether `problem` is said as an answer, and not as a refusal outside of it."""

    def writer(self, send: Send) -> AnswerWriter:
        """What writes the answer."""


class Way(Protocol):
    """A way in."""

    def refuse(self, scope: Scope) -> Problem | None:
        """What is wrong with the envelope, seen from its head alone."""

    def arrive(self, scope: Scope) -> Arrival:
        """A request that begins to arrive."""

    def outside(self, problem: Problem) -> Problem:
        """`problem` as this way says it where there is no answer to say it in."""


def credential_of(context: Context, fields: RequestFields) -> bytes:
    """The credential of whoever asks; RefusedError for a key that is missing or not in force."""
    credential = context.gatekeeper.credential(fields.bearer)
    if credential is None:
        empty = context.gatekeeper.empty
        raise RefusedError(problems.NO_KEYS_CONFIGURED if empty else problems.NO_API_KEY)
    return credential


def over_rate(context: Context, credential: bytes) -> Problem | None:
    """Count one request of `credential`; the refusal where it is one too many."""
    if not credential:
        return None  # anybody, on an open worker: there is nobody to hold to a rate
    wait = context.rates.take(credential, context.clocks.steady())
    return problems.rate_limited(wait) if wait else None
