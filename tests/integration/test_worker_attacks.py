"""What the worker withstands: replays, cuts, floods, wrong keys, plaintext."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from cloister.channel.hpke import Kem
from cloister.channel.ohttp import ChunkedSender, ServerKey
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.settings import KeySettings, WorkerSettings
from support.asgi import call
from support.sealed import Sealed, chat, inner_headers, offered, seal, until
from support.worker import Bench, running

UNKNOWN_KEY = "https://iana.org/assignments/http-problem-types#ohttp-key"
DATE = "https://iana.org/assignments/http-problem-types#date"


async def refused_outside(bench: Bench, sealed: Sealed, status: int, **options: object) -> object:
    outer = await bench.peer.send(sealed, **options)
    assert outer.status == status, outer
    assert outer.headers[b"content-type"] == b"application/problem+json"
    return json.loads(outer.body)["type"]


# -- replay -----------------------------------------------------------------------------------


async def test_a_replayed_request_is_refused_and_runs_once() -> None:
    async with running() as bench:
        sealed = bench.peer.seal(document=chat())
        first = sealed.opened(await bench.peer.send(sealed))
        second = sealed.opened(await bench.peer.send(sealed))
        assert first.status == 200
        assert second.status == 409
        assert second.error["code"] == "replayed_request"
        assert second.headers["x-should-retry"] == "false"
        assert len(bench.engine.requests) == 1


async def test_two_copies_at_once_run_once() -> None:
    """Both have passed the look at the head before either's end arrives."""
    async with running() as bench:
        sealed = bench.peer.seal(document=chat("x" * 40_000))  # its head is in the first chunk
        release = asyncio.Event()

        async def halves() -> AsyncIterator[bytes]:
            yield sealed.body[:-1]
            await release.wait()
            yield sealed.body[-1:]

        calls = [bench.peer.start(sealed, body=halves()) for _ in range(4)]
        await until(lambda: bench.worker.open_requests == 4)
        await asyncio.sleep(0.05)
        release.set()
        answers = [sealed.opened(await one.result()) for one in calls]
        assert sorted(answer.status for answer in answers) == [200, 409, 409, 409]
        assert len(bench.engine.requests) == 1


async def test_rewound_clock_and_a_flood_do_not_revive_an_old_request() -> None:
    async with running() as bench:
        old = bench.peer.seal(document=chat("old"))
        assert old.opened(await bench.peer.send(old)).status == 200
        bench.clocks.steady_offset += 1800
        bench.clocks.wall_offset += 1800  # the date alone would stop it now
        late = old.opened(await bench.peer.send(old))
        assert late.status in (400, 409)
        for _ in range(200):
            assert (await bench.peer.ask("/v1/models")).status == 200
        bench.clocks.wall_offset -= 1800  # the host turns the clock back
        replayed = old.opened(await bench.peer.send(old))
        assert replayed.status == 409
        assert len(bench.engine.requests) == 1


async def test_a_rewound_clock_does_not_keep_a_key_alive() -> None:
    async with running() as bench:
        old = bench.peer.seal(document=chat())
        fresh = bench.peer.seal(document=chat())
        assert old.opened(await bench.peer.send(old)).status == 200
        bench.clocks.steady_offset += 3600 + 600 + 1
        bench.clocks.wall_offset = 0.0  # the wall clock stands still
        assert await refused_outside(bench, fresh, 400) == UNKNOWN_KEY
        assert await refused_outside(bench, old, 400) == UNKNOWN_KEY


async def test_a_key_opens_requests_during_the_overlap() -> None:
    async with running() as bench:
        keyset = bench.peer.keyset
        early = bench.peer.seal(document=chat())
        bench.clocks.steady_offset += 3600 + 300
        inner = early.opened(await bench.peer.send(early))
        assert bench.peer.keyset.digest != keyset.digest
        assert inner.status == 200
        assert inner.headers["x-aci-keyset-digest"] == keyset.digest
        assert inner.receipt is not None
        assert inner.receipt.keyset_digest == keyset.digest


