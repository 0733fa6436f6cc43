"""One soak: warm up, count what is held, let people come and go, count again, judge."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.client.trust import Trust, make_trust, read_reference_values, read_roots
from cloister.verifier import policy as policies
from cloister.verifier.policy import AppraisalPolicy
from soak import watch
from soak.people import BEHAVIOURS, WAITING, Crowd, Length, Script, Tally, behave
from soak.watch import MIB, Census, Sample, Trend
from support.program import Program

WARM_UP: Final = 0.4
"""Share of the time after which memory has to be flat: keys, receipts and allocators then hold
what they hold at most (with short hours, after a minute and a half)."""
_DRAIN_S: Final = 100.0
"""For the kernel to give up what nobody acknowledges, and for all to be tidied away."""
_IDLE_CPU: Final = 0.05
"""CPU seconds in one second of an engine that computes nothing for anybody."""
_WARM_READERS: Final = 40
"""At once: more than the idle connections to an upstream that a worker keeps at most (32)."""
_TRIES: Final = 5
_POOL: Final = 32
"""Threads that an executor may start on demand and keep; no more than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many people, for how long, and by how much memory may grow in that time."""

    seconds: float
    streams: int
    parallel: int
    """Requests that the engine computes at a time."""
    growth: float
    """Bytes; the trend of worker and engine after warm-up may reach it."""
    own_share: float
    """Of whole answers, those that must hold their own marker: 1, or less where a model may err."""
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a soak saw."""

    plan: Plan
    tally: Tally
    before: Census
    after: Census
    samples: tuple[Sample, ...]
    counters: dict[str, float]
    """The operator's metrics at the end."""
    engine_idle: bool
    """Whether the engine stopped computing when everybody was gone."""
    slots: int
    """Streams that the engine computed at the same time at the end."""
    seconds: float

    def trend(self, which: str) -> Trend:
        """The trend of ``worker`` or ``engine`` while people came: later they only wait."""
        busy = [one for one in self.samples if one.at <= self.plan.seconds]
        points = [(one.at, float(getattr(one, which))) for one in busy]
        return watch.trend(points, warm_up=WARM_UP)


def trust_of(program: Program, policy: AppraisalPolicy | None = None) -> Trust:
    """What an informed client of `program` believes."""
    return make_trust(
        policy=policy or policies.development(),
        reference_values=read_reference_values(program.kit / "reference-values.json"),
        roots=read_roots(program.kit / "enrolment-ca.pem"),
    )


def run(
    program: Program,
    plan: Plan,
    script: Script,
    *,
    trust: Trust,
    keys: tuple[str, ...],
    engines: Callable[[], Sequence[int]],
) -> Outcome:
    """Let `plan.streams` people with these API keys use `program`.

    `engines` names the processes that compute.
    """
    return asyncio.run(_Soak(program, plan, script, trust=trust, keys=keys, engines=engines).run())


