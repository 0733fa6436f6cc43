"""How much memory the embedded engine may fill: a bound on a balloon, not an estimate.

Made of what is known before it starts, with room to spare: refusing an honest engine memory
would end it in the middle of an answer, and a hostile one gains little by a factor of two. The
kernel enforces it (RLIMIT_DATA, RLIMIT_AS). Where the machine has less, the machine's size counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_GIB: Final = 1 << 30
_BASE: Final = 2 * _GIB  # library, vocabulary, scratch space of one batch
_PER_THREAD: Final = 9 << 20  # 8 MiB of stack, and its heap
_ARENA: Final = 128 << 20  # addresses that the C library's heap reserves per thread
_SMALL: Final = 1_000  # a file has more bytes than this for each byte of cache per token


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What decides. `files` and `cache` (of one token) in bytes, 0 for a cache not known."""

    files: int
    cache: int
    tokens: int
    threads: int


def memory_for(sizes: Sizes, *, physical: int) -> int:
    """Bytes of private memory, on a machine with `physical` bytes.

    Twice the files, because llama.cpp keeps some types of tensors a second time in another
    order; twice the cache, because a draft model has one of its own.
    """
    cache = (sizes.cache or sizes.files // _SMALL) * sizes.tokens
    wanted = _BASE + 2 * sizes.files + 2 * cache
    # The kernel counts a stack whole from the start, though hardly any of it is ever used: with
    # these in it, a small machine's size would leave no room for the rest.
    return min(wanted, physical * 9 // 10) + _PER_THREAD * sizes.threads


def addresses_for(sizes: Sizes, memory: int) -> int:
    """Bytes of address space: that memory, the mapped files, and what is only reserved."""
    return memory + sizes.files + _ARENA * sizes.threads + 4 * _GIB


def threads_for(*, connections: int, computing: int) -> int:
    """Threads: one for each connection, two pools that compute, and those of the library."""
    return connections + 4 * computing + 64
