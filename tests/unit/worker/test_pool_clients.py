"""A pool with a process for each client: never shared, never hoarded."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from cloister.errors import EngineError
from cloister.worker.pool import AT_CAPACITY
from support.pool import PER_CLIENT, quiet, running
from support.sealed import until


async def test_clients_have_processes_of_their_own() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=4)) as bench:
        assert [await bench.ask(name) for name in "aabba"] == [0, 0, 1, 1, 0]
        # Who cannot be recognised has one for each request, and it ends with it.
        assert [await bench.ask(None), await bench.ask(None)] == [2, 3]
        await until(lambda: bench.alive == [0, 1])


async def test_a_process_goes_from_nobody_to_anybody_else() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=2)) as bench:
        order = [(name, await bench.ask(name)) for name in "abcabcbbaac"]
        owners: dict[int, str] = {}
        for name, process in order:
            assert owners.setdefault(process, name) == name
        assert len(bench.alive) <= 2


async def test_the_process_unused_for_longest_makes_room() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=3)) as bench:
        for name in "aba":
            await bench.ask(name)
        await bench.ask("c")
        assert bench.alive == [0, 1, 2]
        assert await bench.ask("d") == 3
        assert bench.alive == [0, 2, 3]


async def test_where_all_are_busy_a_newcomer_gets_the_next_place() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=2)) as bench:
        first, second = await bench.open("a"), await bench.open("b")
        newcomer = asyncio.create_task(bench.ask("c"))
        await until(lambda: bool(bench.events("engine.recycled")))
        again = asyncio.create_task(bench.ask("a"))  # its process takes nothing more
        await quiet(lambda: not newcomer.done() and not again.done())
        await first.aclose()
        assert await newcomer == 2
        await second.aclose()
        assert await again == 3


async def test_a_newcomer_does_not_wait_for_ever() -> None:
    separation = dataclasses.replace(PER_CLIENT, max_processes=1)
    async with running(separation, queue_s=0.05) as bench:
        await bench.open("a")
        with pytest.raises(EngineError) as refused:
            await bench.ask("b")
        assert refused.value.code == AT_CAPACITY


async def test_one_asker_with_many_names_leaves_a_process_to_others() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=3)) as bench:
        for name in ("x1", "x2"):
            await bench.open(name, asker="x")
        third = asyncio.create_task(bench.ask(None, asker="x"))
        await quiet(lambda: not third.done())
        assert await bench.ask("y") == 2
        await bench.answers[0].aclose()
        await third


async def test_what_one_asker_may_not_have_is_taken_from_nobody() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=4)) as bench:
        assert [await bench.ask(name) for name in "bcd"] == [0, 1, 2]
        many = [asyncio.create_task(bench.open(f"n{number}", "greedy")) for number in range(10)]
        await until(lambda: sum(one.done() for one in many) == 3)
        await quiet(lambda: sum(one.done() for one in many) == 3)
        assert await bench.ask("d") == 2  # used last, so those of the others made room
        for one in many:
            one.cancel()
        await asyncio.gather(*many, return_exceptions=True)


async def test_a_client_that_brings_its_process_down_delays_nobody() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=2)) as bench:
        for _ in range(6):
            await bench.ask("vandal")
            bench.started[bench.served[-1]].crash()
            assert bench.pool.ready
            await bench.ask("vandal")
            assert bench.pool._not_before == 0


async def test_fresh_processes_are_kept_ready() -> None:
    async with running(dataclasses.replace(PER_CLIENT, max_processes=4, warm=2)) as bench:
        await until(lambda: bench.alive == [0, 1])
        assert await bench.ask("a") == 0
        await until(lambda: bench.alive == [0, 1, 2])
        assert [await bench.ask("b"), await bench.ask("a")] == [1, 0]


async def test_a_clients_process_has_the_same_bounds() -> None:
    separation = dataclasses.replace(
        PER_CLIENT, max_processes=4, recycle_requests=3, recycle_idle_s=60
    )
    async with running(separation) as bench:
        assert [await bench.ask("a") for _ in range(4)] == [0, 0, 0, 1]
        bench.clock.ahead += 61
        await until(lambda: not bench.alive)
        assert bench.pool.ready
        assert await bench.ask("a") == 2