async def test_a_full_memory_rotates_the_key_and_forgets_nothing_that_still_opens() -> None:
    settings = WorkerSettings(keys=KeySettings(replay_capacity=3, min_rotation_s=0))
    async with running(settings) as bench:
        before = bench.peer.keyset.digest
        sealed = [bench.peer.seal("/v1/models") for _ in range(4)]
        for one in sealed[:3]:
            assert one.opened(await bench.peer.send(one)).status == 200
        assert bench.peer.keyset.digest != before
        for one in sealed:  # the full key is gone, and with it all that was sealed to it
            assert await refused_outside(bench, one, 400) == UNKNOWN_KEY
        assert (await bench.peer.ask("/v1/models")).status == 200


async def test_a_flood_cannot_make_keys_rotate_all_the_time() -> None:
    settings = WorkerSettings(keys=KeySettings(replay_capacity=2, min_rotation_s=60))
    async with running(settings) as bench:
        for _ in range(2):
            assert (await bench.peer.ask("/v1/models")).status == 200
        outer = await bench.peer.send(bench.peer.seal("/v1/models"))
        assert outer.status == 503
        assert outer.headers[b"retry-after"] == b"60"
        bench.clocks.steady_offset += 61
        assert (await bench.peer.ask("/v1/models")).status == 200


# -- date -------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-301, 301])
async def test_a_date_outside_the_window_is_refused(skew: float) -> None:
    async with running() as bench:
        now = bench.clocks.wall()
        assert (await bench.peer.ask("/v1/models", at=now + skew * 0.9)).status == 200
        inner = await bench.peer.ask("/v1/models", at=now + skew * 1.01)
        assert inner.status == 400
        assert inner.json["type"] == DATE
        assert inner.headers["content-type"] == "application/problem+json"
        assert "date" in inner.headers


async def test_a_request_without_a_date_is_refused() -> None:
    async with running() as bench:
        inner = await bench.peer.ask("/v1/models", extra={"date": ""})
        assert (inner.status, inner.json["type"]) == (400, DATE)
        assert (await bench.peer.ask("/v1/models", extra={"date": "yesterday"})).status == 400


# -- the seal ---------------------------------------------------------------------------------


async def test_a_request_cut_at_a_chunk_boundary_starts_nothing() -> None:
    async with running() as bench:
        sender = ChunkedSender(bench.peer.config())
        whole = seal(
            bench.peer.config(), body=json.dumps(chat()).encode(), headers=inner_headers()
        ).plaintext
        cut = sender.chunk(whole[:300]) + sender.chunk(whole[300:])
        end = sender.chunk(b"", final=True)

        async def send(body: bytes) -> int:
            headers = [(b"content-type", b"message/ohttp-chunked-req")]
            return (await call(bench.worker, "POST", "/ohttp", body=body, headers=headers)).status

        assert await send(cut) == 400
        assert not bench.engine.requests
        assert await send(cut + end) == 200
        assert len(bench.engine.requests) == 1


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_altered_request_is_not_opened(chunked: bool) -> None:
    async with running() as bench:
        sealed = bench.peer.seal(document=chat(), chunked=chunked)
        altered = bytearray(sealed.body)
        altered[-1] ^= 1
        outer = await bench.peer.send(sealed, body=bytes(altered))
        assert outer.status == 400
        assert not bench.engine.requests
        assert (await bench.peer.send(sealed)).status == 200


async def test_keys_of_another_worker_are_unknown_even_under_the_same_id() -> None:
    async with running() as bench:
        mine = bench.peer.config()
        stranger = ServerKey.generate(mine.key_id, Kem.MLKEM768_X25519).config
        other_id = ServerKey.generate((mine.key_id + 100) % 256, Kem.X25519).config
        assert (await bench.peer.send(bench.peer.seal(document=chat()))).status == 200
        for config in (stranger, other_id):
            sealed = bench.peer.seal(document=chat(), config=config)
            assert await refused_outside(bench, sealed, 400) == UNKNOWN_KEY


async def test_a_suite_that_is_not_offered_is_refused() -> None:
    async with running() as bench:
        sealed = bench.peer.seal(document=chat())
        downgraded = bytearray(sealed.body)
        downgraded[5:7] = b"\x00\x01"  # AES-128-GCM, which the hybrid key is not offered with
        assert (await bench.peer.send(sealed)).status == 200
        outer = await bench.peer.send(sealed, body=bytes(downgraded))
        assert (outer.status, json.loads(outer.body)["type"]) == (400, UNKNOWN_KEY)


