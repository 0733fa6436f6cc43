"""Places and turns: nobody is starved, and no place is lost or given twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.worker.fairness import FairQueue, Places, Ticket

LONG = 60.0

# -- places -------------------------------------------------------------------------------------


def enter_all(places: Places, asker: Hashable, most: int = 1000) -> int:
    return next(count for count in range(most) if not places.enter(asker))


def test_one_asker_leaves_half_of_the_places_to_others() -> None:
    places = Places(256)
    assert enter_all(places, "one") == 128
    assert enter_all(places, "two") == 64
    assert places.taken == 192
    places.leave("two")
    assert places.taken == 191


@given(st.integers(2, 400), st.data())
def test_however_greedy_they_are_somebody_new_finds_room(capacity: int, data: Any) -> None:
    places = Places(capacity)
    for asker in range(data.draw(st.integers(1, capacity.bit_length() - 1))):
        enter_all(places, asker)
    assert places.enter("new")


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=200))
def test_places_are_neither_lost_nor_invented(moves: list[tuple[bool, int]]) -> None:
    places, held = Places(10), Counter[int]()
    for enters, asker in moves:
        if enters:
            held[asker] += places.enter(asker)
        elif held[asker]:
            places.leave(asker)
            held[asker] -= 1
        assert places.taken == held.total() <= 10
    for asker in held.elements():
        places.leave(asker)
    assert places.taken == 0


def test_a_single_place_can_be_taken() -> None:
    places = Places(1)
    assert places.enter("one")
    assert not places.enter("two")
    places.leave("one")
    assert places.enter("two")


# -- turns --------------------------------------------------------------------------------------


class Slots:
    """So many places, of which one asker gets at most `share`; every use is checked."""

    def __init__(self, count: int, share: int = 1000) -> None:
        self.count, self.share = count, share
        self.used: set[int] = set()
        self.order: list[Hashable] = []
        self.queue = FairQueue[int](place=self.place, unplace=self.unplace)

    def place(self, ticket: Ticket[int]) -> int | None:
        if self.queue.running(ticket.asker) >= self.share:
            return None
        free = set(range(self.count)) - self.used
        if not free:
            return None
        slot = min(free)
        self.used.add(slot)
        self.order.append(ticket.asker)
        return slot

    def unplace(self, slot: int) -> None:
        self.used.remove(slot)  # KeyError: given back twice


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def ask(slots: Slots, asker: Hashable) -> asyncio.Task[Ticket[int]]:
    return asyncio.create_task(slots.queue.acquire(asker, "key", LONG))


async def test_whoever_has_the_fewest_running_comes_first() -> None:
    slots = Slots(2)
    tasks = [ask(slots, "many") for _ in range(6)]
    await settle()
    tasks += [ask(slots, "few"), ask(slots, "few"), ask(slots, "last")]
    await settle()
    assert slots.order == ["many", "many"]
    running = [task for task in tasks if task.done()]
    for _ in range(7):
        slots.queue.release(running.pop(0).result())
        await settle()
        running += [task for task in tasks if task.done() and task not in running]
        running = [task for task in running if task.result().placed is not None]
    # One place comes free at a time, of whoever was served first.
    assert slots.order[2:] == ["few", "last", "many", "few", "many", "many", "many"]


async def test_a_newcomer_is_next_whatever_the_length_of_the_line() -> None:
    slots = Slots(1)
    first = await slots.queue.acquire("many", "key", LONG)
    tasks = [ask(slots, "many") for _ in range(100)]
    await settle()
    newcomer = ask(slots, "new")
    await settle()
    slots.queue.release(first)
    await settle()
    assert newcomer.done()
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    slots.queue.release(newcomer.result())
    assert not slots.used
    assert not list(slots.queue.waiting())


async def test_nobody_waits_for_ever_behind_an_unending_row_of_newcomers() -> None:
    slots = Slots(1)
    held = await slots.queue.acquire("first", "key", LONG)
    patient = ask(slots, "patient")
    await settle()
    for turn in range(5):
        ask(slots, f"newcomer {turn}")
        await settle()
        slots.queue.release(held)
        await settle()
        if patient.done():
            return
    raise AssertionError("the patient one was passed over")


async def test_what_cannot_be_placed_blocks_nobody_else() -> None:
    free = {"b"}

    def place(ticket: Ticket[str]) -> str | None:
        return str(ticket.key) if ticket.key in free else None

    queue = FairQueue[str](place=place, unplace=lambda _: None)
    blocked = asyncio.create_task(queue.acquire("one", "a", LONG))
    same = asyncio.create_task(queue.acquire("one", "b", LONG))
    await settle()
    assert not blocked.done()
    assert same.result().placed == "b"
    assert [ticket.key for ticket in queue.waiting()] == ["a"]
    free.add("a")
    queue.pump()
    assert (await blocked).placed == "a"


async def test_time_runs_out_and_leaves_nothing() -> None:
    slots = Slots(1)
    held = await slots.queue.acquire("one", "key", LONG)
    with pytest.raises(TimeoutError):
        await slots.queue.acquire("two", "key", 0.01)
    assert not list(slots.queue.waiting())
    slots.queue.release(held)
    slots.queue.release(held)  # harmless
    assert (await slots.queue.acquire("two", "key", LONG)).placed == 0


@pytest.mark.parametrize("seed", range(40))
async def test_at_random_no_place_is_lost_and_nobody_is_forgotten(seed: int) -> None:
    """Askers come, are served, are cancelled while they wait and in the moment of being served."""
    dice = random.Random(seed)
    slots = Slots(dice.randint(1, 4), share=dice.randint(1, 4))
    tasks: list[asyncio.Task[Ticket[int]]] = []
    held: list[Ticket[int]] = []

    async def step() -> None:
        match dice.randrange(5):
            case 0 | 1:
                tasks.append(ask(slots, dice.randrange(4)))
            case 2 if tasks:
                tasks[dice.randrange(len(tasks))].cancel()
            case 3 if held:
                slots.queue.release(held.pop(dice.randrange(len(held))))
                if tasks and dice.random() < 0.5:  # before the one let in has run again
                    tasks[dice.randrange(len(tasks))].cancel()
            case _:
                await asyncio.sleep(0)
        for task in [task for task in tasks if task.done()]:
            tasks.remove(task)
            if not task.cancelled():
                held.append(task.result())

    for _ in range(400):
        await step()
        counts: Counter[Any] = Counter(ticket.asker for ticket in held)
        assert len(slots.used) <= slots.count
        assert all(count <= slots.share for count in counts.values())
    # Everybody who is left gets a turn, and in the end nothing is held.
    for _ in range(2000):
        if not tasks and not held:
            break
        if held:
            slots.queue.release(held.pop())
        await settle()
        for task in [task for task in tasks if task.done()]:
            tasks.remove(task)
            if not task.cancelled():
                held.append(task.result())
    assert not tasks
    assert not slots.used
    assert not list(slots.queue.waiting())
    assert not slots.queue._turns
    assert not slots.queue._running
