"""What every way to a device shares: opening it, calling it, and saying what went wrong.

Two kinds of failure, because different people act on them:

- `UnsupportedError`, code ``device.absent`` or ``device.permission``: not on this machine, or
  not for this user. `cloister doctor` says what to change.
- `FetchError`, code ``device.io`` (it failed), ``device.busy`` (it stayed busy),
  ``device.raced`` (somebody else used the same entry), ``device.answer`` (its answer is not
  one) or ``device.timeout``: the device is there and gave no evidence.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from cloister.errors import CloisterError, FetchError, UnsupportedError

STATEMENT_DIGEST_SIZE: Final = 32
REPORT_DATA_SIZE: Final = 64

_READ: Final = 1 << 16


class Ioctl(Protocol):
    """``fcntl.ioctl`` with a buffer that the call may change."""

    def __call__(self, descriptor: int, request: int, argument: bytearray, /) -> int:
        """Call the device; OSError if it refuses."""


def system_ioctl(descriptor: int, request: int, argument: bytearray, /) -> int:
    """Call the device behind `descriptor`."""
    answer: int = fcntl.ioctl(descriptor, request, argument, True)
    return answer


def iowr(kind: int, number: int, size: int) -> int:
    """``_IOWR`` of ``asm-generic/ioctl.h``: the request number of a structure of `size` bytes."""
    return 3 << 30 | size << 16 | kind << 8 | number


def report_data(statement_digest: bytes) -> bytes:
    """The 64 bytes of user data for a 32-byte digest: itself, then zeros."""
    check_digest(statement_digest)
    return statement_digest.ljust(REPORT_DATA_SIZE, b"\0")


def check_digest(statement_digest: bytes) -> None:
    """Raise `ValueError` unless `statement_digest` has 32 bytes."""
    if len(statement_digest) != STATEMENT_DIGEST_SIZE:
        raise ValueError(f"a statement digest has {STATEMENT_DIGEST_SIZE} bytes")


@contextlib.contextmanager
def opened(device: Path, *, writable: bool = True) -> Iterator[int]:
    """Open `device` for the length of one exchange.

    Raises:
        UnsupportedError: it is not there, or this user may not use it.
        FetchError: it fails to open.
    """
    flags = os.O_RDWR if writable else os.O_RDONLY
    try:
        descriptor = os.open(device, flags | os.O_CLOEXEC)
    except OSError as error:
        raise open_error(device, error) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_file(path: Path, *, limit: int) -> bytes:
    """The whole of `path`, which may be one of the kernel's files that do not know their size.

    Raises:
        UnsupportedError: it is not there, or this user may not read it.
        FetchError: it fails, or holds more than `limit` bytes.
    """
    with opened(path, writable=False) as descriptor:
        try:
            return read_all(descriptor, limit=limit, what=str(path))
        except OSError as error:
            raise failed(str(path), error) from None


def read_all(descriptor: int, *, limit: int, what: str) -> bytes:
    """Read `descriptor` to its end; FetchError (``device.answer``) beyond `limit` bytes."""
    content = bytearray()
    while piece := os.read(descriptor, min(_READ, limit + 1 - len(content))):
        content += piece
        if len(content) > limit:
            raise answer_error(what, f"is longer than {limit} bytes")
    return bytes(content)


def open_error(path: Path, error: OSError) -> CloisterError:
    """The error for a device or file that does not open."""
    if error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR}:
        return absent(f"{path} does not exist")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return UnsupportedError(
            f"{path} may not be used by this user; `cloister doctor` says who may",
            code="device.permission",
        )
    return failed(str(path), error)


def absent(why: str) -> UnsupportedError:
    """The error for what this machine does not have."""
    return UnsupportedError(f"not on this machine: {why}", code="device.absent")


def failed(what: str, error: OSError) -> FetchError:
    """The error for a device that is there and does not work."""
    return FetchError(f"{what} failed: {error.strerror or 'no reason given'}", code="device.io")


def busy(what: str) -> FetchError:
    """The error for a device that somebody else keeps busy."""
    return FetchError(f"{what} stayed busy; try again later", code="device.busy")


def answer_error(what: str, why: str) -> FetchError:
    """The error for an answer that is none."""
    return FetchError(f"the answer of {what} {why}", code="device.answer")
