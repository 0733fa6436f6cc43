"""Oblivious HTTP, whole and in chunks: published vectors, and every way to tamper with it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from cloister.channel.hpke import OPEN_FAILED, Aead, Kdf, Kem, PrivateKey, Suite
from cloister.channel.ohttp import (
    MAX_CHUNK,
    ChunkedResponseOpener,
    ChunkedSender,
    ChunkSealer,
    ClientRequest,
    KeyConfig,
    ServerKey,
    ServerRequest,
)
from cloister.channel.varint import encode_varint
from cloister.errors import ChannelError, TruncatedError
from support.channel import HEX, cut, load

CASE = {
    "chunked": bool,
    "server_private_key": HEX,
    "key_config": HEX,
    "client_ephemeral_key": HEX,
    "enc": HEX,
    "request": [HEX],
    "sealed_request": HEX,
    "response": [HEX],
    "response_nonce": HEX,
    "sealed_response": HEX,
}
WHOLE = load("ohttp/rfc9458.json", CASE)[0]
CHUNKED = load("ohttp/chunked-ohttp-08.json", CASE)[0]
SUITES = [Suite(kem, Kdf.HKDF_SHA256, aead) for kem in Kem for aead in Aead]
KEYS = {
    1: ServerKey.generate(1, Kem.MLKEM768_X25519, tuple(SUITES[3:])),
    2: ServerKey.generate(2, Kem.X25519, tuple(SUITES[:3])),
}
CONFIG = KEYS[1].config
HEADER = 7 + Kem.MLKEM768_X25519.enc_size


def name(suite: Suite) -> str:
    return f"{suite.kem.name}-{suite.aead.name}"


def published_key(case: dict[str, Any]) -> ServerKey:
    private = PrivateKey(Kem.X25519, bytes.fromhex(case["server_private_key"]))
    config = KeyConfig.parse(bytes.fromhex(case["key_config"]))
    assert private.public_bytes == config.public_key
    return ServerKey(config=config, private_key=private)


def fixed(case: dict[str, Any], key: str) -> Any:
    return lambda _: bytes.fromhex(case[key])


def opened(opener: ServerRequest | ChunkedResponseOpener, pieces: list[bytes]) -> list[bytes]:
    chunks = [chunk for piece in pieces for chunk in opener.receive(piece)]
    return [*chunks, opener.finish()]


def refuses(call: Any, code: str = "channel") -> None:
    """Assert the one error of failed opens (or another of the channel's codes)."""
    with pytest.raises(ChannelError) as caught:
        call()
    assert caught.value.code == code
    if code == "channel":
        assert str(caught.value) == OPEN_FAILED


def exchange(suite: Suite = SUITES[4]) -> tuple[ChunkedSender, ServerRequest]:
    """Return both ends after a request of one chunk."""
    key_id = 1 if suite.kem is Kem.MLKEM768_X25519 else 2
    sender = ChunkedSender(KEYS[key_id].config, suite)
    request = ServerRequest(KEYS)
    assert opened(request, [sender.chunk(b"question", final=True)]) == [b"question"]
    return sender, request


def test_rfc_9458_example() -> None:
    key = published_key(WHOLE)
    request, response = bytes.fromhex(WHOLE["request"][0]), bytes.fromhex(WHOLE["response"][0])
    client = ClientRequest(key.config, random=fixed(WHOLE, "client_ephemeral_key"))
    sealed = client.seal(request)
    assert sealed.hex() == WHOLE["sealed_request"]
    server = ServerRequest({1: key}, chunked=False)
    assert opened(server, [sealed]) == [request]
    assert server.enc == client.enc == bytes.fromhex(WHOLE["enc"])
    answer = server.respond(response, random=fixed(WHOLE, "response_nonce"))
    assert answer.hex() == WHOLE["sealed_response"]
    assert client.open_response(answer) == response


@pytest.mark.parametrize("sizes", [1, 5, 10**6])
def test_chunked_draft_example(sizes: int) -> None:
    key = published_key(CHUNKED)
    *request, end = (bytes.fromhex(chunk) for chunk in CHUNKED["request"])
    sender = ChunkedSender(key.config, random=fixed(CHUNKED, "client_ephemeral_key"))
    sealed = sender.start() + b"".join(map(sender.chunk, request)) + sender.chunk(end, final=True)
    assert sealed.hex() == CHUNKED["sealed_request"]
    server = ServerRequest({1: key})
    assert opened(server, cut(sealed, sizes)) == [*request, end]
    assert server.enc == bytes.fromhex(CHUNKED["enc"])
    *response, end = (bytes.fromhex(chunk) for chunk in CHUNKED["response"])
    sealer = server.respond_chunked(random=fixed(CHUNKED, "response_nonce"))
    answer = b"".join(map(sealer.chunk, response)) + sealer.chunk(end, final=True)
    assert answer.hex() == CHUNKED["sealed_response"]
    assert opened(sender.response_opener(), cut(answer, sizes)) == [*response, end]


@pytest.mark.parametrize("suite", SUITES, ids=name)
def test_every_suite_both_ways(suite: Suite) -> None:
    config = KEYS[1 if suite.kem is Kem.MLKEM768_X25519 else 2].config
    client = ClientRequest(config, suite)
    whole = ServerRequest(KEYS, chunked=False)
    assert opened(whole, cut(client.seal(b"question"), 100)) == [b"question"]
    assert whole.suite == client.suite == suite
    assert client.open_response(whole.respond(b"answer")) == b"answer"
    sender, request = exchange(suite)
    assert request.suite == sender.suite == suite and request.key_id == config.key_id
    sealer = request.respond_chunked()
    answer = sealer.start() + sealer.chunk(b"an") + sealer.chunk(b"swer", final=True)
    opener = sender.response_opener()
    before = opener.finished
    assert opened(opener, cut(answer, 10)) == [b"an", b"swer"]
    assert (before, opener.finished, request.finished) == (False, True, True)


SIZES = [0, 1, 63, 64, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, 5 * MAX_CHUNK]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("parts", [[], [1], [20], [MAX_CHUNK - 1, 2], [MAX_CHUNK], [30_000]])
def test_pieces_are_full_chunks_whatever_the_parts(size: int, parts: list[int]) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    sender = ChunkedSender(CONFIG)
    sealed = b"".join(sender.pieces(cut(body, parts or [10**9]), final=True))
    request = ServerRequest(KEYS)
    chunks = opened(request, cut(sealed, 65_536))
    assert b"".join(chunks) == body
    assert {len(chunk) for chunk in chunks[:-1]} <= {MAX_CHUNK}
    assert len(chunks) == max(1, -(-size // MAX_CHUNK))


def test_pieces_may_be_followed_by_more() -> None:
    sender = ChunkedSender(CONFIG, chunk_size=10)
    sealed = b"".join(sender.pieces([b"a" * 25])) + b"".join(sender.pieces([]))
    sealed += sender.chunk(b"b" * 12) + sender.chunk(b"", final=True)
    chunks = opened(ServerRequest(KEYS), [sealed])
    assert [len(chunk) for chunk in chunks] == [10, 10, 5, 10, 2, 0]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, HEADER - 1, HEADER])
def test_a_request_cut_in_its_header_or_before_a_chunk(length: int) -> None:
    sealed = ChunkedSender(CONFIG).chunk(b"question", final=True)
    assert opened(ServerRequest(KEYS), [sealed]) == [b"question"]
    request = ServerRequest(KEYS)
    assert request.receive(sealed[:length]) == []
    assert request.header_complete == (length == HEADER)
    refuses(request.finish, "channel.truncated")
    refuses(request.finish)


def response_stream() -> tuple[ChunkedSender, list[bytes]]:
    """Return a client and a response as frames: nonce, two chunks, final chunk."""
    sender, request = exchange()
    # A nonce that, read as a length, is too short for a chunk: repeating it fails at once.
    sealer = request.respond_chunked(random=lambda size: b"\x07" * size)
    frames = [sealer.start(), sealer.chunk(b"one"), sealer.chunk(b"two")]
    return sender, [*frames, sealer.chunk(b"end", final=True)]


def request_stream() -> list[bytes]:
    """Return a request as frames: header, two chunks, final chunk."""
    sender = ChunkedSender(CONFIG)
    frames = [sender.start(), sender.chunk(b"one"), sender.chunk(b"two")]
    return [*frames, sender.chunk(b"end", final=True)]


@pytest.mark.parametrize("frames", [0, 1, 2, 3])
def test_a_stream_cut_at_a_chunk_boundary_is_noticed_in_both_directions(frames: int) -> None:
    sender, response = response_stream()
    request = request_stream()
    assert opened(sender.response_opener(), response) == [b"one", b"two", b"end"]
    assert opened(ServerRequest(KEYS), request) == [b"one", b"two", b"end"]
    for opener, stream in ((sender.response_opener(), response), (ServerRequest(KEYS), request)):
        released = [chunk for frame in stream[:frames] for chunk in opener.receive(frame)]
        assert released == [b"one", b"two"][: max(0, frames - 1)]
        with pytest.raises(TruncatedError):
            opener.finish()
        assert not opener.finished


def test_a_stream_cut_inside_a_chunk_is_noticed() -> None:
    sender, (nonce, first, second, final) = response_stream()
    assert opened(sender.response_opener(), [nonce, first, second, final])
    opener = sender.response_opener()
    assert opener.receive(nonce + first + second[:-1]) == [b"one"]
    with pytest.raises(TruncatedError):
        opener.finish()


@pytest.mark.parametrize("missing", [1, 3, 4, 18])
def test_a_final_chunk_cut_short_is_noticed(missing: int) -> None:
    sender, response = response_stream()
    stream = b"".join(response)
    assert opened(sender.response_opener(), [stream])
    opener = sender.response_opener()
    opener.receive(stream[:-missing])
    refuses(opener.finish, "channel" if missing <= 3 else "channel.truncated")


def test_the_end_of_a_stream_cannot_be_made_up() -> None:
    """A chunk that was not sealed as final does not open as the final one, nor the reverse."""
    sender, (nonce, first, second, final) = response_stream()
    assert opened(sender.response_opener(), [nonce, first, second, final])
    opener = sender.response_opener()
    opener.receive(nonce + first)
    opener.receive(b"\0" + second[1:])
    refuses(opener.finish)
    opener = sender.response_opener()
    opener.receive(nonce + first + second)
    refuses(lambda: opener.receive(encode_varint(len(final) - 1) + final[1:]))


@pytest.mark.parametrize(
    "order",
    [
        [0, 2, 1, 3],  # swapped
        [0, 2, 3],  # one left out
        [0, 1, 1, 2, 3],  # one repeated
        [0, 0, 1, 2, 3],  # nonce repeated
    ],
)
def test_chunks_out_of_order(order: list[int]) -> None:
    sender, frames = response_stream()
    assert opened(sender.response_opener(), frames)
    refuses(lambda: opened(sender.response_opener(), [frames[index] for index in order]))


@pytest.mark.parametrize("extra", ["final again", "byte", "chunk", "empty final"])
def test_nothing_may_follow_the_final_chunk(extra: str) -> None:
    sender, frames = response_stream()
    more = {"final again": frames[3], "byte": b"\0", "chunk": frames[1], "empty final": b"\0"}
    assert opened(sender.response_opener(), frames)
    opener = sender.response_opener()
    released = [chunk for frame in [*frames, more[extra]] for chunk in opener.receive(frame)]
    assert released == [b"one", b"two"]
    refuses(opener.finish)
    refuses(lambda: opener.receive(b"x"))


def test_nothing_is_taken_after_the_end() -> None:
    sender, frames = response_stream()
    request = ServerRequest(KEYS)
    response = sender.response_opener()
    opened(request, request_stream())
    opened(response, frames)
    whole = ServerRequest(KEYS, chunked=False)
    opened(whole, [ClientRequest(CONFIG).seal(b"question")])
    for opener in (request, response, whole):
        for call in (opener.finish, lambda opener=opener: opener.receive(b"x")):
            with pytest.raises(RuntimeError, match="already ended"):
                call()


@pytest.mark.parametrize("frame", [0, 1, 2, 3])
def test_one_changed_bit_is_noticed_and_nothing_later_is_released(frame: int) -> None:
    sender, frames = response_stream()
    assert opened(sender.response_opener(), frames)
    changed = list(frames)
    changed[frame] = changed[frame][:-1] + bytes([changed[frame][-1] ^ 1])
    opener = sender.response_opener()
    released: list[bytes] = []
    with pytest.raises(ChannelError, match=OPEN_FAILED):
        for piece in changed:
            released += opener.receive(piece)
        opener.finish()
    assert released == [b"one", b"two"][: max(0, frame - 1)]
    refuses(lambda: opener.receive(frames[3]))
    refuses(opener.finish)


@pytest.mark.parametrize("offset", [*range(7), 7, 8, 1000, HEADER - 1])
def test_a_changed_request_header_is_refused(offset: int) -> None:
    sealed = ChunkedSender(CONFIG).chunk(b"question", final=True)
    opened(ServerRequest(KEYS), [sealed])
    changed = sealed[:offset] + bytes([sealed[offset] ^ 0x80]) + sealed[offset + 1 :]
    request = ServerRequest(KEYS)
    code = "channel.unknown_key" if offset < 7 else "channel"
    refuses(lambda: opened(request, [changed]), code)
    refuses(lambda: request.receive(b"x"), code)
    refuses(request.finish, code)


def test_responses_belong_to_one_request() -> None:
    (first, _), (_, second) = exchange(), exchange()
    answer = second.respond_chunked().chunk(b"answer", final=True)
    refuses(lambda: opened(first.response_opener(), [answer]))


def test_requests_and_responses_do_not_stand_in_for_each_other() -> None:
    """Both directions and both forms have their own labels."""
    client = ClientRequest(CONFIG)
    sealed = client.seal(b"question")
    assert opened(ServerRequest(KEYS, chunked=False), [sealed]) == [b"question"]
    relabelled = sealed[:HEADER] + b"\0" + sealed[HEADER:]
    refuses(lambda: opened(ServerRequest(KEYS), [relabelled]))
    chunked = ChunkedSender(CONFIG).chunk(b"question", final=True)
    relabelled = chunked[:HEADER] + chunked[HEADER + 1 :]
    refuses(lambda: opened(ServerRequest(KEYS, chunked=False), [relabelled]))


@pytest.mark.parametrize("length", [1, 16, MAX_CHUNK + 17, 1 << 30, (1 << 62) - 1])
@pytest.mark.parametrize("pieces", [1, 10**6])
def test_a_declared_length_is_refused_before_it_is_kept(length: int, pieces: int) -> None:
    """1..16 leave no room for data, which counts as a failed open; 17.. start at one byte."""
    sender, frames = response_stream()
    opener = sender.response_opener()
    opener.receive(frames[0] + encode_varint(MAX_CHUNK + 16))
    opener = sender.response_opener()
    opener.receive(frames[0])

    def declare() -> None:
        for piece in cut(encode_varint(length), pieces):
            opener.receive(piece)

    tracemalloc.start()
    try:
        refuses(declare)
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()


def test_an_empty_chunk_before_the_end_is_refused() -> None:
    """The draft, section 6: a receiver treats it as a decryption error."""
    sender, request = exchange()
    sealer = request.respond_chunked()
    start = sealer.start()
    sealed = sealer._messages.seal(None, b"")
    refuses(lambda: sender.response_opener().receive(start + encode_varint(len(sealed)) + sealed))
    with pytest.raises(RuntimeError, match="only the final chunk"):
        sealer.chunk(b"")


@pytest.mark.parametrize("size", [MAX_CHUNK, MAX_CHUNK + 1])
@pytest.mark.parametrize("pieces", [1000, 10**6])
def test_the_final_chunk_is_bounded_too(size: int, pieces: int) -> None:
    sender, request = exchange()
    sealer = request.respond_chunked(chunk_size=MAX_CHUNK + 1)
    stream = sealer.chunk(bytes(size), final=True)
    opener = sender.response_opener()
    if size == MAX_CHUNK:
        assert opened(opener, cut(stream, pieces)) == [bytes(size)]
    else:
        refuses(lambda: [opener.receive(piece) for piece in cut(stream, pieces)])


@pytest.mark.parametrize("chunked", [True, False])
def test_a_request_is_bounded_as_a_whole(chunked: bool) -> None:
    if chunked:
        sealed = ChunkedSender(CONFIG).chunk(bytes(40_000), final=True)
    else:
        sealed = ClientRequest(CONFIG).seal(bytes(40_000))
    fits = ServerRequest(KEYS, chunked=chunked, max_message=len(sealed))
    assert b"".join(opened(fits, cut(sealed, 5000))) == bytes(40_000)
    request = ServerRequest(KEYS, chunked=chunked, max_message=len(sealed) - 1)
    refuses(lambda: opened(request, cut(sealed, 5000)), "channel.too_large")
    refuses(lambda: request.receive(b""), "channel.too_large")


def test_memory_stays_within_one_chunk() -> None:
    sender, request = exchange()
    sealer = request.respond_chunked()
    stream = sealer.chunk(bytes(MAX_CHUNK))
    opener = sender.response_opener()
    opener.receive(stream[:100])
    for piece in cut(stream[100:-1], 100):
        assert opener.receive(piece) == []
    assert opener._chunks is not None
    assert len(opener._chunks._pending) == MAX_CHUNK + 16 - 1


def test_a_suite_is_never_changed_for_another() -> None:
    """Downgrade: the caller's choice stands, or the request is not made."""
    classic = KEYS[2].config
    assert ChunkedSender(CONFIG).suite == SUITES[4]  # ML-KEM-768+X25519 with AES-256-GCM
    assert ChunkedSender(classic).suite == SUITES[0]  # X25519 with AES-128-GCM
    for kind in (ClientRequest, ChunkedSender):
        assert kind(classic, SUITES[2]).suite == SUITES[2]
        refuses(lambda kind=kind: kind(classic, SUITES[4]), "channel.suite")


def test_a_server_takes_no_suite_that_its_key_does_not_offer() -> None:
    key = ServerKey.generate(1, Kem.X25519, (SUITES[0],))
    wider = KeyConfig(
        key_id=1, kem=Kem.X25519, public_key=key.config.public_key, suites=tuple(SUITES[:3])
    )
    for suite in SUITES[:3]:
        sealed = ChunkedSender(wider, suite).chunk(b"x", final=True)
        request = ServerRequest({1: key})
        if suite == SUITES[0]:
            assert opened(request, [sealed]) == [b"x"]
        else:
            refuses(lambda: request.receive(sealed), "channel.unknown_key")  # noqa: B023


def test_an_unknown_key_is_named_before_any_work_is_done() -> None:
    sealed = ChunkedSender(CONFIG).chunk(b"x", final=True)
    request = ServerRequest({2: KEYS[2]})
    refuses(lambda: request.receive(sealed[:7]), "channel.unknown_key")
    with pytest.raises(RuntimeError, match="header has not arrived"):
        _ = request.enc


def test_encapsulated_keys_differ_for_every_request() -> None:
    keys = {ChunkedSender(CONFIG).enc for _ in range(10)}
    assert len(keys) == 10


def test_misuse_is_a_runtime_error() -> None:
    client, (sender, request) = ClientRequest(CONFIG), exchange()
    client.seal(b"x")
    misuse: list[Any] = [
        lambda: client.seal(b"y"),
        lambda: sender.chunk(b"more"),
        lambda: list(sender.pieces([b"more"])),
        lambda: request.respond(b"whole"),
        ServerRequest(KEYS).respond_chunked,
        lambda: ChunkedSender(CONFIG, chunk_size=0),
    ]
    for call in misuse:
        with pytest.raises(RuntimeError):
            call()


def test_the_header_is_sent_once() -> None:
    sender, request = exchange()
    sealer: ChunkSealer = request.respond_chunked()
    nonce = sealer.start()
    assert len(nonce) == 32 and sealer.start() == b""
    assert opened(sender.response_opener(), [nonce, sealer.chunk(b"x", final=True)]) == [b"x"]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_like_object_will_do(kind: Any) -> None:
    sender = ChunkedSender(CONFIG, chunk_size=10)
    sealed = sender.chunk(kind(b"0123456789abc")) + sender.chunk(kind(b"end"), final=True)
    request = ServerRequest(KEYS)
    received = [chunk for piece in cut(sealed, 900) for chunk in request.receive(kind(piece))]
    assert b"".join(received) + request.finish() == b"0123456789abcend"
    whole = ServerRequest(KEYS, chunked=False)
    client = ClientRequest(CONFIG)
    whole.receive(kind(client.seal(kind(b"hi"))))
    assert whole.finish() == b"hi"
    assert client.open_response(kind(whole.respond(kind(b"yo")))) == b"yo"


def test_several_chunks_in_one_read_are_not_taken_for_one() -> None:
    """The lengths of the first chunk and of the whole read differ in one bit only."""
    sender, request = exchange()
    sealer = request.respond_chunked()
    opener = sender.response_opener()
    assert opener.receive(sealer.start()) == []
    texts = [b"a" * 100, b"b" * (16_384 - 2 - 16)]
    frames = b"".join(sealer.chunk(text) for text in texts)
    assert frames[0] << 8 | frames[1] == (len(frames) - 2) | 0x4000
    assert opener.receive(frames) == texts


def test_one_chunk_per_read_is_refused_when_it_is_changed_and_so_is_all_after_it() -> None:
    sender, request = exchange()
    sealer = request.respond_chunked()
    opener = sender.response_opener()
    opener.receive(sealer.start())
    assert opener.receive(sealer.chunk(b"x" * 100)) == [b"x" * 100]
    bad, good = bytearray(sealer.chunk(b"y" * 100)), sealer.chunk(b"z" * 100)
    bad[-1] ^= 1
    refuses(lambda: opener.receive(bytes(bad)))
    refuses(lambda: opener.receive(good))
    refuses(opener.finish)
