"""The real client and the real worker, over real sockets; only engine and evidence are made up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import openai
import pytest
import uvicorn

import cloister
from cloister.channel.claims import parse_claims
from cloister.channel.keyset import parse_keyset
from cloister.channel.statement import statement_digest
from cloister.client import Connection, SealedTruncatedError
from cloister.evidence.report import parse_attestation_report
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.verifier.result import (
    AffirmedAttester,
    AttestationResult,
    Claim,
    Finding,
    Source,
)
from support.hostile import HostileProxy, cut_reply, deliver_then_forge_unknown_key
from support.wire import Httpx2Wire, over_http
from support.worker import Bench, running

QUESTION: Any = [{"role": "user", "content": "hello"}]


class DigestVerifier:
    """Believes `support.worker.FakeEvidence` where it is over the caller's own nonce."""

    def appraise_report(self, report: bytes, *, nonce: bytes, at: datetime) -> AttestationResult:
        parsed = parse_attestation_report(report)
        keyset = parse_keyset(parsed.keyset)
        expected = statement_digest(keyset.digest, nonce)
        bound = parsed.evidence["test.digest"].data == expected
        claims = parse_claims(parsed.evidence["claims"].data)
        assert claims.subject == keyset.subject
        attester = AffirmedAttester(
            platform="development (made up)",
            development=True,
            keyset_digest=keyset.digest,
            keyset=keyset,
            claims_document={"models": [model.to_json() for model in claims.models]},
            expires_at=datetime.fromtimestamp(keyset.not_after, UTC),
        )
        claim = Claim(
            name="statement",
            finding=Finding.AFFIRMING if bound else Finding.CONTRAINDICATED,
            source=Source.VERIFIER_DERIVED,
            explanation="the evidence is over this statement",
        )
        return AttestationResult(
            platform=attester.platform,
            development=True,
            memory_confidentiality="none",
            claims=(claim,),
            not_proven=(),
            appraised_at=at,
            policy_id="none",
            attester=attester if bound else None,
        )


class WorkerThread:
    """A worker served by uvicorn in a thread of its own."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.bench: Bench | None = None
        self.url = ""
        self._ready = threading.Event()
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        async with running(engine=self.engine) as bench:
            self.bench = bench
            config = uvicorn.Config(
                bench.worker, port=0, log_level="critical", lifespan="off", loop="asyncio"
            )
            self._server = uvicorn.Server(config)
            serving = asyncio.create_task(self._server.serve())
            while not self._server.started:
                await asyncio.sleep(0.005)
            port = self._server.servers[0].sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            self._ready.set()
            await serving

    def __enter__(self) -> WorkerThread:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(script=lambda _, __: Answer(tokens=("one ", "two ", "three")))


@pytest.fixture
def worker(engine: FakeEngine) -> Iterator[WorkerThread]:
    with WorkerThread(engine) as thread:
        yield thread


def words(client: openai.OpenAI) -> str:
    stream = client.chat.completions.create(model="fake", messages=QUESTION, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_the_sdk_against_the_worker(worker: WorkerThread) -> None:
    client = cloister.OpenAI(base_url=worker.url, verifier=DigestVerifier())
    assert "fake" in [model.id for model in client.models.list()]
    answer = client.chat.completions.create(model="fake", messages=QUESTION)
    assert answer.choices[0].message.content
    receipt = cloister.last_receipt(client)
    assert receipt is not None
    assert words(client) == "one two three"
    exchange = cloister.connection_of(client).last_exchange
    assert exchange is not None
    assert exchange.receipt_verified
    assert exchange.model == ("fake", "0" * 64)
    assert exchange.attempts == 1
    client.close()


async def test_the_asynchronous_sdk_against_the_worker(worker: WorkerThread) -> None:
    async with cloister.AsyncOpenAI(base_url=worker.url, verifier=DigestVerifier()) as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(model="fake", messages=QUESTION) for _ in range(8))
        )
        assert all(answer.choices[0].message.content for answer in answers)
        stream = await client.chat.completions.create(model="fake", messages=QUESTION, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        assert "".join(pieces) == "one two three"
        assert cloister.last_receipt(client) is not None


def test_the_workers_clock_is_followed(worker: WorkerThread) -> None:
    client = cloister.OpenAI(base_url=worker.url, verifier=DigestVerifier())
    assert words(client) == "one two three"
    assert worker.bench is not None
    worker.bench.clocks.wall_offset = -2000.0
    assert words(client) == "one two three"
    exchange = cloister.connection_of(client).last_exchange
    assert exchange is not None
    assert exchange.attempts == 2
    client.close()


def test_cut_and_forged_between_client_and_worker(worker: WorkerThread, engine: FakeEngine) -> None:

    with httpx2.HTTPTransport() as transport:
        proxy = HostileProxy(over_http(transport))
        client = cloister.OpenAI(
            base_url=worker.url, verifier=DigestVerifier(), inner=Httpx2Wire(proxy), max_retries=0
        )
        assert words(client) == "one two three"
        proxy.on_reply = cut_reply(3)
        with pytest.raises(openai.APIConnectionError) as caught:
            words(client)
        assert isinstance(caught.value.__cause__, SealedTruncatedError)
        proxy.on_reply = deliver_then_forge_unknown_key()
        with pytest.raises(openai.ConflictError):
            words(client)
        proxy.on_reply = None
        assert words(client) == "one two three"


def test_a_stopped_engine_is_an_error_and_not_an_answer() -> None:
    answers = iter([Answer(tokens=("one ", "two"), crash_after=1), Answer(tokens=("well",))])
    engine = FakeEngine(script=lambda _, __: next(answers))
    with WorkerThread(engine) as worker:
        client = cloister.OpenAI(base_url=worker.url, verifier=DigestVerifier(), max_retries=0)
        with pytest.raises(openai.APIError):
            words(client)
        deadline = time.monotonic() + 60
        while True:
            try:
                assert words(client) == "well"
                break
            except openai.APIStatusError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        client.close()


def test_connections_know_the_worker(worker: WorkerThread) -> None:
    with cloister.connect(worker.url, verifier=DigestVerifier()) as connection:
        assert isinstance(connection, Connection)
        assert connection.result is not None
        assert connection.http.get("/v1/models").json()["data"][0]["id"] == "fake"
