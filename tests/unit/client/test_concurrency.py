"""Many requests at once: one verification, no answers mixed up, failures shared."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from cloister.channel import bhttp
from cloister.client import AsyncHttpx2Transport, Httpx2Transport
from cloister.errors import AppraisalError, ChannelError
from support.clients import WORKER
from support.fake_worker import Answer, FakeVerifier, FakeWorker, json_answer
from support.hostile import HostileProxy, forge_unknown_key
from support.wire import AsyncHttpx2Wire, Httpx2Wire, WireReply, WireRequest

THREADS = 16


def say_back(_: bhttp.RequestHead, body: bytes) -> Answer:
    return json_answer(json.loads(body))


def blocking(handler: object, verifier: FakeVerifier) -> httpx2.Client:
    transport = Httpx2Transport(WORKER, verifier, inner=Httpx2Wire(handler))  # type: ignore[arg-type]
    return httpx2.Client(transport=transport, base_url=WORKER)


def test_threads_share_one_verification_and_keep_their_answers() -> None:
    worker = FakeWorker(application=say_back)
    verifier = FakeVerifier(delay=0.05)
    client = blocking(worker, verifier)
    barrier = threading.Barrier(THREADS)

    def ask(number: int) -> None:
        barrier.wait()
        for turn in range(5):
            value = {"thread": number, "turn": turn}
            response = client.post("/v1/x", json=value)
            assert response.json() == value
            assert response.extensions["cloister"].receipt_verified

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(ask, range(THREADS)))
    assert verifier.appraised == worker.reports == 1
    assert len(set(worker.generations)) == THREADS * 5


def test_threads_share_one_verification_after_a_restart() -> None:
    worker = FakeWorker(application=say_back)
    verifier = FakeVerifier(delay=0.05)
    client = blocking(worker, verifier)
    client.post("/v1/x", json={})
    worker.rotate()
    barrier = threading.Barrier(THREADS)

    def ask(number: int) -> int:
        barrier.wait()
        response = client.post("/v1/x", json={"n": number})
        assert response.json() == {"n": number}
        return response.status_code

    with ThreadPoolExecutor(THREADS) as pool:
        assert set(pool.map(ask, range(THREADS))) == {200}
    assert worker.reports == 2


def test_threads_share_one_failure() -> None:
    worker = FakeWorker(refuse="no")
    verifier = FakeVerifier(delay=1)
    client = blocking(worker, verifier)
    barrier = threading.Barrier(THREADS)

    def ask(_: int) -> str:
        barrier.wait()
        with pytest.raises(AppraisalError) as caught:
            client.post("/v1/x", json={})
        return caught.value.code

    with ThreadPoolExecutor(THREADS) as pool:
        assert set(pool.map(ask, range(THREADS))) == {"no"}
    assert worker.reports == 1
    assert not worker.opened


def test_threads_share_one_connection_failure() -> None:
    tried = 0

    def unreachable(_: WireRequest) -> WireReply:
        nonlocal tried
        tried += 1
        threading.Event().wait(1)
        raise httpx2.ConnectTimeout("nobody there")

    client = blocking(unreachable, FakeVerifier())
    barrier = threading.Barrier(THREADS)

    def ask(_: int) -> None:
        barrier.wait()
        with pytest.raises(httpx2.ConnectTimeout):
            client.post("/v1/x", json={})

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(ask, range(THREADS)))
    assert tried == 1


def test_forged_errors_against_many_threads_cause_few_reports() -> None:
    worker = FakeWorker(application=say_back)
    proxy = HostileProxy(worker)
    client = blocking(proxy, FakeVerifier())
    client.post("/v1/x", json={})
    proxy.forge = forge_unknown_key()
    barrier = threading.Barrier(THREADS)

    def ask(_: int) -> str:
        barrier.wait()
        with pytest.raises(ChannelError) as caught:
            client.post("/v1/x", json={})
        return caught.value.code

    with ThreadPoolExecutor(THREADS) as pool:
        codes = set(pool.map(ask, range(THREADS)))
    assert codes <= {"channel.unknown_key", "channel.reverify_limited"}
    assert worker.reports <= 1 + 3


async def test_tasks_share_one_verification_and_keep_their_answers() -> None:
    worker = FakeWorker(application=say_back)
    verifier = FakeVerifier()

    class Slow(AsyncHttpx2Wire):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await asyncio.sleep(0.02)
            return await super().handle_async_request(request)

    transport = AsyncHttpx2Transport(WORKER, verifier, inner=Slow(worker))
    async with httpx2.AsyncClient(transport=transport, base_url=WORKER) as client:

        async def ask(number: int) -> None:
            response = await client.post("/v1/x", json={"n": number})
            assert response.json() == {"n": number}

        await asyncio.gather(*(ask(number) for number in range(50)))
        assert worker.reports == 1
        worker.rotate()
        await asyncio.gather(*(ask(number) for number in range(50)))
    assert worker.reports == 2


async def test_a_cancelled_verification_is_taken_over() -> None:
    worker = FakeWorker(application=say_back)
    gate = asyncio.Event()
    entered = asyncio.Event()

    class Gated(AsyncHttpx2Wire):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            entered.set()
            await gate.wait()
            return await super().handle_async_request(request)

    transport = AsyncHttpx2Transport(WORKER, FakeVerifier(), inner=Gated(worker))
    async with httpx2.AsyncClient(transport=transport, base_url=WORKER) as client:
        first = asyncio.create_task(client.post("/v1/x", json={"n": 1}))
        await entered.wait()
        second = asyncio.create_task(client.post("/v1/x", json={"n": 2}))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert (await second).json() == {"n": 2}
    assert worker.reports == 1