class _Soak:
    def __init__(
        self,
        program: Program,
        plan: Plan,
        script: Script,
        *,
        trust: Trust,
        keys: tuple[str, ...],
        engines: Callable[[], Sequence[int]],
    ) -> None:
        self._program = program
        self._plan = plan
        self._script = script
        self._trust = trust
        self._keys = keys
        self._engines = engines
        self._chosen = random.Random(plan.seed)
        self._worker = watch.worker_of(program.pids())
        self._samples: list[Sample] = []

    async def run(self) -> Outcome:
        async with self._crowd() as crowd:  # everything that is made at its first use is made
            lap = [one for one in BEHAVIOURS if one not in WAITING] * 3
            lap += [Crowd.reads] * _WARM_READERS
            await asyncio.gather(*(behave(crowd, one) for one in lap))
            warmed = crowd.tally
        before = await self._settled(None)
        began = time.monotonic()
        async with self._crowd() as crowd:
            for problem in warmed.problems:
                crowd.tally.problem(f"warming up: {problem}")
            crowd.tally.issued |= warmed.issued
            watching = asyncio.create_task(self._watch(began))
            people = (self._person(crowd, began, index) for index in range(self._plan.streams))
            await asyncio.gather(*people)
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        seconds = time.monotonic() - began
        idle = await self._engine_idle()
        async with self._crowd() as last:
            slots = await self._slots(last)
        after = await self._settled(before)
        return Outcome(
            plan=self._plan,
            tally=crowd.tally,
            before=before,
            after=after,
            samples=tuple(self._samples),
            counters=await asyncio.to_thread(self._program.metrics),
            engine_idle=idle,
            slots=slots,
            seconds=seconds,
        )

    def _crowd(self) -> Crowd:
        return Crowd(
            url=self._program.url,
            trust=self._trust,
            script=self._script,
            keys=self._keys,
            chosen=self._chosen,
        )

    async def _person(self, crowd: Crowd, began: float, index: int) -> None:
        kinds, weights = list(BEHAVIOURS), list(BEHAVIOURS.values())
        await behave(crowd, kinds[index % len(kinds)])  # so that everything happens
        while time.monotonic() < began + self._plan.seconds:
            await behave(crowd, self._chosen.choices(kinds, weights)[0])

    async def _watch(self, began: float) -> None:
        every = max(0.25, self._plan.seconds / 200)
        while True:
            self._samples.append(
                Sample(
                    at=time.monotonic() - began,
                    worker=watch.resident(self._worker),
                    engine=max((watch.resident(pid) for pid in self._engines()), default=0),
                )
            )
            await asyncio.sleep(every)

    async def _settled(self, wanted: Census | None) -> Census:
        """What is held when everybody is gone: as soon as it is no more than `wanted`, or late."""
        deadline = time.monotonic() + _DRAIN_S
        seen = [await self._census()]
        while time.monotonic() < deadline:
            await asyncio.sleep(2.5)  # the worker counts its tasks every second
            seen.append(await self._census())
            quiet = seen[-1] == seen[-2]
            if quiet and (wanted is None or not _more(wanted, seen[-1])):
                break
        return seen[-1]

    async def _census(self) -> Census:
        counters = await asyncio.to_thread(self._program.metrics)
        engines = self._engines()
        open_fds = [watch.descriptors(pid) for pid in engines]
        visible = [number for number in open_fds if number is not None]
        return Census(
            processes=len(self._program.pids()),
            # One is the connection that asks.
            worker_fds=int(counters["process_open_fds"]) - 1,
            worker_tasks=int(counters["cloister_tasks"]),
            worker_threads=watch.threads(self._worker),
            engines=len(engines),
            engine_threads=max((watch.threads(pid) for pid in engines), default=0),
            engine_fds=max(visible) if visible else None,
        )

    async def _engine_idle(self) -> bool:
        """Whether the engine comes to rest: a slot that is not freed goes on computing."""
        deadline = time.monotonic() + _DRAIN_S
        while time.monotonic() < deadline:
            before = {pid: watch.cpu_seconds(pid) for pid in self._engines()}
            await asyncio.sleep(1.0)
            spent = [watch.cpu_seconds(pid) - used for pid, used in before.items()]
            if spent and max(spent) <= _IDLE_CPU:
                return True
        return False

    async def _slots(self, crowd: Crowd) -> int:
        """How many long answers begin before the first of them ends: `parallel`, if all are free.

        Several tries, since a busy machine may hold up one of the requests.
        """
        most = 0
        for _ in range(_TRIES):
            most = max(most, await self._begun_together(crowd))
            if most == self._plan.parallel:
                break
        return most

    async def _begun_together(self, crowd: Crowd) -> int:
        begun = 0
        over = asyncio.Event()  # all have begun, or one has ended

        async def one(index: int) -> None:
            nonlocal begun
            marker = crowd.tally.draw(self._chosen)
            client = crowd.readers[index % len(crowd.readers)]
            async with crowd.ask(client, marker, Length.LONG) as response:
                first = True
                async for _ in response.aiter_bytes():
                    if first and not over.is_set():
                        begun += 1
                    first = False
                    if begun == self._plan.parallel:
                        over.set()
            over.set()

        tasks = [asyncio.create_task(one(index)) for index in range(self._plan.parallel)]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), _DRAIN_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return begun


