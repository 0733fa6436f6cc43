"""A small file that several processes read and replace: whole, lasting, one writer at a time."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

WAIT_S: Final = 20.0
"""Writers hold the lock for milliseconds; one that is stopped in between must not stop others for
ever."""
_POLL_S: Final = 0.02


@contextlib.contextmanager
def held(path: Path, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Hold `path` against other processes and threads, by a lock file beside it.

    Raises:
        OSError: the folder cannot be written to.
        TimeoutError: somebody else holds it for `WAIT_S` seconds.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + WAIT_S
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"another process holds {path}")
            sleep(_POLL_S)
        yield
    finally:
        os.close(file)  # which also lets go of the lock


def read(path: Path, limit: int) -> bytes | None:
    """The file's bytes, ``None`` where there is none; one more than `limit` of a longer file.

    Raises OSError if it is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except FileNotFoundError:
        return None


def replace(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put `data` in the place of `path`, all at once and lasting. Raises OSError."""
    file, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _try_lock(file: int) -> bool:
    """Take the lock if it is free. It is the open file's own, so threads exclude each other."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
