"""GGUF metadata: a good file first, then files made to hurt their reader."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.engine import gguf
from cloister.engine.gguf import GgufMetadata, parse_gguf
from cloister.errors import MalformedError


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def number(key: bytes, value: int) -> bytes:
    return pair(key, 4, struct.pack("<I", value))


def string(key: bytes, value: bytes) -> bytes:
    return pair(key, 8, text(value))


def array(key: bytes, kind: int, count: int, value: bytes) -> bytes:
    return pair(key, 9, struct.pack("<IQ", kind, count) + value)


PAIRS = (
    string(b"general.architecture", b"llama"),
    array(b"tokenizer.ggml.tokens", 8, 2, text(b"a") + text(b"bc")),
    array(b"tokenizer.ggml.token_type", 5, 2, bytes(8)),
    pair(b"general.alignment", 7, b"\x01"),
    number(b"llama.context_length", 512),
    string(b"general.name", b"a model"),
    number(b"general.file_type", 7),
    string(b"tokenizer.chat_template", b"{{ x }}"),
)


def file(*pairs: bytes, version: int = 3, count: int | None = None) -> bytes:
    count = len(pairs) if count is None else count
    return b"GGUF" + struct.pack("<IQQ", version, 0, count) + b"".join(pairs)


def parse(data: bytes) -> GgufMetadata:
    return parse_gguf(io.BytesIO(data))


def test_a_good_file() -> None:
    assert parse(file(*PAIRS)) == GgufMetadata(
        version=3,
        name="a model",
        architecture="llama",
        context_length=512,
        quantisation="Q8_0",
        has_chat_template=True,
        template_words=frozenset(),
    )
    assert parse(file(version=2)).context_length == 0


SHAPE = (
    string(b"general.architecture", b"llama"),
    number(b"llama.block_count", 6),
    number(b"llama.embedding_length", 256),
    number(b"llama.attention.head_count", 4),
)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), 2 * 6 * 2 * 256),  # every head has keys of its own
        ((number(b"llama.attention.head_count_kv", 2),), 2 * 6 * 2 * 2 * 64),
        (
            (
                number(b"llama.attention.head_count_kv", 2),
                number(b"llama.attention.key_length", 128),
                number(b"llama.attention.value_length", 96),
            ),
            2 * 6 * 2 * (128 + 96),
        ),
        ((array(b"llama.attention.head_count_kv", 4, 6, bytes(24)),), 2 * 6 * 2 * 256),
        ((number(b"llama.attention.head_count_kv", 1 << 31),), 2 * 6 * 2 * 256),
    ],
)
def test_the_size_of_a_cache(more: tuple[bytes, ...], expected: int) -> None:
    assert parse(file(*SHAPE, *more)).cache_bytes == expected
    assert parse(file(*PAIRS)).cache_bytes == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGML" + file(*PAIRS)[4:],
        file(*PAIRS, version=1),
        file(*PAIRS, version=4),
        file(*PAIRS)[:-1],
        file(*PAIRS, count=len(PAIRS) + 1),
        file(count=gguf.MAX_PAIRS + 1),
        file(count=1 << 63),
        file(*PAIRS, PAIRS[5]),
        file(pair(b"x", 13, b"")),
        file(pair(b"general.name", 13, b"")),
        file(number(b"general.name", 1)),
        file(array(b"general.name", 8, 0, b"")),
        file(array(b"x", 9, 1, bytes(12))),
        file(array(b"x", 13, 1, bytes(12))),
        file(array(b"x", 4, 1 << 62, b"")),
        file(array(b"x", 8, gguf.MAX_ARRAY, b"")),
        file(pair(b"x", 8, struct.pack("<Q", 1 << 62))),
        file(struct.pack("<Q", 1 << 62)),
        file(string(b"general.name", b"\xff")),
        file(string(b"\xff", b"x")),
    ],
)
def test_files_that_are_not_acceptable(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse(data)


def test_all_metadata_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file(*PAIRS)
    monkeypatch.setattr(gguf, "MAX_METADATA", len(data))
    parse(data)
    monkeypatch.setattr(gguf, "MAX_METADATA", len(data) - 1)
    with pytest.raises(MalformedError, match="too much"):
        parse(data)


def test_odd_values_are_left_out() -> None:
    odd = parse(
        file(
            PAIRS[0],
            pair(b"llama.context_length", 11, struct.pack("<q", -1)),
            string(b"general.name", b"a\nb\x1b[31m" + b"x" * 500),
            number(b"general.file_type", 999),
        )
    )
    assert odd.context_length == 0
    assert odd.quantisation == ""
    assert odd.name.startswith("ab[31mx")
    assert len(odd.name) <= 256


@given(st.binary(max_size=200))
def test_any_file_decodes_or_is_malformed(data: bytes) -> None:
    for candidate in (data, file(data, count=3), file(*PAIRS[:2], data, count=4)):
        try:
            parse(candidate)
        except MalformedError:
            continue
