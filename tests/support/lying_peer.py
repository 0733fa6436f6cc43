"""An engine's HTTP side that says whatever bytes a test gives it, behind a real worker."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path

from cloister.engine.openai_upstream import OpenAIUpstream, UpstreamSettings
from cloister.engine.protocol import Engine
from cloister.worker.app import Worker, build_worker
from cloister.worker.logs import EventLog
from cloister.worker.settings import Separation, WorkerSettings
from support.sealed import Peer
from support.worker import FakeEvidence, TurnedClocks, claims

Handler = Callable[[bytes, asyncio.StreamWriter], Coroutine[object, object, None]]

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"
MODELS = b'{"object":"list","data":[{"id":"fake","object":"model"}]}'
WHOLE = (
    b'{"object":"chat.completion","model":"fake","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"%b"}}]}'
)


def head(kind: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    lines = (b"HTTP/1.1 " + status, b"Content-Type: " + kind, *fields, b"", b"")
    return b"\r\n".join(lines)


def sized(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole JSON answer."""
    length = b"Content-Length: %d" % len(body)
    return head(b"application/json", length, *fields, status=status) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def streamed(*events: bytes, fields: tuple[bytes, ...] = ()) -> bytes:
    """A whole stream of events."""
    begun = head(b"text/event-stream", b"Transfer-Encoding: chunked", *fields)
    return begun + b"".join(map(chunk, events)) + b"0\r\n\r\n"


def saying(*pieces: bytes, close: bool = False) -> Handler:
    """Say these bytes, one write for each, whatever was asked."""

    async def handle(_: bytes, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return handle


@dataclass(slots=True)
class LyingPeer:
    """A server on a unix socket. It lists its model truthfully and does `handler` to the rest."""

    handler: Handler
    on_accept: bytes = b""
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    gone: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self.tasks.add(task)
        await asyncio.wait({task})
        self.gone += 1
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(self.on_accept)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                if asked.startswith(b"GET "):
                    writer.write(sized(MODELS))
                    continue
                length = int(asked.lower().partition(b"content-length:")[2].split()[0])
                body = await reader.readexactly(length)
                self.bodies.append(body)
                answering = asyncio.create_task(self.handler(body, writer))
                # It goes on with what it does until the worker leaves.
                await asyncio.wait({answering})
                with contextlib.suppress(OSError):
                    answering.result()


@dataclass(slots=True, kw_only=True)
class LyingBench:
    """A worker in front of the peer, and a client that trusts the worker."""

    worker: Worker
    peer: Peer
    engine: LyingPeer
    log: io.StringIO


@contextlib.asynccontextmanager
async def in_front_of(
    engine: Engine, settings: WorkerSettings | None = None
) -> AsyncIterator[tuple[Worker, Peer, io.StringIO]]:
    """A started worker over any engine that serves a model called "fake"."""
    clocks, log = TurnedClocks(), io.StringIO()
    worker = build_worker(
        engines=[engine],
        source=FakeEvidence(),
        claims=claims(),
        log=EventLog(log),
        settings=settings,
        clocks=clocks.clocks,
        open_when_empty=True,
    )
    await worker.start()
    try:
        yield worker, Peer(worker, lambda: worker.context.keys.current.keyset, clocks.wall), log
    finally:
        await worker.stop()


@contextlib.asynccontextmanager
async def lying(
    directory: Path, handler: Handler, settings: WorkerSettings | None = None, *, max_idle: int = 4
) -> AsyncIterator[LyingBench]:
    """A worker whose engine is a `LyingPeer`, with a pool of connections to it."""
    path = str(directory / "engine.sock")
    liar = LyingPeer(handler)
    listening = await asyncio.start_unix_server(liar.accept, path)
    upstream = OpenAIUpstream(
        UpstreamSettings(
            address=f"unix:{path}", name="fake", prefix_cache_off=True, max_idle=max_idle
        )
    )
    one = replace(settings or WorkerSettings(), separation=Separation.of_one_process())
    try:
        async with in_front_of(upstream, one) as (worker, peer, log):
            yield LyingBench(worker=worker, peer=peer, engine=liar, log=log)
    finally:
        listening.close()
        for task in liar.tasks:
            task.cancel()
        await asyncio.gather(*liar.tasks, return_exceptions=True)
