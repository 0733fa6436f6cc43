"""Whether the files inside a sandbox are those that the worker had opened and measured.

Bubblewrap takes paths. Also of ``/proc/self/fd/N`` it reads the link's target first, and binds
what lies at that path a moment later; whoever can write to the directory can exchange the file in
between. So the sandbox's first program compares what it sees with the descriptors themselves,
which come along until it closes them.

Standard library only: it is used on both sides.
"""

from __future__ import annotations

import os
from collections.abc import Iterable


class ExchangedError(Exception):
    """A file inside is another than the one that was opened."""


def encode(files: Iterable[tuple[str, int]]) -> str:
    """Paths inside, with the descriptors they show, as one argument."""
    return "\n".join(f"{descriptor}={path}" for path, descriptor in files)


def check(text: str) -> None:
    """Compare them all, as `encode` named them.

    Raises:
        ExchangedError: a file is another one, or cannot be looked at.
        ValueError: `text` does not decode.
    """
    for line in text.splitlines():
        descriptor, _, path = line.partition("=")
        number = int(descriptor)
        try:
            # An open file keeps its inode, whose number no other file can have meanwhile.
            same = os.path.samestat(os.fstat(number), os.stat(path))  # noqa: PTH116 - no pathlib
        except OSError:
            same = False
        if not same:
            raise ExchangedError
