"""Root keys that protect nothing from whoever reads the machine's memory or disk.

For development and tests. Both name themselves so wherever the root key is shown.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cloister.broker.root_keys.local import KEY_SIZE, LocalRootKey, Random
from cloister.errors import ConfigurationError


class MemoryRootKey(LocalRootKey):
    """A root key held in this process, and nowhere else."""

    def __init__(
        self, key: bytes, *, random: Random = os.urandom, name: str = "development (memory)"
    ) -> None:
        """`key` has 32 bytes; the name is ``development (…)``."""
        super().__init__(key, name=name, random=random)


def development_file(path: Path, *, random: Random = os.urandom) -> MemoryRootKey:
    """The root key in the file `path` (32 bytes, mode 0600), made if there is none.

    ConfigurationError (``root_key.file``) if the file is not such a key, or others may read it.
    """
    name = f"development (file {path.name})"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return MemoryRootKey(_read(path), random=random, name=name)
    except OSError as error:
        raise _refused(path, error.strerror or "unknown reason") from None
    key = random(KEY_SIZE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return MemoryRootKey(key, random=random, name=name)


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(path, error.strerror or "unknown reason") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise _refused(path, "only its owner may read it (mode 0600)")
        key = file.read(KEY_SIZE + 1)
    if len(key) != KEY_SIZE:
        raise _refused(path, f"it has not {KEY_SIZE} bytes")
    return key


def _refused(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(f"the root key {path} cannot be used: {why}", code="root_key.file")