async def test_the_path_is_inside_the_seal() -> None:
    """The same ciphertext with another query or outer headers does exactly the same."""
    async with running() as bench:
        one, two = bench.peer.seal("/v1/models"), bench.peer.seal("/v1/models")
        plain = one.opened(await bench.peer.send(one))
        changed = two.opened(
            await bench.peer.send(
                two, query=b"path=/v1/chat/completions", headers=[(b"authorization", b"Bearer x")]
            )
        )
        assert plain.json == changed.json


async def test_garbage_is_refused() -> None:
    async with running() as bench:
        sealed = bench.peer.seal("/v1/models")
        for body in (b"", b"\x00", sealed.body[:7], sealed.body[:500]):
            assert (await bench.peer.send(sealed, body=body)).status == 400
        assert (await bench.peer.send(sealed)).status == 200


async def test_a_sealed_message_that_is_no_request_is_refused_inside_the_seal() -> None:
    async with running() as bench:
        config = bench.peer.config()
        for plaintext in (b"\x01" * 40, b"\x00\x04POST", b""):
            sealed = seal(config, headers=(), plaintext=plaintext)
            inner = sealed.opened(await bench.peer.send(sealed))
            assert (inner.status, inner.error["code"]) == (400, "bad_inner_message")


# -- idempotency ------------------------------------------------------------------------------


async def test_a_resend_with_the_same_idempotency_key_does_not_run_twice() -> None:
    async with running() as bench:
        first = await bench.peer.ask(document=chat(), idempotency_key="k1")
        second = await bench.peer.ask(document=chat(), idempotency_key="k1")
        third = await bench.peer.ask(document=chat(), idempotency_key="k2")
        assert (first.status, second.status, third.status) == (200, 409, 200)
        assert second.error["code"] == "idempotency_key_in_use"
        assert second.headers["x-should-retry"] == "false"
        assert len(bench.engine.requests) == 2


async def test_idempotency_outlives_the_keys() -> None:
    """A copy held back until after a rotation, and sealed anew by the client, runs once."""
    async with running() as bench:
        assert (await bench.peer.ask(document=chat(), idempotency_key="k")).status == 200
        bench.clocks.steady_offset += 3600 + 600 + 1
        assert (await bench.peer.ask(document=chat(), idempotency_key="k")).status == 409


async def test_an_idempotency_key_is_not_spent_by_a_request_that_never_ran() -> None:
    async with running() as bench:
        wrong = await bench.peer.ask(document={**chat(), "model": "other"}, idempotency_key="k")
        assert wrong.status == 404
        assert (await bench.peer.ask(document=chat(), idempotency_key="k")).status == 200


# -- plaintext --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/aci/receipts/x"]
)
async def test_plaintext_inference_is_refused_with_a_word_on_how_to_connect(path: str) -> None:
    async with running() as bench:
        outer = await call(bench.worker, "POST", path, body=json.dumps(chat("secret")).encode())
        assert outer.status == 403
        error = json.loads(outer.body)["error"]
        assert error["code"] == "plaintext_refused"
        assert "cloister proxy" in error["message"]
        assert b"secret" not in outer.body
        assert not bench.engine.requests


async def test_a_plaintext_body_at_the_sealed_path_is_refused() -> None:
    async with running() as bench:
        headers = [(b"content-type", b"application/json")]
        outer = await call(bench.worker, "POST", "/ohttp", body=b"{}", headers=headers)
        assert outer.status == 415
        assert (await call(bench.worker, "GET", "/ohttp")).status == 405


# -- keys -------------------------------------------------------------------------------------


async def test_the_keys_offered_are_those_of_the_keyset() -> None:
    async with running() as bench:
        outer = await call(bench.worker, "GET", "/ohttp-keys")
        assert outer.headers[b"content-type"] == b"application/ohttp-keys"
        assert tuple(config.encode() for config in offered(outer)) == (
            bench.peer.keyset.ohttp_key_configs()
        )
        assert [config.kem for config in offered(outer)] == [Kem.MLKEM768_X25519, Kem.X25519]


async def test_caches_are_never_shared_between_clients() -> None:
    async with running(engine=FakeEngine(script=lambda *_: Answer.text("x"))) as bench:
        one, two = b"1" * 32, b"2" * 32
        for secret in (one, one, two, None, None):
            assert (await bench.peer.ask(document=chat(), cache_secret=secret)).status == 200
        domains = [request.cache_domain for request in bench.engine.requests]
        assert domains[0] == domains[1]
        assert len(set(domains)) == 4
        assert None not in domains
