"""Whose turn it is, and a clock that nobody turns back."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from cloister.broker.clock import SteadyWall
from cloister.broker.turns import BusyError, Turns


class Gate:
    """Work that stops until it is let on, so that others have to wait."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.order: list[Any] = []

    def hold(self) -> None:
        self.open.wait(30)

    def note(self, what: Any) -> Any:
        self.order.append(what)
        return what


async def crowd(turns: Turns, gate: Gate, asks: list[tuple[str, int]]) -> list[Any]:
    """Let everybody queue behind one that is held, then let them go."""
    first = asyncio.create_task(turns.take("first", gate.hold, size=0))
    await asyncio.sleep(0)
    waiting = [
        asyncio.create_task(turns.take(source, lambda who=(source, n): gate.note(who), size=1))  # type: ignore[misc]  # a loop's value
        for source, n in asks
    ]
    await asyncio.sleep(0)
    assert turns.waiting == len(asks)
    gate.open.set()
    await first
    return list(await asyncio.gather(*waiting))


async def test_a_thousand_at_once_are_served_in_the_order_of_their_coming() -> None:
    turns, gate = Turns(), Gate()
    asks = [("one network", number) for number in range(1000)]
    assert await crowd(turns, gate, asks) == asks
    assert gate.order == asks
    await turns.aclose()


async def test_a_flood_from_one_network_holds_nobody_else_up() -> None:
    turns, gate = Turns(), Gate()
    flood = [("flood", number) for number in range(500)]
    await crowd(turns, gate, [*flood, ("a", 0), ("b", 0), ("a", 1)])
    assert {("a", 0), ("b", 0)} <= set(gate.order[:3])
    assert gate.order.index(("a", 1)) < 6
    assert [one for one in gate.order if one[0] == "flood"] == flood
    await turns.aclose()


async def test_lines_are_bounded_in_number_and_in_bytes() -> None:
    for turns, fits, size in (
        (Turns(max_waiting=3), 3, 1),
        (Turns(max_bytes=30), 3, 10),
    ):
        gate = Gate()
        first = asyncio.create_task(turns.take("x", gate.hold, size=0))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(turns.take("x", lambda: 1, size=size)) for _ in range(fits)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await turns.take("y", lambda: 1, size=size)
        gate.open.set()
        await asyncio.gather(first, *waiting)
        assert await turns.take("y", lambda: 2, size=size) == 2
        await turns.aclose()


async def test_who_goes_away_leaves_the_line_and_who_fails_is_told() -> None:
    turns, gate = Turns(), Gate()

    def fail() -> None:
        raise KeyError("x")

    first = asyncio.create_task(turns.take("x", gate.hold, size=0))
    await asyncio.sleep(0)
    gone = asyncio.create_task(turns.take("x", lambda: gate.note("gone"), size=0))
    failing = asyncio.create_task(turns.take("x", fail, size=0))
    last = asyncio.create_task(turns.take("x", lambda: gate.note("last"), size=0))
    await asyncio.sleep(0)
    gone.cancel()
    gate.open.set()
    await first
    with pytest.raises(KeyError):
        await failing
    await last
    assert gate.order == ["last"]
    with pytest.raises(asyncio.CancelledError):
        await gone
    await turns.aclose()


async def test_an_end_cancels_who_waits() -> None:
    turns, gate = Turns(), Gate()
    first = asyncio.create_task(turns.take("x", gate.hold, size=0))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(turns.take("x", lambda: 1, size=0))
    await asyncio.sleep(0)
    gate.open.set()
    await turns.aclose()
    await first
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_clock_that_is_set_back_changes_nothing() -> None:
    wall, steady = [1000.0], [5.0]
    clock = SteadyWall(wall=lambda: wall[0], steady=lambda: steady[0])
    assert clock() == 1000
    wall[0], steady[0] = 10.0, 65.0
    assert clock() == 1060


def test_a_clock_begins_no_earlier_than_what_is_past() -> None:
    clock = SteadyWall(wall=lambda: 10.0, steady=lambda: 0.0, not_before=1000.0)
    assert clock() == 1000
