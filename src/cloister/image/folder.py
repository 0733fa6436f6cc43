"""An image's folder while a build puts its files there: the old image until the new one is whole.

What is written goes into a folder inside, under a name of its own, and takes the place of what was
there only when all of it is written: by renaming, so that a machine that runs from a disk of the
old image keeps that disk. What a build may write and this one did not (reference values, a
signature) goes: it says something about an image that is not there any more. Who stops a build
among these last renames is left with a folder without its record, which is no image.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from cloister.image.tree import remove

UNFINISHED = ".cloister-new-"


@contextlib.contextmanager
def replacing(
    out: Path,
    known: Collection[str],
    *,
    record: str,
    waiting: Callable[[], None] = lambda: None,
    removed: Callable[[str], None] = lambda _: None,
) -> Iterator[Path]:
    """A folder to write in; what is there when it is left without an error is what `out` has.

    `known` are the names of files that a build may write; others in `out` stay. The file `record`,
    which names the others by their digests, goes first and comes last, so that a folder has it
    only with the files that it names. One at a time: `waiting` is called once where another build
    has to end first; `removed` with each name that goes. Raises OSError.
    """
    out.mkdir(parents=True, exist_ok=True)
    held = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _alone(held, waiting)
        for left in out.glob(f"{UNFINISHED}*"):
            remove(left)  # by a build that was killed: nobody else is in here
        new = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=out))
        try:
            yield new
            _replace(new, out, known, record, removed)
        finally:
            remove(new)
    finally:
        os.close(held)  # which also lets go of it


def _alone(held: int, waiting: Callable[[], None]) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(held, fcntl.LOCK_EX)
    except OSError:
        # NFS and others lock no folders. Two builds at once then take each other's unfinished
        # files, and at least one of them ends with an error.
        return


def _replace(
    new: Path, out: Path, known: Collection[str], record: str, removed: Callable[[str], None]
) -> None:
    written = {path.name for path in new.iterdir()}
    for path in (out / name for name in sorted(written.union(known))):
        if path.is_dir() and not path.is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    (out / record).unlink(missing_ok=True)
    for name in sorted(set(known) - written - {record}):
        with contextlib.suppress(FileNotFoundError):
            (out / name).unlink()
            removed(name)
    for name in sorted(written, key=lambda name: (name == record, name)):
        (new / name).replace(out / name)
