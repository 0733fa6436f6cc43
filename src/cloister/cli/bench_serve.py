"""What ``cloister bench serve`` does: opens an endpoint, runs the levels, makes the tables."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from cloister.cli.bench_tables import machine, table_csv, table_markdown
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx2

    from cloister.client.attestation import Verifier
    from cloister.client.load import Level

Endpoint: TypeAlias = "AbstractAsyncContextManager[httpx2.AsyncClient]"
MAX_STREAMS: Final = 1000
_RESERVED: Final = {"model", "messages", "stream", "stream_options"}

HEADER: Final = (
    "streams", "answers", "failed", "tokens/s", "TTFT p50", "TTFT p95", "inter-token p50", "p95",
    "p99", "client CPU/token", "server CPU/token", "own marker", "foreign",
)  # fmt: skip
COLUMNS: Final = (
    "streams", "answers", "failed", "tokens", "wall_s", "tokens_per_s", "ttft_p50_ms",
    "ttft_p95_ms", "inter_token_p50_ms", "inter_token_p95_ms", "inter_token_p99_ms",
    "client_cpu_us_per_token", "server_cpu_us_per_token", "own_markers", "foreign_markers",
    "failures",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of the command."""

    levels: tuple[int, ...]
    requests: int
    max_tokens: int
    prompt: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    pid: int | None = None


def parse_levels(text: str) -> tuple[int, ...]:
    """Read ``1,8,32``; ConfigurationError for anything else."""
    try:
        levels = tuple(int(part) for part in text.split(","))
    except ValueError:
        levels = ()
    if not levels or not all(0 < level <= MAX_STREAMS for level in levels):
        raise ConfigurationError(
            f"streams are numbers up to {MAX_STREAMS}, with commas between", code="bench.streams"
        )
    return levels


def parse_body(text: str | None) -> Mapping[str, Any]:
    """Read further fields of requests; ConfigurationError for those that are set here."""
    try:
        extra = json.loads(text or "{}")
    except ValueError:
        extra = None
    if not isinstance(extra, dict) or _RESERVED & extra.keys():
        raise ConfigurationError(
            f"--body is a JSON object without {', '.join(sorted(_RESERVED))}", code="bench.body"
        )
    return extra


@contextlib.asynccontextmanager
async def sealed_endpoint(
    url: str, trust: Verifier, proxy: str | None
) -> AsyncIterator[httpx2.AsyncClient]:
    """A connection to a worker, verified before the first request."""
    from cloister.client.connect import aconnect

    async with await aconnect(url, verifier=trust, proxy=proxy) as connection:
        yield connection.http


@contextlib.asynccontextmanager
async def plain_endpoint(url: str, proxy: str | None) -> AsyncIterator[httpx2.AsyncClient]:
    """A plain HTTP client for any endpoint of that kind; nobody is verified."""
    import httpx2

    from cloister.client.address import WorkerAddress
    from cloister.client.connection import TIMEOUT

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
    root = WorkerAddress.parse(url).root
    async with httpx2.AsyncClient(
        base_url=root, timeout=TIMEOUT, limits=limits, proxy=proxy
    ) as client:
        yield client


async def run(endpoint: Endpoint, asked: Asked) -> list[Level]:
    """Run all levels; one request before them warms up and is not counted."""
    from cloister.client.load import PROMPT, Load, Markers, first_model, run_level

    async with endpoint as client:
        load = Load(
            model=asked.model or await first_model(client, asked.api_key),
            requests=asked.requests,
            max_tokens=asked.max_tokens,
            prompt=asked.prompt or PROMPT,
            extra=asked.extra,
            api_key=asked.api_key,
        )
        markers, meter = Markers(secrets.randbelow), ServerCpu(asked.pid)
        await run_level(
            client,
            Load(model=load.model, requests=1, extra=load.extra, api_key=load.api_key),
            1,
            markers=markers,
        )
        return [
            await run_level(client, load, streams, markers=markers, server_cpu=meter.seconds)
            for streams in asked.levels
        ]


class ServerCpu:
    """CPU seconds, user and system, of a process here and of all it ever started (Linux).

    In steps of the kernel's ticks, 10 ms as a rule.
    """

    def __init__(self, pid: int | None, proc: Path = Path("/proc")) -> None:
        self._pid = pid
        self._proc = proc
        if pid is not None and self.seconds() is None:
            raise ConfigurationError(f"there is no process {pid} to be seen", code="bench.pid")

    def seconds(self) -> float | None:
        """The sum now; None if no process was named, or it has ended."""
        if self._pid is None:
            return None
        ticks = {
            pid: found
            for pid in (int(entry.name) for entry in self._proc.iterdir() if entry.name.isdigit())
            if (found := self._stat(pid)) is not None
        }
        if self._pid not in ticks:
            return None
        family, total = [self._pid], 0
        for member in family:
            total += ticks[member][1]
            family += [pid for pid, (parent, _) in ticks.items() if parent == member]
        return total / os.sysconf("SC_CLK_TCK")

    def _stat(self, pid: int) -> tuple[int, int] | None:
        """Parent, and ticks of the process and of its children that have ended (proc(5))."""
        try:
            text = (self._proc / str(pid) / "stat").read_text("utf-8", errors="replace")
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        return int(fields[1]), sum(int(number) for number in fields[11:15])


