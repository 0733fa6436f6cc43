"""Strict JSON: what two readers could understand differently is refused."""

from __future__ import annotations

import contextlib
import json

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedError
from cloister.strictjson import Json, canonical, expect_hex, parse_json, parse_json_object


def parse(data: bytes) -> Json:
    return parse_json(data, limit=100_000, what="the document")


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b"1.0",
        b"1e3",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"9007199254740992",
        b"-9007199254740992",
        b"1" * 5000,
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b"\xff\xfe",
        b'"\xed\xa0\x80"',
        b"{} {}",
        b"{}x",
        b"",
        b"[" * 65 + b"]" * 65,
        b"[" * 50_000,
        b"'a'",
        b"{a:1}",
    ],
)
def test_ambiguous_documents_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedError) as caught:
        parse(data)
    assert "the document" in str(caught.value)


def test_size_is_bounded_before_anything_is_read() -> None:
    assert parse_json(b"[1]", limit=3, what="x") == [1]
    with pytest.raises(MalformedError, match="at most 2"):
        parse_json(b"[1]", limit=2, what="x")


def test_errors_do_not_quote_the_document() -> None:
    for data in (b'{"secret-marker":', b'["secret-marker", 1.5]', b'{"secret-marker":1}]'):
        with pytest.raises(MalformedError) as caught:
            parse(data)
        assert "secret-marker" not in repr(caught.value)
        assert caught.value.__cause__ is None


def test_nesting_up_to_the_limit_and_brackets_in_strings() -> None:
    assert parse(b"[" * 64 + b"]" * 64) is not None
    assert parse(json.dumps(["[" * 200, '\\"[[' * 100]).encode()) is not None


@pytest.mark.parametrize(
    "text", ["]]", "[[", "]\\n[", "[" * 70_000, "x" * 70_000, '"' * 5000], ids=len
)
def test_how_deep_many_brackets_nest_whatever_strings_hold(text: str) -> None:
    """Wide documents, short and long, with brackets and escapes in strings: 64 levels, no more."""

    def nested(levels: int) -> Json:
        value: Json = [text]
        for level in range(levels - 1):
            value = [value, [], {}] if level % 2 else {"a": value, "b": [text]}
        return value

    for levels in (2, 15, 16, 17, 32, 64):
        document = json.dumps([nested(levels - 1)] + [[]] * 100).encode()
        assert parse_json(document, limit=1 << 24, what="the document") == json.loads(document)
    with pytest.raises(MalformedError, match="nests deeper than 64"):
        parse_json(json.dumps([nested(64)]).encode(), limit=1 << 24, what="the document")


@pytest.mark.parametrize("escapes", [0, 1, 254, 255, 256, 257, 1000])
@pytest.mark.parametrize("half", ["\\ud83d", "\\uD83D", "\\udE00", "\\uDe00"])
def test_half_a_pair_is_found_behind_any_number_of_escapes(escapes: int, half: str) -> None:
    before = "x" * 20_000 + "\\n" * escapes
    assert parse(f'["{before}\\ud83d\\uDE00"]'.encode()) == ["x" * 20_000 + "\n" * escapes + "😀"]
    with pytest.raises(MalformedError):
        parse(f'["{before}{half}"]'.encode())


@pytest.mark.timeout(30)  # reading any part of it twice takes hours
@pytest.mark.parametrize("string", [b'\\"' * 500_000, b'"' * 1_000_000, b"\\" * 1_000_001])
def test_a_string_without_end_takes_no_longer_than_it_is_long(string: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_json(b"[" * 65 + b'"' + string, limit=2_000_000, what="the document")


def test_an_object_is_asked_for() -> None:
    with pytest.raises(MalformedError, match="not a JSON object"):
        parse_json_object(b"[]", limit=10, what="x")


def test_canonical_form_sorts_by_utf16_and_refuses_fractions() -> None:
    assert canonical({"\U0001f600": 1, "\ufb33": 2}) == '{"\U0001f600":1,"\ufb33":2}'.encode()
    with pytest.raises(MalformedError):
        canonical({"a": [1.5]})
    with pytest.raises(MalformedError):
        canonical(2**60)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(values)
def test_round_trip(value: Json) -> None:
    assert parse(canonical(value)) == value


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_only_malformed(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        parse(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_the_fast_encoder_writes_what_the_reference_writes(value: object) -> None:
    assert canonical(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


def test_every_character_is_escaped_as_the_reference_escapes_it() -> None:
    characters = "".join(chr(code) for code in range(0x3000) if code)
    for text in (characters, "\0", '"\\/\b\f\n\r\t\x7f\u2028\u2029\U0001f512'):
        assert canonical({"a": text}) == rfc8785.dumps({"a": text})


@pytest.mark.parametrize("value", ["\ud800", {"a": "\udfff"}, 2**53, [1.5], {"a": 1.0}, {1: 2}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(MalformedError):
        canonical(value)


@pytest.mark.parametrize("text", ["AB", "a", "0g", " ab", "ab ", "a b0", "\u0661\u0662", 7, None])
def test_hex_is_lower_case_and_nothing_else(text: object) -> None:
    assert expect_hex("00ab", "it", size=2) == b"\x00\xab"
    with pytest.raises(MalformedError):
        expect_hex(text, "it")
