"""What sealing adds here, beside what EHBP adds (`tinfoil-ehbp`, its own Python client).

Each system is measured against its own plain twin: the same HTTP library, the same server
process, the same sizes, nothing sealed. What it adds is sealed minus plain within one round, and
what is compared is what the two add. The peer's client runs on httpx and ours on httpx2, as each
is used; EHBP seals the body with X25519, Cloister seals the whole request with ML-KEM-768 and
X25519 and checks a signed receipt at the end. The plain twin of ours makes the same checks of the
request's JSON that the worker makes, so that only the channel is left in the difference; the line
marked “all of it” compares with a twin that checks nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ehbp
import httpx
import httpx2

from benchmarks.children import child
from benchmarks.context import Context
from benchmarks.harness import (
    MICROSECONDS,
    MILLISECONDS,
    Arm,
    Figure,
    Report,
    Rounds,
    Sample,
    Scale,
    at_most,
    difference,
    measure,
)
from benchmarks.peer_process import MODEL
from benchmarks.stand_ins import UnsafeNoVerifier
from benchmarks.statistics import median
from cloister.client.httpx2_transport import Httpx2Transport

_EVENT = 200
_EVENTS = 1000
_UPLOAD = 16 * 2**20
_JSON = {"content-type": "application/json"}
_ARMS = ("EHBP", "EHBP's plain twin", "Cloister", "Cloister's plain twin", "no checks")


@dataclass(frozen=True, slots=True)
class _Clients:
    """An opened connection per arm, and where each arm's requests go."""

    clients: dict[str, Any]
    urls: dict[str, str]

    def post(self, arm: str, body: bytes, *, stream: bool) -> None:
        """One request, its answer read to the end as raw bytes."""
        path = self.urls[arm]
        if not path.endswith("completions"):
            path += "/stream" if stream else "/echo"
        with self.clients[arm].stream("POST", path, content=body, headers=_JSON) as response:
            size = 0
            for data in response.iter_raw():
                size += len(data)
        if response.status_code != 200 or size < (_EVENT if stream else 2):
            raise RuntimeError(f"{arm}: status {response.status_code}, {size} bytes")


def _open(port: int, ehbp_key: str) -> _Clients:
    origin = f"http://127.0.0.1:{port}"
    identity = ehbp.ServerIdentity.from_public_key_hex(ehbp_key)
    sealed = Httpx2Transport(origin, UnsafeNoVerifier())
    clients: tuple[Any, ...] = (
        httpx.Client(transport=ehbp.EHBPTransport(identity), timeout=60),
        httpx.Client(timeout=60),
        httpx2.Client(transport=sealed, timeout=60),
        httpx2.Client(timeout=60),
        httpx2.Client(timeout=60),
    )
    urls = (
        f"{origin}/ehbp",
        f"{origin}/plain",
        f"{origin}/v1/chat/completions",
        f"{origin}/checked/v1/chat/completions",
        f"{origin}/plain",
    )
    return _Clients(dict(zip(_ARMS, clients, strict=True)), dict(zip(_ARMS, urls, strict=True)))


def body_of(size: int, *, stream: bool = False) -> bytes:
    """A chat request of exactly `size` bytes."""
    request = {
        "model": MODEL,
        "stream": stream,
        "messages": [{"role": "user", "content": ""}],
    }
    empty = json.dumps(request, separators=(",", ":")).encode()
    return empty.replace(b'"content":""', b'"content":"%b"' % (b"a" * (size - len(empty))))


def _arm(name: str, call: Callable[[], None], calls: int) -> Arm:
    """Seconds of one call: the median over `calls`, so that one hiccup does not make a round."""

    def run() -> Sample:
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return {"seconds": median(times)}

    return Arm(name=name, run=run)


def _added(rounds: Rounds, sealed: str, twin: str, divide: int) -> list[float]:
    return [one / divide for one in rounds.differences(sealed, twin, "seconds")]


def added_rounds(rounds: Rounds, divide: int = 1) -> Rounds:
    """Turn measured arms into what each system adds, round by round."""
    peer = _added(rounds, _ARMS[0], _ARMS[1], divide)
    ours = _added(rounds, _ARMS[2], _ARMS[3], divide)
    whole = _added(rounds, _ARMS[2], _ARMS[4], divide)
    return Rounds(
        rounds=tuple(
            {
                "Cloister adds": {"seconds": ours[index]},
                "all of it": {"seconds": whole[index]},
                "EHBP adds": {"seconds": peer[index]},
            }
            for index in range(len(rounds.rounds))
        ),
        repeated=rounds.repeated,
        disturbed=rounds.disturbed,
    )


def _figures(what: str, rounds: Rounds, scale: Scale, divide: int = 1) -> list[Figure]:
    added = added_rounds(rounds, divide)
    return [
        difference(
            what, added, "Cloister adds", "EHBP adds", "seconds", scale=scale, target=at_most(0.0)
        ),
        difference(f"{what}, all of it", added, "all of it", "EHBP adds", "seconds", scale=scale),
    ]


def run(context: Context) -> Report:
    """Measure a small request, a stream and an upload."""
    events = context.count(_EVENTS, 20)
    upload = context.count(_UPLOAD, 2**18)
    small, streamed, large = body_of(1024), body_of(256, stream=True), body_of(upload)
    raw: dict[str, Rounds] = {}
    figures: list[Figure] = []
    spec = {"event": _EVENT, "events": events}
    with child("benchmarks.peer_process", spec) as server:
        arms = _open(server.ready["port"], server.ready["ehbp_key"])

        def compare(body: bytes, calls: int, rounds: int, *, stream: bool = False) -> Rounds:
            def caller(name: str) -> Callable[[], None]:
                return lambda: arms.post(name, body, stream=stream)

            return measure(
                [_arm(name, caller(name), calls) for name in _ARMS], context.plan(rounds)
            )

        what = "POST of 1 KiB"
        raw[what] = compare(small, context.count(150, 3), 20)
        figures += _figures(what, raw[what], MILLISECONDS)
        what = f"Stream of {events} events of {_EVENT} B, per event"
        raw[what] = compare(streamed, context.count(8, 1), 20, stream=True)
        figures += _figures(what, raw[what], MICROSECONDS, events)
        what = f"Upload of {upload // 1024} KiB"
        raw[what] = compare(large, context.count(5, 1), 20)
        figures += _figures(what, raw[what], MILLISECONDS)
        for client in arms.clients.values():
            client.close()
    return Report(
        title="Beside EHBP",
        method=" ".join(__doc__.partition("\n\n")[2].split()),
        figures=tuple(figures),
        raw=raw,
    )
