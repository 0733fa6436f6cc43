"""A broker that many ask at once: lines, room for what arrives, and floods."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select

from cloister.broker import tables
from cloister.broker.app import MAX_SOURCES, BrokerApp
from cloister.broker.turns import BusyError, Turns
from cloister.channel import rcar
from cloister.worker.key_release import (
    Answer,
    Send,
    release_key,
)
from cloister.worker.logs import EventLog
from cloister.worker.settings import RateLimit
from support.broker import (
    SECRET,
    WEIGHTS,
    Bench,
    bench,
)


def in_process(at: Bench, **options: Any) -> BrokerApp:
    return BrokerApp(at.desk, log=EventLog(io.StringIO()), steady=lambda: 1.0, **options)


async def asked(
    app: BrokerApp, *pieces: bytes, path: str = rcar.AUTH_PATH, source: str = "::1"
) -> int:
    """The status of the answer to one POST, whose body comes in `pieces`."""
    arriving = [{"type": "http.request", "body": one, "more_body": True} for one in pieces]
    arriving.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0)
        return arriving.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "client": (source, 1)}
    await app(scope, receive, send)
    return int(sent[0]["status"])


def through(app: BrokerApp, source: str) -> Send:
    """How a worker at `source` asks `app`, from another thread than its loop's."""
    loop = asyncio.get_running_loop()

    async def ask(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": fields}
        await app({**scope, "client": (source, 1)}, receive, send)
        cookie = dict(sent[0]["headers"]).get(b"set-cookie", b"").decode().partition(";")[0]
        return Answer(
            status=sent[0]["status"], body=sent[1]["body"], cookie=cookie.partition("=")[2] or None
        )

    def sending(method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str]) -> Answer:
        asking = ask(method, path, body, headers)
        return asyncio.run_coroutine_threadsafe(asking, loop).result(60)

    return sending


async def test_who_waits_in_line_is_not_denied_more_often_either(tmp_path: Path) -> None:
    """A thousand at once are not a thousand entries in the audit log."""
    with bench(tmp_path) as at:
        app = in_process(at, denied_per_source=RateLimit(per_minute=60, burst=3))
        statuses = await asyncio.gather(*(asked(app, b"{}") for _ in range(60)))
        denied = [entry for entry in at.log() if entry["event"] == "denied"]
        await app.aclose()
    assert set(statuses) == {403, 429}
    assert 3 < len(denied) < 10


async def test_a_challenge_waits_for_nobody_and_its_denial_for_its_turn(tmp_path: Path) -> None:
    """Nothing is written for it: a decision that takes long holds up other decisions only."""
    gate = threading.Event()
    with bench(tmp_path) as at:
        app = in_process(at, turns=Turns(threads=1))
        holding = asyncio.create_task(app.turns.take("other", lambda: gate.wait(30), size=0))
        await asyncio.sleep(0)
        before = at.log()
        assert await asked(app, rcar.encode_request("tpm", rcar.Ask(resource=WEIGHTS))) == 200
        denied = asyncio.create_task(asked(app, b"{}"))
        while not app.turns.waiting:
            await asyncio.sleep(0.01)
        assert at.log() == before
        gate.set()
        assert await denied == 403
        entries = at.log()[len(before) :]
        assert [entry["detail"]["step"] for entry in entries] == ["challenge"]
        assert await holding
        await app.aclose()


async def test_requests_that_arrive_are_bounded_together(tmp_path: Path) -> None:
    with bench(tmp_path) as at:
        app = in_process(at, max_arriving=100_000)
        pieces = [b" " * 1000] * 10
        assert await asked(app, *pieces, path=rcar.ATTEST_PATH) == 401
        at_once = await asyncio.gather(
            *(asked(app, *pieces, path=rcar.ATTEST_PATH) for _ in range(20))
        )
        assert {401, 503} == set(at_once)
        assert await asked(app, *pieces, path=rcar.ATTEST_PATH) == 401, "it is given back"
        await app.aclose()


