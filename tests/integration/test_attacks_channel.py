"""What the channel must withstand: one test for each line, through real client and real worker.

Between them stands a hostile proxy on a real socket, which sees ciphertext, outer header fields,
sizes and timing. Every test first shows that the unaltered twin succeeds.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import urlsplit

import httpx2
import pytest

from cloister.channel.hpke import Kem
from cloister.channel.ohttp import ServerKey, encode_key_configs
from cloister.channel.varint import encode_varint
from cloister.client import ClientSettings, Connection, OpenAI, ReverifyLimits
from cloister.errors import AppraisalError, ChannelError, FetchError, TruncatedError
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.settings import Limits, Padding, WorkerSettings
from support.hostile import (
    SwapAnswers,
    cut_reply,
    cut_request,
    deliver_then_forge_unknown_key,
    flip_reply,
    flip_request,
    forge_page,
    forge_unknown_key,
    only,
    sealed_only,
    set_outer,
    whole_chunks,
)
from support.scene import (
    ATTESTATION,
    CHAT,
    Scene,
    answered,
    ask,
    error_code,
    question,
    scene,
)
from support.sealed import chat, inner_headers, seal
from support.tap import tapped
from support.wire import WireReply, WireRequest, reply

HEADER = 7 + 1088 + 32
"""Bytes before the first chunk of a request: header, and what ML-KEM-768+X25519 encapsulates."""
CHUNK = 4 + 16384 + 16
"""Bytes of a full sealed chunk."""
MIB = 1 << 20


def few_tokens() -> FakeEngine:
    return FakeEngine(script=lambda *_: Answer.text("a few words only"))


def streamed(client: Connection, text: str = "hello") -> bytes:
    with client.http.stream("POST", CHAT, json=question(text, stream=True)) as response:
        return response.read()


def refused(client: Connection, text: str = "hello", **fields: object) -> ChannelError:
    """Ask, and return the channel error that comes instead of an answer."""
    with pytest.raises(httpx2.RemoteProtocolError) as caught:
        ask(client, text, **fields)
    assert isinstance(caught.value, ChannelError)
    return caught.value


# -- a stream cut at a chunk boundary ---------------------------------------------------------


def test_an_answer_cut_at_any_chunk_boundary_is_noticed() -> None:
    parts: list[int] = []

    def count(_: WireRequest, answer: WireReply) -> WireReply:
        chunks = whole_chunks(b"".join(answer.chunks))
        parts.append(len(chunks))
        return dataclasses.replace(answer, chunks=iter(chunks))

    with scene(engine=few_tokens()) as at:
        client = at.client()
        at.proxy.on_reply = sealed_only(count)
        assert b"[DONE]" in streamed(client)
        assert parts[0] >= 6  # the nonce, some tokens, the authenticated end
        for keep in range(parts[0]):
            at.proxy.on_reply = cut_reply(keep)
            with pytest.raises(httpx2.RemoteProtocolError) as caught:
                streamed(client)
            assert isinstance(caught.value, TruncatedError)
            assert caught.value.code == "channel.truncated"


def test_a_request_cut_at_any_chunk_boundary_starts_nothing() -> None:
    text = "x" * 50_000
    with scene() as at:
        client = at.client()
        answered(client, text)
        whole = len(at.proxy.sealed[-1].body)
        boundaries = [HEADER + number * CHUNK for number in range(4)]
        assert boundaries[-1] < whole < boundaries[-1] + CHUNK
        for keep in boundaries:
            at.proxy.on_request = cut_request(partial(_first, keep))
            refused(client, text)
        assert len(at.live.engine.requests) == 1
        at.proxy.on_request = None
        answered(client, text)


def _first(size: int, sealed: bytes) -> bytes:
    return sealed[:size]


# -- a replayed request -----------------------------------------------------------------------


def test_a_replayed_request_is_refused_and_runs_once() -> None:
    """The proxy delivers each request twice, and hands the second answer to the client."""
    with scene() as at:
        client = at.client()
        answered(client)
        at.proxy.on_reply = sealed_only(lambda request, _: at.proxy.replay(request))
        response = ask(client, "twice")
        assert (response.status_code, error_code(response)) == (409, "replayed_request")
        assert response.headers["x-should-retry"] == "false"
        assert at.live.prompts == ["hello", "twice"]


def test_a_request_held_back_is_stopped_by_its_date() -> None:
    with scene() as at:
        client = at.client()
        answered(client, "at once")

        def late(request: WireRequest) -> WireRequest:
            at.live.clocks.wall_offset += 301
            at.proxy.on_request = None
            return request

        at.proxy.on_request = late
        response = ask(client, "late")
        # The date was refused inside the seal; the client corrected it and asked once more.
        assert response.extensions["cloister"].attempts == 2
        first, second = at.proxy.sealed[-2:]
        assert first.body != second.body
        assert at.live.prompts == ["at once", "late"]


# -- the same ciphertext to another path or query ---------------------------------------------


def test_another_path_or_query_outside_changes_nothing_inside() -> None:
    with scene() as at:
        client = at.client()
        honest = answered(client)
        at.proxy.on_request = lambda request: (
            dataclasses.replace(request, url=request.url + "?path=/v1/completions&model=other")
            if request.method == "POST"
            else request
        )
        assert answered(client).json() == honest.json()
        assert [request.path for request in at.live.engine.requests] == [CHAT, CHAT]
        for path in (CHAT, "/v1/models", "/v1/aci/receipts/x", "/ohttp/", "/OHTTP"):
            at.proxy.on_request = partial(_sent_to, path)
            assert refused(client).code == "channel.unsealed"
        assert len(at.live.engine.requests) == 2


def _sent_to(path: str, request: WireRequest) -> WireRequest:
    return dataclasses.replace(request, url=request.url.replace("/ohttp", path))


# -- status, header fields or content type changed --------------------------------------------


def test_a_status_changed_on_the_way_is_never_the_answers_status() -> None:
    with scene() as at:
        client = at.client()
        answered(client)
        for status in (201, 202, 302, 400, 401, 403, 404, 500):
            at.proxy.on_reply = set_outer(status=status)
            assert refused(client).code == "channel.unsealed"
        at.proxy.on_reply = set_outer(status=429)
        assert refused(client).code == "channel.overloaded"


def test_header_fields_and_content_type_changed_on_the_way_are_not_believed() -> None:
    with scene() as at:
        client = at.client()
        honest = answered(client)
        at.proxy.on_reply = set_outer(
            headers={"x-added": "1", "set-cookie": "a=b", "location": "/", "x-receipt-id": "rcpt-0"}
        )
        changed = answered(client)
        assert changed.headers.keys() == honest.headers.keys()
        assert not {"x-added", "set-cookie", "location"} & changed.headers.keys()
        assert changed.headers["content-type"] == "application/json"
        assert changed.headers["x-receipt-id"] != "rcpt-0"
        assert not client.http.cookies
        at.proxy.on_reply = set_outer(headers={"content-type": "application/json"})
        assert refused(client).code == "channel.unsealed"


def test_an_answer_changed_anywhere_is_noticed() -> None:
    with scene() as at:
        client = at.client()
        answered(client)
        for position in (0, 31, 32, 40, 400, -40, -1):
            at.proxy.on_reply = flip_reply(position)
            refused(client)


def test_answers_exchanged_between_requests_are_noticed() -> None:
    with scene() as at:
        client = at.client()
        answered(client)
        at.proxy.on_reply = SwapAnswers()
        answered(client)  # the first has nothing to be exchanged with
        refused(client)


def test_a_request_changed_anywhere_starts_nothing() -> None:
    with scene() as at:
        client = at.client()
        answered(client)
        for position in (0, 1, 3, 5, 7, HEADER - 1, HEADER, HEADER + 300, -1):
            at.proxy.on_request = flip_request(position)
            refused(client)
        assert len(at.live.engine.requests) == 1
        at.proxy.on_request = None
        answered(client)


# -- a forged plaintext page delivered as an answer -------------------------------------------


def test_a_forged_page_is_a_channel_error_and_never_an_answer() -> None:
    page = b'{"choices":[{"message":{"content":"tell me your password"}}]}'
    kinds = ("application/json", "text/html", "text/event-stream", "message/ohttp-res")
    with scene() as at:
        client = at.client()
        answered(client)
        for status, kind in itertools.product((200, 400, 401, 403, 404, 500, 502), kinds):
            at.proxy.forge = forge_page(status, kind, page)
            error = refused(client)
            assert error.code == "channel.unsealed"
            assert "password" not in str(error)
        at.proxy.forge = forge_page(200, "message/ohttp-chunked-res", page)
        assert "password" not in str(refused(client))


# -- plaintext inference ----------------------------------------------------------------------


def test_plaintext_inference_is_refused_with_a_word_on_how_to_connect() -> None:
    with scene() as at:
        answered(at.client())
        for path in (CHAT, "/v1/completions", "/v1/models"):
            answer = httpx2.post(at.url + path, json=question("in clear"), trust_env=False)
            assert answer.status_code == 403
            assert error_code(answer) == "plaintext_refused"
            assert "cloister proxy" in answer.json()["error"]["message"]
            assert "in clear" not in answer.text
        assert at.live.prompts == ["hello"]


def test_a_client_whose_channel_fails_never_falls_back_to_plaintext() -> None:
    with scene() as at, tapped(at.url) as tap:
        client = at.client(url=tap.url)
        answered(client, "a needle in the hay")
        at.proxy.forge = lambda request: (
            reply(415, "application/json", b"{}") if request.method == "POST" else None
        )
        refused(client, "a needle in the hay")
        assert {request.path for request in at.proxy.seen} == {ATTESTATION, "/ohttp"}
        assert b"POST /ohttp" in tap
        assert b"needle" not in tap


# -- a declared length of gigabytes -----------------------------------------------------------


def peak_of(action: Callable[[], object]) -> int:
    """Bytes that Python took at most while `action` ran, in this whole process."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_gigabytes_declared_by_a_request_are_refused_before_memory_is_taken() -> None:
    settings = WorkerSettings(limits=Limits(first_byte_s=2))
    with scene(settings) as at:
        answered(at.client())
        url, config = at.live.url, at.live.config
        honest = seal(config, body=json.dumps(chat()).encode(), headers=inner_headers())
        post = b"POST /ohttp HTTP/1.1\r\nHost: x\r\nContent-Type: message/ohttp-chunked-req\r\n"
        whole = post + b"Content-Length: %d\r\n\r\n"
        assert raw(url, whole % len(honest.body) + honest.body).startswith(b"HTTP/1.1 200")
        assert len(at.live.engine.requests) == 2
        piece = post + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (1 << 40)
        sealed = honest.body[:HEADER] + encode_varint(1 << 40) + bytes(5000)
        inner = b"\x00\x04POST\x05https\x01a\x02/v\x00" + encode_varint(1 << 40) + bytes(5000)
        inside = seal(config, headers=(), plaintext=inner)

        def attack() -> None:
            assert raw(url, whole % (64 << 30) + honest.body).startswith(b"HTTP/1.1 413")
            assert raw(url, piece + honest.body).startswith(b"HTTP/1.1 4")
            assert raw(url, whole % len(sealed) + sealed).startswith(b"HTTP/1.1 400")
            answer = raw(url, whole % len(inside.body) + inside.body)
            assert answer.startswith(b"HTTP/1.1 200")  # a sealed refusal: whoever asked was heard

        assert peak_of(attack) < 4 * MIB
        assert len(at.live.engine.requests) == 2


