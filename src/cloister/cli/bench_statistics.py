"""What is said about a list of numbers: median, spread, and how far the median may be off."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

RESAMPLES = 2000
# Fixed, so that the same measurements always give the same table.
SEED = 9334


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One quantity over all rounds. `ci_low`..`ci_high`: 95 % bootstrap interval of `median`."""

    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float
    ci_low: float
    ci_high: float
    count: int

    def encode(self) -> dict[str, float]:
        """Return the fields as JSON."""
        return asdict(self)

    @classmethod
    def parse(cls, encoded: Mapping[str, float]) -> Summary:
        """Inverse of `encode`."""
        return cls(**{**encoded, "count": int(encoded["count"])})  # type: ignore[arg-type]


def quantile(ordered: Sequence[float], q: float) -> float:
    """Return the `q` quantile (0..1) of sorted, non-empty numbers, interpolated linearly."""
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def median(values: Sequence[float]) -> float:
    """Return the median of non-empty numbers."""
    return quantile(sorted(values), 0.5)


def bootstrap_median(values: Sequence[float], *, seed: int = SEED) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the median of non-empty numbers."""
    rng = random.Random(seed)  # noqa: S311 - resampling, always the same
    count = len(values)
    medians = sorted(median(rng.choices(values, k=count)) for _ in range(RESAMPLES))
    return quantile(medians, 0.025), quantile(medians, 0.975)


def summarise(values: Sequence[float]) -> Summary:
    """Summarise the numbers of all rounds. ValueError when there are none."""
    if not values:
        raise ValueError("nothing was measured")
    ordered = sorted(values)
    low, high = bootstrap_median(values)
    return Summary(
        median=quantile(ordered, 0.5),
        q1=quantile(ordered, 0.25),
        q3=quantile(ordered, 0.75),
        minimum=ordered[0],
        maximum=ordered[-1],
        ci_low=low,
        ci_high=high,
        count=len(ordered),
    )
