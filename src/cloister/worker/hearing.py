"""For how long an engine has said nothing of what it owes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


class Hearing:
    """Told when an engine begins to owe something, and when it is heard; `now` in seconds.

    Answers that come piece by piece and those that come whole are told apart: of the latter
    nothing is heard until they are there, which is no sign of anything.
    """

    __slots__ = ("_heard_at", "_now", "_owed", "_since")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._heard_at = 0.0
        self._owed = {False: 0, True: 0}
        self._since = {False: 0.0, True: 0.0}
        """Since when it has owed at least one of a kind."""

    def silent_for(self, *, whole: bool) -> float:
        """Seconds since it was heard while it owed answers that come (not) `whole`; else 0."""
        if not self._owed[whole]:
            return 0.0
        return self._now() - max(self._heard_at, self._since[whole])

    @contextlib.contextmanager
    def listening(self, *, whole: bool) -> Iterator[None]:
        """While this lasts, the engine owes something: a head, or a piece of an answer.

        What waits because a client does not read is not the engine's silence.
        """
        if not self._owed[whole]:
            self._since[whole] = self._now()
        self._owed[whole] += 1
        try:
            yield
            self._heard_at = self._now()
        finally:
            self._owed[whole] -= 1
