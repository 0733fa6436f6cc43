"""Variable-length integers: RFC 9000 appendix A.1's examples, and the edges."""

from __future__ import annotations

import pytest

from cloister.channel.varint import decode_varint, encode_varint, varint_size

EXAMPLES = [
    ("c2197c5eff14e88c", 151_288_809_941_952_652),
    ("9d7f3e7d", 494_878_333),
    ("7bbd", 15_293),
    ("25", 37),
]


@pytest.mark.parametrize(("encoded", "value"), EXAMPLES)
def test_published_examples(encoded: str, value: int) -> None:
    data = bytes.fromhex(encoded)
    assert varint_size(data[0]) == len(data)
    assert decode_varint(data) == value
    assert encode_varint(value) == data


def test_the_same_value_may_take_more_bytes() -> None:
    assert decode_varint(bytes.fromhex("4025")) == 37


@pytest.mark.parametrize("bits", [6, 14, 30, 62])
def test_edges(bits: int) -> None:
    below = (1 << bits) - 1
    assert decode_varint(encode_varint(below)) == below
    assert 8 * len(encode_varint(below)) == bits + 2
    if bits < 62:
        assert len(encode_varint(below + 1)) == 2 * len(encode_varint(below))


@pytest.mark.parametrize("value", [-1, 1 << 62])
def test_out_of_range_is_misuse(value: int) -> None:
    with pytest.raises(RuntimeError, match="variable-length integer"):
        encode_varint(value)
