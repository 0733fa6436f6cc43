"""What is said about a list of numbers: the same as `cloister bench` says."""

from cloister.cli.bench_statistics import (
    RESAMPLES,
    SEED,
    Summary,
    bootstrap_median,
    median,
    quantile,
    summarise,
)

__all__ = [
    "RESAMPLES",
    "SEED",
    "Summary",
    "bootstrap_median",
    "median",
    "quantile",
    "summarise",
]
