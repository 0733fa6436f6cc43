"""Cloister: sealed inference that the person asking can check first.

What is needed most is here, loaded when it is first used::

    import cloister

    client = cloister.OpenAI(base_url="https://worker.example/v1", kit="kit/")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloister.client import (
        SEALED_URL,
        AsyncHttpx2Transport,
        AsyncOpenAI,
        ClientSettings,
        Httpx2Transport,
        OpenAI,
        Receipts,
        SealedExchange,
        Trust,
        aconnect,
        completion,
        connect,
        connection_of,
        last_receipt,
        make_trust,
    )
    from cloister.errors import CloisterError

__all__ = [
    "SEALED_URL",
    "AsyncHttpx2Transport",
    "AsyncOpenAI",
    "ClientSettings",
    "CloisterError",
    "Httpx2Transport",
    "OpenAI",
    "Receipts",
    "SealedExchange",
    "Trust",
    "aconnect",
    "completion",
    "connect",
    "connection_of",
    "last_receipt",
    "make_trust",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "cloister.errors" if name == "CloisterError" else "cloister.client"
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
