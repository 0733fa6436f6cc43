from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.streams.frames import (
    HEADER,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    Event,
    Frame,
    FrameReader,
    Kind,
    OutOfStep,
    encode_credit,
    encode_frame,
    encode_greeting,
)

SESSION = bytes(range(16))
HELLO = Frame(kind=Kind.HELLO, stream=0, payload=MAGIC + SESSION)


def read(data: bytes, size: int = 1 << 20) -> list[Event]:
    reader = FrameReader()
    events: list[Event] = []
    for start in range(0, len(data), size):
        events += reader.feed(data[start : start + size])
    return events


def data_frame(payload: bytes, stream: int = 1) -> bytes:
    return encode_frame(Kind.DATA, stream, payload)


@pytest.mark.parametrize("size", [1, 7, 24, 4096, 1 << 20])
def test_frames_are_read_however_they_are_cut(size: int) -> None:
    whole = (
        encode_greeting(Kind.HELLO, SESSION)
        + encode_frame(Kind.OPEN, 1)
        + data_frame(b"x" * MAX_PAYLOAD_BYTES)
        + encode_credit(1, 70000)
        + encode_frame(Kind.END, 1)
        + encode_frame(Kind.RESET, 2)
    )
    events = read(whole, size)
    assert [event.kind for event in events if isinstance(event, Frame)] == [
        Kind.HELLO,
        Kind.OPEN,
        Kind.DATA,
        Kind.CREDIT,
        Kind.END,
        Kind.RESET,
    ]
    assert len(events) == 6
    assert events[0] == HELLO
    assert isinstance(events[0], Frame)
    assert events[0].session == SESSION
    assert isinstance(events[3], Frame)
    assert events[3].credit == 70000


def test_nothing_is_read_before_a_greeting() -> None:
    assert read(encode_frame(Kind.OPEN, 1) + data_frame(b"old")) == []
    assert read(os.urandom(100_000)) == []


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 5000, 8 + MAX_PAYLOAD_BYTES - 1])
def test_a_greeting_is_found_behind_a_frame_that_was_cut_short(cut: int) -> None:
    # The longest frame, whose writer died after `cut` of its bytes.
    before = encode_greeting(Kind.HELLO, SESSION) + data_frame(b"x" * MAX_PAYLOAD_BYTES)[:cut]
    again = Frame(kind=Kind.HELLO, stream=0, payload=MAGIC + bytes(16))
    events = read(before + encode_greeting(Kind.HELLO, bytes(16)), 4096)
    assert events[0] == HELLO
    assert events[-1] == again
    assert (OutOfStep() in events) == (0 < cut < HEADER.size)


@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(255, 0, 0, 0),
        HEADER.pack(9, 0, 0, 1),
        HEADER.pack(Kind.OPEN, 1, 0, 1),
        HEADER.pack(Kind.OPEN, 0, 1, 1),
        HEADER.pack(Kind.OPEN, 0, 0, 0),
        HEADER.pack(Kind.DATA, 0, 0, 1),
        HEADER.pack(Kind.DATA, 0, MAX_PAYLOAD_BYTES + 1, 1),
        HEADER.pack(Kind.CREDIT, 0, 3, 1),
        HEADER.pack(Kind.HELLO, 0, 32, 1),
        HEADER.pack(Kind.HELLO, 0, 31, 0),
        HEADER.pack(Kind.HELLO, 0, 32, 0) + b"x" * 32,
    ],
)
def test_what_is_no_frame_loses_the_step(header: bytes) -> None:
    good = encode_greeting(Kind.HELLO, SESSION)
    assert read(good + encode_frame(Kind.OPEN, 1))[1:] == [
        Frame(kind=Kind.OPEN, stream=1, payload=b"")
    ]
    assert read(good + header + encode_frame(Kind.OPEN, 1))[1:] == [OutOfStep()]


def test_what_cannot_be_a_frame_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="too long"):
        encode_frame(Kind.DATA, 1, bytes(MAX_PAYLOAD_BYTES + 1))
    with pytest.raises(ValueError, match="greeting"):
        encode_greeting(Kind.OPEN)


@given(st.lists(st.binary(max_size=200)), st.booleans())
def test_any_bytes_are_read_and_held_within_bounds(pieces: list[bytes], in_step: bool) -> None:
    reader = FrameReader()
    if in_step:
        reader.feed(encode_greeting(Kind.HELLO, SESSION))
    for piece in pieces:
        for event in reader.feed(piece):
            assert isinstance(event, Frame | OutOfStep)
    assert len(reader._data) <= HEADER.size + MAX_PAYLOAD_BYTES
