"""The hash of a request, which nobody needs before the receipt is signed.

Large requests are hashed in a thread (`hashlib` lets go of the interpreter's lock), while the
engine is already at work on them: SHA-256 of 16 MiB takes about 10 ms.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final

IN_A_THREAD_FROM: Final = 256 * 1024
"""Below this, going to a thread costs more than the hash."""


class RequestHash:
    """SHA-256 over the concatenation of `pieces`."""

    __slots__ = ("_digest", "_later")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._digest: bytes | None = None
        self._later: asyncio.Future[bytes] | None = None
        if sum(map(len, pieces)) < IN_A_THREAD_FROM:
            self._digest = _sha256(pieces)
        else:
            self._later = asyncio.get_running_loop().run_in_executor(None, _sha256, pieces)

    async def digest(self) -> bytes:
        """The 32 bytes, as soon as they are there."""
        if self._digest is None:
            if self._later is None:
                raise RuntimeError("a hash is being made or is there")
            self._digest = await self._later
        return self._digest


def _sha256(pieces: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
