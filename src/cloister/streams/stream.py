"""What every carrier offers: streams of bytes, and somebody who dials or accepts them.

A stream has two directions, each of which ends by itself. All methods raise OSError (mostly
ConnectionError or TimeoutError) when the carrier fails; nothing else.
"""

from __future__ import annotations

from typing import Protocol

CHUNK_BYTES = 64 * 1024
"""What is read at a time, and so what a direction holds while its receiver takes nothing."""


class Stream(Protocol):
    """One connection."""

    async def receive(self) -> bytes:
        """Some bytes, at most `CHUNK_BYTES`; none at the end of the peer's direction."""

    async def send(self, data: bytes) -> None:
        """Send all of `data`; returns when the carrier has taken it, however slowly."""

    async def send_end(self) -> None:
        """End this direction; the peer's goes on."""

    def close(self) -> None:
        """End both directions, at once if either has not ended. Any number of times."""


class Dialler(Protocol):
    """Reaches one address."""

    async def dial(self) -> Stream:
        """A new stream, within the dialler's time limit."""

    async def aclose(self) -> None:
        """Give up whatever is kept between streams; those that are open end."""


class Listener(Protocol):
    """Is reached at one address."""

    async def accept(self) -> Stream:
        """The next stream."""

    async def aclose(self) -> None:
        """Accept no more; streams already accepted go on where the carrier allows it."""
