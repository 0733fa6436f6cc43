"""Verifying clients over real sockets: uploads, streams, forward proxies, nobody there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import Iterator

import httpx2
import pytest

import cloister
from cloister.client import ClientSettings, open_connection
from cloister.errors import FetchError
from support.fake_worker import FakeVerifier, FakeWorker, events_answer
from support.serve import served
from support.wire import Handler, WireReply, WireRequest, over_http

BODY = bytes(range(256)) * (16 * 4096)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def url(worker: FakeWorker) -> Iterator[str]:
    with served(worker) as address:
        yield address


def test_large_uploads_arrive_whole(url: str) -> None:
    with cloister.connect(url, verifier=FakeVerifier()) as connection:
        for body in (BODY, b"", BODY[:200_000]):
            answer = connection.http.post("/v1/x", content=body).json()
            assert answer["sha256"] == hashlib.sha256(body).hexdigest()
        assert connection.last_exchange is not None
        assert connection.last_exchange.receipt_verified


async def test_large_uploads_arrive_whole_asynchronously(url: str) -> None:
    sizes = list(range(1000, 1_000_000, 199_000))
    async with await cloister.aconnect(url, verifier=FakeVerifier()) as connection:
        answers = await asyncio.gather(
            *(connection.http.post("/v1/x", content=BODY[:size]) for size in sizes)
        )
    assert [answer.json()["size"] for answer in answers] == sizes


def test_connections_are_used_again(url: str, worker: FakeWorker) -> None:
    worker.application = lambda _, __: events_answer([b"data: 1\n\n", b"data: [DONE]\n\n"])
    ports: set[int] = set()

    class Watching(httpx2.HTTPTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            response = super().handle_request(request)
            stream = response.extensions["network_stream"]
            ports.add(stream.get_extra_info("client_addr")[1])
            return response

    with open_connection(url, verifier=FakeVerifier(), inner=Watching()) as connection:
        for _ in range(5):
            with connection.http.stream("POST", "/v1/x", content=b"{}") as response:
                for piece in response.iter_raw():
                    if b"[DONE]" in piece:
                        break
    assert len(ports) == 1


def test_nobody_there() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(FetchError) as caught:
            cloister.connect(address, verifier=FakeVerifier())
    assert caught.value.code == "fetch.unreachable"


class ForwardProxy:
    """A plain HTTP forward proxy that counts what passes through it."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.transport = httpx2.HTTPTransport()
        self._onward: Handler = over_http(self.transport)

    def __call__(self, request: WireRequest) -> WireReply:
        self.passed.append(request.url)
        request.headers = [
            field for field in request.headers if not field[0].lower().startswith("proxy-")
        ]
        return self._onward(request)


@pytest.fixture
def forward() -> Iterator[tuple[ForwardProxy, str]]:
    proxy = ForwardProxy()
    with proxy.transport, served(proxy) as address:
        yield proxy, address


def test_a_given_proxy_is_used(url: str, forward: tuple[ForwardProxy, str]) -> None:
    proxy, address = forward
    with cloister.connect(url, verifier=FakeVerifier(), proxy=address) as connection:
        assert connection.http.post("/v1/x", content=b"hello").json()["size"] == 5
    assert [seen.partition("?")[0] for seen in proxy.passed] == [
        f"{url}/v1/aci/attestation",
        f"{url}/ohttp",
    ]


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_the_environments_proxy_is_used(
    url: str,
    forward: tuple[ForwardProxy, str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    scheme: str,
) -> None:
    proxy, address = forward
    monkeypatch.setenv(name, scheme + address.removeprefix("http://"))
    client = cloister.OpenAI(base_url=f"{url}/v1", verifier=FakeVerifier())
    client.post("/x", cast_to=object, body={})
    client.close()
    assert [seen.partition("?")[0] for seen in proxy.passed] == [
        f"{url}/v1/aci/attestation",
        f"{url}/ohttp",
    ]


def test_exceptions_from_the_environments_proxy(
    url: str, forward: tuple[ForwardProxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, address = forward
    monkeypatch.setenv("HTTP_PROXY", address)
    monkeypatch.setenv("NO_PROXY", "example.com,127.0.0.1")
    cloister.connect(url, verifier=FakeVerifier()).close()
    assert proxy.passed == []
    monkeypatch.delenv("NO_PROXY")
    cloister.connect(url, verifier=FakeVerifier(), trust_env=False).close()
    assert proxy.passed == []
    cloister.connect(url, verifier=FakeVerifier()).close()
    assert len(proxy.passed) == 1


@pytest.fixture
def silent() -> Iterator[str]:
    """Where connections are accepted, and nothing is ever said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_report_is_not_waited_for_for_ever(silent: str) -> None:
    settings = ClientSettings(report_s=0.2)

    def ask() -> None:
        with pytest.raises(FetchError) as caught:
            cloister.connect(silent, verifier=FakeVerifier(), settings=settings)
        assert caught.value.code == "fetch.unreachable"

    async with asyncio.timeout(60):
        with pytest.raises(FetchError) as caught:
            await cloister.aconnect(silent, verifier=FakeVerifier(), settings=settings)
        assert caught.value.code == "fetch.unreachable"
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, 60)
    assert not thread.is_alive()


def test_timeouts_end_a_wait(worker: FakeWorker) -> None:
    import threading

    release = threading.Event()

    def slow(request: WireRequest) -> WireReply:
        if request.path == "/ohttp":
            release.wait(60)
        return worker(request)

    with (
        served(slow) as address,
        cloister.connect(address, verifier=FakeVerifier()) as connection,
        pytest.raises(httpx2.ReadTimeout),
    ):
        try:
            connection.http.post("/v1/x", content=b"", timeout=httpx2.Timeout(60, read=0.2))
        finally:
            release.set()


def test_what_goes_over_the_wire_is_not_readable(url: str, worker: FakeWorker) -> None:
    seen = bytearray()

    def watching(request: WireRequest) -> WireReply:
        seen.extend(repr((request.url, request.headers)).encode() + request.body)
        answer = worker(request)
        chunks = list(answer.chunks)
        seen.extend(b"".join(chunks))
        answer.chunks = iter(chunks)
        return answer

    with (
        served(watching) as address,
        cloister.connect(address, verifier=FakeVerifier()) as connection,
    ):
        answer = connection.http.post(
            "/v1/marker-path", content=b"marker-body", headers={"authorization": "marker-key"}
        )
    assert "marker-path" in json.dumps(answer.json())
    assert b"marker" not in seen
    assert b"attestation" in seen
