"""Sealed requests against plain HTTP straight to the same engine process.

Sealed: load client → TCP → worker → unix socket → engine in its sandbox. Plain: the same load
client and HTTP library → the very same unix socket. So the plain arm has no gateway at all: no
authentication, no limits, no padding, no receipt. What is measured is all that Cloister adds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import paced_engine
from benchmarks.children import Child, ChildError, child
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
    at_least,
    at_most,
    difference,
    measure,
    ratio,
)
from benchmarks.machine import cpu_of
from benchmarks.random_model import MINIATURE, ONE_BILLION, random_model
from cloister.engine.demo_model import demo_model_path

_EVENTS_PER_SECOND = Scale(unit="events/s", factor=1.0)
_TIMEOUT = 300.0
# Token 2 ends an answer, in the demo model's tokenizer and so in the random one's; without it
# every answer has the length that was asked for, in both arms.
_NEVER_END = {"2": -100}


_Part = tuple[str, Rounds, list[Figure]]
"""What was measured, its rounds, and the figures made of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How many streams at once, how many requests each, how many tokens per answer."""

    streams: int
    each: int
    tokens: int
    rounds: int = 10


@contextmanager
def _engine(spec: Mapping[str, Any], *, sdk: bool = False) -> Iterator[tuple[Child, Child]]:
    """A worker around the engine of `spec`, and a load client with both arms opened."""
    with (
        child("benchmarks.worker_process", spec, timeout=120) as worker,
        child("benchmarks.load", {}) as load,
    ):
        url = f"http://127.0.0.1:{worker.ready['port']}"
        socket = worker.ready["engine_socket"]
        suffix = "-openai" if sdk else ""
        load.ask(60, open="sealed", kind=f"sealed{suffix}", url=url)
        load.ask(60, open="plain", kind=f"plain{suffix}", socket=socket)
        yield worker, load


def _body(model: str, tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "logit_bias": _NEVER_END,
    }


def _arm(name: str, worker: Child, load: Child, message: Mapping[str, Any]) -> Arm:
    """One repetition of `message`; CPU is the client's and the worker's, never the engine's."""

    def run() -> Sample:
        before = cpu_of([worker.pid])
        result = load.ask(_TIMEOUT, run=name, **message)
        spent = result["cpu"] + cpu_of([worker.pid]) - before
        return {**result, "cpu_per_event": spent / result["events"]}

    return Arm(name=name, run=run)


def _compare(
    context: Context, worker: Child, load: Child, message: Mapping[str, Any], rounds: int
) -> Rounds:
    arms = [_arm(name, worker, load, message) for name in ("sealed", "plain")]
    return measure(arms, context.plan(rounds))


def _throughput(
    context: Context, spec: Mapping[str, Any], label: str, loads: list[Load], target: float
) -> Iterator[_Part]:
    """For each load: the ratio of throughputs, what a token costs, and the first token."""
    with _engine(spec) as (worker, load):
        for one in loads:
            message = {
                "streams": one.streams,
                "each": one.each,
                "body": _body(worker.ready["model"], one.tokens),
            }
            rounds = _compare(context, worker, load, message, one.rounds)
            what = f"{label}, {one.streams} stream{'s' if one.streams > 1 else ''}"
            figures = [
                ratio(
                    f"{what}: throughput",
                    rounds,
                    "sealed",
                    "plain",
                    "rate",
                    scale=_EVENTS_PER_SECOND,
                    target=at_least(target),
                ),
                difference(
                    f"{what}: CPU per event, client and worker",
                    rounds,
                    "sealed",
                    "plain",
                    "cpu_per_event",
                    scale=MICROSECONDS,
                ),
            ]
            if one.streams == 1:
                figures.append(_first_token(f"{what}: time to first token", rounds))
            yield what, rounds, figures


def _first_token(name: str, rounds: Rounds) -> Figure:
    return difference(
        name, rounds, "sealed", "plain", "first", scale=MILLISECONDS, target=at_most(2.0)
    )


