"""What it costs to exchange the engine's process.

The same worker with the embedded engine and the demo model, three times: its process stays, is
exchanged after each ten requests, or each request has one to itself. Whole answers of 16 tokens,
one after the other, so that every start that was not done ahead shows. Processes start on
the cores on which the others compute: on two cores this is the worst case.
"""

from __future__ import annotations

import contextlib
import statistics
import time

import httpx2

from benchmarks.children import child
from benchmarks.context import Context
from benchmarks.harness import MILLISECONDS, Arm, Report, Sample, difference, measure
from benchmarks.stand_ins import UnsafeNoVerifier
from cloister.client.httpx2_transport import Httpx2Transport
from cloister.engine.demo_model import demo_model_path

_KEPT = "the process stays"
_TEN, _EACH = "exchanged after ten requests", "a process for each request"
_SETTINGS = {
    _KEPT: None,
    _TEN: {"recycle_requests": 10, "max_processes": 2},
    _EACH: {"recycle_requests": 1, "max_processes": 4, "warm": 1},
}


def _ask(client: httpx2.Client, url: str, model: str) -> float:
    message = {"role": "user", "content": "What is a quote?"}
    body = {"model": model, "messages": [message], "max_tokens": 16}
    began = time.perf_counter()
    response = client.post(url, json=body)
    took = time.perf_counter() - began
    if response.status_code != 200:
        raise RuntimeError(f"the worker answered with {response.status_code}")
    return took


def _arm(stack: contextlib.ExitStack, name: str, requests: int) -> Arm:
    spec = {
        "engine": "llama",
        "model": str(demo_model_path()),
        "parallel": 2,
        "context": 512,
        "separation": _SETTINGS[name],
    }
    worker = stack.enter_context(child("benchmarks.worker_process", spec))
    origin = f"http://127.0.0.1:{worker.ready['port']}"
    transport = Httpx2Transport(origin, UnsafeNoVerifier())
    client = stack.enter_context(httpx2.Client(transport=transport, timeout=60))

    def run() -> Sample:
        times = [
            _ask(client, f"{origin}/v1/chat/completions", worker.ready["model"])
            for _ in range(requests)
        ]
        return {"median": statistics.median(times), "longest": max(times)}

    return Arm(name=name, run=run)


def run(context: Context) -> Report:
    """Measure all arms, alternating."""
    with contextlib.ExitStack() as stack:
        arms = [_arm(stack, name, context.count(40, 2)) for name in _SETTINGS]
        rounds = measure(arms, context.plan(10))
    figures = tuple(
        difference(f"{what}: {name}", rounds, name, _KEPT, quantity, scale=MILLISECONDS)
        for name in (_TEN, _EACH)
        for what, quantity in (("A request", "median"), ("The longest of forty", "longest"))
    )
    return Report(
        title="Exchanging the engine's process",
        method=" ".join(__doc__.partition("\n\n")[2].split()),
        figures=figures,
        raw={"recycling": rounds},
    )
