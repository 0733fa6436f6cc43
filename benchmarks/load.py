"""The load client, in a process of its own: ``python -m benchmarks.load``.

Both arms run here, through the same HTTP library, reading the same stream of events: one client
per arm, made and warmed once. Messages in, one JSON line each::

    {"open": NAME, "kind": "sealed", "url": URL}              httpx2 and Cloister's transport
    {"open": NAME, "kind": "plain", "socket": PATH}           httpx2 to the engine's own socket
    {"open": NAME, "kind": "sealed-openai", "url": URL}       the OpenAI SDK over the former
    {"open": NAME, "kind": "plain-openai", "socket": PATH}    the OpenAI SDK over the latter
    {"run": NAME, "streams": N, "each": M, "stagger": S, "body": {...}}
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import uvloop

from benchmarks.children import read_spec, say
from benchmarks.paced_engine import stamps
from benchmarks.stand_ins import UnsafeNoVerifier
from benchmarks.statistics import median, quantile
from cloister.client.httpx2_transport import AsyncHttpx2Transport

PATH = "/v1/chat/completions"
_MARK = b"data: {"
_LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
# llama.cpp's server closes connections when it likes, without a word. The worker takes a new one
# for each request, and so does the plain arm: over a unix socket that costs some 50 us.
_PLAIN_HEADERS = {"connection": "close"}
_PLAIN_ORIGIN = "http://engine"


@dataclass(slots=True)
class _Stream:
    """What one stream saw. Times in seconds on the performance counter."""

    began: float
    first: float = 0.0
    last: float = 0.0
    events: int = 0
    gaps: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)

    def arrived(self, events: int, now: float) -> None:
        """Note `events` events that came together at `now`."""
        if not self.events:
            self.first = now
        else:
            self.gaps.append(now - self.last)
        self.gaps += [0.0] * (events - 1)
        self.events += events
        self.last = now


class _EventCounter:
    """Counts events in pieces of a stream, wherever the pieces are cut."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> int:
        """Return how many events began in `data`. Inside JSON a quote would be escaped."""
        joined = self._tail + data
        self._tail = joined[-(len(_MARK) - 1) :]
        return joined.count(_MARK)


_Run = Callable[[Mapping[str, Any]], Awaitable[_Stream]]


def _raw(client: httpx2.AsyncClient, origin: str) -> _Run:
    """One request whose events are read as bytes."""

    async def run(body: Mapping[str, Any]) -> _Stream:
        counter = _EventCounter()
        content = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        clock = time.perf_counter
        stream = _Stream(clock())
        async with client.stream("POST", origin + PATH, content=content, headers=headers) as got:
            if got.status_code != 200:
                raise RuntimeError(f"status {got.status_code}: {(await got.aread())[:300]!r}")
            async for data in got.aiter_raw():
                events = counter.feed(data)
                if events:
                    stream.arrived(events, clock())
                    if b'"t":' in data:
                        now = time.perf_counter_ns()
                        stream.delays += [(now - at) / 1e9 for at in stamps(data)]
        return stream

    return run


def _openai(client: httpx2.AsyncClient, origin: str) -> _Run:
    """One request through the official SDK, which decodes every event."""
    import openai

    sdk = openai.AsyncOpenAI(
        base_url=f"{origin}/v1", api_key="none", http_client=client, max_retries=0
    )

    async def run(body: Mapping[str, Any]) -> _Stream:
        clock = time.perf_counter
        stream = _Stream(clock())
        async for _ in await sdk.chat.completions.create(**{**body, "stream": True}):
            stream.arrived(1, clock())
        return stream

    return run


def _open(message: Mapping[str, Any]) -> tuple[httpx2.AsyncClient, _Run]:
    kind = message["kind"]
    if kind.startswith("sealed"):
        origin = message["url"]
        transport: httpx2.AsyncBaseTransport = AsyncHttpx2Transport(origin, UnsafeNoVerifier())
    else:
        origin = _PLAIN_ORIGIN
        transport = httpx2.AsyncHTTPTransport(uds=message["socket"], limits=_LIMITS)
    headers = {} if kind.startswith("sealed") else _PLAIN_HEADERS
    client = httpx2.AsyncClient(transport=transport, timeout=600, headers=headers)
    return client, (_openai if kind.endswith("-openai") else _raw)(client, origin)


async def _load(run: _Run, message: Mapping[str, Any]) -> dict[str, float]:
    streams, each = message["streams"], message["each"]
    stagger = message.get("stagger", 0.0)

    async def one(index: int) -> list[_Stream]:
        if stagger:
            await asyncio.sleep(stagger * index / streams)
        return [await run(message["body"]) for _ in range(each)]

    cpu, began = time.process_time(), time.perf_counter()
    done = [one for many in await asyncio.gather(*map(one, range(streams))) for one in many]
    wall = time.perf_counter() - began
    spent = time.process_time() - cpu
    events = sum(stream.events for stream in done)
    gaps = sorted(gap for stream in done for gap in stream.gaps)
    delays = sorted(delay for stream in done for delay in stream.delays)
    result = {
        "wall": wall,
        "events": float(events),
        "rate": events / wall,
        "cpu": spent,
        "first": median([stream.first - stream.began for stream in done]),
    }
    if gaps:
        result |= {"gap_p50": quantile(gaps, 0.5), "gap_p99": quantile(gaps, 0.99)}
    if delays:
        result |= {"delay_p50": quantile(delays, 0.5), "delay_p99": quantile(delays, 0.99)}
    return result


async def _main() -> None:
    read_spec()
    say(ready=True)
    clients: list[httpx2.AsyncClient] = []
    arms: dict[str, _Run] = {}
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        message = json.loads(line)
        try:
            if "open" in message:
                client, arms[message["open"]] = _open(message)
                clients.append(client)
                say(opened=message["open"])
            else:
                say(**await _load(arms[message["run"]], message))
        except Exception as error:
            say(error=f"{message.get('run') or message['open']}: {type(error).__name__}: {error}")
    for client in clients:
        await client.aclose()


if __name__ == "__main__":
    uvloop.run(_main())
