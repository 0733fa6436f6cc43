"""Binary HTTP under arbitrary bytes, arbitrary messages and arbitrary division."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloister.channel.bhttp import (
    Data,
    EndOfContent,
    InformationalResponse,
    Limits,
    RequestDecoder,
    RequestEncoder,
    RequestHead,
    ResponseDecoder,
    ResponseEncoder,
    ResponseHead,
    encode_request,
    encode_response,
)
from cloister.errors import MalformedError
from support.channel import cut, joined

SMALL = Limits(header_bytes=200, header_count=10, body_bytes=300, padding_bytes=50)

token = st.from_regex(rb"[a-z0-9!#$%&'*+.^_`|~-]{1,20}", fullmatch=True)
value = st.from_regex(rb"([!-~\x80-\xff]([ -~\t\x80-\xff]{0,30}[!-~\x80-\xff])?)?", fullmatch=True)
fields = st.lists(st.tuples(token, value), max_size=6).map(tuple)
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5)
contents = st.lists(st.binary(max_size=200), max_size=4)
request_heads = st.builds(
    RequestHead,
    method=st.sampled_from([b"GET", b"POST", b"x-own"]),
    scheme=st.sampled_from([b"https", b"http"]),
    authority=st.from_regex(rb"[a-z0-9.:\[\]-]{0,20}", fullmatch=True),
    path=st.from_regex(rb"/[!-\"$-~]{0,30}", fullmatch=True) | st.just(b"/v1/models?a=%20"),
    headers=fields,
)
response_heads = st.builds(ResponseHead, status=st.integers(200, 599), headers=fields)
informationals = st.lists(
    st.builds(InformationalResponse, status=st.integers(100, 199), headers=fields), max_size=3
)


def read(decoder: Any, pieces: list[bytes]) -> list[Any]:
    events = [event for piece in pieces for event in decoder.receive(piece)]
    return joined(events + decoder.finish())


def outcome(decoder: Any, pieces: list[bytes]) -> list[Any] | str:
    """Return the events, or the code of the error."""
    try:
        return read(decoder, pieces)
    except MalformedError as error:
        return error.code


@given(st.binary(max_size=400), st.sampled_from([RequestDecoder, ResponseDecoder]), sizes)
def test_arbitrary_bytes_decode_or_are_malformed(data: bytes, kind: Any, sizes: list[int]) -> None:
    whole = outcome(kind(SMALL), [data])
    assert outcome(kind(SMALL), cut(data, sizes)) == whole


@given(request_heads, st.binary(max_size=60), st.integers(0, 400), st.integers(0, 255), sizes)
def test_a_changed_byte_decodes_or_is_malformed(
    head: RequestHead, body: bytes, place: int, byte: int, sizes: list[int]
) -> None:
    message = bytearray(encode_request(head, body))
    message[place % len(message)] = byte
    whole = outcome(RequestDecoder(SMALL), [bytes(message)])
    assert outcome(RequestDecoder(SMALL), cut(bytes(message), sizes)) == whole


@pytest.mark.parametrize("sizes", [[1], [7], [1000]])
def test_what_is_wrong_first_is_told_however_padding_is_cut(sizes: list[int]) -> None:
    message = encode_request(
        RequestHead(method=b"GET", scheme=b"https", authority=b"", path=b"/"), b""
    )
    limit = SMALL.padding_bytes
    for padding, code in (
        (bytes(limit), None),
        (bytes(limit) + b"\1", "malformed.too_large"),
        (b"\1" + bytes(limit), "malformed"),
        (bytes(limit - 1) + b"\1", "malformed"),
    ):
        found = outcome(RequestDecoder(SMALL), cut(message + padding, sizes))
        assert found == code if code else not isinstance(found, str)


@given(request_heads, contents, fields, st.integers(0, 30), sizes)
@example(RequestHead(method=b"GET", scheme=b"http", authority=b"", path=b"/"), [], (), 0, [1])
def test_requests_come_back(
    head: RequestHead, content: list[bytes], trailers: Any, pad: int, sizes: list[int]
) -> None:
    body = b"".join(content)
    expected: list[Any] = [
        head,
        *([Data(data=body)] if body else []),
        EndOfContent(trailers=trailers),
    ]
    known = encode_request(head, body, trailers, padding_to=pad or None)
    encoder = RequestEncoder()
    streamed = encoder.head(head) + b"".join(map(encoder.data, content))
    streamed += encoder.end(trailers, pad)
    for message in (known, streamed):
        assert read(RequestDecoder(), cut(message, sizes)) == expected


@given(informationals, response_heads, contents, fields, sizes)
def test_responses_come_back(
    first: list[InformationalResponse],
    head: ResponseHead,
    content: list[bytes],
    trailers: Any,
    sizes: list[int],
) -> None:
    body = b"".join(content)
    data = [Data(data=body)] if body else []
    expected = [*first, head, *data, EndOfContent(trailers=trailers)]
    known = encode_response(head, body, trailers, informational=tuple(first))
    encoder = ResponseEncoder()
    streamed = b"".join(map(encoder.informational, first)) + encoder.head(head)
    streamed += b"".join(map(encoder.data, content)) + encoder.end(trailers)
    for message in (known, streamed):
        assert read(ResponseDecoder(), cut(message, sizes)) == expected


@given(st.binary(max_size=20), st.binary(max_size=40))
def test_what_an_encoder_writes_a_decoder_reads(name: bytes, text: bytes) -> None:
    """Encoder and decoder draw the same line between fields that are allowed and that are not."""
    head = ResponseHead(status=200, headers=((name, text),))
    lines = bytes([len(name)]) + name + bytes([len(text)]) + text
    raw = b"\x01\x40\xc8" + bytes([0x40, len(lines)]) + lines
    try:
        encoded = encode_response(head, b"")
    except MalformedError:
        with pytest.raises(MalformedError):
            read(ResponseDecoder(), [raw])
        return
    assert read(ResponseDecoder(), [encoded]) == read(ResponseDecoder(), [raw])


@given(st.binary(max_size=300))
def test_a_decoder_says_the_same_after_an_error(data: bytes) -> None:
    decoder = RequestDecoder(SMALL)
    with contextlib.suppress(MalformedError):
        decoder.receive(data)
        return
    with pytest.raises(MalformedError):
        decoder.receive(b"\0")
    with pytest.raises(MalformedError):
        decoder.finish()
