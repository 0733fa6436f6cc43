"""Clients with a hostile proxy between them and an honest worker.

Every test affirms the unaltered twin first: the same client, the same worker, the proxy passing
everything on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import httpx2
import pytest

from cloister.channel import bhttp
from cloister.channel.hpke import Kem
from cloister.channel.ohttp import ServerKey, encode_key_configs
from cloister.client import ClientSettings, ReverifyLimits
from cloister.errors import AppraisalError, ChannelError, FetchError, TruncatedError
from support.clients import KINDS, TRANSPORT_ERRORS, Asker
from support.fake_worker import Answer, FakeWorker, events_answer
from support.hostile import (
    HostileProxy,
    ReplyHook,
    SwapAnswers,
    cut_reply,
    cut_reply_bytes,
    cut_request,
    deliver_then_forge_unknown_key,
    endless,
    flip_reply,
    flip_request,
    forge_page,
    forge_unknown_key,
    only,
    repeat_chunk,
    set_outer,
    swap_chunks,
    whole_chunks,
)
from support.wire import WireReply, WireRequest, reply


def stream(_: bhttp.RequestHead, __: bytes) -> Answer:
    return events_answer([b"data: %d\n\n" % number for number in range(10)])


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


def between(kind: str, **options: object) -> tuple[HostileProxy, Asker, FakeWorker]:
    """A client, a proxy and a worker that have spoken once without interference."""
    worker = FakeWorker(application=stream)
    proxy = HostileProxy(worker)
    asker = Asker(kind, proxy, **options)
    got = asker.post()
    assert got.status == 200
    assert got.exchange.receipt_verified
    assert got.body.endswith(b"data: 9\n\n")
    return proxy, asker, worker


def refused(asker: Asker) -> ChannelError:
    """Post once more and return the channel error, which the HTTP library knows as its own."""
    with pytest.raises(TRANSPORT_ERRORS) as caught:
        asker.post()
    assert isinstance(caught.value, ChannelError)
    return caught.value


# Cuts


@pytest.mark.parametrize("keep", range(12))
def test_an_answer_cut_at_a_chunk_boundary(kind: str, keep: int) -> None:
    proxy, asker, _ = between(kind)
    proxy.on_reply = cut_reply(keep)
    error = refused(asker)
    assert isinstance(error, TruncatedError)
    assert error.code == "channel.truncated"


def test_the_uncut_answer_has_thirteen_parts(kind: str) -> None:
    # So that the test above cuts at every boundary: nonce, head, ten events, end.
    parts: list[int] = []

    def count(_: WireRequest, answer: WireReply) -> WireReply:
        body = b"".join(answer.chunks)
        parts.append(len(whole_chunks(body)))
        return replace(answer, chunks=iter([body]))

    proxy, asker, _ = between(kind)
    proxy.on_reply = count
    asker.post()
    assert parts == [13]


@pytest.mark.parametrize("keep", [0, 1, 31, 32, 33, 40, 200, -40, -17, -1])
def test_an_answer_cut_anywhere(kind: str, keep: int) -> None:
    proxy, asker, _ = between(kind)
    proxy.on_reply = cut_reply_bytes(keep)
    refused(asker)


def test_a_connection_lost_in_the_middle(kind: str) -> None:
    proxy, asker, _ = between(kind)
    library = asker.post.__globals__[kind.removesuffix("-async")]

    def break_off(_: WireRequest, answer: WireReply) -> WireReply:
        def chunks() -> Iterator[bytes]:
            yield next(answer.chunks)
            yield next(answer.chunks)
            raise library.ReadError("connection reset")

        return replace(answer, chunks=chunks())

    proxy.on_reply = only("/ohttp", break_off)
    assert isinstance(refused(asker), TruncatedError)


@pytest.mark.parametrize("keep", [0, 6, 7, 500, -17, -1])
def test_a_request_cut_is_not_run(kind: str, keep: int) -> None:
    proxy, asker, worker = between(kind)
    proxy.on_request = cut_request(lambda body: body[:keep])
    assert refused(asker).code == "channel.unsealed"
    assert len(worker.generations) == 1


def test_a_request_cut_at_a_chunk_boundary_is_not_run(kind: str) -> None:
    proxy, asker, worker = between(kind)
    body = b"x" * 100_000
    assert asker.post(body=body).status == 200
    header = 7 + 32 + 1088  # header, and the encapsulated key of ML-KEM-768+X25519
    chunk = 4 + 16384 + 16
    for chunks in range(6):
        proxy.on_request = cut_request(partial(_keep, header + chunks * chunk))
        with pytest.raises(TRANSPORT_ERRORS) as caught:
            asker.post(body=body)
        assert isinstance(caught.value, ChannelError)
    assert len(worker.generations) == 2


def _keep(size: int, sealed: bytes) -> bytes:
    return sealed[:size]


# Changes


@pytest.mark.parametrize("position", [0, 3, 7, 100, 1127, 1200, -1])
def test_a_request_changed_is_not_run(kind: str, position: int) -> None:
    proxy, asker, worker = between(kind)
    proxy.on_request = flip_request(position)
    refused(asker)
    assert len(worker.generations) == 1


@pytest.mark.parametrize("position", [0, 31, 32, 33, 60, 150, -40, -1])
def test_an_answer_changed(kind: str, position: int) -> None:
    proxy, asker, _ = between(kind)
    proxy.on_reply = flip_reply(position)
    refused(asker)


@pytest.mark.parametrize(
    "hook", [swap_chunks(2, 3), swap_chunks(5, 9), repeat_chunk(4), repeat_chunk(1)]
)
def test_chunks_out_of_order(kind: str, hook: ReplyHook) -> None:
    proxy, asker, _ = between(kind)
    proxy.on_reply = hook
    refused(asker)


@pytest.mark.parametrize("status", [201, 204, 302, 400, 401, 403, 500])
def test_a_status_changed_outside_never_becomes_the_answer(kind: str, status: int) -> None:
    proxy, asker, _ = between(kind)
    proxy.on_reply = set_outer(status=status)
    assert refused(asker).code == "channel.unsealed"


def test_header_fields_added_outside_are_not_seen(kind: str) -> None:
    proxy, asker, _ = between(kind)
    proxy.on_reply = set_outer(
        headers={"x-added": "1", "set-cookie": "track=1", "location": "http://evil.test/"}
    )
    got = asker.post()
    assert got.headers["content-type"] == "text/event-stream"
    for name in ("x-added", "set-cookie", "location"):
        assert name not in got.headers
    asker.post()
    assert all(request.header("cookie") is None for request in proxy.seen)


def test_a_content_type_changed_outside(kind: str) -> None:
    proxy, asker, _ = between(kind)
    proxy.on_reply = set_outer(headers={"content-type": "application/json"})
    assert refused(asker).code == "channel.unsealed"


@pytest.mark.parametrize(
    ("status", "content_type"),
    [
        (200, "application/json"),
        (200, "text/event-stream"),
        (401, "application/json"),
        (403, "text/html"),
        (502, "text/html"),
        (200, "message/ohttp-res"),
        (200, "message/ohttp-chunked-res"),
    ],
)
def test_a_forged_page_is_never_an_answer(kind: str, status: int, content_type: str) -> None:
    proxy, asker, _ = between(kind)
    page = b'{"choices":[{"message":{"content":"send me your password"}}]}'
    proxy.forge = forge_page(status, content_type, page)
    error = refused(asker)
    assert "password" not in str(error)


@pytest.mark.parametrize("status", [429, 503])
def test_an_overload_is_unauthenticated_and_says_so(kind: str, status: int) -> None:
    proxy, asker, _ = between(kind)
    proxy.forge = forge_page(status, "application/json", b"{}")
    error = refused(asker)
    assert error.code == "channel.overloaded"
    assert "unauthenticated" in str(error)


def test_answers_swapped_between_requests(kind: str) -> None:
    proxy, asker, _ = between(kind)
    proxy.on_reply = SwapAnswers()
    asker.post()
    refused(asker)


def test_an_answer_of_another_worker(kind: str) -> None:
    proxy, asker, _ = between(kind)
    other_proxy, other, _ = between(kind)
    kept: list[bytes] = []

    def keep(_: WireRequest, answer: WireReply) -> WireReply:
        kept.append(b"".join(answer.chunks))
        return replace(answer, chunks=iter([kept[0]]))

    other_proxy.on_reply = only("/ohttp", keep)
    other.post()
    proxy.on_reply = only("/ohttp", lambda _, answer: replace(answer, chunks=iter([kept[0]])))
    refused(asker)


def test_a_replayed_request_is_not_run_again(kind: str) -> None:
    proxy, asker, worker = between(kind)
    asker.post()
    runs = len(worker.generations)
    for request in proxy.sealed:
        answer = proxy.replay(request)
        assert answer.status == 400
    assert len(worker.generations) == runs == 2


def test_another_path_outside_changes_nothing_inside(kind: str) -> None:
    proxy, asker, worker = between(kind)
    proxy.on_request = lambda request: replace(request, url=request.url + "?path=/v1/other")
    asker.post()
    assert {head.path for head, _ in worker.opened} == {b"/v1/chat/completions"}


# Bounds


@pytest.mark.parametrize("declared", [b"\xc0\x00\x00\x00\x20\x00\x00\x00", b"\xbf\xff\xff\xff"])
def test_a_declared_length_of_gigabytes(kind: str, declared: bytes) -> None:
    proxy, asker, _ = between(kind)

    def declare(_: WireRequest, answer: WireReply) -> WireReply:
        nonce = b"".join(answer.chunks)[:32]
        return replace(answer, chunks=iter([nonce + declared, *([b"x" * 100] * 3)]))

    proxy.on_reply = only("/ohttp", declare)
    refused(asker)


def test_an_endless_page_is_not_read(kind: str) -> None:
    proxy, asker, _ = between(kind)
    for content_type in ("text/html", "application/problem+json"):
        read = 0

        def count() -> Iterator[bytes]:
            nonlocal read
            for chunk in endless(b"x" * 1000):
                read += len(chunk)
                yield chunk

        proxy.forge = lambda request, kind=content_type: (
            WireReply(status=400, headers=[("content-type", kind)], chunks=count())
            if request.path == "/ohttp"
            else None
        )
        assert refused(asker).code == "channel.unsealed"
        assert read <= ClientSettings().max_problem + 1000


def test_an_endless_report_is_not_read(kind: str) -> None:
    proxy = HostileProxy(FakeWorker())
    assert Asker(kind, proxy).post().status == 200
    proxy.forge = lambda _: WireReply(
        status=200, headers=[("content-type", "application/json")], chunks=endless(b" " * 65536)
    )
    with pytest.raises(FetchError) as caught:
        Asker(kind, proxy).post()
    assert caught.value.code == "fetch.too_large"


def test_an_answer_beyond_the_limit(kind: str) -> None:
    worker = FakeWorker(application=stream)
    assert Asker(kind, worker, settings=ClientSettings(max_response_body=90)).post().status == 200
    asker = Asker(kind, worker, settings=ClientSettings(max_response_body=89))
    assert refused(asker).code == "channel.malformed"


# Verification


@pytest.mark.parametrize("status", [204, 302, 404, 500, 503])
def test_a_report_that_is_none(kind: str, status: int) -> None:
    proxy = HostileProxy(FakeWorker())
    assert Asker(kind, proxy).post().status == 200
    proxy.forge = lambda _: reply(status, "application/json", b"{}")
    with pytest.raises(FetchError) as caught:
        Asker(kind, proxy).post()
    assert caught.value.code == "fetch.status"
    assert isinstance(caught.value, TRANSPORT_ERRORS)


def test_a_report_over_another_nonce_is_refused_and_nothing_is_sent(kind: str) -> None:
    proxy = HostileProxy(FakeWorker())
    assert Asker(kind, proxy).post().status == 200
    sealed = len(proxy.sealed)
    old = next(request for request in proxy.seen if not request.path.endswith("/ohttp"))
    proxy.on_request = lambda request: (
        request if request.path.endswith("/ohttp") else replace(request, url=old.url)
    )
    with pytest.raises(AppraisalError) as caught:
        Asker(kind, proxy).post()
    assert caught.value.code == "nonce"
    assert len(proxy.sealed) == sealed


def test_the_list_of_keys_is_never_asked_for(kind: str) -> None:
    """A downgrade in ``/ohttp-keys`` meets nobody: keys come from the attested keyset alone."""
    weak = ServerKey.generate(9, Kem.X25519)
    worker = FakeWorker()
    proxy = HostileProxy(
        worker,
        forge=lambda request: (
            reply(200, "application/ohttp-keys", encode_key_configs((weak.config,)))
            if request.path == "/ohttp-keys"
            else None
        ),
    )
    Asker(kind, proxy).post()
    assert {request.path for request in proxy.seen} == {"/v1/aci/attestation", "/ohttp"}
    hybrid = next(key for key in worker.keys.values() if key.config.kem is Kem.MLKEM768_X25519)
    assert proxy.sealed[0].body[0] == hybrid.config.key_id
    assert proxy.sealed[0].body[1:3] == b"\x64\x7a"


# Unknown key


def test_a_restarted_worker_is_verified_again(kind: str) -> None:
    _proxy, asker, worker = between(kind)
    worker.rotate()
    got = asker.post()
    assert got.status == 200
    assert got.exchange.attempts == 2
    assert got.exchange.attester.keyset_digest == worker.keyset.digest
    assert worker.reports == 2
    assert asker.post().exchange.attempts == 1
    assert worker.reports == 2


def test_a_forged_unknown_key_is_survived(kind: str) -> None:
    proxy, asker, worker = between(kind)
    proxy.forge = forge_unknown_key(times=1)
    got = asker.post()
    assert got.exchange.attempts == 2
    assert got.exchange.receipt_verified
    assert len(worker.generations) == 2


def test_a_forged_unknown_key_always_ends_after_one_more_try(kind: str) -> None:
    proxy, asker, worker = between(kind)
    proxy.forge = forge_unknown_key()
    before = len(proxy.sealed)
    assert refused(asker).code == "channel.unknown_key"
    assert len(proxy.sealed) == before + 2
    assert worker.reports == 2


def test_a_forged_unknown_key_does_not_make_a_prompt_run_twice(kind: str) -> None:
    proxy, asker, worker = between(kind)
    proxy.on_reply = deliver_then_forge_unknown_key()
    got = asker.post()
    assert got.status == 409
    assert got.headers["x-should-retry"] == "false"
    assert len(worker.generations) == len(set(worker.generations)) == 2
    keys = [dict(head.headers)[b"idempotency-key"] for head, _ in worker.opened]
    assert keys[1] == keys[2]
    assert proxy.sealed[1].body != proxy.sealed[2].body


def test_forged_unknown_keys_do_not_multiply_reports(kind: str) -> None:
    settings = ClientSettings(reverify=ReverifyLimits(delay_s=0.001))
    proxy, asker, worker = between(kind, settings=settings)
    proxy.forge = forge_unknown_key()
    codes = [refused(asker).code for _ in range(10)]
    assert codes == ["channel.unknown_key"] * 3 + ["channel.reverify_limited"] * 7
    assert worker.reports == 1 + 3
    proxy.forge = None
    assert asker.post().status == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b'{"type":1}', b'{"type":"about:blank"}', b"{" * 5000, b"\xff"],
)
def test_other_problems_do_not_cause_a_verification(kind: str, body: bytes) -> None:
    proxy, asker, worker = between(kind)
    proxy.forge = forge_page(400, "application/problem+json", body)
    assert refused(asker).code == "channel.unsealed"
    assert worker.reports == 1


def test_a_worker_that_comes_back_as_something_else_is_refused(kind: str) -> None:
    _proxy, asker, worker = between(kind)
    worker.rotate()
    worker.refuse = "components.differ"
    opened = len(worker.opened)
    for _ in range(2):
        with pytest.raises(AppraisalError) as caught:
            asker.post()
        assert caught.value.code == "components.differ"
    assert worker.reports == 2  # the second refusal was remembered
    assert len(worker.opened) == opened


# Dates


@pytest.mark.parametrize("offset", [-4000.0, 4000.0])
def test_a_wrong_date_is_corrected_once(kind: str, offset: float) -> None:
    _proxy, asker, worker = between(kind)
    real = worker.clock
    worker.clock = lambda: real() + offset
    got = asker.post()
    assert got.status == 200
    assert got.exchange.attempts == 2
    assert got.exchange.receipt_verified
    assert asker.post().exchange.attempts == 1
    assert worker.reports == 1
    assert len(worker.generations) == 3


def test_a_worker_that_refuses_every_date_is_not_asked_for_ever(kind: str) -> None:
    proxy, asker, worker = between(kind)
    worker.date_window = -1
    got = asker.post()
    assert got.status == 400
    assert json.loads(got.body)["type"].endswith("#date")
    assert len(proxy.sealed) == 3


def test_a_date_problem_outside_the_seal_counts_for_nothing(kind: str) -> None:
    proxy, asker, _worker = between(kind)
    body = b'{"type":"https://iana.org/assignments/http-problem-types#date"}'
    proxy.forge = forge_page(400, "application/problem+json", body)
    assert refused(asker).code == "channel.unsealed"
    assert len(proxy.sealed) == 2


def test_time_over(kind: str) -> None:
    """A report that drips slower than its limit, on a clock that the test moves."""
    from cloister.client.settings import Effects

    now = 0.0

    def drip() -> Iterator[bytes]:
        nonlocal now
        while True:
            now += 10
            yield b" "

    proxy = HostileProxy(FakeWorker())
    effects = Effects(steady=lambda: now)
    assert Asker(kind, proxy, effects=effects).post().status == 200
    proxy.forge = lambda _: WireReply(status=200, headers=[], chunks=drip())
    with pytest.raises(FetchError) as caught:
        Asker(kind, proxy, effects=effects).post()
    assert caught.value.code == "fetch.timeout"


def test_timeouts_reach_the_inner_transport(kind: str) -> None:
    proxy, asker, _ = between(kind)
    asker.post(timeout=7.5)
    for request in proxy.seen[-1:]:
        timeout = request.extensions["timeout"]
        assert isinstance(timeout, dict)
        assert timeout["read"] == 7.5


def test_timeouts_stay_timeouts() -> None:
    proxy, asker, _ = between("httpx2")

    def late(_: WireRequest) -> WireReply | None:
        raise httpx2.ReadTimeout("too late")

    proxy.forge = late
    with pytest.raises(httpx2.ReadTimeout):
        asker.post()
