"""Who is served next, and how many may wait: one client's hundred requests starve nobody.

Engines serve what they are sent in the order in which it came. So requests wait here, before
the engine, and are let through one by one: first those of whoever has the fewest in the engine,
among equals those of whoever was not served for longest. An *asker* is whom the worker can tell
from others: an API key, and where none is needed, a cache domain.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Placed = TypeVar("Placed")


class Places:
    """Places for requests that wait or are answered. Nobody may hold more than are left free.

    So one asker gets half of them and leaves the rest; as answers end, n of them come to hold one
    in n + 1 each (Choudhury and Hahne, "Dynamic queue length thresholds", 1998, with alpha 1).
    Of 256 places, eight who come one after another and take all they get leave one.
    """

    __slots__ = ("_capacity", "_held")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._held: Counter[Hashable] = Counter()

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return self._held.total()

    def enter(self, asker: Hashable) -> bool:
        """Take a place; False, and no place, where `asker` has its share or all are taken."""
        if self._held[asker] >= self._capacity - self.taken:
            return False
        self._held[asker] += 1
        return True

    def leave(self, asker: Hashable) -> None:
        """Give a place back."""
        self._held[asker] -= 1
        if not self._held[asker]:
            del self._held[asker]


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket(Generic[Placed]):
    """One request on its way into an engine."""

    asker: Hashable = field(repr=False)
    key: Hashable = field(repr=False)
    """Requests of equal keys may go to the same process."""
    placed: Placed | None = None
    """Where it was placed; None while it waits, and again when it has left."""
    granted: asyncio.Future[None]


class FairQueue(Generic[Placed]):
    """Requests that wait for a place in an engine, and those that have one.

    `place` gives a ticket a place if there is one for it now, and `unplace` takes it back. Both
    are called synchronously and must not call the queue, save for `running`.
    """

    def __init__(
        self,
        *,
        place: Callable[[Ticket[Placed]], Placed | None],
        unplace: Callable[[Placed], None],
    ) -> None:
        self._place = place
        self._unplace = unplace
        self._lines: dict[Hashable, list[Ticket[Placed]]] = {}
        self._running: Counter[Hashable] = Counter()
        self._turns: dict[Hashable, int] = {}
        """When each asker who is here came, or when one of its requests last began or ended."""
        self._turn = 0

    def running(self, asker: Hashable) -> int:
        """How many requests of `asker` have a place now."""
        return self._running[asker]

    def waiting(self) -> Iterator[Ticket[Placed]]:
        """Every waiting ticket, in the order in which they would be served now."""
        for asker in self._order():
            yield from self._lines[asker]

    async def acquire(self, asker: Hashable, key: Hashable, limit_s: float) -> Ticket[Placed]:
        """Wait for a place; the ticket has to be released. TimeoutError after `limit_s`.

        Whoever is cancelled meanwhile holds nothing.
        """
        loop = asyncio.get_running_loop()
        ticket = Ticket[Placed](asker=asker, key=key, granted=loop.create_future())
        if asker not in self._turns:
            self._turns[asker] = self._next_turn()
        self._lines.setdefault(asker, []).append(ticket)
        try:
            self.pump()
            async with asyncio.timeout(limit_s):
                await ticket.granted
        except BaseException:
            # It may have been placed in the very moment in which it was given up.
            self._withdraw(ticket)
            self.release(ticket)
            raise
        return ticket

    def release(self, ticket: Ticket[Placed]) -> None:
        """Give the place back, and let the next one in. Harmless when done already."""
        placed, ticket.placed = ticket.placed, None
        if placed is not None:
            self._running[ticket.asker] -= 1
            self._turns[ticket.asker] = self._next_turn()
            self._unplace(placed)
        self._forget(ticket.asker)
        self.pump()

    def pump(self) -> None:
        """Let in whoever has a place now."""
        while self._admit_one():
            pass

    def _admit_one(self) -> bool:
        for asker in self._order():
            tried: set[Hashable] = set()
            for ticket in self._lines[asker]:
                if ticket.key in tried or ticket.granted.done():
                    continue
                placed = self._place(ticket)
                if placed is not None:
                    self._withdraw(ticket)
                    ticket.placed = placed
                    self._running[asker] += 1
                    self._turns[asker] = self._next_turn()
                    ticket.granted.set_result(None)
                    return True
                tried.add(ticket.key)
        return False

    def _order(self) -> list[Hashable]:
        return sorted(self._lines, key=lambda asker: (self._running[asker], self._turns[asker]))

    def _next_turn(self) -> int:
        self._turn += 1
        return self._turn

    def _withdraw(self, ticket: Ticket[Placed]) -> None:
        line = self._lines.get(ticket.asker, [])
        if ticket in line:
            line.remove(ticket)
            if not line:
                del self._lines[ticket.asker]

    def _forget(self, asker: Hashable) -> None:
        if asker not in self._lines and not self._running[asker]:
            self._turns.pop(asker, None)
            del self._running[asker]
