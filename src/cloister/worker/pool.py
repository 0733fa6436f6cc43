"""The engine processes of one model: how many, whose, and when each is exchanged.

An engine keeps remains of prompts in its memory until its process ends, and a process that was
taken over can hand one person's words to another. So a pool ends processes in time and starts
fresh ones before it needs them (shared mode), or gives every client a process of its own. No
process ever goes from one client to another. It also notices engines that have died, frozen or
fallen silent, and starts others in their place, ever more patiently where that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Final

from cloister.engine.protocol import (
    NOT_RUNNING,
    Engine,
    EngineRequest,
    EngineResponse,
    ModelInfo,
    Paths,
)
from cloister.errors import ConfigurationError, EngineError
from cloister.worker.fairness import FairQueue, Ticket
from cloister.worker.logs import EventLog
from cloister.worker.member import End, Member
from cloister.worker.metrics import Metrics
from cloister.worker.settings import Limits, Separation, SeparationMode

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 30.0
STEADY_AFTER_S: Final = 60.0
"""An engine that ran this long starts again without delay."""
TICK_S: Final = 1.0
"""How late a bound on time may be noticed."""
AT_CAPACITY: Final = "engine.at_capacity"
"""Code of the EngineError for a request that has waited long enough."""
_EVERYBODY: Final = "everybody"
_LEAD: Final = 10
"""A successor is started when a process has a tenth of its requests left."""


class EnginePool:
    """Owns the engine processes of one model.

    `engine` is the first of them, and the others are its siblings. ConfigurationError where
    `separation` asks for several processes, and the engine can only be one.
    """

    def __init__(
        self,
        engine: Engine,
        log: EventLog,
        *,
        separation: Separation,
        limits: Limits,
        steady: Callable[[], float],
        metrics: Metrics,
        first_delay_s: float = FIRST_DELAY_S,
        tick_s: float = TICK_S,
    ) -> None:
        if separation != Separation.of_one_process() and engine.sibling() is None:
            raise ConfigurationError(
                "this engine is one process that somebody else runs: people cannot be kept apart "
                "in it, nor can it be exchanged",
                code="configuration.separation",
            )
        self._engine = engine
        self._log = log
        self._separation = separation
        self._shared = separation.mode is SeparationMode.SHARED
        self._limits = limits
        self._steady = steady
        self._metrics = metrics
        self._first_delay_s = self._delay_s = first_delay_s
        self._tick_s = tick_s
        self._queue = FairQueue[Member](place=self._place, unplace=self._unplace)
        self._members: set[Member] = set()
        self._fresh: list[Member] = []
        """Started, and given nothing yet."""
        self._current: dict[Hashable, Member] = {}
        """Who answers requests of which key."""
        self._starting = 0
        self._not_before = 0.0
        self._down = False
        """Whether the last thing that happened to a process was that it failed."""
        self._missing = 0
        """Processes that failed and were not replaced yet."""
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.restarts = 0

    @property
    def model(self) -> ModelInfo:
        """The model that is served."""
        return self._engine.model

    @property
    def paths(self) -> Paths:
        """What the engine serves."""
        return self._engine.paths

    @property
    def ready(self) -> bool:
        """Whether a request sent now is answered, if need be after a planned exchange."""
        if any(member.usable for member in self._members):
            return True
        # What one client does to its own process is nobody else's outage.
        failed = self._shared and any(member.failed for member in self._members)
        return bool(self._tasks) and not self._down and not failed

    @property
    def processes(self) -> int:
        """Engine processes now, those that start or end included."""
        return len(self._members) + self._starting

    async def start(self) -> None:
        """Start one engine, and look after all of them from now on.

        Raises what the engine raises: a worker does not begin without one.
        """
        await self._engine.start()
        self._join(self._engine)
        self._spawn(self._look_after())

    async def send(self, request: EngineRequest, *, asker: Hashable = b"") -> EngineResponse:
        """Wait for a place and pass the request on, to a process that its client may use.

        EngineError with the engine's codes, with NOT_RUNNING where there is none, and with
        AT_CAPACITY where it has waited for as long as it may: then nothing was computed.
        """
        if not self.ready:
            raise EngineError("the engine is not running", code=NOT_RUNNING)
        key: Hashable = _EVERYBODY if self._shared else request.client or object()
        try:
            ticket = await self._queue.acquire(asker, key, self._limits.queue_s)
        except TimeoutError:
            raise EngineError("the engine has no place", code=AT_CAPACITY) from None
        if ticket.placed is None:
            raise RuntimeError("a ticket that was granted has a place")
        return await ticket.placed.send(request, lambda: self._queue.release(ticket))

    async def aclose(self) -> None:
        """End every process, and everything that looks after them."""
        self._closing = True
        for member in tuple(self._members):
            member.end(End.CLOSING)
        tasks = tuple(self._tasks)
        lives = {task for task in tasks if task.get_name() == _LIFE}
        for task in tasks:
            if task not in lives:
                task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._starting = 0  # a start that was cancelled before it began has not counted itself out
        await self._engine.aclose()

    # -- places ------------------------------------------------------------------------------

    def _place(self, ticket: Ticket[Member]) -> Member | None:
        """The process that `ticket` may go to now."""
        if self._closing or (self._shared and not self._has_room(ticket.asker)):
            return None
        member = self._current.get(ticket.key)
        if member is not None and member.usable:
            return self._hand(member) if member.open < self._engine.slots else None
        if member is not None or not self._may_have_another(ticket.asker):
            return None
        member = next((one for one in self._fresh if one.usable), None)
        if member is None:
            return None
        self._fresh.remove(member)
        member.key, member.asker = ticket.key, ticket.asker
        once = not self._shared and not isinstance(ticket.key, str)
        member.limit = 1 if once else self._separation.recycle_requests
        self._current[ticket.key] = member
        return self._hand(member)

    def _hand(self, member: Member) -> Member:
        now = self._steady()
        member.begin(now)
        if member.limit and member.served >= member.limit:
            self._retire(member, End.REQUESTS)
        self._wake.set()
        return member

    def _unplace(self, member: Member) -> None:
        member.finish(self._steady())
        self._wake.set()

    def _has_room(self, asker: Hashable) -> bool:
        """In shared mode: no more is computed at a time than one engine can; and of those places
        an asker leaves one in eight, or at least one, to somebody who comes later."""
        slots = self._engine.slots
        if self._separation.recycle_requests == 1:
            slots = min(slots, self._separation.max_processes)
        if sum(member.open for member in self._members) >= slots:
            return False
        return self._queue.running(asker) < max(1, slots - max(1, slots // 8))

    def _may_have_another(self, asker: Hashable) -> bool:
        return self._shared or self._may_have_more(asker) > 0

    def _may_have_more(self, asker: Hashable) -> int:
        """With processes of clients' own: how many; an asker leaves one of them to others."""
        held = sum(member.asker == asker and member.served > 0 for member in self._members)
        return max(1, self._separation.max_processes - 1) - held

    # -- exchange ----------------------------------------------------------------------------

    async def _look_after(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            until_next = self._not_before - loop.time()
            tick = min(self._tick_s, until_next) if until_next > 0 else self._tick_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(tick):
                    await self._wake.wait()
            self._wake.clear()
            self._review()

    def _review(self) -> None:
        """Do whatever is due now."""
        now = self._steady()
        due = False
        for member in tuple(self._members):
            if self._silent(member):
                member.end(End.SILENT)
            elif member.retired_at is not None:
                if now - member.retired_at > self._limits.generation_s + self._limits.send_s:
                    member.end(End.OVERDUE)
            elif why := self._due(member, now):
                # Nobody waits for a successor that can be there first. But the bound is a bound.
                coming = self._starting or self._can_start()
                if self._shared and coming and not self._has_successor():
                    due = True
                else:
                    self._retire(member, why)
        self._end_for_others(now)
        self._queue.pump()
        self._start_wanted(due=due)

    def _silent(self, member: Member) -> bool:
        """Whether it has said nothing for so long that it must hang.

        An answer that comes whole may be computed for as long as answers may take; then it is
        given up. Only where others are owed all the while, longer silence says something.
        """
        limits, hearing = self._limits, member.hearing
        return (
            hearing.silent_for(whole=False) > limits.stall_s
            or hearing.silent_for(whole=True) > limits.generation_s + limits.stall_s
        )

    def _end_for_others(self, now: float) -> None:
        """In shared mode: end what finishes its last answers, where that keeps everybody waiting.

        A process that has had its requests is given nothing more, successor or not. While those
        before it have long answers to finish, there is no room for another, and one client with
        a few long answers and many short ones would bring the worker to a standstill. Whoever
        waits has waited for half of the time then, and keeps the other half.
        """
        retired = [one for one in self._members if one.retired_at is not None]
        full = len(retired) >= self._separation.max_processes
        # With fewer requests than places it is no standstill that all are given out.
        if not self._shared or self._separation.recycle_requests < self._engine.slots:
            return
        if not full or not any(self._queue.waiting()):
            return
        retired.sort(key=lambda one: one.retired_at or 0.0)
        waited = now - (retired[-1].retired_at or 0.0)
        if waited > self._limits.queue_s / 2 and not retired[0].ending.done():
            self._metrics.engine_recycled.labels(self.model.name, End.ROOM.value).inc()
            self._log.event("engine.recycled", why=End.ROOM.value)
            retired[0].end(End.ROOM)

    def _due(self, member: Member, now: float) -> End | None:
        bounds = self._separation
        if not member.served:
            return None
        if bounds.recycle_age_s and now - member.first_at >= bounds.recycle_age_s:
            return End.AGE
        idle_s = 0.0 if member.open else now - member.idle_since
        return End.IDLE if 0 < bounds.recycle_idle_s <= idle_s else None

    def _has_successor(self) -> bool:
        return any(member.usable for member in self._fresh)

    def _can_start(self) -> bool:
        return (
            not self._closing
            and self.processes < self._separation.max_processes
            and asyncio.get_running_loop().time() >= self._not_before
        )

    def _start_wanted(self, *, due: bool) -> None:
        wanted = max(self._needed(due=due), self._separation.warm, int(self._down))
        while len(self._fresh) + self._starting < wanted and self._can_start():
            self._starting += 1
            self._spawn(self._start_another())
        if not self._shared:
            self._make_room(wanted - len(self._fresh) - self._starting)

    def _needed(self, *, due: bool) -> int:
        """How many fresh processes somebody waits for, or soon will."""
        if not self._shared:
            keys: dict[Hashable, set[Hashable]] = {}
            for ticket in self._queue.waiting():
                if ticket.key not in self._current:
                    keys.setdefault(ticket.asker, set()).add(ticket.key)
            # More than it may have, an asker would not get; but others would lose theirs for it.
            return sum(
                max(0, min(len(own), self._may_have_more(asker))) for asker, own in keys.items()
            )
        most = self._separation.recycle_requests
        if most == 1:
            return max(1, sum(1 for _ in self._queue.waiting()))
        member = self._current.get(_EVERYBODY)
        if member is None or due:
            return 1
        return int(most > 0 and most - member.served <= max(1, most // _LEAD))

    def _make_room(self, missing: int) -> None:
        """With processes of clients' own: end some for others who wait.

        First those unused for longest; then, with its last answer, the one that was somebody's
        for longest. An asker that has as many as it may gives up one of its own.
        """
        waiting = [one for one in self._queue.waiting() if one.key not in self._current]
        for asker in {one.asker for one in waiting if not self._may_have_another(one.asker)}:
            own = [member for member in self._members if member.asker == asker]
            if all(member.retired_at is None for member in own):
                self._give_up(own, 1)
        leaving = sum(member.retired_at is not None for member in self._members)
        if waiting and self.processes >= self._separation.max_processes:
            self._give_up(list(self._current.values()), missing - leaving)

    def _give_up(self, members: list[Member], count: int) -> None:
        kept = [member for member in members if member.usable]
        kept.sort(key=lambda one: (one.open > 0, one.first_at if one.open else one.idle_since))
        for member in kept[: max(0, count)]:
            self._retire(member, End.NEWCOMER)

    def _retire(self, member: Member, why: End) -> None:
        if member.retired_at is None and why is not End.CLOSING:
            self._metrics.engine_recycled.labels(self.model.name, why.value).inc()
            if member.limit != 1:  # a line for every request would be noise
                self._log.event("engine.recycled", why=why.value)
        if self._current.get(member.key) is member:
            del self._current[member.key]
        member.retire(self._steady(), why)

    # -- processes ---------------------------------------------------------------------------

    async def _start_another(self) -> None:
        """Start a process; on failure say when the next try may be."""
        engine = self._engine.sibling() or self._engine
        try:
            await engine.start()
        except Exception as error:  # a fault of ours too: it must not be tried without a pause
            self._log.failure("engine.start_failed", error)
            self._down = True
            self._wait_before_next()
            await self._end_engine(engine)
        except BaseException:
            await engine.aclose()
            raise
        else:
            self._join(engine)
            self._down = False
            if self._missing:
                self._missing -= 1
                self.restarts += 1
                self._metrics.engine_restarts.labels(self.model.name).inc()
                self._log.event("engine.restarted", restarts=self.restarts)
        finally:
            self._starting -= 1
            self._wake.set()

    def _wait_before_next(self) -> None:
        self._not_before = asyncio.get_running_loop().time() + self._delay_s
        self._delay_s = min(self._delay_s * 2, LONGEST_DELAY_S)

    def _join(self, engine: Engine) -> None:
        member = Member(engine)
        self._members.add(member)
        self._fresh.append(member)
        self._metrics.engine_processes.labels(self.model.name).inc()
        self._spawn(self._live(member), name=_LIFE)

    async def _live(self, member: Member) -> None:
        """One process from its start to its end, when nothing of it is left."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        why = await self._end_of(member)
        if member in self._fresh:
            self._fresh.remove(member)
        if self._current.get(member.key) is member:
            del self._current[member.key]
        if why.unasked and not self._closing:
            self._failed(why, lasted_s=loop.time() - began)
        await self._end_engine(member.engine)
        self._members.discard(member)
        self._metrics.engine_processes.labels(self.model.name).dec()
        self._wake.set()

    async def _end_engine(self, engine: Engine) -> None:
        try:
            await engine.aclose()
        except Exception as error:  # whatever it is, the place in the pool is free again
            self._log.failure("engine.end_failed", error)

    def _failed(self, why: End, *, lasted_s: float) -> None:
        self._missing += 1
        if lasted_s >= STEADY_AFTER_S:
            self._delay_s = self._first_delay_s
        self._log.event("engine.stopped", why=why.value, restart_in_s=round(self._delay_s, 3))
        if self._shared:
            # A client that brings its own process down delays nobody else's.
            self._down = not self._has_successor()
            self._wait_before_next()

    async def _end_of(self, member: Member) -> End:
        """Wait until the process has to end, or has ended."""
        stopped = asyncio.create_task(member.engine.wait_stopped())
        frozen = asyncio.create_task(member.frozen(self._limits.probe_s))
        watched: set[asyncio.Future[Any]] = {stopped, frozen, member.ending}
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for watch in (stopped, frozen):
                watch.cancel()
            await asyncio.wait({stopped, frozen})
        if not member.ending.done():
            member.end(End.FROZEN if member.engine.alive else End.STOPPED)
        return member.ending.result()

    def _spawn(self, work: Coroutine[Any, Any, None], *, name: str = "") -> None:
        task = asyncio.create_task(work, name=name or None)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_LIFE: Final = "engine process"