def raw(url: str, message: bytes) -> bytes:
    """Send bytes to the worker and return how its answer begins."""
    target = urlsplit(url)
    with socket.create_connection((str(target.hostname), int(target.port or 0))) as connection:
        connection.settimeout(60)
        connection.sendall(message)
        return connection.recv(65536)


def test_gigabytes_declared_by_an_answer_are_refused_before_memory_is_taken() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: message/ohttp-chunked-res\r\n"
    framed = bytes(32) + encode_varint(1 << 40) + bytes(5000)
    with scene() as at, tapped(at.url) as tap:
        client = at.client(url=tap.url)
        answered(client)
        for canned in (
            head + b"Content-Length: %d\r\n\r\n" % (1 << 40) + framed,
            head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (1 << 40) + framed,
            head + b"Content-Length: %d\r\n\r\n" % len(framed) + framed,
            head + b"Content-Length: %d\r\n\r\n" % (1 << 40),
        ):
            tap.canned = canned
            assert peak_of(lambda: refused(client)) < 4 * MIB


def test_a_report_without_end_is_not_read_to_its_end() -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield b" " * 65536

    with scene() as at:
        at.client()
        at.proxy.forge = lambda _: WireReply(
            status=200, headers=[("content-type", "application/json")], chunks=endless()
        )
        with pytest.raises(FetchError) as caught:
            at.client()
        assert caught.value.code == "fetch.too_large"
        assert sent < 16 * MIB  # a megabyte, and what sockets hold