def _more(before: Census, after: Census) -> list[str]:
    """What is held in greater number than before."""
    counted = ("processes", "worker_fds", "worker_tasks", "engines", "engine_threads")
    found = [name for name in counted if getattr(after, name) > getattr(before, name)]
    if after.worker_threads > before.worker_threads + _POOL:
        found.append("worker_threads")
    if (after.engine_fds or 0) > (before.engine_fds or 0):
        found.append("engine_fds")
    return found


def judge(outcome: Outcome) -> list[str]:
    """What must not be, in sentences; empty if all is as it should be."""
    plan, tally, counters = outcome.plan, outcome.tally, outcome.counters
    found = []
    if tally.problems:
        found.append(f"{tally.counts['problems']} problems: {'; '.join(tally.problems[:10])}")
    if tally.foreign:
        found.append(f"{tally.foreign} answers held somebody else's marker")
    if not tally.answers:
        found.append("nobody read an answer to its end")
    elif tally.own < plan.own_share * tally.answers:
        found.append(f"only {tally.own} of {tally.answers} answers held their own marker")
    for behaviour in BEHAVIOURS:
        name = getattr(behaviour, "__name__", "?")
        if not any(tally.counts[said] for said in _SAID[name]):
            found.append(f"nobody did this: {name}")
    for name in _more(outcome.before, outcome.after):
        was, now = getattr(outcome.before, name), getattr(outcome.after, name)
        found.append(f"{name} grew from {was} to {now}")
    left = [one for one in ("cloister_open_requests", "cloister_generations") if counters[one]]
    found += [f"{name} is {counters[name]:g} when nobody asks" for name in left]
    if not counters["cloister_cancelled_total"]:
        found.append("the worker noticed nobody who left")
    if not outcome.engine_idle:
        found.append("the engine goes on computing for nobody")
    if outcome.slots < plan.parallel:
        found.append(f"{outcome.slots} of {plan.parallel} slots are free at the end")
    for which in ("worker", "engine"):
        grown = outcome.trend(which).growth
        if grown > plan.growth:
            found.append(
                f"{which}: memory grows by {grown / MIB:.1f} MiB where"
                f" {plan.growth / MIB:.1f} MiB are allowed"
            )
    return found


_SAID: Final = {
    "reads": ("read whole",),
    "comes": ("came anew",),
    "leaves": ("left in the middle",),
    "stalls": ("stalled and was cut off",),
    "uploads_half": ("cut an upload",),
    "sends_rubbish": ("sent rubbish",),
    "says_nothing": ("said nothing",),
}


def figures(outcome: Outcome) -> str:
    """What may be quoted, as lines of Markdown."""
    tally, before, after = outcome.tally, outcome.before, outcome.after
    lines = [
        f"- {outcome.plan.streams} people at once, {outcome.seconds:.0f} s: {tally.answers:,} "
        f"answers read whole ({tally.pieces:,} pieces), {tally.own:,} with their own marker, "
        f"{tally.foreign} with somebody else's; {len(tally.issued):,} markers",
        "- " + ", ".join(f"{name} {count:,}" for name, count in sorted(tally.counts.items())),
        f"- worker: descriptors {before.worker_fds} → {after.worker_fds}, tasks "
        f"{before.worker_tasks} → {after.worker_tasks}, threads {before.worker_threads} → "
        f"{after.worker_threads}",
        f"- engine: processes {before.engines} → {after.engines}, threads "
        f"{before.engine_threads} → {after.engine_threads}, descriptors "
        f"{_shown(before.engine_fds)} → {_shown(after.engine_fds)}, free slots at the end "
        f"{outcome.slots} of {outcome.plan.parallel}, idle when nobody asks: "
        f"{'yes' if outcome.engine_idle else 'no'}",
    ]
    for which in ("worker", "engine"):
        found = outcome.trend(which)
        peak = max(getattr(one, which) for one in outcome.samples)
        lines.append(
            f"- memory of the {which}: median {found.level / MIB:.1f} MiB, most "
            f"{peak / MIB:.1f} MiB, trend {found.growth / MIB:+.2f} MiB in the last "
            f"{found.seconds:.0f} s ({found.per_hour / MIB:+.1f} MiB per hour)"
        )
    return "\n".join(lines) + "\n"


def _shown(number: int | None) -> str:
    return "not visible to this user" if number is None else str(number)
