"""How well a model foretells a text, and how sure that number is.

The way of llama.cpp's ``llama-perplexity``: the text is cut into windows of as many tokens as the
context has (512 by default), the rest at the end is left out; every window begins with nothing
remembered (and with the model's beginning-of-text token in the place of its first one, where the
model wants one); only tokens of the second half are scored, so that each has at least half a
window before it. Perplexity is exp of the mean surprise (in nats) of the scored tokens; its
standard error is that of the mean, times the perplexity.

Perplexities compare only over the same text and the same tokens. It is a property of both the
model and the text: on text unlike what will be asked it says little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.engine.llama_api import LlamaModel

WINDOW: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """`value` ± `error` (standard error) over `tokens` scored tokens."""

    value: float
    error: float
    tokens: int


def windows_of(tokens: Sequence[int], size: int, limit: int | None = None) -> list[list[int]]:
    """Cut `tokens` into whole windows, at most `limit`; ConfigurationError if there is not one."""
    if size < 4:
        raise ConfigurationError("a window has four tokens at least", code="perplexity.window")
    count = len(tokens) // size
    if count == 0:
        raise ConfigurationError(
            f"the text has {len(tokens)} tokens, too few for one window of {size}: give a longer "
            "one, or smaller windows",
            code="perplexity.text",
        )
    count = count if limit is None else min(count, limit)
    return [list(tokens[at * size : (at + 1) * size]) for at in range(count)]


def scored(size: int) -> int:
    """How many tokens of a window are scored: those after its middle one."""
    return size - size // 2 - 1


def surprises(
    model: LlamaModel,
    windows: Sequence[Sequence[int]],
    progress: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """The surprise in nats of every scored token, in the order of the text.

    `progress` is called with the number of windows done. EngineError if the model fails.
    """
    found: list[float] = []
    for done, window in enumerate(windows, 1):
        half = len(window) // 2
        fed = list(window)
        if model.beginning is not None:
            fed[0] = model.beginning
        model.forget()
        model.feed(fed, 0, scored_from=half)
        found += _surprises(model.logits(len(window) - half)[:-1], window[half + 1 :])
        progress(done)
    return found


def _surprises(logits: object, tokens: Sequence[int]) -> list[float]:
    """-ln softmax(row)[token] for each row, in double precision."""
    import numpy as np

    rows = np.asarray(logits, dtype=np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    totals = np.log(np.exp(rows).sum(axis=1))
    said: list[float] = (totals - rows[np.arange(len(tokens)), list(tokens)]).tolist()
    return said


def summarise(found: Sequence[float]) -> Perplexity:
    """Perplexity and its standard error. ValueError for fewer than two tokens."""
    mean, error = _mean(found)
    return Perplexity(value=math.exp(mean), error=error * math.exp(mean), tokens=len(found))


def ratio(found: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Perplexity over that of `base`, and the standard error of the quotient.

    Both are of the same tokens, so differences are taken token by token: what the text has of
    hard and easy places cancels, and the error is far smaller than those of the two.
    """
    mean, error = _mean([a - b for a, b in zip(found, base, strict=True)])
    return math.exp(mean), error * math.exp(mean)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    count = len(values)
    if count < 2:
        raise ValueError("an error needs two values at least")
    mean = math.fsum(values) / count
    spread = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(spread / count)
