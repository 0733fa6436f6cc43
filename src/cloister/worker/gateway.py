"""``POST /ohttp``: bounds first, then the seal, then who asks, then the API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator

from cloister.worker import api, problems, wire
from cloister.worker.context import Context
from cloister.worker.exchange import Exchange
from cloister.worker.keys import Generation
from cloister.worker.problems import Problem, RefusedError
from cloister.worker.replay import Admission
from cloister.worker.request import Arrival, RequestFields, read_fields
from cloister.worker.response import Receive, ResponseWriter, Scope, Send
from cloister.worker.unsealed import send_problem

_SWEEP_S = 5.0
_FAREWELL_S = 2.0
_ABOUT_THE_SEAL = frozenset(
    (
        problems.UNKNOWN_KEY,
        problems.CANNOT_OPEN,
        problems.TOO_LARGE,
        problems.TOO_SLOW,
        problems.BUSY,
    )
)
"""Said in clear even where a seal exists: there is no whole request to answer."""


class _ClientGoneError(Exception):
    """The peer closed its connection."""


class Gateway:
    """Opens sealed requests and has them answered."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._open = 0
        self._buffered = 0
        self._answering: dict[Exchange, asyncio.Task[object]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def open_requests(self) -> int:
        """Sealed requests in progress."""
        return self._open

    async def wait_idle(self) -> None:
        """Return when no sealed request is in progress."""
        await self._idle.wait()

    async def sweep(self) -> None:
        """Give up, for ever and every few seconds, answers whose readers have stopped reading."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            oldest = loop.time() - self._context.settings.limits.send_s
            for exchange, task in list(self._answering.items()):
                if 0 < exchange.writer.blocked_since < oldest:
                    exchange.abandoned = True
                    task.cancel()

    async def give_up(self) -> None:
        """End every answer in flight: with an authenticated error where its client still reads."""
        for exchange, task in list(self._answering.items()):
            exchange.interruption = problems.SHUTTING_DOWN
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await self.wait_idle()
        for exchange, task in list(self._answering.items()):
            exchange.abandoned = True
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ``POST /ohttp``."""
        problem = self._refuse_envelope(scope)
        if problem is not None:
            self._count_refusal(problem)
            await send_problem(send, problem)
            return
        self._open += 1
        self._idle.clear()
        self._context.metrics.open_requests.set(self._open)
        try:
            await self._serve(scope, receive, send)
        except _ClientGoneError:
            self._context.metrics.cancelled.inc()
        finally:
            self._open -= 1
            self._context.metrics.open_requests.set(self._open)
            if not self._open:
                self._idle.set()

    def _refuse_envelope(self, scope: Scope) -> Problem | None:
        context, limits = self._context, self._context.settings.limits
        if context.stopping:
            return problems.STOPPING
        if self._open >= limits.max_open_requests or self._buffered >= limits.max_buffered_bytes:
            return problems.BUSY
        if _content_type(scope) not in (wire.REQUEST_TYPE, wire.CHUNKED_REQUEST_TYPE):
            return problems.NOT_SEALED
        length = _content_length(scope)
        if length is not None and length > limits.max_request_bytes:
            return problems.TOO_LARGE
        return None

    def _count_refusal(self, problem: Problem) -> None:
        self._context.metrics.refused_outside.labels(status=str(problem.status)).inc()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = self._context
        arrival = Arrival(
            context.keys.opening_keys(),
            chunked=_content_type(scope) == wire.CHUNKED_REQUEST_TYPE,
            limits=context.settings.limits,
        )
        admitted = _Admitted()
        try:
            await self._receive(arrival, admitted, receive)
        except RefusedError as refused:
            await self._refuse(arrival, refused.problem, send)
            return
        if admitted.fields is None or admitted.generation is None:
            raise RuntimeError("a whole request has a head")
        writer = ResponseWriter(arrival.sealed, chunked=arrival.chunked, send=send)
        exchange = Exchange(
            context=context,
            writer=writer,
            generation=admitted.generation,
            fields=admitted.fields,
            credential=admitted.credential,
            body=arrival.take_body(),
            request_hash=arrival.take_hash(),
            anthropic=_is_anthropic(arrival),
            began=asyncio.get_running_loop().time(),
        )
        with self._holding(len(exchange.body)):
            await self._answer(exchange, arrival, receive, send)

    async def _receive(self, arrival: Arrival, admitted: _Admitted, receive: Receive) -> None:
        """Take in the whole request, refusing as early as its head allows."""
        limits = self._context.settings.limits
        size = 0
        try:
            async with asyncio.timeout(limits.receive_s):
                more = True
                while more:
                    async with asyncio.timeout(limits.first_byte_s):
                        message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGoneError
                    data = message.get("body", b"")
                    size += len(data)
                    self._buffered += len(data)
                    if self._buffered > limits.max_buffered_bytes:
                        raise RefusedError(problems.BUSY)
                    arrival.receive(data)
                    self._admit_head(arrival, admitted)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RefusedError(problems.TOO_SLOW) from None
        finally:
            self._buffered -= size
        arrival.finish()
        self._admit_head(arrival, admitted)

    def _admit_head(self, arrival: Arrival, admitted: _Admitted) -> None:
        """Check who asks, and when, as soon as the head is there: before a body is kept."""
        head = arrival.head
        if admitted.fields is not None or head is None:
            return
        context = self._context
        key = context.keys.request_key(arrival.sealed.key_id or 0)
        if key is None:
            raise RefusedError(problems.UNKNOWN_KEY)
        admitted.generation = key.generation
        if key.replay.seen(arrival.sealed.enc):
            raise RefusedError(problems.REPLAYED)
        fields = read_fields(head)
        window = context.settings.limits.date_window_s
        if fields.date is None or abs(fields.date - context.clocks.wall()) > window:
            raise RefusedError(problems.DATE_REFUSED)
        credential = context.gatekeeper.credential(fields.bearer)
        if credential is None:
            empty = context.gatekeeper.empty
            raise RefusedError(problems.NO_KEYS_CONFIGURED if empty else problems.NO_API_KEY)
        admitted.credential = credential
        admitted.fields = fields

    async def _answer(
        self, exchange: Exchange, arrival: Arrival, receive: Receive, send: Send
    ) -> None:
        context = self._context
        refused = self._admit_whole(exchange, arrival)
        if refused is problems.UNKNOWN_KEY:
            await self._refuse(arrival, refused, send)
            return
        writer, task = exchange.writer, asyncio.current_task()
        if task is None:
            raise RuntimeError("a request is answered in a task")
        self._answering[exchange] = task
        try:
            handled = exchange.refuse(refused) if refused is not None else self._handle(exchange)
            await _unless_gone(handled, exchange, receive)
        finally:
            del self._answering[exchange]
            status = f"{writer.status // 100}xx" if writer.ended else "unfinished"
            context.metrics.answers.labels(route=exchange.route, status=status).inc()
            context.metrics.pieces.inc(writer.pieces)
            context.metrics.answer_s.observe(exchange.elapsed())

    def _admit_whole(self, exchange: Exchange, arrival: Arrival) -> Problem | None:
        """Admit a request once its end authenticated. No await: two copies cannot both pass."""
        context = self._context
        key = context.keys.request_key(arrival.sealed.key_id or 0)
        if key is None or key.generation is not exchange.generation:
            return problems.UNKNOWN_KEY  # the key died, or was full, while the request arrived
        match context.keys.admit(key, arrival.sealed.enc):
            case Admission.SEEN:
                return problems.REPLAYED
            case Admission.FULL:
                return problems.UNKNOWN_KEY
            case Admission.NEW:
                pass
        if not exchange.credential:
            return None  # anybody, on an open worker: there is nobody to hold to a rate
        wait = context.rates.take(exchange.credential, context.clocks.steady())
        return problems.rate_limited(wait) if wait else None

    async def _handle(self, exchange: Exchange) -> None:
        try:
            await api.handle(exchange)
        except RefusedError as refused:
            await exchange.refuse(refused.problem)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if exchange.interruption is None or exchange.abandoned or task is None:
                raise
            task.uncancel()
            await exchange.refuse(exchange.interruption)
        except Exception as error:
            self._context.log.failure("request.failed", error)
            await exchange.refuse(problems.INTERNAL)

    async def _refuse(self, arrival: Arrival, problem: Problem, send: Send) -> None:
        """Refuse a request that is not whole: sealed if there is a seal, and it is not about it."""
        if not arrival.authenticated or problem in _ABOUT_THE_SEAL:
            if problem is problems.UNKNOWN_KEY and self._context.keys.seconds_to_rotation():
                problem = problems.KEYS_EXHAUSTED
            self._count_refusal(problem)
            await send_problem(send, problem)
            return
        key = self._context.keys.request_key(arrival.sealed.key_id or 0)
        generation = self._context.keys.current if key is None else key.generation
        exchange = Exchange(
            context=self._context,
            writer=ResponseWriter(arrival.sealed, chunked=arrival.chunked, send=send),
            generation=generation,
            fields=None,
            anthropic=_is_anthropic(arrival),
        )
        await exchange.refuse(problem)
        status = f"{problem.status // 100}xx"
        self._context.metrics.answers.labels(route="none", status=status).inc()

    @contextlib.contextmanager
    def _holding(self, size: int) -> Iterator[None]:
        self._buffered += size
        try:
            yield
        finally:
            self._buffered -= size


class _Admitted:
    """What is known of a request that is still arriving."""

    __slots__ = ("credential", "fields", "generation")

    def __init__(self) -> None:
        self.fields: RequestFields | None = None
        self.generation: Generation | None = None
        self.credential = b""


async def _unless_gone(handled: Awaitable[None], exchange: Exchange, receive: Receive) -> None:
    """Await `handled`, but cancel it when the peer goes away first."""
    task = asyncio.current_task()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not exchange.writer.ended and task is not None:
            exchange.abandoned = True
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        await handled
    except asyncio.CancelledError:
        if exchange.abandoned and task is not None and task.uncancel() == 0:
            raise _ClientGoneError from None
        raise
    finally:
        watcher.cancel()


def _is_anthropic(arrival: Arrival) -> bool:
    return arrival.head is not None and wire.is_anthropic(arrival.head.path)


def _content_type(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"content-type":
            return bytes(value).partition(b";")[0].strip().lower()
    return b""


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 20 else 1 << 62
    return None
