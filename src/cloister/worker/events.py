"""Server-sent events on their way from the engine to the seal.

Events pass as bytes. Three things happen to them: only whole lines go on (so that a comment
may be put in front), an error event of the engine is cut off (its text may repeat the prompt),
and the size is padded by a comment line, so that the length of a token does not show.
"""

from __future__ import annotations

import json
from typing import Final

COMMENT_LIMIT: Final = 16384
_TWO_BYTE_VARINT: Final = 1 << 14
"""Binary HTTP lengths below this take two bytes (from 64 on), and four from here."""


class LineAssembler:
    """Whole lines out of arbitrary reads.

    `feed` returns what may go on now, maybe nothing. `failed` is set when the engine reported
    an error in the stream; that event and all after it are dropped.
    """

    __slots__ = ("_held", "_limit", "failed")

    opening = b""
    """What is said before the first event: nothing of our own."""

    def __init__(self, max_line: int) -> None:
        self._held = b""
        self._limit = max_line
        self.failed = False

    def feed(self, data: bytes) -> bytes:
        """Take one read; return whole lines. OverflowError when a line exceeds the limit."""
        if self.failed:
            return b""
        if self._held:
            data = self._held + data
            self._held = b""
        if not data.endswith(b"\n"):
            end = data.rfind(b"\n") + 1
            self._held = data[end:]
            if len(self._held) > self._limit:
                raise OverflowError("a line of the stream is too long")
            data = data[:end]
        # One search for each read; text that speaks of errors is then looked at properly.
        return self._cut(data) if b"error" in data else data

    def rest(self) -> bytes:
        """At the end of the stream: an unfinished last line, if any."""
        held, self._held = self._held, b""
        return b"" if self.failed or not held else self._cut(held)

    def _cut(self, data: bytes) -> bytes:
        at = 0
        for line in data.splitlines(keepends=True):
            if _is_error(line):
                self.failed = True
                self._held = b""
                return data[:at]
            at += len(line)
        return data


def _is_error(line: bytes) -> bool:
    field, _, value = line.partition(b":")
    if field == b"data" and b'"error"' in value:
        try:
            event = json.loads(value)
        except (ValueError, RecursionError):
            return True  # not an event of any kind: it does not go on
        if not isinstance(event, dict):
            return True
        return event.get("error") is not None or event.get("object") == "error"
    return field == b"error" or (field == b"event" and value.strip() == b"error")


class StreamPadding:
    """Pads each piece of a stream to a bucket, by a comment in front of its first event.

    What is rounded up is the piece's Binary HTTP chunk, length field included. The first event
    sets a floor, with room for a longer token, so that tokens near a bucket's edge do not stand
    out among the others of the same stream.
    """

    __slots__ = ("_bucket", "_floor")

    MARGIN = 32  # bytes; most tokens are shorter

    def __init__(self, bucket: int) -> None:
        self._bucket = bucket
        self._floor = 0

    def pad(self, lines: bytes) -> bytes:
        """Return `lines`, which start at a line's beginning, with a comment in front."""
        bucket = self._bucket
        if bucket == 1:
            return lines
        if not self._floor:
            end = lines.find(b"\n\n")  # a read may hold several events
            first = len(lines) if end < 0 else end + 2
            self._floor = min(_round_up(first + 2 + self.MARGIN, bucket), 8 * bucket)
        size = len(lines) + 2
        target = max(_round_up(size, bucket), self._floor)
        if target - 2 >= _TWO_BYTE_VARINT:
            size = len(lines) + 4
            target = _round_up(size, bucket)
        room = target - size
        if room == 0:
            return lines
        if room == 1:
            room += bucket  # a comment has at least two bytes
        return _COMMENTS[room] + lines if room < len(_COMMENTS) else _comment(room) + lines


def _round_up(size: int, bucket: int) -> int:
    return -(-size // bucket) * bucket


def _comment(size: int) -> bytes:
    return b":" + b" " * (size - 2) + b"\n"


_COMMENTS: Final = (b"", b"", *(_comment(size) for size in range(2, 1024)))
