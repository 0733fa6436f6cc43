"""What ``cloister bench compare`` does: runs arms by turns, and compares them within each turn.

A machine drifts, so two numbers taken minutes apart say little about each other. The arms run
A B, B A, A B, …; what is compared is always of one pair, and told is the median over the pairs with
the 95 % bootstrap interval of that median.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloister.cli.bench_arms import Arm, Running, Serving, open_arm
from cloister.cli.bench_statistics import Summary, median, summarise
from cloister.cli.bench_tables import machine, table_csv, table_markdown

if TYPE_CHECKING:
    from cloister.cli.bench_serve import ServerCpu
    from cloister.client.load import Level, Load, Markers

PROMPT: Final = "Repeat after me: {marker}. Then tell me a long story."
QUANTITIES: Final = (
    "tokens_per_s", "decode_tokens_per_s", "ttft_ms", "inter_token_p50_ms", "inter_token_p95_ms",
    "inter_token_p99_ms", "server_cpu_us_per_token", "client_cpu_us_per_token",
)  # fmt: skip
RATIOS: Final = ("tokens_per_s", "decode_tokens_per_s", "server_cpu_us_per_token")
HEADER: Final = (
    "arm", "streams", "tokens/s", "decode tokens/s", "TTFT", "inter-token p50", "p95", "p99",
    "server CPU/token", "client CPU/token", "tokens/s, ratio", "decode, ratio",
    "server CPU, ratio",
)  # fmt: skip

Sample = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The options of the command. `pairs` is how often each arm runs on each level."""

    arms: tuple[Arm, ...]
    serving: Serving
    levels: tuple[int, ...]
    pairs: int
    requests: int
    max_tokens: int
    prompt: str = PROMPT
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What came of one number of streams: for each arm, one sample per pair."""

    streams: int
    samples: Mapping[str, tuple[Sample, ...]]
    failures: tuple[str, ...] = ()
    """Kinds of failures, and mixed-up answers; nothing of what a server said."""

    def summary(self, arm: str, quantity: str) -> Summary:
        """One quantity of one arm over all pairs."""
        return summarise([sample[quantity] for sample in self.samples[arm]])

    def ratio(self, arm: str, to: str, quantity: str) -> Summary | None:
        """`arm` over `to`, within each pair; None if `to` once took too little to be counted.

        The kernel counts a process's time in hundredths of a second.
        """
        pairs = zip(self.samples[arm], self.samples[to], strict=True)
        values = [(one[quantity], other[quantity]) for one, other in pairs]
        if any(other == 0 for _, other in values):
            return None
        return summarise([one / other for one, other in values])


Progress = Callable[[int, int], None]
Opener = Callable[[Arm, Serving, Path], contextlib.AbstractAsyncContextManager[Running]]


async def compare(
    comparison: Comparison,
    progress: Progress = lambda _done, _of: None,
    *,
    opened: Opener = open_arm,
) -> list[Compared]:
    """Start every arm, run them by turns, and end them."""
    from cloister.cli.bench_serve import ServerCpu
    from cloister.client.load import Load, Markers, first_model

    with tempfile.TemporaryDirectory(prefix="cloister-bench-") as state:
        async with contextlib.AsyncExitStack() as stack:
            running = [
                await stack.enter_async_context(opened(arm, comparison.serving, Path(state)))
                for arm in comparison.arms
            ]
            load = Load(
                model=await first_model(running[0].client, None),
                requests=comparison.requests,
                max_tokens=comparison.max_tokens,
                prompt=comparison.prompt,
                extra={"ignore_eos": True, **comparison.extra},
            )
            meters = {one.arm.name: ServerCpu(one.pid) for one in running}
            turns = _Turns(comparison, load, running, meters, Markers(secrets.randbelow), progress)
            await turns.warm_up()
            return [await turns.level(streams) for streams in comparison.levels]


class _Turns:
    def __init__(  # noqa: PLR0917 - one caller, above
        self,
        comparison: Comparison,
        load: Load,
        running: Sequence[Running],
        meters: Mapping[str, ServerCpu],
        markers: Markers,
        progress: Progress,
    ) -> None:
        self._comparison = comparison
        self._load = load
        self._running = running
        self._meters = meters
        self._markers = markers
        self._progress = progress
        self._done = 0

    async def warm_up(self) -> None:
        """One request to each arm, which is not counted."""
        from cloister.client.load import Load, run_level

        once = Load(model=self._load.model, requests=1, max_tokens=16, extra=self._load.extra)
        for one in self._running:
            await run_level(one.client, once, 1, markers=self._markers)

    async def level(self, streams: int) -> Compared:
        """All pairs with so many streams."""
        samples: dict[str, list[Sample]] = {one.arm.name: [] for one in self._running}
        failures: list[str] = []
        for pair in range(self._comparison.pairs):
            order = self._running if pair % 2 == 0 else list(reversed(self._running))
            for one in order:
                level = await self._run(one, streams)
                bad = sorted({answer.failure for answer in level.answers if answer.failure})
                bad += ["another request's marker"] * bool(level.foreign)
                failures += [f"{one.arm.name}: {what}" for what in bad]
                samples[one.arm.name].append(sample_of(level))
                self._done += 1
                total = len(self._comparison.levels) * self._comparison.pairs * len(self._running)
                self._progress(self._done, total)
        return Compared(
            streams=streams,
            samples={name: tuple(many) for name, many in samples.items()},
            failures=tuple(sorted(set(failures))),
        )

    async def _run(self, one: Running, streams: int) -> Level:
        from cloister.client.load import run_level

        meter = self._meters[one.arm.name]
        return await run_level(
            one.client, self._load, streams, markers=self._markers, server_cpu=meter.seconds
        )


def sample_of(level: Level) -> Sample:
    """The numbers of one run; not a number where there are none."""
    from cloister.client.load import percentile

    def ms(values: Sequence[float], share: float) -> float:
        found = percentile(values, share)
        return float("nan") if found is None else 1e3 * found

    # Decoding alone, as one stream sees it: tokens after the first, over the time they took.
    rates = [
        ((answer.tokens or answer.pieces) - 1) / (answer.last - answer.first)
        for answer in level.whole
        if answer.first is not None and answer.last > answer.first
    ]
    tokens = level.tokens or float("nan")
    server = float("nan") if level.server_cpu is None else level.server_cpu
    return {
        "tokens_per_s": level.tokens / level.wall,
        "decode_tokens_per_s": median(rates) if rates else float("nan"),
        "ttft_ms": ms(level.first_times, 0.5),
        "inter_token_p50_ms": ms(level.gaps, 0.5),
        "inter_token_p95_ms": ms(level.gaps, 0.95),
        "inter_token_p99_ms": ms(level.gaps, 0.99),
        "server_cpu_us_per_token": 1e6 * server / tokens,
        "client_cpu_us_per_token": 1e6 * level.client_cpu / tokens,
    }


def judge(found: Sequence[Compared]) -> int:
    """The exit code: 1 for a failed answer or a foreign marker."""
    return 1 if any(one.failures for one in found) else 0


def cells(found: Sequence[Compared]) -> list[list[str]]:
    """The cells of the table for people; ratios are to the first arm."""
    lines = []
    for one in found:
        first = next(iter(one.samples))
        for arm in one.samples:
            values = {name: one.summary(arm, name).median for name in QUANTITIES}
            lines.append(
                [
                    arm,
                    str(one.streams),
                    f"{values['tokens_per_s']:,.4g}",
                    f"{values['decode_tokens_per_s']:,.4g}",
                    *(f"{values[name]:,.3g} ms" for name in QUANTITIES[2:6]),
                    *(f"{values[name]:,.0f} µs" for name in QUANTITIES[6:]),
                    *(_ratio(one, arm, first, name) for name in RATIOS),
                ]
            )
    return lines


def _ratio(one: Compared, arm: str, first: str, quantity: str) -> str:
    if arm == first:
        return "1"
    found = one.ratio(arm, first, quantity)
    if found is None:
        return "not measurable"
    return f"{found.median:.4f} ({found.ci_low:.4f}–{found.ci_high:.4f})"


def description(found: Sequence[Compared], comparison: Comparison) -> str:
    """What was done, in words."""
    serving = comparison.serving
    failed = sorted({failure for one in found for failure in one.failures})
    return (
        f"{serving.model.name} ({serving.model.quantisation or 'unknown type'}), "
        f"{serving.threads} thread(s), {serving.parallel} requests at a time; "
        f"{comparison.pairs} turns of each arm, every other one in reverse, each "
        f"{comparison.requests} request(s) of {comparison.max_tokens} tokens on each stream. "
        "Medians over the turns; ratios are to the first arm, taken within each turn, with the "
        "95 % bootstrap interval of their median. TTFT and CPU of the client include sealing; CPU "
        "of the server is that of engine, worker and TPM. Decode: tokens after the first, as one "
        f"stream sees them. Server and load shared {machine()}."
        + (f" Failures: {'; '.join(failed)}." if failed else "")
    )


def markdown(found: Sequence[Compared], comparison: Comparison) -> str:
    """The table with what was done and where."""
    return f"{description(found, comparison)}\n\n{table_markdown(HEADER, cells(found))}"


def csv(found: Sequence[Compared]) -> str:
    """Every sample, for programs: one line for each arm, level and pair."""
    header = ("streams", "arm", "pair", *QUANTITIES)
    lines = [
        [one.streams, arm, index, *(sample[name] for name in QUANTITIES)]
        for one in found
        for arm, samples in one.samples.items()
        for index, sample in enumerate(samples)
    ]
    return table_csv(header, lines)


def png(found: Sequence[Compared], path: Path) -> None:
    """Throughput, decoding, first token and gaps over streams, a line for each arm, as PNG."""
    from cloister.cli.bench_plot import Line, plot_lines

    panels = (
        ("tokens/s", "tokens_per_s"),
        ("decode tokens/s", "decode_tokens_per_s"),
        ("time to first token, ms", "ttft_ms"),
        ("inter-token p99, ms", "inter_token_p99_ms"),
    )
    arms = list(found[0].samples)
    plot_lines(
        path,
        [one.streams for one in found],
        {
            title: [
                Line(
                    name=arm,
                    values=[one.summary(arm, name).median for one in found],
                    low=[one.summary(arm, name).q1 for one in found],
                    high=[one.summary(arm, name).q3 for one in found],
                )
                for arm in arms
            ]
            for title, name in panels
        },
    )
