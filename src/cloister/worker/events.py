"""Server-sent events on their way from the engine to the seal.

Events pass as bytes. Four things happen to them: only whole lines go on (so that a comment
may be put in front), and of these only data (what else an engine says is not for the client);
an error event of the engine is cut off (its text may repeat the prompt), as is everything after
``[DONE]``; and the size is padded by a comment line, so that the length of a token does not show.
"""

from __future__ import annotations

import json
import re
from typing import Final

_TWO_BYTE_VARINT: Final = 1 << 14
"""Binary HTTP lengths below this take two bytes (from 64 on), and four from here."""

_TEXT: Final = rb"[\t\x20-\x7e\x80-\xff]*"
"""What a line may hold. Control characters have no place in JSON; \r would end a line."""
_DATA: Final = re.compile(rb"data:" + _TEXT)
_PLAIN: Final = re.compile(rb"(?:(?:data:" + _TEXT + rb")?\n)*")
_DONE: Final = b"[DONE]"
_ESCAPE: Final = b"\\u00"
"""Letters may be written so, those of "error" too."""


class LineAssembler:
    """Whole lines out of arbitrary reads.

    `feed` returns what may go on now, maybe nothing: lines of data and the empty lines between
    them. `failed` is set when the engine reported an error in the stream, or sent data that is no
    `text` (UTF-8 without control characters); that line and all after it are dropped. A reader
    that puts cut characters together looks at the text itself.
    """

    __slots__ = ("_ended", "_held", "_limit", "_size", "_text", "failed")

    opening = b""
    """What is said before the first event: nothing of our own."""

    def __init__(self, max_line: int, *, text: bool = True) -> None:
        self._text = text
        self._held: list[bytes] = []  # pieces of a line: joined once, however many there are
        self._size = 0
        self._limit = max_line
        self._ended = False
        self.failed = False

    def feed(self, data: bytes) -> bytes:
        """Take one read; return whole lines. OverflowError when a line exceeds the limit."""
        if self.failed:
            return b""
        end = data.rfind(b"\n") + 1
        if not end:
            self._hold(data)
            return b""
        whole = data[:end]
        if self._held:
            whole = b"".join([*self._held, whole])
            self._held.clear()
            self._size = 0
        if end < len(data):
            self._hold(data[end:])
        return self._passed(whole)

    def rest(self) -> bytes:
        """At the end of the stream: an unfinished last line, if any."""
        held = b"".join(self._held)
        self._held.clear()
        return b"" if self.failed or not held else self._passed(held)

    def _hold(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit:
            raise OverflowError("a line of the stream is too long")
        self._held.append(data)

    def _passed(self, data: bytes) -> bytes:
        # One look at each read; text that speaks of errors is then looked at properly.
        suspect = b"error" in data or _ESCAPE in data or _DONE in data
        plain = not suspect and not self._ended and _PLAIN.fullmatch(data) is not None
        if plain and (not self._text or _is_utf8(data)):
            return data
        return self._cut(data)

    def _cut(self, data: bytes) -> bytes:
        kept: list[bytes] = []
        for line in data.splitlines(keepends=True):
            if self._ended:
                break
            content = line.rstrip(b"\r\n")
            is_data = content.startswith(b"data:")
            if _is_error(line) or (is_data and self._text and not _is_text(content)):
                self.failed = True
                self._held.clear()
                break
            if is_data or not content:
                kept.append(content if content == line else content + b"\n")
            if is_data and content[5:].strip() == _DONE:
                kept.append(b"\n")
                self._ended = True
        return b"".join(kept)


def _is_text(line: bytes) -> bool:
    return _DATA.fullmatch(line) is not None and _is_utf8(line)


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_error(line: bytes) -> bool:
    field, _, value = line.partition(b":")
    if field == b"data" and (b'"error"' in value or _ESCAPE in value):
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
