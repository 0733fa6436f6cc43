"""What every request goes through: bounds first, then who asks, then the API.

How it is protected on its way is the business of its way in (`cloister.worker.arrival`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator

from cloister.worker import api, problems
from cloister.worker.arrival import Arrival, Way
from cloister.worker.context import Context
from cloister.worker.exchange import Exchange
from cloister.worker.problems import Problem, RefusedError
from cloister.worker.response import Receive, Scope, Send
from cloister.worker.unsealed import send_problem

_SWEEP_S = 5.0
_FAREWELL_S = 2.0


class _ClientGoneError(Exception):
    """The peer closed its connection."""


class Gateway:
    """Takes requests in and has them answered, with one set of bounds for all ways in."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._open = 0
        self._buffered = 0
        self._answering: dict[Exchange, asyncio.Task[object]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def open_requests(self) -> int:
        """Requests in progress."""
        return self._open

    async def wait_idle(self) -> None:
        """Return when no request is in progress."""
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

    async def __call__(self, way: Way, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request that comes in by `way`."""
        problem = self._refuse_envelope(way, scope)
        if problem is not None:
            await self._refuse_outside(way, problem, send)
            return
        self._open += 1
        self._idle.clear()
        self._context.metrics.open_requests.set(self._open)
        try:
            await self._serve(way, scope, receive, send)
        except _ClientGoneError:
            self._context.metrics.cancelled.inc()
        finally:
            self._open -= 1
            self._context.metrics.open_requests.set(self._open)
            if not self._open:
                self._idle.set()

    def _refuse_envelope(self, way: Way, scope: Scope) -> Problem | None:
        context, limits = self._context, self._context.settings.limits
        if context.stopping:
            return problems.STOPPING
        if self._open >= limits.max_open_requests or self._buffered >= limits.max_buffered_bytes:
            return problems.BUSY
        refused = way.refuse(scope)
        if refused is not None:
            return refused
        length = _content_length(scope)
        if length is not None and length > limits.max_request_bytes:
            return problems.TOO_LARGE
        return None

    async def _serve(self, way: Way, scope: Scope, receive: Receive, send: Send) -> None:
        arrival = way.arrive(scope)
        try:
            await self._receive(arrival, receive)
        except RefusedError as refused:
            await self._refuse(way, arrival, refused.problem, send)
            return
        exchange = Exchange(
            context=self._context,
            writer=arrival.writer(send),
            generation=arrival.generation,
            fields=arrival.fields,
            credential=arrival.credential,
            body=arrival.take_body(),
            request_hash=arrival.take_hash(),
            anthropic=arrival.anthropic,
            began=asyncio.get_running_loop().time(),
        )
        with self._holding(len(exchange.body)):
            await self._answer(way, exchange, arrival, receive, send)

    async def _receive(self, arrival: Arrival, receive: Receive) -> None:
        """Take in the whole request, refusing as early as its head allows."""
        limits = self._context.settings.limits
        size = 0
        arrival.begin()
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
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RefusedError(problems.TOO_SLOW) from None
        finally:
            self._buffered -= size
        arrival.finish()
        if arrival.fields is None:
            raise RuntimeError("a whole request has a head")

    async def _answer(
        self, way: Way, exchange: Exchange, arrival: Arrival, receive: Receive, send: Send
    ) -> None:
        context = self._context
        refused = arrival.admit()
        if refused is not None and not arrival.inside(refused):
            await self._refuse_outside(way, refused, send)
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

    async def _refuse(self, way: Way, arrival: Arrival, problem: Problem, send: Send) -> None:
        """Refuse a request that is not whole."""
        if not arrival.inside(problem):
            await self._refuse_outside(way, problem, send)
            return
        exchange = Exchange(
            context=self._context,
            writer=arrival.writer(send),
            generation=arrival.generation,
            fields=None,
            anthropic=arrival.anthropic,
        )
        await exchange.refuse(way.outside(problem))
        status = f"{problem.status // 100}xx"
        self._context.metrics.answers.labels(route="none", status=status).inc()

    async def _refuse_outside(self, way: Way, problem: Problem, send: Send) -> None:
        said = way.outside(problem)
        self._context.metrics.refused_outside.labels(status=str(said.status)).inc()
        await send_problem(send, said)

    @contextlib.contextmanager
    def _holding(self, size: int) -> Iterator[None]:
        self._buffered += size
        try:
            yield
        finally:
            self._buffered -= size


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


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 20 else 1 << 62
    return None
