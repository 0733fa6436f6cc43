from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.aws.ber import MAX_BYTES, MAX_DEPTH, MAX_ELEMENTS, Element, parse_ber
from cloister.errors import MalformedError


def primitive(tag: int, content: bytes) -> Element:
    return Element(tag=tag, content=content, parts=())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x04\x02ab", primitive(4, b"ab")),
        (b"\x05\x00", primitive(5, b"")),
        (b"\x04\x81\x80" + bytes(128), primitive(4, bytes(128))),
        (
            b"\x30\x04\x05\x00\x05\x00",
            Element(tag=0x30, content=b"", parts=(primitive(5, b""), primitive(5, b""))),
        ),
        (
            b"\x30\x80\x05\x00\x00\x00",
            Element(tag=0x30, content=b"", parts=(primitive(5, b""),)),
        ),
        (b"\x30\x80\x00\x00", Element(tag=0x30, content=b"", parts=())),
    ],
)
def test_both_forms_of_length_are_read(data: bytes, expected: Element) -> None:
    assert parse_ber(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x04",
        b"\x04\x02a",
        b"\x04\x00\x00",  # something follows
        b"\x1f\x81\x01\x00",  # an identifier of several octets
        b"\x1f\x00",
        b"\x3f\x00",
        b"\x00\x00",  # end-of-contents without a beginning
        b"\x04\x80\x00\x00",  # indefinite and primitive
        b"\x04\x81\x02ab",  # longer than it needs to be
        b"\x04\x82\x00\x80" + bytes(128),
        b"\x04\x84\x00\x00\x00\x01a",
        b"\x04\xff",
        b"\x30\x80\x05\x00",  # no end-of-contents
        b"\x30\x80\x05\x00\x00",
        b"\x30\x02\x04\x02ab",  # a part that is longer than the whole
        b"\x30\x03\x30\x80\x05\x00\x00\x00",  # an end outside of what contains it
        b"\x30\x80" * (MAX_DEPTH + 2) + b"\x00\x00" * (MAX_DEPTH + 2),
        b"\x30\x80" + b"\x05\x00" * MAX_ELEMENTS + b"\x00\x00",
        b"\x04\x83\x01\x00\x00" + bytes(MAX_BYTES),
    ],
)
def test_anything_else_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_ber(data)


def test_the_bounds_themselves_are_accepted() -> None:
    parse_ber(b"\x30\x80" * MAX_DEPTH + b"\x00\x00" * MAX_DEPTH)
    parse_ber(b"\x30\x80" + b"\x05\x00" * (MAX_ELEMENTS - 1) + b"\x00\x00")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        parse_ber(data)
