"""One server process for all arms of the comparison with EHBP: same loop, same ASGI server.

=====================  =====================================================================
``/plain/…``           a small application, nothing sealed
``/ehbp/…``            the same application inside EHBP
``/checked/v1/…``      the same, after the checks of a request that Cloister's API makes
``/ohttp`` and others  Cloister's worker around an engine that does what the application does
=====================  =====================================================================

The application answers a POST with its size, or with a stream of events when the path ends in
``/stream`` (inside the worker: when the request asks for a stream).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import uvloop

from benchmarks.children import read_spec, say
from benchmarks.ehbp_server import ENCAPSULATED_KEY, RESPONSE_NONCE, EhbpServer
from benchmarks.stand_ins import bench_worker
from benchmarks.worker_process import serve
from cloister.engine.protocol import EngineRequest, EngineResponse, ModelInfo, Paths
from cloister.engine.requests import METHODS
from cloister.worker.generation import check_generation
from cloister.worker.response import Receive, Scope, Send
from cloister.worker.server import listen_tcp

MODEL = "echo"
_EVENT_STREAM = b"text/event-stream"
_JSON = b"application/json"


def event(size: int) -> bytes:
    """One event of `size` bytes."""
    return b"data: " + b'{"x":"'.ljust(size - 10, b"x") + b'"}\n\n'


async def events(one: bytes, count: int) -> AsyncGenerator[bytes]:
    """`count` events; the loop turns once for each, as it does when an engine sends them."""
    for _ in range(count):
        await asyncio.sleep(0)
        yield one


def receipt_of(size: int) -> bytes:
    """The answer to an upload."""
    return json.dumps({"received": size}).encode()


class EchoEngine:
    """An engine that counts, or streams prepared events."""

    def __init__(self, one: bytes, count: int) -> None:
        self._one = one
        self._count = count
        self._stopped = asyncio.Event()
        self.model = ModelInfo(
            name=MODEL, sha256="0" * 64, path=None, context_length=0, quantisation="none"
        )

    @property
    def paths(self) -> Paths:
        """All of them."""
        return dict.fromkeys(METHODS)

    @property
    def slots(self) -> int:
        """As many as are asked."""
        return 1024

    def sibling(self) -> None:
        """There is only this one."""

    @property
    def alive(self) -> bool:
        """Always."""
        return True

    def configuration(self) -> Mapping[str, object]:
        """Nothing worth measuring."""
        return {"engine": "echo"}

    async def start(self) -> None:
        """Nothing to start."""

    async def send(self, request: EngineRequest) -> EngineResponse:
        """Answer with the size of the body, or a stream."""
        if b'"stream":true' in request.body[:256]:
            chunks = events(self._one, self._count)
            kind = _EVENT_STREAM
        else:
            chunks = _once(receipt_of(len(request.body)))
            kind = _JSON
        return EngineResponse(
            status=200, content_type=kind.decode(), chunks=chunks, close=chunks.aclose
        )

    async def wait_stopped(self) -> None:
        """Return when closed."""
        await self._stopped.wait()

    async def aclose(self) -> None:
        """End."""
        self._stopped.set()


async def _once(data: bytes) -> AsyncGenerator[bytes]:
    yield data


async def _head(send: Send, kind: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", kind), *more]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _part(send: Send, data: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


class Peers:
    """The ASGI application of this process."""

    def __init__(self, worker: Any, one: bytes, count: int) -> None:
        self._worker = worker
        self._one = one
        self._count = count
        self.ehbp = EhbpServer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the arm that its path names."""
        path = scope.get("path", "")
        if path.startswith("/plain/"):
            await self._plain(path, receive, send)
        elif path.startswith("/checked/"):
            await self._checked(receive, send)
        elif path.startswith("/ehbp/"):
            await self._sealed(scope, receive, send)
        else:
            await self._worker(scope, receive, send)

    async def _plain(self, path: str, receive: Receive, send: Send) -> None:
        size = 0
        more = True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        await self._answer(path.endswith("/stream"), size, send)

    async def _checked(self, receive: Receive, send: Send) -> None:
        parts: list[bytes] = []
        more = True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(parts)
        checked = check_generation(body, models=[MODEL])
        await self._answer(checked.stream, len(body), send)

    async def _answer(self, stream: bool, size: int, send: Send) -> None:
        if not stream:
            answer = receipt_of(size)
            await _head(send, _JSON, (b"content-length", str(len(answer)).encode()))
            await _part(send, answer, more=False)
            return
        await _head(send, _EVENT_STREAM)
        async for one in events(self._one, self._count):
            await _part(send, one, more=True)
        await _part(send, b"", more=False)

    async def _sealed(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = next(value for name, value in scope["headers"] if name == ENCAPSULATED_KEY)
        request = self.ehbp.request(key.decode())
        size = 0
        more = True
        while more:
            message = await receive()
            for plaintext in request.receive(message.get("body", b"")):
                size += len(plaintext)
            more = message.get("more_body", False)
        nonce, sealer = request.respond()
        header = (RESPONSE_NONCE, nonce.encode())
        if not scope["path"].endswith("/stream"):
            answer = sealer.frame(receipt_of(size))
            await _head(send, _JSON, header)
            await _part(send, answer, more=False)
            return
        await _head(send, _EVENT_STREAM, header)
        async for one in events(self._one, self._count):
            await _part(send, sealer.frame(one), more=True)
        await _part(send, b"", more=False)


async def _run(spec: Mapping[str, Any]) -> None:
    one = event(spec["event"])
    worker = bench_worker(EchoEngine(one, spec["events"]))
    await worker.start()
    peers = Peers(worker, one, spec["events"])
    listener = listen_tcp("127.0.0.1", 0)
    say(port=listener.getsockname()[1], ehbp_key=peers.ehbp.public_key.hex())
    try:
        await serve(peers, listener)
    finally:
        await worker.stop()


def main() -> None:
    """Serve until ended. The spec: ``event`` (bytes of one event), ``events`` (per stream)."""
    uvloop.run(_run(read_spec()))


if __name__ == "__main__":
    main()
