"""Sealed streams under arbitrary bytes, arbitrary changes and arbitrary division."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from cloister.channel.hpke import Kem
from cloister.channel.ohttp import (
    ChunkedSender,
    ClientRequest,
    KeyConfig,
    ServerKey,
    ServerRequest,
    encode_key_configs,
    parse_key_configs,
)
from cloister.channel.varint import decode_varint, encode_varint, varint_size
from cloister.errors import ChannelError, MalformedError, UnsupportedError
from support.channel import cut

# The ordinary KEM keeps these fast; what is tested does not depend on it.
KEY = ServerKey.generate(1, Kem.X25519)
KEYS = {1: KEY}
HEADER = 7 + 32

sizes = st.lists(st.integers(1, 200), min_size=1, max_size=5)
chunks = st.lists(st.binary(min_size=1, max_size=200), max_size=4)


def sealed_response(plain: list[bytes], end: bytes) -> tuple[ChunkedSender, bytes]:
    sender = ChunkedSender(KEY.config)
    request = ServerRequest(KEYS)
    request.receive(sender.chunk(b"", final=True))
    request.finish()
    sealer = request.respond_chunked()
    return sender, b"".join(map(sealer.chunk, plain)) + sealer.chunk(end, final=True)


def drain(opener: Any, pieces: list[bytes]) -> tuple[list[bytes], bool]:
    """Return what was released, and whether the message was complete."""
    released: list[bytes] = []
    try:
        for piece in pieces:
            released += opener.receive(piece)
        released.append(opener.finish())
    except ChannelError:
        return released, False
    return released, True


@given(st.binary(max_size=300), sizes, st.booleans())
def test_arbitrary_bytes_open_nothing(data: bytes, sizes: list[int], chunked: bool) -> None:
    assert drain(ServerRequest(KEYS, chunked=chunked), cut(data, sizes)) == ([], False)
    header = ChunkedSender(KEY.config).start()
    assert drain(ServerRequest(KEYS, chunked=chunked), cut(header + data, sizes)) == ([], False)
    opener = ChunkedSender(KEY.config).response_opener()
    assert drain(opener, cut(data, sizes)) == ([], False)


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_no_whole_response(data: bytes) -> None:
    with contextlib.suppress(ChannelError):
        raise AssertionError(ClientRequest(KEY.config).open_response(data))


@given(chunks, st.binary(max_size=200), sizes, st.integers(1, 100))
def test_streams_come_back_in_any_division(
    plain: list[bytes], end: bytes, sizes: list[int], chunk_size: int
) -> None:
    sender, response = sealed_response(plain, end)
    assert drain(sender.response_opener(), cut(response, sizes)) == ([*plain, end], True)
    sender = ChunkedSender(KEY.config, chunk_size=chunk_size)
    request = b"".join(sender.pieces([*plain, end], final=True))
    released, complete = drain(ServerRequest(KEYS), cut(request, sizes))
    assert complete and b"".join(released) == b"".join([*plain, end])
    assert {len(chunk) for chunk in released[:-1]} <= {chunk_size}


@given(chunks, st.binary(max_size=100), sizes, st.data())
def test_a_changed_stream_never_completes(
    plain: list[bytes], end: bytes, sizes: list[int], data: st.DataObject
) -> None:
    """Whatever was changed, only an unchanged beginning of the plaintext is released."""
    sender, response = sealed_response(plain, end)
    start = data.draw(st.integers(0, len(response)))
    stop = data.draw(st.integers(start, min(len(response), start + 40)))
    changed = response[:start] + data.draw(st.binary(max_size=40)) + response[stop:]
    assume(changed != response and normal(changed) != normal(response))
    released, complete = drain(sender.response_opener(), cut(changed, sizes))
    assert not complete
    assert released == plain[: len(released)]


def normal(response: bytes) -> bytes:
    """Write lengths on the fewest bytes: the draft does not authenticate how they are written."""
    output, at = response[:32], 32
    while at < len(response):
        size = varint_size(response[at])
        length = decode_varint(response[at : at + size])
        end = len(response) if length == 0 else at + size + length
        output += encode_varint(length) + response[at + size : end]
        at = end
    return output


@given(chunks, st.binary(max_size=100), st.integers(0, 1200))
def test_a_stream_cut_anywhere_never_completes(plain: list[bytes], end: bytes, at: int) -> None:
    sender, response = sealed_response(plain, end)
    cut_short = response[: at % len(response)]
    released, complete = drain(sender.response_opener(), [cut_short])
    assert not complete and released == plain[: len(released)]


@given(st.binary(max_size=200))
def test_arbitrary_bytes_as_key_configurations(data: bytes) -> None:
    with contextlib.suppress(MalformedError, UnsupportedError):
        parsed = KeyConfig.parse(data)
        assert KeyConfig.parse(parsed.encode()) == parsed
    with contextlib.suppress(MalformedError):
        configs = parse_key_configs(data)
        assert parse_key_configs(encode_key_configs(configs)) == configs


@given(st.integers(0, 2**62 - 1))
def test_integers_come_back(value: int) -> None:
    encoded = encode_varint(value)
    assert varint_size(encoded[0]) == len(encoded)
    assert decode_varint(encoded) == value
