"""End tasks for sure, also while being cancelled oneself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel `tasks` and return when all have ended, whatever they raise.

    A cancellation that arrives meanwhile is raised after that: descriptors must not be closed
    while somebody still waits for them.
    """
    waiting = set(tasks)
    for task in waiting:
        task.cancel()
    cancelled: asyncio.CancelledError | None = None
    while running := {task for task in waiting if not task.done()}:
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in waiting:
        if not task.cancelled():
            task.exception()  # or the loop would say that nobody asked
    if cancelled is not None:
        raise cancelled


async def first_to_end(*work: Coroutine[Any, Any, None]) -> None:
    """Run all of `work` until one ends or fails; the others are cancelled, and have ended."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end(tasks)