# -- an unknown key id ------------------------------------------------------------------------


def test_an_unknown_key_makes_the_client_verify_once_wait_and_retry() -> None:
    limits = ReverifyLimits(delay_s=0.3)
    with scene() as at:
        client = at.client(settings=ClientSettings(reverify=limits))
        assert answered(client).extensions["cloister"].attempts == 1
        at.live.clocks.steady_offset += 3600 + 600 + 1  # the client's key is gone
        times: list[tuple[str, float]] = []

        def stamp(request: WireRequest) -> WireRequest:
            times.append((request.path, at.live.clocks.wall()))
            return request

        at.proxy.on_request = stamp
        exchange = answered(client).extensions["cloister"]
        assert exchange.attempts == 2
        assert exchange.attester.keyset_digest == at.live.worker.context.keys.current.digest
        assert [path for path, _ in times] == ["/ohttp", ATTESTATION, "/ohttp"]
        assert times[1][1] - times[0][1] >= 0.3
        assert at.live.prompts == ["hello", "hello"]


def test_forged_unknown_keys_end_after_one_retry_and_do_not_amplify() -> None:
    limits = ReverifyLimits(burst=3, refill_s=3600, delay_s=0.001)
    with scene() as at:
        client = at.client(settings=ClientSettings(reverify=limits))
        answered(client)
        at.proxy.forge = forge_unknown_key()
        sealed, reports = len(at.proxy.sealed), at.reports
        assert refused(client).code == "channel.unknown_key"
        assert (len(at.proxy.sealed) - sealed, at.reports - reports) == (2, 1)
        codes = {refused(client).code for _ in range(20)}
        assert codes == {"channel.unknown_key", "channel.reverify_limited"}
        assert at.reports - reports <= limits.burst
        assert len(at.live.engine.requests) == 1
        at.proxy.forge = None
        answered(client)  # what was affirmed stays so


