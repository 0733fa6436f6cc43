"""Tables of measurements: Markdown, CSV and, where matplotlib is installed, a picture."""

from __future__ import annotations

import csv
import io
import math
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.engine.measure_model import MeasureOptions, Row

_MB = 1e6
COLUMNS = (
    "model", "type", "file_bytes", "resident_bytes", "ms_per_token", "ms_per_token_min",
    "ms_per_token_max", "rounds", "perplexity", "perplexity_se", "ratio_to_unquantised",
    "ratio_se", "scored_tokens",
)  # fmt: skip


def machine() -> str:
    """What a reader needs to judge times by: processor, memory, versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {_version(name)}" for name in ("cloister", "xllamacpp"))
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}; "
        f"{versions}; "
        f"load average {os.getloadavg()[0]:.1f}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def table_markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    # A file's name may hold what ends a cell.
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n"
        for line in (header, rule, *lines)
    )


def table_csv(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A CSV table (RFC 4180) with a header line."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(header)
    writer.writerows(lines)
    return out.getvalue()


def quantization_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The cells of the table for people."""
    return [_cells(row) for row in rows]


QUANTIZATION_HEADER = (
    "model", "type", "file", "resident", "ms/token", "perplexity", "ratio to unquantised",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    model = row.model
    perplexity = model.perplexity
    low, high = (f"{1e3 * value:.3g}" for value in (min(model.times), max(model.times)))
    quotient = "–" if row.ratio is None else with_error(*row.ratio)
    return [
        model.name,
        model.quantisation or "?",
        f"{model.file_bytes / _MB:,.1f} MB",
        f"{model.resident / _MB:,.1f} MB" if model.resident else "–",
        f"{1e3 * model.seconds_per_token:.3g} ({low}–{high})",
        with_error(perplexity.value, perplexity.error),
        quotient,
    ]


def with_error(value: float, error: float) -> str:
    """`value ± error`, to the second digit of the error."""
    if error <= 0:
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f} ± {error:.{digits}f}"


def quantization_markdown(rows: Sequence[Row], options: MeasureOptions) -> str:
    """The table with what was done and where."""
    return (
        f"{description(rows, options)}\n\n"
        f"{table_markdown(QUANTIZATION_HEADER, quantization_cells(rows))}"
    )


def description(rows: Sequence[Row], options: MeasureOptions) -> str:
    """What was done, in words."""
    first = rows[0].model
    return (
        f"Measured on {machine()}. Decoding: batch 1, {options.threads} thread(s), median of "
        f"{options.rounds} rounds of {options.steps} tokens after {options.window // 2} tokens of "
        "text, sampling not counted (least–most in parentheses). Resident: the whole measuring "
        f"process, {first.resident_before / _MB:.1f} MB of which were there before the model. "
        f"Perplexity: windows of {options.window} tokens, second halves scored, "
        f"{first.perplexity.tokens} tokens scored of {first.text_tokens}; ± is the standard error."
    )


def quantization_csv(rows: Sequence[Row]) -> str:
    """The table for programs: bytes, milliseconds, full precision."""
    lines = []
    for row in rows:
        model = row.model
        quotient: tuple[object, object] = ("", "") if row.ratio is None else row.ratio
        lines.append(
            [
                model.name, model.quantisation, model.file_bytes, model.resident,
                1e3 * model.seconds_per_token, 1e3 * min(model.times), 1e3 * max(model.times),
                len(model.times), model.perplexity.value, model.perplexity.error, *quotient,
                model.perplexity.tokens,
            ]
        )  # fmt: skip
    return table_csv(COLUMNS, lines)


def check_png() -> None:
    """ConfigurationError unless pictures can be drawn; before anything is measured."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "--png needs matplotlib: pip install matplotlib (--markdown and --csv need nothing)",
            code="bench.no_matplotlib",
        ) from None


def quantization_png(rows: Sequence[Row], path: Path) -> None:
    """Bars of size, time and perplexity for each model, as PNG."""
    check_png()
    from matplotlib.figure import Figure

    names = [row.model.quantisation or row.model.name for row in rows]
    panels: list[tuple[str, list[float], list[float]]] = [
        ("file, MB", [row.model.file_bytes / _MB for row in rows], []),
        ("resident, MB", [row.model.resident / _MB for row in rows], []),
        ("ms per token", [1e3 * row.model.seconds_per_token for row in rows], []),
        (
            "perplexity",
            [row.model.perplexity.value for row in rows],
            [row.model.perplexity.error for row in rows],
        ),
    ]
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for place, (title, values, errors) in zip(figure.subplots(1, 4), panels, strict=True):
        place.bar(names, values, yerr=errors or None, capsize=3)
        place.set_title(title)
        place.tick_params(axis="x", rotation=45)
    figure.savefig(path, format="png", dpi=150)
