"""Pictures of ``cloister bench serve`` and ``compare``: quantities over streams. matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.cli.bench_tables import check_png


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a panel; `low` and `high` are what its bars reach to, if it has any."""

    name: str
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    def bars(self) -> list[list[float]] | None:
        """How far the bars reach below and above each value."""
        if not self.low:
            return None
        below = [value - low for value, low in zip(self.values, self.low, strict=True)]
        above = [high - value for value, high in zip(self.values, self.high, strict=True)]
        return [below, above]


def plot_lines(path: Path, streams: Sequence[int], panels: Mapping[str, Sequence[Line]]) -> None:
    """Draw one panel for each title, over the numbers of streams, as PNG."""
    check_png()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(panels), 3.4), layout="constrained")
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (title, lines) in zip(places, panels.items(), strict=True):
        for line in lines:
            place.errorbar(
                streams, line.values, yerr=line.bars(), marker="o", capsize=3, label=line.name
            )
        place.set_title(title)
        place.set_xlabel("streams")
        place.set_xticks(list(streams))
        place.set_ylim(bottom=0)
        place.legend(fontsize="small")
    figure.savefig(path, format="png", dpi=150)
