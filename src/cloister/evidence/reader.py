"""A cursor over bytes from outside: every read is bounded, and nothing may be left over."""

from __future__ import annotations

from struct import Struct
from typing import Literal

from cloister.errors import MalformedError


class ByteReader:
    """Reads integers and byte strings off the front of `data`.

    `what` names the structure in errors, `code` is the error's stable code, `byteorder` that
    of every integer.
    """

    __slots__ = ("_byteorder", "_code", "_data", "_offset", "_what")

    def __init__(
        self, data: bytes, *, what: str, code: str, byteorder: Literal["big", "little"]
    ) -> None:
        self._data = data
        self._offset = 0
        self._what = what
        self._code = code
        self._byteorder = byteorder

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._offset

    def fail(self, why: str) -> MalformedError:
        """Build the error that says `why` the structure does not decode."""
        return MalformedError(f"{self._what} {why}", code=self._code)

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes.

        Raises:
            MalformedError: fewer than `size` bytes are left.
        """
        end = self._offset + size
        if end > len(self._data):
            raise self.fail(f"ends {end - len(self._data)} bytes early")
        taken = self._data[self._offset : end]
        self._offset = end
        return taken

    def integer(self, size: int) -> int:
        """Return an unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size), self._byteorder)

    def unpack(self, layout: Struct) -> tuple[int, ...]:
        """Return the integers of `layout`, which says their byte order itself."""
        return layout.unpack(self.take(layout.size))

    def sized(self, *, prefix: int = 2, limit: int = 0xFFFF) -> bytes:
        """Return a byte string that is preceded by its length in `prefix` bytes.

        Raises:
            MalformedError: the length is more than `limit` or than what is left.
        """
        size = self.integer(prefix)
        if size > limit:
            raise self.fail(f"holds a field of {size} bytes; at most {limit} are accepted")
        return self.take(size)

    def finish(self) -> None:
        """Raise `MalformedError` unless everything was read."""
        if self.remaining:
            raise self.fail(f"has {self.remaining} bytes too many")
