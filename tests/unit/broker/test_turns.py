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
            await turns.take("x", lambda: 1, size=size)
        gate.open.set()
        await asyncio.gather(first, *waiting)
        assert await turns.take("y", lambda: 2, size=size) == 2
        await turns.aclose()


@pytest.mark.parametrize("sources", [1, 2, 50])
@pytest.mark.parametrize(
    "bound", [{"max_waiting": 100}, {"max_bytes": 1000}], ids=["number", "bytes"]
)
async def test_full_lines_make_room_for_who_has_a_shorter_one(
    bound: dict[str, int], sources: int
) -> None:
    """However few or many fill them, as long as one of them has more than whoever comes."""
    turns, gate = Turns(**bound), Gate()
    first = asyncio.create_task(turns.take("first", gate.hold, size=0))
    await asyncio.sleep(0)

    def ask(source: str, number: int) -> asyncio.Task[Any]:
        return asyncio.create_task(turns.take(source, lambda: gate.note((source, number)), size=10))

    flood = [ask(f"flood {n % sources}", n) for n in range(100)]
    await asyncio.sleep(0)
    assert turns.waiting == 100
    genuine = [ask("worker", 0), ask("other worker", 0)]
    more = [ask(f"flood {n % sources}", n) for n in range(100, 200)]
    await asyncio.sleep(0)
    assert turns.waiting == 100
    gate.open.set()
    await first
    found = await asyncio.gather(*genuine, *flood, *more, return_exceptions=True)
    assert found[:2] == [("worker", 0), ("other worker", 0)]
    assert max(map(gate.order.index, found[:2])) < 2 * sources + 2
    refused = [one for one in found if isinstance(one, BusyError)]
    assert len(refused) == 102
    # Nobody else's place was taken than the last ones of the longest line.
    kept = [one for one in gate.order if one[0].startswith("flood")]
    assert len(kept) == 98
    assert {number for _, number in kept} >= set(range(98 - sources))
    await turns.aclose()


async def test_as_many_sources_as_there_are_places_leave_none() -> None:
    """None of them has more than whoever comes, and nothing tells which of them matters."""
    turns, gate = Turns(max_waiting=20), Gate()
    first = asyncio.create_task(turns.take("first", gate.hold, size=0))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(turns.take(f"flood {n}", lambda: 1, size=1)) for n in range(19)]
    last = asyncio.create_task(turns.take("worker", lambda: 2, size=1))
    await asyncio.sleep(0)
    with pytest.raises(BusyError):
        await turns.take("late worker", lambda: 3, size=1)
    gate.open.set()
    await asyncio.gather(first, *waiting)
    assert await last == 2
    await turns.aclose()


@pytest.mark.parametrize(
    ("bound", "held", "wanted", "fitting", "lost"),
    [
        ({"max_bytes": 1000}, {"victim": [600] + [1] * 400}, 900, 200, 200),
        ({"max_bytes": 1000}, {"one": [300, 200], "other": [1] * 500}, 400, 300, 101),
        # Here there would be a place, but not the bytes.
        ({"max_waiting": 3, "max_bytes": 30}, {"one": [5, 5], "other": [20]}, 20, 5, 1),
    ],
    ids=["one line", "two lines", "both bounds"],
)
async def test_who_is_refused_took_nothing_from_anybody(
    bound: dict[str, int], held: dict[str, list[int]], wanted: int, fitting: int, lost: int
) -> None:
    """Enough room is found before any is made, however unequal the requests are."""
    turns, gate = Turns(**bound), Gate()
    first = asyncio.create_task(turns.take("first", gate.hold, size=0))
    await asyncio.sleep(0)
    waiting = [
        asyncio.create_task(turns.take(source, lambda: "served", size=size))
        for source, sizes in held.items()
        for size in sizes
    ]
    await asyncio.sleep(0)
    before = turns.waiting
    assert before == len(waiting)
    for _ in range(3):
        with pytest.raises(BusyError):
            await turns.take("newcomer", lambda: "served", size=wanted)
        await asyncio.sleep(0)
        assert turns.waiting == before
        assert not any(task.done() for task in waiting)
        with pytest.raises(BusyError):  # no byte became free
            await turns.take(next(iter(held)), lambda: "served", size=fitting)
    fits = asyncio.create_task(turns.take("newcomer", lambda: "served", size=fitting))
    await asyncio.sleep(0)
    gate.open.set()
    await first
    assert await fits == "served"
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(one, BusyError) for one in found) == lost
    assert found.count("served") == before - lost
    await turns.aclose()


@pytest.mark.parametrize(
    "bound", [{"max_waiting": 10}, {"max_bytes": 1000}], ids=["number", "bytes"]
)
async def test_who_goes_away_gives_its_place_back(bound: dict[str, int]) -> None:
    """To its own source's next; nor does it make its line the longest."""
    turns, gate = Turns(**bound), Gate()
    first = asyncio.create_task(turns.take("first", gate.hold, size=0))
    await asyncio.sleep(0)

    def ask(source: str) -> asyncio.Task[str]:
        return asyncio.create_task(turns.take(source, lambda: "served", size=100))

    gone = [ask("x") for _ in range(6)]
    staying = [ask("y") for _ in range(4)]
    await asyncio.sleep(0)
    assert turns.waiting == 10
    with pytest.raises(BusyError):
        await ask("x")
    for task in gone:
        task.cancel()
    await asyncio.wait(gone)
    assert all(task.cancelled() for task in gone)
    assert turns.waiting == 4
    again = [ask("x") for _ in range(6)]
    await asyncio.sleep(0)
    assert turns.waiting == 10, "each place was given back once"
    with pytest.raises(BusyError):
        await ask("x")
    for task in again[:5]:
        task.cancel()
    await asyncio.wait(again[:5])
    again += [ask("z") for _ in range(5)]
    again[5].cancel()
    await asyncio.wait(again[5:6])
    again.append(ask("z"))
    await asyncio.sleep(0)
    last = ask("x")
    await asyncio.sleep(0)
    gate.open.set()
    await first
    assert await last == "served"
    assert await asyncio.gather(*staying) == ["served"] * 4, "z had the longest line"
    await turns.aclose()
    found = await asyncio.gather(*again[6:], return_exceptions=True)
    assert sum(isinstance(one, BusyError) for one in found) == 1


async def test_who_goes_away_is_counted_once_whatever_became_of_it() -> None:
    """While it runs, and after its place was taken by somebody else's."""
    turns, gate = Turns(max_waiting=2), Gate()
    running = asyncio.create_task(turns.take("x", gate.hold, size=1))
    await asyncio.sleep(0)
    staying = asyncio.create_task(turns.take("x", lambda: "served", size=1))
    dropped = asyncio.create_task(turns.take("x", lambda: "served", size=1))
    await asyncio.sleep(0)
    other = asyncio.create_task(turns.take("y", lambda: "served", size=1))
    await asyncio.sleep(0)
    assert turns.waiting == 2
    running.cancel()
    dropped.cancel()
    await asyncio.wait([running, dropped])
    assert running.cancelled()
    assert turns.waiting == 2
    gate.open.set()
    assert list(await asyncio.gather(staying, other)) == ["served"] * 2
    assert turns.waiting == 0
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
