"""The four transports against an honest worker: what goes out, what comes back."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from cloister.channel import bhttp
from cloister.client import (
    SEALED_URL,
    AsyncHttpx2Transport,
    ClientSettings,
    Httpx2Transport,
    Receipts,
)
from cloister.errors import AuthenticationError, ChannelError, ConfigurationError
from support.clients import KINDS, TRANSPORT_ERRORS, WORKER, Asker
from support.fake_worker import (
    MODEL,
    Answer,
    FakeVerifier,
    FakeWorker,
    events_answer,
    field_of,
    json_answer,
)
from support.hostile import HostileProxy, divide
from support.wire import AsyncHttpx2Wire, Httpx2Wire


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


def test_everything_travels_inside(kind: str) -> None:
    worker = FakeWorker()
    proxy = HostileProxy(worker)
    got = Asker(kind, proxy).post(
        "/v1/chat/completions?secret=query",
        b'{"prompt":"secret body"}',
        headers={"Authorization": "Bearer secret-key", "X-Mine": "secret-header"},
    )
    assert got.status == 200
    seen = json.loads(got.body)
    assert seen["path"] == "/v1/chat/completions?secret=query"
    assert ["authorization", "Bearer secret-key"] in seen["headers"]
    assert ["x-mine", "secret-header"] in seen["headers"]
    assert got.exchange.receipt_verified
    assert got.exchange.complete
    assert got.exchange.model == (MODEL.name, MODEL.sha256)
    for request in proxy.seen:
        outside = f"{request.method} {request.url} {request.headers}".encode() + request.body
        assert b"secret" not in outside
    (sealed,) = proxy.sealed
    assert sealed.method == "POST"
    assert sealed.url == f"{WORKER}/ohttp"
    names = {name.lower() for name, _ in sealed.headers}
    assert names == {"host", "accept", "content-type", "content-length"}


def test_fields_of_one_connection_stay_outside(kind: str) -> None:
    worker = FakeWorker()
    Asker(kind, worker).post(headers={"Accept-Encoding": "gzip", "TE": "trailers"})
    names = [name for name, _ in worker.opened[0][0].headers]
    for name in (b"host", b"connection", b"content-length", b"accept-encoding", b"te"):
        assert name not in names
    assert len(names) == len(set(names))


def test_secrets_of_the_client_object(kind: str) -> None:
    worker = FakeWorker()
    first, second = Asker(kind, worker), Asker(kind, worker)
    for asker in (first, first, second):
        asker.post()
    heads = [head for head, _ in worker.opened]
    secrets = [field_of(head, b"x-cloister-cache-secret") for head in heads]
    nonces = [field_of(head, b"x-cloister-nonce") for head in heads]
    keys = [field_of(head, b"idempotency-key") for head in heads]
    assert secrets[0] == secrets[1] != secrets[2]
    assert len(set(nonces)) == len(set(keys)) == 3
    assert all(len(value or b"") == 43 for value in (*secrets, *nonces))


def test_the_caller_may_choose_idempotency_key_and_cache_secret(kind: str) -> None:
    worker = FakeWorker()
    Asker(kind, worker).post(
        headers={"Idempotency-Key": "mine", "X-Cloister-Cache-Secret": "A" * 43}
    )
    head = worker.opened[0][0]
    assert field_of(head, b"idempotency-key") == b"mine"
    assert field_of(head, b"x-cloister-cache-secret") == b"A" * 43


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 1024 * 1024 + 7])
def test_bodies_of_all_sizes(kind: str, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    got = Asker(kind, FakeWorker()).post(body=body[:size])
    assert json.loads(got.body)["sha256"] == hashlib.sha256(body[:size]).hexdigest()


@pytest.mark.parametrize("size", [1, 2, 7, 33, 1000])
def test_answers_arrive_in_any_division(size: int) -> None:
    def application(_: bhttp.RequestHead, body: bytes) -> Answer:
        return events_answer([b"data: %d\n\n" % number for number in range(50)])

    proxy = HostileProxy(FakeWorker(application=application), on_reply=divide(size))
    got = Asker("httpx2", proxy).post()
    assert got.body == b"".join(b"data: %d\n\n" % number for number in range(50))
    assert got.exchange.receipt_verified


def test_requests_are_padded() -> None:
    def lengths(padding: int) -> set[int]:
        proxy = HostileProxy(FakeWorker())
        asker = Asker("httpx2", proxy, settings=ClientSettings(request_padding=padding))
        for size in (1, 50, 100):
            asker.post(body=b"x" * size)
        return {len(request.body) for request in proxy.sealed}

    assert len(lengths(1024)) == 1
    assert len(lengths(1)) == 3


def test_a_body_too_large_is_refused_before_it_is_sealed(kind: str) -> None:
    proxy = HostileProxy(FakeWorker())
    asker = Asker(kind, proxy, settings=ClientSettings(max_request_body=1000))
    assert asker.post(body=b"x" * 1000).status == 200
    with pytest.raises(TRANSPORT_ERRORS) as caught:
        asker.post(body=b"x" * 1001)
    assert isinstance(caught.value, ChannelError)
    assert caught.value.code == "channel.too_large"
    assert len(proxy.sealed) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://other.test/v1/models",
        "https://worker.test/v1/models",
        "http://worker.test:81/v1/models",
        "http://sealed.invalid/v1/models",
        "https://sealed.invalid:444/v1/models",
        "https://unsealed.invalid/v1/models",
        "https://sealed.invalid./v1/models",
    ],
)
def test_requests_for_others_are_never_sent(kind: str, url: str) -> None:
    proxy = HostileProxy(FakeWorker())
    asker = Asker(kind, proxy)
    assert asker.request("GET", "/v1/models").status == 200
    seen = len(proxy.seen)
    with pytest.raises(ChannelError) as caught:
        asker.request("GET", url)
    assert caught.value.code == "channel.other_worker"
    assert len(proxy.seen) == seen


def test_a_worker_mounted_below_a_path(kind: str) -> None:
    worker = FakeWorker()
    asker = Asker(kind, worker, worker=f"{WORKER}/a/b/v1/")
    asker.request("GET", f"{WORKER}/a/b/v1/models")
    assert worker.opened[0][0].path == b"/v1/models"
    with pytest.raises(ChannelError):
        asker.request("GET", f"{WORKER}/v1/models")


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_a_name_that_means_the_worker_wherever_it_is(kind: str, below: str) -> None:
    """And that nobody else answers to: see `SEALED_URL`."""
    worker = FakeWorker()
    proxy = HostileProxy(worker)
    asker = Asker(kind, proxy, worker=f"{WORKER}{below}")
    assert asker.request("GET", f"{SEALED_URL}/models").status == 200
    assert worker.opened[0][0].path == b"/v1/models"
    assert all(request.url.startswith(WORKER + below) for request in proxy.seen)


def test_redirects_of_the_worker_do_not_lead_elsewhere() -> None:
    def application(_: bhttp.RequestHead, __: bytes) -> Answer:
        return Answer(status=307, headers=((b"location", b"http://other.test/"),), pieces=[])

    proxy = HostileProxy(FakeWorker(application=application))
    transport = Httpx2Transport(WORKER, FakeVerifier(), inner=Httpx2Wire(proxy))
    client = httpx2.Client(transport=transport, follow_redirects=True)
    with pytest.raises(ChannelError) as caught:
        client.post(f"{WORKER}/v1/x")
    assert caught.value.code == "channel.other_worker"
    assert all(request.url.startswith(WORKER) for request in proxy.seen)


@pytest.mark.parametrize(
    "url",
    ["ftp://w", "w", "", "http://", "http://u:p@w", "http://w/?q", "http://w/#f", "http://[::1"],
)
def test_addresses_that_are_none(url: str) -> None:
    Httpx2Transport("http://w", FakeVerifier(), inner=Httpx2Wire(FakeWorker()))
    with pytest.raises(ConfigurationError) as caught:
        Httpx2Transport(url, FakeVerifier(), inner=Httpx2Wire(FakeWorker()))
    assert caught.value.code == "client.url"


def test_streams_come_event_by_event() -> None:
    progress: list[str] = []

    def events() -> Iterator[bytes]:
        for number in range(3):
            progress.append(f"made {number}")
            yield b"data: %d\n\n" % number
        yield b"data: [DONE]\n\n"

    worker = FakeWorker(application=lambda _, __: events_answer(events()))
    transport = Httpx2Transport(WORKER, FakeVerifier(), inner=Httpx2Wire(worker))
    with httpx2.Client(transport=transport).stream("POST", f"{WORKER}/v1/x") as response:
        progress.extend(f"read {piece!r}" for piece in response.iter_raw())
    assert progress == [
        "made 0",
        "read b'data: 0\\n\\n'",
        "made 1",
        "read b'data: 1\\n\\n'",
        "made 2",
        "read b'data: 2\\n\\n'",
        "read b'data: [DONE]\\n\\n'",
    ]


@pytest.mark.parametrize(
    "events",
    [
        [b"data: 1\n\n", b"data: [DONE]\n\n"],
        [b"data: 1\n\n", b"data: [DONE]\r\n\r\n"],
        [b"data: 1\n\n", b"data: [DONE]\n", b":" + b" " * 250 + b"\n\n"],
        [b"data: 1\n\ndata: [D", b"ONE]\n\n"],
        [b"data: 1\n\n", b"data: [DONE]\n\n:" + b" " * 250 + b"\n\n"],
        [b"data:[DONE]\n\n"],
    ],
    ids=["lf", "crlf", "in two reads", "cut in the middle", "padding after it", "nothing else"],
)
def test_done_is_held_back_until_the_receipt_is_checked(events: list[bytes]) -> None:
    def read(worker: FakeWorker) -> tuple[list[bytes], Any]:
        transport = Httpx2Transport(WORKER, FakeVerifier(), inner=Httpx2Wire(worker))
        pieces: list[bytes] = []
        with httpx2.Client(transport=transport).stream("POST", f"{WORKER}/v1/x") as response:
            exchange = response.extensions["cloister"]
            for piece in response.iter_raw():
                pieces.append(piece)
                if b"[DONE]\n" in b"".join(pieces).replace(b"\r", b""):
                    break
        return pieces, exchange

    def application(_: bhttp.RequestHead, __: bytes) -> Answer:
        return events_answer(events)

    pieces, exchange = read(FakeWorker(application=application))
    assert b"".join(pieces) == b"".join(events)[: len(b"".join(pieces))]
    assert exchange.receipt_verified
    with pytest.raises(ChannelError) as caught:
        read(FakeWorker(application=application, receipts=False))
    assert caught.value.code == "receipt.missing"


def test_async_streams_and_early_ends() -> None:
    closed: list[bool] = []

    async def run() -> None:
        worker = FakeWorker(
            application=lambda _, __: events_answer(b"data: %d\n\n" % n for n in range(1000))
        )

        def handler(request: Any) -> Any:
            answer = worker(request)
            answer.close = lambda: closed.append(True)
            return answer

        transport = AsyncHttpx2Transport(WORKER, FakeVerifier(), inner=AsyncHttpx2Wire(handler))
        async with (
            httpx2.AsyncClient(transport=transport) as client,
            client.stream("POST", f"{WORKER}/v1/x") as response,
        ):
            async for _ in response.aiter_raw():
                break
            assert not response.extensions["cloister"].complete

    import asyncio

    asyncio.run(run())
    gc.collect()
    assert len(closed) >= 2  # the report, and the answer that was left


# Receipts


def test_errors_inside_the_seal_need_no_receipt(kind: str) -> None:
    worker = FakeWorker(
        application=lambda _, __: json_answer({"error": {"message": "no"}}, status=404),
        receipts=False,
    )
    got = Asker(kind, worker).post()
    assert got.status == 404
    assert got.exchange.complete
    assert not got.exchange.receipt_verified
    assert got.exchange.model is None


def test_a_missing_receipt_is_an_error_unless_optional(kind: str) -> None:
    worker = FakeWorker()
    assert Asker(kind, worker).post().exchange.receipt_verified
    worker.receipts = False
    with pytest.raises(TRANSPORT_ERRORS) as caught:
        Asker(kind, worker).post()
    assert isinstance(caught.value, ChannelError)
    assert caught.value.code == "receipt.missing"
    got = Asker(kind, worker, settings=ClientSettings(receipts=Receipts.OPTIONAL)).post()
    assert got.status == 200
    assert not got.exchange.receipt_verified


def _set_event(index: int, **members: str) -> Any:
    def spoil(document: dict[str, Any]) -> None:
        document["event_log"][index] |= members

    return spoil


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_set_event(0, body_hash="sha256:" + "0" * 64), "receipt.request"),
        (_set_event(2, body_hash="sha256:" + "0" * 64), "receipt.response"),
        (_set_event(1, name="other"), "receipt.model"),
        (_set_event(1, sha256="cd" * 32), "receipt.model"),
        (lambda document: document.update(workload_keyset_digest="sha256:" + "0" * 64),
         "receipt.keyset"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("receipts", list(Receipts))
def test_receipts_that_do_not_verify(spoil: Any, code: str, receipts: Receipts) -> None:
    worker = FakeWorker()
    settings = ClientSettings(receipts=receipts)
    assert Asker("httpx2", worker, settings=settings).post().exchange.receipt_verified
    worker.spoil_receipt = spoil
    with pytest.raises(AuthenticationError) as caught:
        Asker("httpx2", worker, settings=settings).post()
    assert caught.value.code == code


def test_hooks_hear_of_every_completed_exchange(kind: str) -> None:
    heard: list[Any] = []
    asker = Asker(kind, FakeWorker(), on_exchange=heard.append)
    first, second = asker.post(), asker.post()
    assert heard == [first.exchange, second.exchange]
    assert asker.transport.link.last_exchange is second.exchange