async def test_whoever_holds_most_of_what_arrives_makes_room(tmp_path: Path) -> None:
    """Two networks fill the room with requests that never end; somebody else's arrives."""
    with bench(tmp_path) as at:
        app = in_process(at, max_arriving=100_000)
        held: list[int] = []

        async def endless(source: str) -> int:
            sent: list[Any] = []

            async def receive() -> Any:
                await asyncio.sleep(0)  # so that each has some
                held.append(10_000)
                if len(held) > 10:
                    await asyncio.Event().wait()
                return {"type": "http.request", "body": b" " * 10_000, "more_body": True}

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": rcar.ATTEST_PATH, "headers": []}
            await app({**scope, "client": (source, 1)}, receive, send)
            return int(sent[0]["status"])

        flood = [asyncio.create_task(endless(f"192.0.2.{n % 2}")) for n in range(4)]
        while len(held) < 14:  # ten pieces were taken, and all four wait for another
            await asyncio.sleep(0)
        pieces = [b" " * 1000] * 10
        assert await asked(app, *pieces, path=rcar.ATTEST_PATH, source="198.51.100.7") == 401
        ended = [task for task in flood if task.done()]
        assert [await task for task in ended] == [503]
        # Nobody makes room for who holds as much already.
        assert await asked(app, b" " * 90_000, path=rcar.ATTEST_PATH, source="192.0.2.1") == 503
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        assert await asked(app, b" " * 90_000, path=rcar.ATTEST_PATH, source="192.0.2.1") == 401
        await app.aclose()


def rows(at: Bench) -> dict[str, list[str]]:
    """Everything in the database."""
    with at.store.database.reading() as connection:
        return {
            table.name: [repr(tuple(row)) for row in connection.each(select(table))]
            for table in tables.metadata.sorted_tables
        }


async def test_a_flood_of_challenges_leaves_nothing_and_takes_nobodys(tmp_path: Path) -> None:
    """From more networks than are remembered, between a challenge and its answer."""
    body = rcar.encode_request("tpm", rcar.Ask(resource=WEIGHTS))
    with bench(tmp_path) as at:
        app = in_process(at)
        worker = through(app, "198.51.100.7")
        begun, flooded = threading.Event(), threading.Event()

        def send(method: str, path: str, *, body: bytes = b"", headers: Any) -> Answer:
            if path == rcar.ATTEST_PATH:
                begun.set()
                assert flooded.wait(120)
            return worker(method, path, body=body, headers=headers)

        before = rows(at)
        asking = asyncio.create_task(
            asyncio.to_thread(
                release_key, WEIGHTS, prover=at.prover, broker=at.store.identity, send=send
            )
        )
        await asyncio.to_thread(begun.wait, 120)
        for number in range(MAX_SOURCES + 500):
            source = f"2001:db8:0:{number:x}::1"
            assert await asked(app, body, source=source) == 200
        assert rows(at) == before
        flooded.set()
        released = await asking
        assert released.secret == SECRET
        await app.aclose()


async def test_a_worker_gets_its_key_while_a_flood_fills_every_line(tmp_path: Path) -> None:
    """Twenty networks keep all places taken, before and after each step of the worker's."""
    with bench(tmp_path) as at:
        app = in_process(at, turns=Turns(threads=1, max_waiting=40))
        stop = asyncio.Event()
        refused = 0

        async def keep_asking(source: str) -> None:
            nonlocal refused
            while not stop.is_set():
                with contextlib.suppress(BusyError):
                    await app.turns.take(source, lambda: None, size=1)
                    continue
                refused += 1
                await asyncio.sleep(0)

        flood = [asyncio.create_task(keep_asking(f"192.0.2.{n % 20}")) for n in range(3 * 40)]
        worker = through(app, "198.51.100.7")
        for _ in range(3):
            released = await asyncio.to_thread(
                release_key, WEIGHTS, prover=at.prover, broker=at.store.identity, send=worker
            )
            assert released.secret == SECRET
        assert refused
        stop.set()
        await asyncio.gather(*flood)
        await app.aclose()