def _sdk(context: Context, spec: Mapping[str, Any]) -> _Part:
    """The demo model once more, through the official SDK on both sides."""
    with _engine(spec, sdk=True) as (worker, load):
        message = {
            "streams": 8,
            "each": context.count(4, 1),
            "body": _body(worker.ready["model"], context.count(128, 8)),
        }
        rounds = _compare(context, worker, load, message, 10)
    name = "Demo model, 8 streams, OpenAI SDK: throughput"
    return name, rounds, [ratio(name, rounds, "sealed", "plain", "rate", scale=_EVENTS_PER_SECOND)]


def _paced(context: Context) -> _Part:
    """An engine that needs no processor: 64 streams of 50 tokens a second."""
    streams, tokens = context.count(64, 4), context.count(200, 10)
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        socket = str(Path(directory) / "engine")
        fake = {"socket": socket, "rate": 50.0, "tokens": tokens}
        spec = {"engine": "upstream", "socket": socket, "name": paced_engine.MODEL}
        with (
            child("benchmarks.paced_engine", fake),
            _engine(spec) as (worker, load),
        ):
            message = {
                "streams": streams,
                "each": 1,
                "stagger": 0.5,
                "body": _body(paced_engine.MODEL, tokens),
            }
            rounds = _compare(context, worker, load, message, 10)
    what = f"Paced engine, {streams} streams of 50 tokens/s"
    figures = [
        ratio(
            f"{what}: throughput",
            rounds,
            "sealed",
            "plain",
            "rate",
            scale=_EVENTS_PER_SECOND,
            target=at_least(0.99),
        ),
        difference(
            f"{what}: between tokens, 99th percentile",
            rounds,
            "sealed",
            "plain",
            "gap_p99",
            scale=MILLISECONDS,
            target=at_most(1.0),
        ),
        difference(
            f"{what}: from engine to reader, 99th percentile",
            rounds,
            "sealed",
            "plain",
            "delay_p99",
            scale=MILLISECONDS,
        ),
        difference(
            f"{what}: from engine to reader, median",
            rounds,
            "sealed",
            "plain",
            "delay_p50",
            scale=MILLISECONDS,
        ),
        difference(
            f"{what}: CPU per event, client and worker",
            rounds,
            "sealed",
            "plain",
            "cpu_per_event",
            scale=MICROSECONDS,
        ),
        _first_token(f"{what}: time to first token", rounds),
    ]
    return what, rounds, figures


def run(context: Context) -> Report:
    """Measure all engines."""
    raw: dict[str, Rounds] = {}
    figures: list[Figure] = []
    tokenizer = demo_model_path()
    quick = context.quick
    demo = {"engine": "llama", "model": str(tokenizer), "parallel": 32, "context": 512}
    big = random_model(MINIATURE if quick else ONE_BILLION, tokenizer)
    large = {**demo, "model": str(big)}
    demo_loads = [
        Load(streams=1, each=8, tokens=128, rounds=12),
        Load(streams=8, each=4, tokens=128, rounds=12),
        Load(streams=32, each=1, tokens=128, rounds=12),
    ]
    large_loads = [
        Load(streams=1, each=1, tokens=48),
        Load(streams=8, each=1, tokens=24),
        Load(streams=32, each=1, tokens=12),
    ]
    if quick:
        demo_loads = large_loads = [Load(streams=2, each=1, tokens=8, rounds=2)]
    parts: dict[str, Callable[[], Iterable[_Part]]] = {
        "1.1-billion model": lambda: _throughput(
            context, large, "1.1-billion model", large_loads, 0.97
        ),
        "demo model": lambda: _throughput(context, demo, "Demo model", demo_loads, 0.85),
        "OpenAI SDK": lambda: [_sdk(context, demo)],
        "paced engine": lambda: [_paced(context)],
    }
    failures: list[str] = []
    for name, part in parts.items():
        try:
            for what, rounds, found in part():
                raw[what] = rounds
                figures += found
        except ChildError as error:  # half an hour's other parts are not lost for it
            failures.append(f"{name}: {error}")
    if not figures:
        raise ChildError("; ".join(failures))
    return Report(
        title="Sealed against plain",
        method=__doc__.partition("\n\n")[2].strip().replace("\n", " ")
        + " One event is one token, read as raw server-sent events through httpx2 on both sides. "
        "The engine has one thread in both arms and shares two cores with everything else; the "
        "load client has its own process, on uvloop, in which both arms run.",
        figures=tuple(figures),
        failures=tuple(failures),
        raw=raw,
    )
