"""Paths of other servers, put into the engine's words and their answers back (off by default).

What is translated here runs like any other generation: capacity, idempotency, cache domains,
padding, time limits and receipts are those of `cloister.worker.api`. Nothing in this folder does
input or output, or knows who asks.

A dialect is imported by workers that speak it: most speak none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from cloister.worker.settings import Dialect

if TYPE_CHECKING:
    from cloister.worker.compat.translation import Translation
    from cloister.worker.request import RequestFields


def dialect_of(path: str, enabled: Collection[Dialect]) -> Dialect | None:
    """The dialect, of those `enabled`, that has this path."""
    if Dialect.COSMIAN in enabled:
        from cloister.worker.compat import cosmian

        if path in cosmian.PATHS:
            return Dialect.COSMIAN
    if Dialect.TRITON in enabled:
        from cloister.worker.compat import triton

        if path.startswith(triton.PREFIX):
            return Dialect.TRITON
    return None


def translate(
    dialect: Dialect, fields: RequestFields, body: bytes, *, models: Sequence[str]
) -> Translation | None:
    """Translate one request; None where it only asks whether the worker is there.

    The first of `models` answers where the dialect names none.

    RefusedError says what is wrong with it, and never repeats any of it.
    """
    match dialect:
        case Dialect.COSMIAN:
            from cloister.worker.compat import cosmian

            return cosmian.translate(fields, body, model=models[0])
        case Dialect.TRITON:
            from cloister.worker.compat import triton

            return triton.translate(fields, body, models=models)
