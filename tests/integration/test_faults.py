"""The engine dies, freezes or runs out of memory in the middle of answers.

The real program, with the real engine in its sandbox; people who read over sockets. Whoever is
being answered gets an error in its stream and the authenticated end of it, in time; whoever asks
later is served; and nothing of a prompt is on any disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cloister.client.connect import open_async_connection
from cloister.client.connection import AsyncConnection
from cloister.errors import CloisterError
from soak.run import trust_of
from soak.transports import TightReads
from support.canary import Search, new_marker
from support.program import SHORT_HOURS, Program, program
from support.software_tpm import HAVE_SWTPM

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.sandbox,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
]

CHAT = "/v1/chat/completions"
PEOPLE = 3
LIMIT_S = 120.0
"""For an error to arrive. A frozen engine is noticed after three looks of a second each, with two
seconds between them; the rest is for a slow machine."""


@dataclass(kw_only=True)
class Reader:
    """Somebody in the middle of an answer that is too long for any buffer on its way."""

    response: httpx2.Response
    pieces: AsyncIterator[bytes]
    text: bytes = b""

    async def rest(self) -> str:
        """Read on to the end; the code of the error that came as the last event, or none."""
        async for piece in self.pieces:
            self.text += piece
        exchange = self.response.extensions["cloister"]
        assert exchange.complete
        assert exchange.receipt_verified
        events = [line[6:] for line in self.text.split(b"\n") if line.startswith(b"data: ")]
        last = json.loads(events[-1]) if events[-1] != b"[DONE]" else {}
        return str(last.get("error", {}).get("code", ""))


@dataclass(kw_only=True)
class World:
    """The program, a marker that every prompt holds, and where it must not be found."""

    running: Program
    marker: str = field(default_factory=new_marker)
    began: float = field(default_factory=time.time)

    def question(self, **fields: Any) -> dict[str, Any]:
        content = f"Say the word {self.marker} again and again."
        message = {"role": "user", "content": content}
        return {"model": "cloister-demo", "messages": [message], "max_tokens": 16, **fields}

    def connection(self, inner: httpx2.AsyncBaseTransport | None = None) -> AsyncConnection:
        return open_async_connection(
            self.running.url, verifier=trust_of(self.running), inner=inner, trust_env=False
        )

    @contextlib.asynccontextmanager
    async def readers(self) -> AsyncIterator[list[Reader]]:
        """People who have read the first piece of their answers, and read no more for now."""
        endless = self.question(
            stream=True, max_tokens=440, ignore_eos=True, logprobs=True, top_logprobs=20
        )
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(self.connection(TightReads()))
            found = []
            for _ in range(PEOPLE):
                response = await stack.enter_async_context(
                    client.http.stream("POST", CHAT, json=endless, timeout=LIMIT_S)
                )
                assert response.status_code == 200
                pieces = response.aiter_bytes()
                found.append(Reader(response=response, pieces=pieces, text=await anext(pieces)))
            yield found

    async def ask(self, client: AsyncConnection, **fields: Any) -> httpx2.Response:
        """One answer, read whole."""
        return await client.http.post(CHAT, json=self.question(**fields), timeout=LIMIT_S)

    async def served_again(self) -> None:
        """Somebody who comes later is answered, as soon as the engine is there again."""
        async with asyncio.timeout(LIMIT_S), self.connection() as client:
            while True:
                with contextlib.suppress(CloisterError, httpx2.HTTPError):
                    answer = await self.ask(client)
                    if answer.status_code == 200:
                        assert answer.extensions["cloister"].receipt_verified
                        return
                    assert answer.status_code == 503, answer.text
                await asyncio.sleep(0.2)

    def left_behind(self) -> list[str]:
        """Places where the marker is: files, open files, output, metrics, core dumps."""
        search = Search(secrets=(self.marker,))
        search.add("metrics", self.running.exposition())
        search.add("output", self.running.output)
        search.add_tree("files", self.running.home)
        search.add_processes("open files", self.running.pids())
        for root in (Path(tempfile.gettempdir()), Path.cwd(), _core_directory()):
            for path in _changed_since(self.began, root):
                if path != self.running.home:
                    search.add_tree(f"files in {root}", path)
        assert b"worker.ready" in search.places["output"]
        return search.hits()

    def check_nothing_left(self) -> None:
        """The marker is nowhere; and it would have been found."""
        assert self.left_behind() == []
        temporary = Path(tempfile.gettempdir())
        for place in (self.running.home / "tmp" / "x", temporary / f"core.{self.marker[:6]}"):
            place.write_bytes(b"\0" * 5000 + self.marker.encode())
            try:
                assert len(self.left_behind()) == 1
            finally:
                place.unlink()


def _core_directory() -> Path:
    """Where this kernel writes core dumps, if it writes files of its own."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    return Path(pattern).parent if pattern.startswith("/") else Path.cwd()


