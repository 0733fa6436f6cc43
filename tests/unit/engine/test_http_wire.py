"""Response heads and the chunked coding: the good twin first, then every way to break it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.engine.http_wire import (
    MAX_CHUNK_LINE,
    MAX_FIELDS,
    MAX_HEAD,
    MAX_TRAILER,
    ChunkedDecoder,
    parse_head,
)
from cloister.errors import MalformedError

GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked"


def test_a_good_head() -> None:
    head = parse_head(GOOD)
    assert (head.status, head.content_type, head.length) == (200, "text/event-stream", None)
    assert head.keep_alive
    counted = parse_head(b"HTTP/1.1 404 \r\nContent-Length: 12\r\nConnection: close")
    assert (counted.status, counted.length, counted.keep_alive) == (404, 12, False)
    assert parse_head(b"HTTP/1.1 204").length == 0


@pytest.mark.parametrize(
    "head",
    [
        GOOD.replace(b"1.1", b"1.0"),
        GOOD.replace(b"200", b"20"),
        GOOD.replace(b"200", b"103"),
        GOOD.replace(b"200", b"700"),
        GOOD + b"\r\nContent-Length: 5",
        GOOD + b"\r\nTransfer-Encoding: chunked",
        GOOD.replace(b"chunked", b"gzip, chunked"),
        GOOD.replace(b"Transfer-Encoding: chunked", b"X: y"),
        GOOD.replace(b"Transfer-Encoding: chunked", b"Content-Length: -1"),
        GOOD.replace(b"Transfer-Encoding: chunked", b"Content-Length: 1\r\nContent-Length: 1"),
        GOOD.replace(b"Transfer-Encoding: chunked", b"Content-Length: " + b"9" * 16),
        GOOD + b"\r\nNo colon",
        GOOD + b"\r\n folded: x",
        GOOD + b"\r\nBad Name: x",
        GOOD + b"\r\nX: a\nb",
        GOOD + b"\r\nX: a\x00b",
        GOOD + b"\r\nX: y" * MAX_FIELDS,
        GOOD + b"\r\nX: " + b"y" * MAX_HEAD,
        b"",
    ],
)
def test_a_head_that_is_not_acceptable(head: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_head(head)


@given(st.binary(max_size=300))
def test_any_head_decodes_or_is_malformed(data: bytes) -> None:
    for head in (data, GOOD + b"\r\n" + data):
        try:
            parse_head(head)
        except MalformedError:
            continue


def decoded(data: bytes, step: int) -> tuple[bytes, ChunkedDecoder]:
    decoder = ChunkedDecoder()
    out = b"".join(decoder.receive(data[at : at + step]) for at in range(0, len(data), step))
    return out, decoder


def encoded(parts: list[bytes]) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)
    return chunks + b"0\r\n\r\n"


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 50))
def test_content_survives_any_cut(parts: list[bytes], step: int) -> None:
    out, decoder = decoded(encoded(parts), step)
    assert out == b"".join(parts)
    assert decoder.finished
    assert decoder.rest == 0


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.data())
def test_a_cut_end_is_never_finished(parts: list[bytes], data: st.DataObject) -> None:
    whole = encoded(parts)
    cut = data.draw(st.integers(0, len(whole) - 1))
    _, decoder = decoded(whole[:cut], max(1, cut))
    assert not decoder.finished


def test_extensions_and_trailers_are_passed_over_and_what_follows_is_counted() -> None:
    out, decoder = decoded(b"3;a=b\r\nabc\r\n0\r\nX: y\r\nZ: w\r\n\r\nmore", 1)
    assert out == b"abc"
    assert decoder.finished
    assert decoder.rest == 4


@pytest.mark.parametrize(
    "data",
    [
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n\n",
        b"-3\r\nabc\r\n",
        b"0x3\r\nabc\r\n",
        b"+3\r\nabc\r\n",
        b" 3\r\nabc\r\n",
        b"\r\n",
        b"g\r\n",
        b"3;\x00\r\nabc\r\n",
        b"ffffffff\r\n",
        b"123456789\r\n",
        b"3" + b";" * (MAX_CHUNK_LINE + 3),
        b"0\r\n" + b"X: y\r\n" * (MAX_TRAILER // 6 + 1),
        b"0\r\n" + b"X" * (MAX_TRAILER + 3),
    ],
)
def test_chunks_that_are_not_acceptable(data: bytes) -> None:
    for step in (1, len(data)):
        with pytest.raises(MalformedError):
            decoded(data, step)


@given(st.binary(max_size=200), st.integers(1, 60))
def test_any_chunks_decode_or_are_malformed(data: bytes, step: int) -> None:
    try:
        decoded(data, step)
    except MalformedError:
        return


@pytest.mark.parametrize("status", [100, 101, 103, 199])
def test_an_informational_response_is_no_answer(status: int) -> None:
    fields = b"\r\nContent-Length: 2"
    assert parse_head(b"HTTP/1.1 200 OK" + fields).length == 2
    with pytest.raises(MalformedError, match="informational"):
        parse_head(b"HTTP/1.1 %d X" % status + fields)
