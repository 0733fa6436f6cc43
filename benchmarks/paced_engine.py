"""An upstream server that sends one event every so often, on time, at next to no cost.

It stands for an engine on an accelerator, which leaves the processor to the gateway. Each event
carries the moment at which it was written, on the clock that all processes share, so that what
happens to it on the way can be told from what the engine did. Every stream is due at its own
phase, since it starts when its request comes.
"""

from __future__ import annotations

import asyncio
import json
import time

import uvloop

from benchmarks.children import read_spec, say

MODEL = "paced"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" token"}}],'
    b'"created":1700000000,"id":"chatcmpl-JqEqYVhqGwYpHnZQpbPtsZyxE1xhcdKA",'
    b'"model":"paced","object":"chat.completion.chunk","t":%019d}\n\n'
)
_LAST = b"data: [DONE]\n\n"
_MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()


def stamps(data: bytes) -> list[int]:
    """Return the moments (perf_counter_ns) that the events in `data` carry."""
    found = []
    at = data.find(b'"t":')
    while at >= 0:
        found.append(int(data[at + 4 : at + 23]))
        at = data.find(b'"t":', at + 23)
    return found


class _Connection(asyncio.Protocol):
    def __init__(self, interval: float, tokens: int) -> None:
        self._interval = interval
        self._tokens = tokens
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(body) < length:
            return
        self._buffer = body[length:]
        if head.startswith(b"GET"):
            self._write(
                _HEAD % b"application/json" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(_MODELS), _MODELS)
            )
            return
        self._write(_HEAD % b"text/event-stream")
        self._send(0, self._loop.time() + self._interval)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _send(self, sent: int, due: float) -> None:
        if self._transport is None:
            return
        if sent == self._tokens:
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_LAST), _LAST))
            return
        event = _EVENT % time.perf_counter_ns()
        self._write(b"%x\r\n%b\r\n" % (len(event), event))
        following = due + self._interval
        self._timer = self._loop.call_at(due, self._send, sent + 1, following)


async def _serve(path: str, interval: float, tokens: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: _Connection(interval, tokens), path)
    say(ready=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve until ended. The spec: ``socket``, ``rate`` (tokens per second), ``tokens``."""
    spec = read_spec()
    uvloop.run(_serve(spec["socket"], 1 / spec["rate"], spec["tokens"]))


if __name__ == "__main__":
    main()
