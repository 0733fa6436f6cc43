"""Room for requests that are not whole yet, and who has to leave it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from cloister.broker.arriving import Arriving
from cloister.broker.turns import BusyError

ROOM = 1000


@contextlib.asynccontextmanager
async def held(
    arriving: Arriving, **sizes: list[int]
) -> AsyncIterator[list[Callable[[int], None]]]:
    """Requests of these sources that hold so much each; told of it if they were dropped."""
    async with contextlib.AsyncExitStack() as stack:
        holds = []
        for source, each in sizes.items():
            for size in each:
                await stack.enter_async_context(_unless_dropped())
                hold = await stack.enter_async_context(arriving.request(source, seconds=600))
                hold(size)
                holds.append(hold)
        yield holds


@contextlib.asynccontextmanager
async def _unless_dropped() -> AsyncIterator[None]:
    with contextlib.suppress(BusyError):
        yield


def dropped(hold: Callable[[int], None]) -> bool:
    try:
        hold(0)
    except BusyError:
        return True
    return False


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ({"a": [10] * 100}, 900),
        ({"a": [600] + [1] * 400}, 900),
        ({"a": [10] * 50, "b": [300, 200]}, 450),
    ],
    ids=["equal", "unequal", "two sources"],
)
async def test_who_is_refused_took_nothing_from_anybody(
    sizes: dict[str, list[int]], wanted: int
) -> None:
    arriving = Arriving(ROOM)
    async with held(arriving, **sizes) as holds, arriving.request("newcomer", seconds=600) as hold:
        for _ in range(3):
            with pytest.raises(BusyError):
                hold(wanted)
            assert not any(map(dropped, holds))
            with pytest.raises(BusyError):  # no byte became free
                holds[0](1)


async def test_whoever_holds_most_loses_its_largest_until_there_is_room() -> None:
    arriving = Arriving(ROOM)
    async with (
        held(arriving, a=[100, 300, 200], b=[250, 150]) as holds,
        arriving.request("newcomer", seconds=600) as hold,
    ):
        hold(200)
        assert [dropped(one) for one in holds] == [False, True, False, False, False]
        hold(100)  # exactly what is left
        assert sum(map(dropped, holds)) == 1
        hold(1)
        assert [dropped(one) for one in holds] == [False, True, False, True, False]
