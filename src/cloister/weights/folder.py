"""Where opened weights go: a folder, its files written once and then only read.

The worker's folder lies in memory (`cloister.attester.memory`); `cloister weights open` writes to
whatever folder its user names.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from cloister.errors import ConfigurationError
from cloister.weights.header import FileEntry


class FolderSink:
    """Writes files below `folder`, which must exist. Leaving by an error removes them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Path] = []
        self._open: list[_File] = []
        self._lock = threading.Lock()

    def create(self, entry: FileEntry) -> _File:
        """Begin a file. ConfigurationError if it cannot be made, or is there already."""
        target = self._folder / entry.path  # the header's paths stay below it
        try:
            with self._lock:
                self._make_parents(target)
                file = _File(target)
                self._made.append(target)
                self._open.append(file)
        except OSError as error:
            raise _refused(target, error) from None
        return file

    def _make_parents(self, target: Path) -> None:
        missing = [p for p in target.parents if p != self._folder and not p.exists()]
        for parent in reversed(missing):
            parent.mkdir(mode=0o700)
            self._made.append(parent)

    def discard(self) -> None:
        """Remove everything that was made."""
        for file in self._open:
            file.close()
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()

    def __enter__(self) -> FolderSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for file in self._open:
            file.close()
        if kind is not None:
            self.discard()


class _File:
    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._path = path
        self._descriptor = os.open(path, flags, 0o600)

    def write(self, data: memoryview, offset: int) -> None:
        try:
            while data:
                written = os.pwrite(self._descriptor, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise _refused(self._path, error) from None

    def finish(self) -> None:
        os.fchmod(self._descriptor, 0o400)
        self.close()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _refused(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the opened weights cannot be written to {path} (errno {error.errno})",
        code="weights.out",
    )
