"""Whether one can tell by timing that somebody else asked the same thing.

Two clients of one worker with the embedded engine and the demo model. One asks something long; then
the other asks something that begins with the same words, or with others of the same length, and
the time until its whole answer of one token is measured. The third arm leaves the common words
out: that is what a cache would save, and shows that this measurement would see it. Every prefix is
a new one. The client that measures is the attacker, and sees no more than this.
"""

from __future__ import annotations

import contextlib
import secrets
import statistics
import time
from collections.abc import Iterator

import httpx2

from benchmarks.children import child
from benchmarks.context import Context
from benchmarks.harness import MILLISECONDS, Arm, Report, difference, measure
from benchmarks.stand_ins import UnsafeNoVerifier
from cloister.client.httpx2_transport import Httpx2Transport
from cloister.engine.demo_model import demo_model_path

_WORDS = ("key", "worker", "quote", "seal", "cloud", "memory", "answer", "proof")
_PREFIX_WORDS = 300
_ASKED, _OTHER, _SHORT = "asked by a neighbour", "asked by nobody", "without the common words"
_SPEC = {"engine": "llama", "model": str(demo_model_path()), "parallel": 2, "context": 512}


def _prefix() -> str:
    return " ".join(secrets.choice(_WORDS) for _ in range(_PREFIX_WORDS))


class _Client:
    """One person: a transport, and so a cache secret, of their own."""

    def __init__(self, origin: str, model: str) -> None:
        self._url = f"{origin}/v1/chat/completions"
        self._model = model
        self.http = httpx2.Client(transport=Httpx2Transport(origin, UnsafeNoVerifier()), timeout=60)

    def ask(self, text: str) -> float:
        """Ask, and return the seconds until the whole answer was there."""
        message = {"role": "user", "content": text}
        body = {"model": self._model, "messages": [message], "max_tokens": 1}
        began = time.perf_counter()
        response = self.http.post(self._url, json=body)
        took = time.perf_counter() - began
        if response.status_code != 200:
            raise RuntimeError(f"the worker answered with {response.status_code}")
        return took


@contextlib.contextmanager
def _people(origin: str, model: str) -> Iterator[tuple[_Client, _Client]]:
    neighbour, curious = _Client(origin, model), _Client(origin, model)
    with neighbour.http, curious.http:
        yield neighbour, curious


def _arm(name: str, people: tuple[_Client, _Client], pairs: int) -> Arm:
    neighbour, curious = people

    def once() -> float:
        prefix = _prefix()
        neighbour.ask(f"{prefix if name == _ASKED else _prefix()} What is a key?")
        return curious.ask(("" if name == _SHORT else prefix) + " What is a quote?")

    return Arm(name=name, run=lambda: {"seconds": statistics.median(once() for _ in range(pairs))})


def run(context: Context) -> Report:
    """Measure all three arms, alternating."""
    with (
        child("benchmarks.worker_process", _SPEC) as worker,
        _people(f"http://127.0.0.1:{worker.ready['port']}", worker.ready["model"]) as people,
    ):
        pairs = context.count(20, 1)
        arms = [_arm(name, people, pairs) for name in (_ASKED, _OTHER, _SHORT)]
        rounds = measure(arms, context.plan(20))
    figures = (
        difference(
            "What a neighbour's request changes",
            rounds,
            _ASKED,
            _OTHER,
            "seconds",
            scale=MILLISECONDS,
            notes="zero is within the spread unless something is reused",
        ),
        difference(
            "What a cache would save",
            rounds,
            _OTHER,
            _SHORT,
            "seconds",
            scale=MILLISECONDS,
            notes="how large the difference above would be",
        ),
    )
    return Report(
        title="Asking what a neighbour has asked",
        method=" ".join(__doc__.partition("\n\n")[2].split()),
        figures=figures,
        raw={"neighbours": rounds},
    )
