"""Structured logs: one JSON line per event, made of names and numbers only.

Nothing that came from a request, an engine or an exception's text is ever written: the only
strings are event names, names of types, and values that this code spells out. The `logging`
module and the interpreter's hooks for uncaught exceptions are reduced to the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

Value = str | int | float | bool | None


class EventLog:
    """Writes events to `stream`; `values` must be constants of this code, or numbers."""

    __slots__ = ("_clock", "_stream")

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock

    def event(self, name: str, **values: Value) -> None:
        """Write one line. A stream that cannot be written to must not stop the worker."""
        line = json.dumps({"at": round(self._clock(), 3), "event": name, **values})
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return

    def failure(self, name: str, error: BaseException) -> None:
        """Write an event with the name of the error's type; its text stays out."""
        self.event(name, error=type(error).__name__)


class _TypeOnlyHandler(logging.Handler):
    """Writes a log record's logger, level and exception type, and drops its text."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        self._log.event(
            "library.log",
            logger=record.name,
            level=record.levelname,
            error=None if kind is None else kind.__name__,
        )


def silence_process(log: EventLog) -> None:
    """Route `logging` and uncaught exceptions of this process into `log`, without their text."""
    logging.root.handlers[:] = [_TypeOnlyHandler(log)]
    logging.captureWarnings(capture=True)
    for name in list(logging.root.manager.loggerDict):
        other = logging.getLogger(name)
        other.handlers[:] = []
        other.propagate = True

    def uncaught(
        kind: type[BaseException], error: BaseException, _trace: TracebackType | None
    ) -> None:
        log.event("uncaught", error=kind.__name__)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        log.event("uncaught.thread", error=args.exc_type.__name__)

    def unraisable(args: Any) -> None:
        log.event("uncaught.unraisable", error=args.exc_type.__name__)

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def silence_loop(loop: asyncio.AbstractEventLoop, log: EventLog) -> None:
    """Reduce the event loop's own report of a failed task to the name of the error's type."""

    def handler(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        log.event("uncaught.task", error=type(error).__name__ if error is not None else None)

    loop.set_exception_handler(handler)
