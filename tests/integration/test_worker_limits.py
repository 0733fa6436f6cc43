"""Bounds on sizes, counts, times and numbers, each before it costs anything."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloister.channel.varint import encode_varint
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.hashing import IN_A_THREAD_FROM
from cloister.worker.settings import Limits, RateLimit, ReportSettings, WorkerSettings
from support.asgi import Call, call
from support.sealed import chat, seal, until
from support.worker import FakeEvidence, running

NONCE = b"nonce=" + b"ab" * 32


def limits(**values: Any) -> WorkerSettings:
    return WorkerSettings(limits=dataclasses.replace(Limits(), **values))


async def test_a_declared_length_is_refused_before_anything_is_read() -> None:
    async with running() as bench:
        sealed = bench.peer.seal(document=chat())

        async def never() -> AsyncIterator[bytes]:
            yield b"the body was read"
            raise AssertionError

        for length in (b"34359738368", b"33554433", b"-1", b"9" * 40):
            outer = await bench.peer.send(
                sealed, body=never(), headers=[(b"content-length", length)]
            )
            assert outer.status == 413


async def test_a_body_that_grows_beyond_the_limit_is_refused_on_the_way() -> None:
    async with running(limits(max_request_bytes=100_000)) as bench:
        read = 0

        async def endless(first: bytes) -> AsyncIterator[bytes]:
            nonlocal read
            yield first
            while True:
                read += 10_000
                yield bytes(10_000)

        small = bench.peer.seal(document=chat("x" * 50_000))
        assert (await bench.peer.send(small)).status == 200
        whole = bench.peer.seal(document=chat(), chunked=False)
        outer = await bench.peer.send(whole, body=endless(whole.body))
        assert outer.status == 413
        assert read <= 110_000


async def test_a_chunk_of_gigabytes_is_refused_by_its_declared_length() -> None:
    async with running() as bench:
        sealed = bench.peer.seal(document=chat())
        header = sealed.body[: 7 + 1120]
        outer = await bench.peer.send(sealed, body=header + encode_varint(1 << 32) + bytes(64))
        assert outer.status == 400
        assert bench.worker.open_requests == 0


async def test_inner_lengths_and_header_counts_are_bounded() -> None:
    async with running(limits(max_headers=20, max_header_bytes=4096)) as bench:
        assert (await bench.peer.ask("/v1/models")).status == 200
        many = {f"x-{index}": "1" for index in range(30)}
        assert (await bench.peer.ask("/v1/models", extra=many)).status == 413
        assert (await bench.peer.ask("/v1/models", extra={"x": "1" * 5000})).status == 413
        config = bench.peer.config()
        declared = b"\x00\x04POST\x05https\x01a\x02/v\x00" + encode_varint(1 << 40)
        sealed = seal(config, headers=(), plaintext=declared)
        inner = sealed.opened(await bench.peer.send(sealed))
        assert (inner.status, inner.error["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("first_byte_s", [0.5, 10.0])
async def test_a_request_that_does_not_arrive_in_time_is_given_up(first_byte_s: float) -> None:
    settings = limits(first_byte_s=first_byte_s, receive_s=1)
    async with running(settings) as bench:
        sealed = bench.peer.seal(document=chat())

        async def drip() -> AsyncIterator[bytes]:
            for index in range(len(sealed.body)):
                await asyncio.sleep(0.02 if first_byte_s > 1 else 60)
                yield sealed.body[index : index + 1]

        outer = await bench.peer.send(sealed, body=drip())
        assert outer.status == 408
        assert bench.worker.open_requests == 0
        assert (await bench.peer.send(sealed)).status == 200


async def test_too_many_requests_at_once() -> None:
    engine = FakeEngine(script=lambda *_: Answer(stall_after=1))
    async with running(limits(max_open_requests=2, drain_s=0.01), engine=engine) as bench:
        calls = [bench.peer.start(bench.peer.seal(document=chat(stream=True))) for _ in range(2)]
        for one in calls:
            await one.pieces(1)
        outer = await bench.peer.send(bench.peer.seal(document=chat()))
        assert (outer.status, outer.headers[b"retry-after"]) == (503, b"1")
        calls[0].gone.set()
        await calls[0].result()
        assert (await bench.peer.ask("/v1/models")).status == 200


async def test_too_many_generations_at_once_leave_the_idempotency_key_unspent() -> None:
    engine = FakeEngine(script=lambda *_: Answer(stall_after=1))
    async with running(limits(max_generations=1, drain_s=0.01), engine=engine) as bench:
        first = bench.peer.start(bench.peer.seal(document=chat(stream=True)))
        await first.pieces(1)
        inner = await bench.peer.ask(document=chat(), idempotency_key="k")
        assert (inner.status, inner.error["code"]) == (503, "at_capacity")
        assert inner.headers["retry-after"] == "1"
        first.gone.set()
        await first.result()
        engine.script = lambda *_: Answer.text("ok")
        assert (await bench.peer.ask(document=chat(), idempotency_key="k")).status == 200


async def test_memory_for_arriving_bodies_is_bounded_in_total() -> None:
    async with running(limits(max_buffered_bytes=60_000)) as bench:
        assert (await bench.peer.ask(document=chat("x" * 20_000))).status == 200
        hold = asyncio.Event()
        sealed = [bench.peer.seal(document=chat("x" * 40_000)) for _ in range(2)]

        async def slow(body: bytes) -> AsyncIterator[bytes]:
            yield body[:-1]
            await hold.wait()
            yield body[-1:]

        first = bench.peer.start(sealed[0], body=slow(sealed[0].body))
        await until(lambda: bench.worker.open_requests == 1)
        await asyncio.sleep(0.05)
        assert (await bench.peer.send(sealed[1])).status == 503
        hold.set()
        assert (await first.result()).status == 200
        assert (await bench.peer.ask(document=chat("x" * 40_000))).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"x"',
        b'{"model":"fake","model":"fake"}',
        b"[" * 100_000,
        b'{"model":NaN}',
        b"\xff\xfe{\x00}\x00",
        b'{"model":' + b"9" * 5000 + b"}",
    ],
)
async def test_bodies_that_are_not_one_plain_object(body: bytes) -> None:
    async with running() as bench:
        inner = await bench.peer.ask(body=body)
        assert (inner.status, inner.error["code"]) == (400, "bad_json")
        assert not bench.engine.requests


@pytest.mark.parametrize(
    "filler", [b"{},", b"[],", b"1,", b"[" * 50 + b"]" * 50 + b",", b'{"a":[]},']
)
async def test_bodies_of_millions_of_values_are_refused_before_they_are_decoded(
    filler: bytes,
) -> None:
    count = 1_000_000 // sum(filler.count(one) for one in b",[{")
    start = b'{"model":"fake","messages":['
    body = start + filler * (count + 1)
    async with running() as bench:
        inner = await bench.peer.ask(body=start + filler * (count - 4))  # it has no end
        assert (inner.status, inner.error["code"]) == (400, "bad_json")
        inner = await bench.peer.ask(body=body)
        assert (inner.status, inner.error["code"]) == (400, "too_many_values")


async def test_a_large_prompt_is_hashed_beside_the_answer() -> None:
    async with running() as bench:
        inner = await bench.peer.ask(document=chat("x" * 3_000_000))
        assert inner.status == 200
        assert inner.receipt is not None  # `ask` has checked it


@pytest.mark.parametrize("document", [{}, {"model": ""}, {"model": 1}, {"model": None}])
async def test_a_model_must_be_named(document: dict[str, object]) -> None:
    async with running() as bench:
        inner = await bench.peer.ask(document=document)
        assert (inner.status, inner.error["param"]) == (400, "model")


async def test_only_the_served_model_is_served_and_the_other_name_is_not_repeated() -> None:
    async with running() as bench:
        inner = await bench.peer.ask(document={"model": "canary-4"})
        assert (inner.status, inner.error["code"]) == (404, "model_not_found")
        assert b"canary" not in inner.body


@pytest.mark.parametrize("name", ["x-cloister-nonce", "idempotency-key", "authorization", "date"])
async def test_a_field_that_comes_twice_is_refused(name: str) -> None:
    async with running() as bench:
        sealed = bench.peer.seal("/v1/models", idempotency_key="k")
        assert sealed.opened(await bench.peer.send(sealed)).status == 200
        from support.sealed import inner_headers

        headers = inner_headers(idempotency_key="k", api_key="x")
        twice = (*headers, next(pair for pair in headers if pair[0] == name.encode()))
        again = seal(bench.peer.config(), "GET", "/v1/models", headers=twice)
        assert again.opened(await bench.peer.send(again)).status in (400, 401)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"nonce": b"1" * 31}, "bad_nonce"),
        ({"extra": {"x-cloister-nonce": ""}}, "bad_nonce"),
        ({"cache_secret": b"1" * 31}, "bad_cache_secret"),
        ({"extra": {"x-cloister-cache-secret": "!" * 43}}, "bad_cache_secret"),
        ({"idempotency_key": "k" * 256}, "bad_idempotency_key"),
    ],
)
async def test_malformed_fields(fields: dict[str, Any], code: str) -> None:
    async with running() as bench:
        inner = await bench.peer.ask(document=chat(), **fields)
        assert (inner.status, inner.error["code"]) == (400, code)
        assert not bench.engine.requests


# -- reports ------------------------------------------------------------------------------------


async def test_a_report_binds_the_keyset_and_the_nonce() -> None:
    from cloister.channel.statement import statement_digest
    from cloister.evidence.report import parse_attestation_report

    async with running() as bench:
        outer = await call(bench.worker, "GET", "/v1/aci/attestation", query=NONCE)
        report = parse_attestation_report(outer.body)
        assert report.keyset_digest == bench.peer.keyset.digest
        assert report.keyset == bench.peer.keyset.to_json()
        digest = statement_digest(bench.peer.keyset.digest, b"\xab" * 32)
        assert report.report_data == digest
        assert report.evidence["test.digest"].data == digest
        claims = report.evidence["claims"].data
        import hashlib

        assert bench.peer.keyset.claims_digest == hashlib.sha256(claims).digest()
        assert outer.headers[b"x-aci-keyset-digest"] == bench.peer.keyset.digest.encode()


@pytest.mark.parametrize(
    "query",
    [
        b"nonce=",
        b"nonce=" + b"AB" * 32,
        b"nonce=" + b"ab" * 31,
        NONCE + b"&" + NONCE,
        b"nonce=" + b"ab" * 33,
        b"x" * 2000,
        b"&" * 20 + NONCE,
    ],
)
async def test_malformed_nonces(query: bytes) -> None:
    async with running() as bench:
        assert (await call(bench.worker, "GET", "/v1/aci/attestation", query=NONCE)).status == 200
        outer = await call(bench.worker, "GET", "/v1/aci/attestation", query=query)
        assert outer.status == 400
        assert json.loads(outer.body)["error"]["type"] == "invalid_request_error"


async def test_the_report_without_a_nonce_is_cached_until_the_keys_change() -> None:
    async with running() as bench:
        for _ in range(3):
            assert (await call(bench.worker, "GET", "/v1/aci/attestation")).status == 200
        assert bench.evidence.made == 1
        bench.clocks.steady_offset += 61
        await call(bench.worker, "GET", "/v1/aci/attestation")
        assert bench.evidence.made == 2
        bench.worker.context.keys.rotate()
        outer = await call(bench.worker, "GET", "/v1/aci/attestation")
        digest = json.loads(outer.body)["workload_keyset_digest"]
        assert digest == bench.peer.keyset.digest
        assert bench.evidence.made == 3


async def test_reports_are_limited_per_source() -> None:
    reports = ReportSettings(per_source=RateLimit(per_minute=6, burst=2))
    async with running(WorkerSettings(reports=reports)) as bench:

        async def ask(address: str) -> int:
            outer = await call(
                bench.worker, "GET", "/v1/aci/attestation", query=NONCE, client=(address, 1)
            )
            return outer.status

        assert [await ask("192.0.2.1") for _ in range(3)] == [200, 200, 429]
        assert await ask("192.0.2.2") == 200
        assert [await ask("2001:db8::1") for _ in range(2)] == [200, 200]
        assert await ask("2001:db8::2") == 429  # the same /64
        assert await ask("2001:db8:0:1::2") == 200
        assert [await ask("64:ff9b::192.0.2.3") for _ in range(2)] == [200, 200]
        assert await ask("::ffff:192.0.2.3") == 429  # the same IPv4 address
        assert await ask("64:ff9b::192.0.2.4") == 200
        assert await ask("64:ff9b:0:0:1::192.0.2.4") == 200  # beside that /96
        assert [await ask("64:ff9b:0:0:2::192.0.2.4") for _ in range(2)] == [200, 429]
        assert (await bench.peer.ask("/v1/models")).status == 200  # inference goes on
        bench.clocks.steady_offset += 10
        assert await ask("192.0.2.1") == 200


async def test_the_queue_for_reports_is_bounded() -> None:
    answer = threading.Event()

    class SlowEvidence(FakeEvidence):
        def quote(self, statement_digest: bytes) -> Any:
            answer.wait(60)
            return super().quote(statement_digest)

    settings = WorkerSettings(reports=ReportSettings(max_waiting=2))
    async with running(settings, evidence=SlowEvidence()) as bench:
        calls = [Call(bench.worker, "GET", "/v1/aci/attestation", query=NONCE) for _ in range(5)]
        models = await bench.peer.ask("/v1/models")
        await until(lambda: sum(one.task.done() for one in calls) == 3)
        answer.set()
        outers = [await one.result() for one in calls]
        assert sorted(outer.status for outer in outers) == [200, 200, 503, 503, 503]
        assert all(o.headers[b"retry-after"] for o in outers if o.status == 503)
        assert models.status == 200
        assert bench.evidence.made == 2


async def test_a_device_that_hangs_is_asked_by_one_thread_only() -> None:
    entered, answer = [], threading.Event()

    class HangingEvidence(FakeEvidence):
        def quote(self, statement_digest: bytes) -> Any:
            entered.append(threading.current_thread())
            answer.wait(60)
            return super().quote(statement_digest)

    settings = WorkerSettings(reports=ReportSettings(timeout_s=0.05))
    async with running(settings, evidence=HangingEvidence()) as bench:
        for _ in range(8):
            outer = await call(bench.worker, "GET", "/v1/aci/attestation", query=NONCE)
            assert outer.status == 503
        large = chat("x" * 2 * IN_A_THREAD_FROM)  # needs a thread of its own
        async with asyncio.timeout(60):
            assert (await bench.peer.ask(document=large)).status == 200
        assert len(entered) == 1
        answer.set()
        later = 0
        async with asyncio.timeout(60):
            while outer.status != 200:
                later += 1
                outer = await call(bench.worker, "GET", "/v1/aci/attestation", query=NONCE)
        # Those given up meanwhile were never asked for; on a slow machine some later ones are late.
        assert 2 <= bench.evidence.made <= 1 + later


class BrokenEvidence(FakeEvidence):
    def quote(self, statement_digest: bytes) -> Any:
        raise OSError("canary of the device")


async def test_a_failing_device_is_not_quoted() -> None:
    async with running(evidence=BrokenEvidence()) as bench:
        outer = await call(bench.worker, "GET", "/v1/aci/attestation", query=NONCE)
        assert outer.status == 503
        assert b"canary" not in outer.body
        assert "canary" not in bench.stream.getvalue()
        assert bench.events("report.failed")[0]["error"] == "OSError"
