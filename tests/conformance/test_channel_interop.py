"""The channel against independent implementations from npm, run by Node.js.

`tests/interop/node/` pins them by hash; `support.node` installs and runs them.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator

import pytest

from cloister.channel.bhttp import (
    Data,
    EndOfContent,
    RequestDecoder,
    RequestEncoder,
    RequestHead,
    ResponseDecoder,
    ResponseEncoder,
    ResponseHead,
    encode_request,
    encode_response,
)
from cloister.channel.hpke import (
    Aead,
    Kdf,
    Kem,
    PrivateKey,
    Suite,
    setup_receiver,
    setup_sender,
)
from cloister.channel.ohttp import MAX_CHUNK, ServerKey, ServerRequest
from support.channel import joined
from support.node import Peer, running

pytestmark = pytest.mark.node

SUITES = [Suite(kem, Kdf.HKDF_SHA256, aead) for kem in Kem for aead in Aead]
MESSAGES = [b"", b"first", b"x" * 300]
BODY = '{"messages":[{"role":"user","content":"Grüezi"}]}'.encode()


def name(suite: Suite) -> str:
    return f"{suite.kem.name}-{suite.aead.name}"


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    if shutil.which("node") is None or shutil.which("npm") is None:
        reason = "Node.js is missing: INTEROPERABILITY OF THE CHANNEL IS NOT TESTED"
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    with running("peer.mjs") as process:
        yield process


@pytest.mark.parametrize("suite", SUITES, ids=name)
def test_we_open_what_the_peer_seals(peer: Peer, suite: Suite) -> None:
    key = PrivateKey.generate(suite.kem)
    answer = peer.ask(
        "hpke_seal",
        kem=suite.kem,
        aead=suite.aead,
        public=key.public_bytes.hex(),
        info=b"info".hex(),
        aad=b"aad".hex(),
        messages=[message.hex() for message in MESSAGES],
    )
    receiver = setup_receiver(suite, bytes.fromhex(answer["enc"]), key, b"info")
    opened = [receiver.open(b"aad", bytes.fromhex(sealed)) for sealed in answer["sealed"]]
    assert opened == MESSAGES
    assert receiver.export(b"context", 48).hex() == answer["exported"]


@pytest.mark.parametrize("suite", SUITES, ids=name)
def test_the_peer_opens_what_we_seal(peer: Peer, suite: Suite) -> None:
    key = PrivateKey.generate(suite.kem)
    enc, sender = setup_sender(suite, key.public_bytes, b"info")
    answer = peer.ask(
        "hpke_open",
        kem=suite.kem,
        aead=suite.aead,
        private=key.private_bytes().hex(),
        enc=enc.hex(),
        info=b"info".hex(),
        aad=b"aad".hex(),
        sealed=[sender.seal(b"aad", message).hex() for message in MESSAGES],
    )
    assert [bytes.fromhex(message) for message in answer["opened"]] == MESSAGES
    assert sender.export(b"context", 48).hex() == answer["exported"]


REQUEST = RequestHead(
    method=b"POST",
    scheme=b"https",
    authority=b"worker.example",
    path=b"/v1/chat/completions",
    headers=((b"accept", b"text/event-stream"), (b"content-type", b"application/json")),
)
RESPONSE = ResponseHead(status=200, headers=((b"content-type", b"text/event-stream"),))
TRAILERS = ((b"x-aci-receipt", b"abc"),)


def streamed_request() -> bytes:
    encoder = RequestEncoder()
    parts = [encoder.head(REQUEST), encoder.data(BODY[:9]), encoder.data(BODY[9:])]
    return b"".join(parts) + encoder.end(TRAILERS, pad_to=256)


def streamed_response() -> bytes:
    encoder = ResponseEncoder()
    parts = [encoder.head(RESPONSE), encoder.data(BODY), encoder.data(BODY)]
    return b"".join(parts) + encoder.end(TRAILERS, pad_to=256)


@pytest.mark.parametrize(
    "message",
    [
        encode_request(REQUEST, BODY),
        encode_request(REQUEST, BODY, TRAILERS, padding_to=256),
        streamed_request(),
    ],
    ids=["known", "padded", "streamed"],
)
def test_the_peer_reads_our_requests(peer: Peer, message: bytes) -> None:
    answer = peer.ask("bhttp_decode_request", message=message.hex())
    assert answer == {
        "method": "POST",
        "url": "https://worker.example/v1/chat/completions",
        "headers": [[name.decode(), value.decode()] for name, value in REQUEST.headers],
        "body": BODY.hex(),
    }


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (encode_response(RESPONSE, BODY), BODY),
        (encode_response(RESPONSE, BODY, TRAILERS, padding_to=256), BODY),
        (streamed_response(), BODY + BODY),
    ],
    ids=["known", "padded", "streamed"],
)
def test_the_peer_reads_our_responses(peer: Peer, message: bytes, body: bytes) -> None:
    answer = peer.ask("bhttp_decode_response", message=message.hex())
    assert answer == {
        "status": 200,
        "headers": [["content-type", "text/event-stream"]],
        "body": body.hex(),
    }


def test_we_read_the_peers_requests(peer: Peer) -> None:
    headers = {name.decode(): value.decode() for name, value in REQUEST.headers}
    url = "https://worker.example/v1/chat/completions"
    answer = peer.ask(
        "bhttp_encode_request", method="POST", url=url, headers=headers, body=BODY.hex()
    )
    decoder = RequestDecoder()
    events = joined(decoder.receive(bytes.fromhex(answer["message"])) + decoder.finish())
    assert events == [REQUEST, Data(data=BODY), EndOfContent()]


def test_we_read_the_peers_responses(peer: Peer) -> None:
    headers = {"content-type": "text/event-stream"}
    answer = peer.ask("bhttp_encode_response", status=200, headers=headers, body=BODY.hex())
    decoder = ResponseDecoder()
    events = joined(decoder.receive(bytes.fromhex(answer["message"])) + decoder.finish())
    assert events == [RESPONSE, Data(data=BODY), EndOfContent()]


@pytest.mark.parametrize("suite", SUITES, ids=name)
def test_a_whole_chunked_exchange_with_the_peer_as_client(peer: Peer, suite: Suite) -> None:
    key = ServerKey.generate(7, suite.kem, (suite,))
    message = encode_request(REQUEST, BODY)
    answer = peer.ask(
        "ohttp_request",
        key_id=7,
        kem=suite.kem,
        aead=suite.aead,
        public=key.config.public_key.hex(),
        chunks=[message[:20].hex(), message[20:].hex(), ""],
    )
    request = ServerRequest({7: key})
    chunks = request.receive(bytes.fromhex(answer["message"]))
    assert [*chunks, request.finish()] == [message[:20], message[20:], b""]
    encoder, sealer = ResponseEncoder(), request.respond_chunked()
    plain = [encoder.head(RESPONSE), encoder.data(BODY), encoder.data(bytes(MAX_CHUNK - 20))]
    final = encoder.end(TRAILERS)
    sealed = b"".join(map(sealer.chunk, plain)) + sealer.chunk(final, final=True)
    answer = peer.ask("ohttp_response", message=sealed.hex())
    assert [bytes.fromhex(chunk) for chunk in answer["opened"]] == [*plain, final]
