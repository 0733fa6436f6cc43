"""The framing that makes many streams of one link of bytes: encode and decode, no I/O.

Big-endian. A frame is a header of 8 bytes and a payload::

    u8 kind | u8 zero | u16 length of the payload | u32 stream

    1 HELLO    magic (16), session (16)    the dialler begins a session
    2 WELCOME  magic (16), session (16)    the listener agrees
    3 LOST     magic (16), zeros (16)      the listener knows no session: begin one
    4 OPEN                                 the dialler opens a stream
    5 DATA     1 to 16384 bytes
    6 CREDIT   u32                         so many more bytes may be sent on the stream
    7 END                                  the sender's direction of the stream ends
    8 RESET                                both directions end at once

The first three are of stream 0 and of no other; before each of them go `PREAMBLE_BYTES` zeros.

A serial port knows no connections: whoever opens it may find the rest of what was meant for
somebody before, and whoever listens on it may be in the middle of a frame when a new dialler
begins. So a session is named by 16 random bytes, and a dialler believes nothing before the
listener has repeated them. The zeros are more than the longest frame: whatever frame was cut
short, they fill it, and what is left of them is no header. A reader that is out of step looks for
the magic.

Each direction of a stream begins with a credit of `WINDOW_BYTES`, which bounds what its receiver
has to hold. Nothing here is secret, and nothing is authenticated: what the streams carry is.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

MAGIC: Final = b"cloister.mux/1\r\n"
SESSION_BYTES: Final = 16
MAX_PAYLOAD_BYTES: Final = 16 * 1024
WINDOW_BYTES: Final = 128 * 1024
MAX_STREAMS: Final = 256
"""Open at a time, so that a link's streams hold at most 32 MiB in each direction."""

HEADER: Final = struct.Struct(">BBHI")
PREAMBLE_BYTES: Final = HEADER.size + MAX_PAYLOAD_BYTES
_CREDIT: Final = struct.Struct(">I")
_GREETING_BYTES: Final = len(MAGIC) + SESSION_BYTES


class Kind(enum.IntEnum):
    """What a frame says."""

    HELLO = 1
    WELCOME = 2
    LOST = 3
    OPEN = 4
    DATA = 5
    CREDIT = 6
    END = 7
    RESET = 8


GREETINGS: Final = (Kind.HELLO, Kind.WELCOME, Kind.LOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame as it arrived."""

    kind: Kind
    stream: int
    payload: bytes

    @property
    def session(self) -> bytes:
        """Of a greeting: the session's name."""
        return self.payload[len(MAGIC) :]

    @property
    def credit(self) -> int:
        """Of a CREDIT."""
        return int(_CREDIT.unpack(self.payload)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfStep:
    """What arrived is no frame; everything up to the next greeting is skipped."""


Event: TypeAlias = Frame | OutOfStep


def encode_frame(kind: Kind, stream: int, payload: bytes = b"") -> bytes:
    """A frame of a stream; ValueError for a payload that is too long."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError("the payload is too long for a frame")
    return HEADER.pack(kind, 0, len(payload), stream) + payload


def encode_credit(stream: int, size: int) -> bytes:
    """A CREDIT."""
    return encode_frame(Kind.CREDIT, stream, _CREDIT.pack(size))


def encode_greeting(kind: Kind, session: bytes = bytes(SESSION_BYTES)) -> bytes:
    """A HELLO, WELCOME or LOST, with the zeros before it."""
    if kind not in GREETINGS or len(session) != SESSION_BYTES:
        raise ValueError("not a greeting")
    return bytes(PREAMBLE_BYTES) + encode_frame(kind, 0, MAGIC + session)


class FrameReader:
    """Cuts what arrives into frames. Holds at most one frame and what one `feed` brought."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._in_step = False

    def feed(self, data: bytes) -> list[Event]:
        """The frames that `data` completes; once in between for each loss of step."""
        self._data += data
        events: list[Event] = []
        while True:
            if not self._in_step and not self._find_greeting():
                return events
            event = self._next()
            if event is None:
                return events
            events.append(event)

    def _next(self) -> Event | None:
        if self._data.startswith(b"\0"):
            del self._data[: len(self._data) - len(self._data.lstrip(b"\0"))]
        if len(self._data) < HEADER.size:
            return None
        code, zero, length, stream = HEADER.unpack_from(self._data)
        if zero or not _is_header(code, length, stream):
            self._in_step = False
            return OutOfStep()
        end = HEADER.size + length
        if len(self._data) < end:
            return None
        payload = bytes(self._data[HEADER.size : end])
        if code in GREETINGS and not payload.startswith(MAGIC):
            self._in_step = False
            return OutOfStep()
        del self._data[:end]
        return Frame(kind=Kind(code), stream=stream, payload=payload)

    def _find_greeting(self) -> bool:
        found = [position for marker in _MARKERS if (position := self._data.find(marker)) >= 0]
        if found:
            del self._data[: min(found)]
            self._in_step = True
            return True
        keep = len(_MARKERS[0]) - 1
        del self._data[: max(0, len(self._data) - keep)]
        return False


_MARKERS: Final = tuple(HEADER.pack(kind, 0, _GREETING_BYTES, 0) + MAGIC for kind in GREETINGS)


def _is_header(code: int, length: int, stream: int) -> bool:
    match code:
        case Kind.HELLO | Kind.WELCOME | Kind.LOST:
            return length == _GREETING_BYTES and stream == 0
        case Kind.DATA:
            return 0 < length <= MAX_PAYLOAD_BYTES and stream > 0
        case Kind.CREDIT:
            return length == _CREDIT.size and stream > 0
        case Kind.OPEN | Kind.END | Kind.RESET:
            return length == 0 and stream > 0
        case _:
            return False
