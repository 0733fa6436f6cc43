"""How a place is written after its kind: ``PATH?option=value&option=value``."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from cloister.errors import ConfigurationError

MAX_SECRET_BYTES: Final = 4096


def split_place(rest: str, *, options: frozenset[str]) -> tuple[str, Mapping[str, str]]:
    """The path, and the options; ConfigurationError (``root_key.kind``) for one that is unknown."""
    path, _, query = rest.partition("?")
    found: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if name not in options or not equals or not value or name in found:
            known = ", ".join(sorted(options)) or "none"
            raise ConfigurationError(
                f"a root key's options are NAME=VALUE, each once; known here: {known}",
                code="root_key.kind",
            )
        found[name] = unquote(value)
    if not path:
        raise ConfigurationError("a root key's place is missing", code="root_key.kind")
    return path, found


def required(options: Mapping[str, str], name: str) -> str:
    """One option; ConfigurationError (``root_key.kind``) where it is missing."""
    value = options.get(name)
    if value is None:
        raise ConfigurationError(f"this root key needs {name}=…", code="root_key.kind")
    return value


def read_private(path: Path, *, limit: int = MAX_SECRET_BYTES) -> bytes:
    """A file that only its owner may read; ConfigurationError (``root_key.file``) otherwise."""
    try:
        descriptor = os.open(path.expanduser(), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise refused(path, error.strerror or "unknown reason") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise refused(path, "only its owner may read it (mode 0600 or 0400)")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise refused(path, f"it has more than {limit} bytes")
    return content


def write_new(path: Path, content: bytes) -> None:
    """Write a file that was not there, mode 0600, and have it on the disk when this returns.

    ConfigurationError (``root_key.file``) if it is there, or cannot be written.
    """
    path = path.expanduser()
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise refused(path, error.strerror or "unknown reason") from None


def read_line(path: Path) -> str:
    """The secret in a private file, without the line feed at its end."""
    try:
        text = read_private(path).decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise refused(path, "it is not text") from None
    if not text or not text.isprintable():
        raise refused(path, "it is not one line of text")
    return text


def refused(path: Path, why: str) -> ConfigurationError:
    """A file that cannot be used."""
    return ConfigurationError(f"the file {path} cannot be used: {why}", code="root_key.file")