def judge(levels: Sequence[Level]) -> int:
    """The exit code: 1 for a foreign marker or an answer that failed."""
    return (
        1 if any(level.foreign or len(level.whole) < len(level.answers) for level in levels) else 0
    )


def _numbers(level: Level) -> dict[str, float | int | str | None]:
    from cloister.client.load import percentile

    def ms(values: Sequence[float], share: float) -> float | None:
        found = percentile(values, share)
        return None if found is None else 1e3 * found

    def per_token(seconds: float | None) -> float | None:
        return None if seconds is None or not level.tokens else 1e6 * seconds / level.tokens

    first, gaps = level.first_times, level.gaps
    failures = sorted({answer.failure for answer in level.answers if answer.failure})
    return {
        "streams": level.streams,
        "answers": len(level.answers),
        "failed": len(level.answers) - len(level.whole),
        "tokens": level.tokens,
        "wall_s": level.wall,
        "tokens_per_s": level.tokens / level.wall,
        "ttft_p50_ms": ms(first, 0.5),
        "ttft_p95_ms": ms(first, 0.95),
        "inter_token_p50_ms": ms(gaps, 0.5),
        "inter_token_p95_ms": ms(gaps, 0.95),
        "inter_token_p99_ms": ms(gaps, 0.99),
        "client_cpu_us_per_token": per_token(level.client_cpu),
        "server_cpu_us_per_token": per_token(level.server_cpu),
        "own_markers": level.own,
        "foreign_markers": level.foreign,
        "failures": "; ".join(failures),
    }


def cells(levels: Sequence[Level]) -> list[list[str]]:
    """The cells of the table for people."""
    return [_cells(_numbers(level)) for level in levels]


def _cells(found: Mapping[str, float | int | str | None]) -> list[str]:
    def shown(name: str, unit: str) -> str:
        value = found[name]
        if not isinstance(value, int | float):
            return "–"
        return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"

    failed = f"{found['failed']} ({found['failures']})" if found["failures"] else "0"
    return [
        str(found["streams"]),
        str(found["answers"]),
        failed,
        f"{found['tokens_per_s']:,.1f}",
        shown("ttft_p50_ms", "ms"),
        shown("ttft_p95_ms", "ms"),
        shown("inter_token_p50_ms", "ms"),
        shown("inter_token_p95_ms", "ms"),
        shown("inter_token_p99_ms", "ms"),
        shown("client_cpu_us_per_token", "µs"),
        shown("server_cpu_us_per_token", "µs"),
        f"{found['own_markers']}/{found['answers']}",
        str(found["foreign_markers"]),
    ]


def markdown(levels: Sequence[Level], *, sealed: bool) -> str:
    """The table with how and where it was made."""
    kind = "sealed" if sealed else "plain"
    requests = len(levels[0].answers) // levels[0].streams
    return (
        f"{kind}, {requests} request(s) on each stream; the load came from {machine()}.\n\n"
        f"{table_markdown(HEADER, cells(levels))}"
    )


def csv(levels: Sequence[Level]) -> str:
    """The table for programs; empty where something was not measured."""
    lines = [_numbers(level) for level in levels]
    return table_csv(COLUMNS, [[line[name] for name in COLUMNS] for line in lines])


def png(levels: Sequence[Level], path: Path) -> None:
    """Throughput, first token and gaps over streams, as PNG."""
    from cloister.cli.bench_plot import Line, plot_lines

    lines = [_numbers(level) for level in levels]

    def line(name: str, title: str) -> Line:
        found = (one[name] for one in lines)
        return Line(
            name=title,
            values=[one if isinstance(one, int | float) else float("nan") for one in found],
        )

    first = [line(f"ttft_p{share}_ms", f"p{share}") for share in (50, 95)]
    gaps = [line(f"inter_token_p{share}_ms", f"p{share}") for share in (50, 95, 99)]
    plot_lines(
        path,
        [level.streams for level in levels],
        {
            "tokens/s": [line("tokens_per_s", "all streams")],
            "time to first token, ms": first,
            "between pieces, ms": gaps,
        },
    )
