"""A hostile engine behind a real worker: its streams end in an authenticated error, others go on.

The engine is the embedded one, with another program in its sandbox.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.engine.confined import Program
from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.models import resolve_model
from cloister.engine.sandbox import Sandbox
from cloister.model_digest import Role
from cloister.worker.app import Worker
from support.lying_peer import in_front_of
from support.sealed import Peer, chat, until

pytestmark = pytest.mark.sandbox

HOSTILE = Path(__file__).parent / "hostile_engine.py"
CANARY = "canary-in-prompt"


class HostileEngine(LlamaEngine):
    """Everything of the embedded engine but its program."""

    def _program(self, opened: Mapping[Role, int]) -> Program:
        return replace(super()._program(opened), script=HOSTILE, packages=(), native=())

    def sibling(self) -> HostileEngine:
        return HostileEngine(self._model, isolation=self._isolation, settings=self._settings)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Worker, Peer, io.StringIO, HostileEngine]]:
    engine = HostileEngine(
        replace(resolve_model("demo"), name="fake"),
        isolation=Sandbox(),
        settings=LlamaSettings(parallel=2, connections=8, threads=1, memory=256 << 20),
    )
    async with in_front_of(engine) as (worker, peer, log):
        yield worker, peer, log, engine


async def fine(peer: Peer) -> None:
    inner = await peer.ask(document=chat(stream=True))
    assert (inner.status, inner.text) == (200, "wwwfine")


@pytest.mark.parametrize("way", ["balloon", "threads", "crash", "exit", "words"])
async def test_an_engine_that_ruins_itself_takes_nobody_with_it(way: str) -> None:
    async with serving() as (worker, peer, log, _):
        await fine(peer)
        inner = await peer.ask(document=chat(f"way-{way} {CANARY}", stream=True))
        assert inner.status == 200
        assert inner.text == "www"
        assert inner.events[-1]["error"]["code"] == "engine_failed"
        assert inner.receipt is not None  # signed by the worker, which lives
        await until(lambda: "engine.restarted" in log.getvalue() and worker.ready)
        await fine(peer)
        assert CANARY not in log.getvalue()


async def test_an_engine_that_floods_its_output_is_held_back_and_unread(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as (_, peer, log, engine):
        before = engine.output_bytes
        assert (await peer.ask(document=chat("way-log", stream=True))).text == "wwwfine"
        await until(lambda: engine.output_bytes > before + (1 << 17))
        await fine(peer)
        captured = capfd.readouterr()
        everything = captured.out + captured.err + caplog.text + log.getvalue()
        assert "canary" not in everything


async def test_an_engine_that_spins_leaves_the_worker_time() -> None:
    async with serving() as (_, peer, _log, _engine):
        assert (await peer.ask(document=chat("way-spin", stream=True))).text == "wwwfine"
        await fine(peer)
