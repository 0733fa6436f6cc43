"""Who is asking: API keys inside the seal, rates per key, receipts for their owner alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister.worker.api_keys import ApiKeyFile
from cloister.worker.settings import RateLimit, WorkerSettings
from support.sealed import chat, until
from support.worker import Bench, running


@dataclass(slots=True)
class Keyed:
    bench: Bench
    file: ApiKeyFile
    ann: str
    bob: str


@contextlib.asynccontextmanager
async def keyed(path: Path, settings: WorkerSettings | None = None) -> AsyncIterator[Keyed]:
    file = ApiKeyFile(path)
    (_, ann), (_, bob) = file.add("ann", at=0), file.add("bob", at=0)
    async with running(settings, api_keys=path) as bench:
        yield Keyed(bench, file, ann, bob)


async def test_a_key_is_needed_once_there_is_one(tmp_path: Path) -> None:
    async with keyed(tmp_path / "keys.json") as made:
        peer = made.bench.peer
        assert (await peer.ask(document=chat(), api_key=made.ann)).status == 200
        for wrong in (None, "clst_wrong", made.ann[:-1]):
            inner = await peer.ask(document=chat(), api_key=wrong)
            assert (inner.status, inner.error["code"]) == (401, "invalid_api_key")
            assert inner.headers["x-should-retry"] == "false"
        assert (await peer.ask("/v1/models")).status == 401
        for header in (f"Basic {made.ann}", "Bearer", f"{made.ann}"):
            inner = await peer.ask(document=chat(), extra={"authorization": header})
            assert inner.status == 401
        assert len(made.bench.engine.requests) == 1


async def test_a_key_outside_the_seal_counts_for_nothing(tmp_path: Path) -> None:
    async with keyed(tmp_path / "keys.json") as made:
        sealed = made.bench.peer.seal(document=chat())
        outer = await made.bench.peer.send(
            sealed, headers=[(b"authorization", f"Bearer {made.ann}".encode())]
        )
        assert sealed.opened(outer).status == 401


async def test_a_worker_that_others_can_reach_is_closed_until_it_has_keys() -> None:
    async with running(open_when_empty=False) as bench:
        inner = await bench.peer.ask(document=chat())
        assert inner.status == 401
        assert "cloister keys add" in inner.error["message"]


async def test_keys_change_while_it_runs(tmp_path: Path) -> None:
    async with keyed(tmp_path / "keys.json") as made:
        peer = made.bench.peer
        entry, carol = made.file.add("carol", at=1)
        made.bench.clocks.steady_offset += 2
        assert (await peer.ask("/v1/models", api_key=carol)).status == 200
        made.file.revoke(entry.key_id, at=2)
        made.bench.clocks.steady_offset += 2
        assert (await peer.ask("/v1/models", api_key=carol)).status == 401


async def test_a_wrong_key_is_refused_before_its_body_is_kept(tmp_path: Path) -> None:
    async with keyed(tmp_path / "keys.json") as made:
        sealed = made.bench.peer.seal(document=chat("x" * 200_000), api_key="clst_wrong")
        pulled = 0

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal pulled
            for at in range(0, len(sealed.body), 20_000):
                pulled += 1
                yield sealed.body[at : at + 20_000]

        inner = sealed.opened(await made.bench.peer.send(sealed, body=pieces()))
        assert inner.status == 401
        assert inner.receipt is None
        assert pulled == 1


async def test_refused_requests_leave_no_trace_in_the_replay_memory(tmp_path: Path) -> None:
    """Otherwise anybody could fill it."""
    async with keyed(tmp_path / "keys.json") as made:
        keys = made.bench.worker.context.keys
        key = keys.request_key(keys.current.key_ids[0])
        assert key is not None
        for _ in range(5):
            assert (await made.bench.peer.ask("/v1/models")).status == 401
        assert len(key.replay) == 0
        assert (await made.bench.peer.ask("/v1/models", api_key=made.ann)).status == 200
        assert len(key.replay) == 1


async def test_rates_are_per_key(tmp_path: Path) -> None:
    settings = WorkerSettings(rate=RateLimit(per_minute=6, burst=2))
    async with keyed(tmp_path / "keys.json", settings) as made:
        peer = made.bench.peer
        asked = [await peer.ask("/v1/models", api_key=made.ann) for _ in range(3)]
        assert [inner.status for inner in asked] == [200, 200, 429]
        assert 0 < int(asked[2].headers["retry-after"]) <= 10
        assert asked[2].error["code"] == "rate_limit_exceeded"
        assert (await peer.ask("/v1/models", api_key=made.bob)).status == 200
        made.bench.clocks.steady_offset += 10
        assert (await peer.ask("/v1/models", api_key=made.ann)).status == 200


async def test_a_rate_limited_request_can_be_sent_again(tmp_path: Path) -> None:
    settings = WorkerSettings(rate=RateLimit(per_minute=6, burst=1))
    async with keyed(tmp_path / "keys.json", settings) as made:
        peer = made.bench.peer
        await peer.ask("/v1/models", api_key=made.ann)
        limited = await peer.ask(document=chat(), api_key=made.ann, idempotency_key="k")
        made.bench.clocks.steady_offset += 10
        again = await peer.ask(document=chat(), api_key=made.ann, idempotency_key="k")
        assert (limited.status, again.status) == (429, 200)


async def test_receipts_and_idempotency_keys_belong_to_a_credential(tmp_path: Path) -> None:
    async with keyed(tmp_path / "keys.json") as made:
        peer = made.bench.peer
        inner = await peer.ask(document=chat(), api_key=made.ann, idempotency_key="k")
        other = await peer.ask(document=chat(), api_key=made.bob, idempotency_key="k")
        assert (inner.status, other.status) == (200, 200)
        path = f"/v1/aci/receipts/{inner.headers['x-receipt-id']}"
        assert (await peer.ask(path, api_key=made.ann)).status == 200
        stranger = await peer.ask(path, api_key=made.bob)
        unknown = await peer.ask("/v1/aci/receipts/rcpt-" + "0" * 32, api_key=made.bob)
        assert stranger.status == 404
        assert stranger.body == unknown.body


async def test_cache_domains_differ_between_credentials(tmp_path: Path) -> None:
    async with keyed(tmp_path / "keys.json") as made:
        for key in (made.ann, made.bob, made.ann):
            await made.bench.peer.ask(document=chat(), api_key=key, cache_secret=b"1" * 32)
        domains = [request.cache_domain for request in made.bench.engine.requests]
        assert domains[0] == domains[2] != domains[1]


@pytest.mark.parametrize("count", [1000])
async def test_rate_buckets_of_keys_that_are_gone_are_gone(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.worker.app._TICK_S", 0.01)
    async with keyed(tmp_path / "keys.json") as made:
        rates = made.bench.worker.context.rates
        for name in range(count):
            rates.take(name.to_bytes(4, "big"), 0)
        await until(lambda: len(rates) == 0)
        await asyncio.sleep(0)


async def test_a_key_may_come_as_anthropics_clients_send_it(tmp_path: Path) -> None:
    """With both fields they must agree: two readers would take different ones."""
    async with keyed(tmp_path / "keys.json") as made:
        ann = {"x-api-key": made.ann}
        for extra, status in (
            (ann, 200),
            (ann | {"authorization": f"Bearer {made.ann}"}, 200),
            (ann | {"authorization": f"Bearer {made.bob}"}, 401),
            ({"x-api-key": "clst_wrong"}, 401),
        ):
            inner = await made.bench.peer.ask(document=chat(), extra=extra)
            assert inner.status == status