def test_forged_unknown_keys_to_many_requests_at_once_cause_few_reports() -> None:
    limits = ReverifyLimits(burst=3, refill_s=3600, delay_s=0.001)
    with scene() as at:
        client = at.client(settings=ClientSettings(reverify=limits))
        answered(client)
        at.proxy.forge = forge_unknown_key()
        reports = at.reports
        threads = [threading.Thread(target=_fails, args=(client,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert at.reports - reports <= limits.burst


def _fails(client: Connection) -> None:
    refused(client)


def test_a_forged_unknown_key_does_not_make_a_prompt_run_twice() -> None:
    """The worker runs it, the proxy hides the answer, and the client sends it again."""
    with scene() as at:
        client = at.client()
        answered(client)
        at.proxy.on_reply = deliver_then_forge_unknown_key()
        response = ask(client, "once")
        assert (response.status_code, error_code(response)) == (409, "idempotency_key_in_use")
        assert response.headers["x-should-retry"] == "false"
        assert response.extensions["cloister"].attempts == 2
        first, second = at.proxy.sealed[-2:]
        assert first.body != second.body  # sealed anew, so that only what is inside can tell
        assert at.live.prompts == ["hello", "once"]


def test_retries_of_the_openai_sdk_do_not_make_a_prompt_run_twice() -> None:
    openai = pytest.importorskip("openai")
    with scene() as at:
        with OpenAI(base_url=at.url, trust_env=False, max_retries=2, **at.trust) as sdk:
            create = partial(sdk.chat.completions.create, model="fake")
            assert create(messages=[{"role": "user", "content": "hello"}]).choices
            lost = iter([True, False])

            def lose(_: WireRequest, answer: WireReply) -> WireReply:
                if not next(lost, False):
                    return answer
                for _chunk in answer.chunks:
                    pass
                return reply(502, "text/html", b"")

            at.proxy.on_reply = sealed_only(lose)
            with pytest.raises(openai.ConflictError):
                create(messages=[{"role": "user", "content": "once"}])
        assert len(at.proxy.sealed) == 3
        assert at.live.prompts == ["hello", "once"]


# -- a downgrade of the suite -----------------------------------------------------------------


def suite_of(request: WireRequest) -> bytes:
    """KEM, KDF and AEAD in a sealed request's header (RFC 9458 section 4.1)."""
    return request.body[1:7]


HYBRID = bytes.fromhex("647a00010002")
"""ML-KEM-768+X25519, HKDF-SHA256, AES-256-GCM."""


def test_weaker_keys_at_the_unauthenticated_path_meet_nobody() -> None:
    weak = ServerKey.generate(9, Kem.X25519)
    with scene() as at:
        answered(at.client())
        at.proxy.forge = lambda request: (
            reply(200, "application/ohttp-keys", encode_key_configs((weak.config,)))
            if request.path == "/ohttp-keys"
            else None
        )
        answered(at.client())
        assert "/ohttp-keys" not in {request.path for request in at.proxy.seen}
        assert {suite_of(request) for request in at.proxy.sealed} == {HYBRID}


@pytest.mark.parametrize("change", ["reversed", "classic only"])
def test_a_report_with_its_keys_reordered_or_left_out_is_refused(change: str) -> None:
    def alter(_: WireRequest, answer: WireReply) -> WireReply:
        report = json.loads(b"".join(answer.chunks))
        keys = report["attestation"]["workload_keyset"]["e2ee_public_keys"]
        keys.reverse()
        if change == "classic only":
            keys.pop()
        return dataclasses.replace(answer, chunks=iter([json.dumps(report).encode()]))

    with scene() as at:
        answered(at.client())
        posts = len(at.proxy.sealed)
        at.proxy.on_reply = only(ATTESTATION, alter)
        with pytest.raises(AppraisalError) as caught:
            at.client()
        assert caught.value.code == "keyset_unbound"
        assert len(at.proxy.sealed) == posts


def test_the_order_of_an_attested_keyset_does_not_choose_the_suite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with scene() as at:
        answered(at.client())
        assert suite_of(at.proxy.sealed[0]) == HYBRID
    monkeypatch.setattr("cloister.worker.keys.KEMS", (Kem.X25519, Kem.MLKEM768_X25519))
    with scene() as at:
        answered(at.client())
        assert suite_of(at.proxy.sealed[0]) == HYBRID


def test_a_suite_changed_in_a_requests_header_starts_nothing() -> None:
    with scene() as at:
        client = at.client()
        answered(client)
        for suite in ("647a00010001", "002000010001", "647a00010003", "002000010003"):
            at.proxy.on_request = cut_request(partial(_with_suite, bytes.fromhex(suite)))
            assert refused(client).code in {"channel.unknown_key", "channel.reverify_limited"}
        assert len(at.live.engine.requests) == 1
        at.proxy.on_request = None
        answered(client)


def _with_suite(suite: bytes, sealed: bytes) -> bytes:
    return sealed[:1] + suite + sealed[7:]


# -- sizes that reveal token lengths ----------------------------------------------------------


def sizes(at: Scene, client: Connection, words: tuple[str, ...], *, stream: bool) -> list[int]:
    """Sizes of the sealed chunks on the wire of one answer made of `words`."""
    found: list[int] = []

    def measure(_: WireRequest, answer: WireReply) -> WireReply:
        body = b"".join(answer.chunks)
        found.extend(len(part) for part in whole_chunks(body)[1:])
        return dataclasses.replace(answer, chunks=iter([body]))

    at.live.engine.script = lambda *_: Answer(tokens=words)
    at.proxy.on_reply = sealed_only(measure)
    answered(client, stream=stream)
    return found


SHORT, LONG = ("a", "b", "c", "d"), ("agreeably", "between", "considerations", "do")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_sizes_on_the_wire_do_not_tell_short_tokens_from_long_ones(stream: bool) -> None:
    bare = WorkerSettings(padding=Padding(stream_bucket=1, body_bucket=1))
    with scene(bare) as at:  # so that what is measured below would show it
        client = at.client()
        short = sizes(at, client, SHORT, stream=stream)
        assert short != sizes(at, client, LONG, stream=stream)
    with scene() as at:
        client = at.client()
        short = sizes(at, client, SHORT, stream=stream)
        long = sizes(at, client, LONG, stream=stream)
        assert short == long
        assert not stream or len(set(long[1:-2])) == 1


def test_sizes_on_the_wire_do_not_tell_short_prompts_from_long_ones() -> None:
    def size(client: Connection, at: Scene, text: str) -> int:
        answered(client, text)
        return len(at.proxy.sealed[-1].body)

    with scene() as at:
        bare = at.client(settings=ClientSettings(request_padding=1))
        assert size(bare, at, "no") != size(bare, at, "a question of quite some length")
        client = at.client()
        assert size(client, at, "no") == size(client, at, "a question of quite some length")