def _changed_since(began: float, root: Path) -> Iterator[Path]:
    """Files that programs may have left: what is new in `root`, and of ours, or a core dump."""
    with contextlib.suppress(OSError):
        for path in root.iterdir():
            with contextlib.suppress(OSError):
                named = path.name.startswith(("cloister", "tmp", "clst-", "core"))
                if named and path.lstat().st_ctime >= began - 1:
                    yield path


@pytest.fixture(scope="module")
def running() -> Iterator[Program]:
    """One program for all faults: it has to outlive each of them."""
    with program("--parallel", "4", command=SHORT_HOURS) as started:
        yield started


@pytest.fixture
def world(running: Program) -> World:
    return World(running=running)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def _kill(world: World) -> None:
    _signal(world.running.engines(), signal.SIGKILL)


async def _freeze(world: World) -> None:
    _signal(world.running.models(), signal.SIGSTOP)


async def _dump(world: World) -> None:
    # As a fault in the engine would: where core dumps are written, this writes one.
    _signal(world.running.models(), signal.SIGABRT)


Fault = Callable[[World], Awaitable[None]]


@pytest.mark.parametrize("fault", [_kill, _freeze, _dump])
async def test_a_fault_in_the_middle_of_answers(world: World, fault: Fault) -> None:
    async with world.connection() as client:
        answer = await world.ask(client)
        assert answer.status_code == 200, answer.text  # all is well before
    before = set(world.running.models())
    async with world.readers() as readers:
        await fault(world)
        async with asyncio.timeout(LIMIT_S):
            codes = await asyncio.gather(*(reader.rest() for reader in readers))
    assert codes == ["engine_failed"] * PEOPLE
    await world.served_again()
    assert not before & set(world.running.models())
    world.check_nothing_left()


async def test_running_out_of_memory(world: World) -> None:
    """The kernel gives the engine not a page more, while it answers and is asked for more.

    It may refuse single requests or end: an answer is whole, or ends with an error.
    """
    async with world.readers() as readers:
        for pid in world.running.models():
            for which in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
                resource.prlimit(pid, which, (1, 1))
        async with world.connection() as client, asyncio.timeout(LIMIT_S):
            text = "word " * 100
            asked = [
                world.ask(client, max_tokens=300, logprobs=True, top_logprobs=20, stop=[text])
                for _ in range(20)
            ]
            rests = [reader.rest() for reader in readers]  # at once: a worker waits for its readers
            answers, codes = await asyncio.gather(asyncio.gather(*asked), asyncio.gather(*rests))
    assert {answer.status_code for answer in answers} <= {200, 500, 502, 503}
    assert any(answer.status_code != 200 for answer in answers) or "engine_failed" in codes
    assert set(codes) <= {"", "engine_failed"}
    for answer in answers:
        assert answer.extensions["cloister"].complete
        assert world.marker not in answer.text or answer.status_code == 200
    await world.served_again()
    world.check_nothing_left()
