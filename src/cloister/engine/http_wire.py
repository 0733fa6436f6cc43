"""The HTTP/1.1 that an engine may answer with: response heads and the chunked coding.

RFC 9112, read strictly and within bounds, with no I/O. Whatever is unusual is refused: the end
of an answer must be provable, and nothing an engine sends may cost more than it is long.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cloister.errors import MalformedError

MAX_HEAD: Final = 16_384  # bytes of status line and fields; engines send a few hundred
MAX_FIELDS: Final = 64
MAX_CHUNK_LINE: Final = 256  # size and extensions; real servers send at most 10 bytes
MAX_CHUNK: Final = 1 << 30
MAX_TRAILER: Final = 8_192

_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_ONE_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,7})\r\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Status and framing of a response; `length` None means chunked."""

    status: int
    content_type: str
    length: int | None
    keep_alive: bool


def parse_head(data: bytes) -> Head:
    """Decode a response head (RFC 9112 sections 4 and 5), without its closing empty line.

    Folded lines, repeated or conflicting framing fields, HTTP/1.0 and answers that end only
    with the connection are refused: the end of an answer must be provable.

    Raises MalformedError, and nothing else.
    """
    if len(data) > MAX_HEAD:
        raise MalformedError("the response head is too long")
    first, *lines = data.split(b"\r\n")
    match = _STATUS.fullmatch(first)
    if match is None:
        raise MalformedError("the status line is not HTTP/1.1")
    status = int(match[1])
    if status < 200:
        raise MalformedError("informational responses are not expected here")
    fields = _parse_fields(lines)
    if fields.get(b"content-encoding", b"identity").lower() != b"identity":
        raise MalformedError("the response is compressed, which nobody asked for")
    coding = fields.get(b"transfer-encoding")
    length = fields.get(b"content-length")
    if coding is not None:
        if coding.lower() != b"chunked" or length is not None:
            raise MalformedError("the framing of the response is not acceptable")
        size = None
    elif status in (204, 304):
        size = 0
    elif length is None or _LENGTH.fullmatch(length) is None:
        raise MalformedError("the response says neither its length nor that it is chunked")
    else:
        size = int(length)
    return Head(
        status=status,
        content_type=fields.get(b"content-type", b"").decode("latin-1"),
        length=size,
        keep_alive=fields.get(b"connection", b"").lower() != b"close",
    )


def _parse_fields(lines: list[bytes]) -> dict[bytes, bytes]:
    if len(lines) > MAX_FIELDS:
        raise MalformedError("the response has too many fields")
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        value = value.strip(b" \t")
        if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise MalformedError("a field line of the response does not decode")
        key = name.lower()
        if key in fields and key in (b"content-length", b"transfer-encoding"):
            raise MalformedError("the response repeats its framing")
        fields[key] = value
    return fields


class ChunkedDecoder:
    """Incremental decoder of the chunked coding (RFC 9112 section 7.1).

    `receive` returns the content in the given bytes, joined. After `finished`, `rest` counts
    the bytes that came after the end; there must be none. Extensions and trailer fields are
    bounded and ignored. Raises MalformedError, and nothing else.
    """

    __slots__ = ("_crlf", "_left", "_partial", "_trailer", "finished", "rest")

    def __init__(self) -> None:
        self._partial = b""
        self._left = 0
        self._crlf = False
        self._trailer = -1  # bytes of trailer section seen; -1 before it
        self.finished = False
        self.rest = 0

    def receive(self, data: bytes) -> bytes:
        """Decode the next bytes of the body."""
        if not (self._partial or self._left or self._crlf) and self._trailer < 0:
            match = _ONE_CHUNK.match(data)  # what a read of a streamed token nearly always is
            if match is not None:
                start = match.end()
                stop = start + int(match[1], 16)
                if start < stop == len(data) - 2 and data.endswith(b"\r\n"):
                    return data[start:stop]
        if self._partial:
            data = self._partial + data
            self._partial = b""
        parts: list[bytes] = []
        at = 0
        end = len(data)
        while at < end and not self.finished:
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                self._crlf = self._left == 0
            elif self._crlf:
                if end - at < 2:
                    self._partial = data[at:]
                    return parts[0] if len(parts) == 1 else b"".join(parts)
                if data[at : at + 2] != b"\r\n":
                    raise MalformedError("a chunk does not end where it says")
                at += 2
                self._crlf = False
            else:
                at = self._line(data, at)
                if at < 0:
                    return parts[0] if len(parts) == 1 else b"".join(parts)
        self.rest += end - at
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _line(self, data: bytes, at: int) -> int:
        """Take one line at `at`: a chunk's size, or a trailer field. -1 if it is not all here."""
        limit = MAX_CHUNK_LINE if self._trailer < 0 else MAX_TRAILER
        stop = data.find(b"\r\n", at, at + limit + 2)
        if stop < 0:
            if len(data) - at > limit:
                raise MalformedError("a line of the chunked coding is too long")
            self._partial = data[at:]
            return -1
        if self._trailer >= 0:
            self._trailer += stop + 2 - at
            if self._trailer > MAX_TRAILER:
                raise MalformedError("the trailer section is too long")
            self.finished = stop == at
            return stop + 2
        match = _CHUNK.fullmatch(data, at, stop)
        if match is None:
            raise MalformedError("a chunk size does not decode")
        size = int(match[1], 16)
        if size > MAX_CHUNK:
            raise MalformedError("a chunk is too long")
        if size == 0:
            self._trailer = 0
        self._left = size
        return stop + 2
