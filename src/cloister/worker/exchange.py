"""One whole request and its answer: the standard fields, the receipt, the end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from cloister.channel.receipt import API_VERSION, RECEIPT_TRAILER
from cloister.engine.protocol import ModelInfo
from cloister.worker import wire
from cloister.worker.arrival import AnswerWriter
from cloister.worker.context import Context
from cloister.worker.formats.translation import Translation
from cloister.worker.hashing import RequestHash
from cloister.worker.keys import Generation
from cloister.worker.problems import Problem
from cloister.worker.receipts import RECEIPT_ID_SIZE, issue_receipt
from cloister.worker.request import RequestFields

EVENT_STREAM: Final = b"text/event-stream"


@dataclass(slots=True, kw_only=True, eq=False)
class Exchange:
    """What a handler of the inner API works with.

    `request_hash` is None when the request was refused before it had wholly arrived; such an
    answer carries no receipt.
    """

    context: Context
    writer: AnswerWriter
    generation: Generation
    fields: RequestFields | None
    credential: bytes = field(default=b"", repr=False)
    body: bytes = field(default=b"", repr=False)
    request_hash: RequestHash | None = field(default=None, repr=False)
    translation: Translation | None = field(default=None, repr=False)
    """Set where the engine is asked in other words: how its answer is said."""
    anthropic: bool = False
    """Whether errors have Anthropic's shape."""
    route: str = "none"
    """A label for metrics, from a fixed list."""
    began: float = 0.0
    receipt_id: str | None = None
    interruption: Problem | None = None
    """Why the worker cancelled this answer; its stream ends with it."""
    abandoned: bool = False
    """Whether the worker gave the answer up, because nobody reads it."""
    _model: ModelInfo | None = None

    def start(self, status: int, headers: wire.Headers, *, model: ModelInfo | None = None) -> None:
        """Begin the answer; `model` is the one that answers, None when none does."""
        self._model = model
        standard = [
            (wire.ACI_VERSION, API_VERSION.encode()),
            (wire.KEYSET_DIGEST, self.generation.digest.encode()),
            (b"date", wire.http_date(self.context.clocks.wall())),
        ]
        if self.writer.sealed:
            nonce = wire.encode_secret(self.context.random(wire.NONCE_SIZE))
            standard.append((wire.WORKER_NONCE, nonce))
        # Without a trailer a receipt has to be kept, and those of models alone are.
        if self.request_hash is not None and (self.writer.sealed or model is not None):
            self.receipt_id = f"rcpt-{self.context.random(RECEIPT_ID_SIZE).hex()}"
            standard.append((wire.RECEIPT_ID, self.receipt_id.encode()))
        self.writer.head(status, (*headers, *standard))

    async def finish(self) -> None:
        """End the answer: sign its receipt, and send it (sealed) with the authenticated end."""
        response_hash = self.writer.end_content()
        trailers: wire.Headers = ()
        if self.request_hash is not None and self.fields is not None and self.receipt_id:
            context = self.context
            receipt = issue_receipt(
                key=context.keys.receipt_key,
                receipt_id=self.receipt_id,
                keyset_digest=self.generation.digest,
                method=self.fields.method,
                endpoint=self.fields.path,
                served_at=context.clocks.wall(),
                request_hash=await self.request_hash.digest(),
                response_hash=response_hash,
                model=self._model,
                over_tls=not self.writer.sealed,
            )
            if self._model is not None:
                context.receipts.keep(receipt, self.credential, context.clocks.steady())
            trailers = ((RECEIPT_TRAILER, receipt.to_trailer()),)
        await self.writer.end(trailers, pad_to=self.context.settings.padding.body_bucket)

    async def answer(
        self, status: int, body: bytes, headers: wire.Headers, *, model: ModelInfo | None = None
    ) -> None:
        """Answer with a whole body."""
        length = (b"content-length", str(len(body)).encode())
        self.start(status, (*headers, length), model=model)
        if body:
            self.writer.hold(body)
        await self.finish()

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem; in a stream that has begun, as its last event."""
        if self.writer.ended:
            return
        if self.writer.status == 0:
            body = problem.body(anthropic=self.anthropic)
            await self.answer(problem.status, body, problem.headers())
            return
        said = problem.event() if self.translation is None else self.translation.failure(problem)
        # A line may have been sent whose event is not finished: an empty line ends it.
        await self.writer.data(b"\n" + said)
        await self.finish()

    def elapsed(self) -> float:
        """Seconds since the request was whole."""
        return asyncio.get_running_loop().time() - self.began
