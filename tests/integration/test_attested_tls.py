"""Attested TLS: plain HTTP inside TLS that ends in the worker, for tools that pin certificates."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cloister.channel.keyset import Keyset
from cloister.channel.receipt import parse_receipt, verify_receipt
from cloister.errors import AuthenticationError
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.api_keys import ApiKeyFile
from cloister.worker.settings import (
    Dialect,
    Limits,
    RateLimit,
    ReceiptSettings,
    WorkerSettings,
)
from support.asgi import call
from support.sealed import chat, until
from support.tls import Pinned, listening
from support.worker import running

PATH = "/v1/chat/completions"


@contextlib.asynccontextmanager
async def client(pinned: Pinned, **headers: str) -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client that trusts the pinned certificate, and nothing else."""
    async with httpx2.AsyncClient(
        base_url=pinned.url, verify=pinned.context(), headers=headers, trust_env=False, timeout=60
    ) as http:
        yield http


def settings(**changes: Any) -> WorkerSettings:
    return WorkerSettings(attested_tls=True, **changes)


def keyset(pinned: Pinned) -> Keyset:
    return pinned.bench.worker.context.keys.current.keyset


# What is answered, and to whom


async def test_a_chat_and_its_receipt(tmp_path: Path) -> None:
    body = json.dumps(chat("hello")).encode()
    async with listening(tmp_path) as pinned, client(pinned) as http:
        answer = await http.post(PATH, content=body)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"].startswith(" word0")
        assert answer.headers["x-aci-version"] == "aci/1"
        assert answer.headers["x-aci-keyset-digest"] == keyset(pinned).digest
        assert "x-cloister-nonce" not in answer.headers
        found = await http.get("/v1/aci/receipts/" + answer.headers["x-receipt-id"])
        receipt = parse_receipt(found.content)
        # What whoever has no Cloister can compute: SHA-256 of the two bodies.
        sent, returned = hashlib.sha256(body).digest(), hashlib.sha256(answer.content).digest()
        verify_receipt(receipt, keyset=keyset(pinned), request_hash=sent, response_hash=returned)
        assert receipt.event("cloister.channel") == {"type": "cloister.channel", "binding": "tls"}
        assert receipt.event("cloister.model")["name"] == "fake"
        with pytest.raises(AuthenticationError):
            verify_receipt(
                receipt, keyset=keyset(pinned), request_hash=returned, response_hash=sent
            )
        assert pinned.bench.engine.requests[0].body == body


async def test_a_stream_comes_event_by_event_and_its_receipt_covers_all_of_it(
    tmp_path: Path,
) -> None:
    engine = FakeEngine(script=lambda *_: Answer(rate=200, tokens=("one", "two", "three")))
    async with listening(tmp_path, engine=engine) as pinned, client(pinned) as http:
        body = json.dumps(chat(stream=True)).encode()
        async with http.stream("POST", PATH, content=body) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            pieces = [piece async for piece in answer.aiter_raw()]
        whole = b"".join(pieces)
        assert len(pieces) >= 3
        assert whole.count(b'"delta"') >= 3
        assert whole.endswith(b"data: [DONE]\n\n")
        # Each event is padded to the same size, so that the length of a token does not show.
        sizes = {len(event) for event in whole.split(b"\n\n") if b"content" in event}
        assert len(sizes) == 1
        found = await http.get("/v1/aci/receipts/" + answer.headers["x-receipt-id"])
        verify_receipt(
            parse_receipt(found.content),
            keyset=keyset(pinned),
            request_hash=hashlib.sha256(body).digest(),
            response_hash=hashlib.sha256(whole).digest(),
        )


async def test_what_carries_no_receipt_promises_none(tmp_path: Path) -> None:
    async with listening(tmp_path) as pinned, client(pinned) as http:
        assert "x-receipt-id" in (await http.post(PATH, json=chat())).headers
        for answer in (
            await http.get("/v1/models"),
            await http.get("/v1/nowhere"),
            await http.post(PATH, content=b"{"),
        ):
            assert "x-receipt-id" not in answer.headers


async def test_receipts_are_for_whoever_made_the_request(tmp_path: Path) -> None:
    file = ApiKeyFile(tmp_path / "keys.json")
    (_, ann), (_, bob) = file.add("ann", at=0), file.add("bob", at=0)
    async with (
        listening(tmp_path, api_keys=tmp_path / "keys.json") as pinned,
        client(pinned, authorization=f"Bearer {ann}") as hers,
        client(pinned, authorization=f"Bearer {bob}") as his,
        client(pinned) as nobodys,
    ):
        answer = await hers.post(PATH, json=chat())
        path = "/v1/aci/receipts/" + answer.headers["x-receipt-id"]
        assert (await hers.get(path)).status_code == 200
        refused = await his.get(path)
        unknown = await hers.get("/v1/aci/receipts/rcpt-" + "0" * 32)
        assert (refused.status_code, refused.content) == (404, unknown.content)
        assert (await nobodys.get(path)).status_code == 401


async def test_receipts_expire(tmp_path: Path) -> None:
    kept = settings(receipts=ReceiptSettings(keep_s=10))
    async with listening(tmp_path, settings=kept) as pinned, client(pinned) as http:
        path = "/v1/aci/receipts/" + (await http.post(PATH, json=chat())).headers["x-receipt-id"]
        assert (await http.get(path)).status_code == 200
        pinned.bench.clocks.steady_offset += 11
        assert (await http.get(path)).status_code == 404


async def test_a_key_is_needed_before_a_body_is_read(tmp_path: Path) -> None:
    file = ApiKeyFile(tmp_path / "keys.json")
    _, ann = file.add("ann", at=0)
    async with listening(tmp_path, api_keys=tmp_path / "keys.json") as pinned:
        async with client(pinned, authorization=f"Bearer {ann}") as http:
            assert (await http.post(PATH, json=chat())).status_code == 200
        async with client(pinned, **{"x-api-key": ann}) as http:
            assert (await http.post(PATH, json=chat())).status_code == 200
        async with client(pinned) as http:
            refused = await http.post(PATH, json=chat())
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                401,
                "invalid_api_key",
            )
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", pinned.port, ssl=pinned.context()
        )
        # No byte of the announced body is ever sent: the answer does not wait for one.
        writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" % PATH.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()
        assert len(pinned.bench.engine.requests) == 2


@pytest.mark.parametrize("trailing", [False, True])
async def test_a_key_behind_the_body_is_none(tmp_path: Path, trailing: bool) -> None:
    """What a trailer says is not taken for the head's, even where both come at once."""
    file = ApiKeyFile(tmp_path / "keys.json")
    _, ann = file.add("ann", at=0)
    key = f"Authorization: Bearer {ann}\r\n".encode()
    body = json.dumps(chat("hello")).encode()
    sent = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n%b\r\n" % (
        PATH.encode(),
        b"" if trailing else key,
    )
    sent += b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, key if trailing else b"")
    async with listening(tmp_path, api_keys=tmp_path / "keys.json") as pinned:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", pinned.port, ssl=pinned.context()
        )
        writer.write(sent)
        status = await reader.readline()
        writer.close()
        assert status.split()[1] == (b"401" if trailing else b"200")


async def test_rates_are_one_for_both_ways_in(tmp_path: Path) -> None:
    file = ApiKeyFile(tmp_path / "keys.json")
    _, ann = file.add("ann", at=0)
    rate = settings(rate=RateLimit(per_minute=1, burst=2))
    async with (
        listening(tmp_path, settings=rate, api_keys=tmp_path / "keys.json") as pinned,
        client(pinned, authorization=f"Bearer {ann}") as http,
    ):
        assert (await http.post(PATH, json=chat())).status_code == 200
        sealed = await pinned.bench.peer.ask(document=chat(), api_key=ann)
        assert sealed.status == 200
        refused = await http.post(PATH, json=chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            429,
            "rate_limit_exceeded",
        )
        assert int(refused.headers["retry-after"]) > 0


async def test_an_idempotency_key_runs_once(tmp_path: Path) -> None:
    async with listening(tmp_path) as pinned, client(pinned) as http:
        named = {"idempotency-key": "mine"}
        assert (await http.post(PATH, json=chat(), headers=named)).status_code == 200
        again = await http.post(PATH, json=chat(), headers=named)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_key_in_use")


async def test_a_prompt_of_one_is_never_in_the_cache_domain_of_another(tmp_path: Path) -> None:
    async with listening(tmp_path) as pinned, client(pinned) as http:
        for _ in range(2):
            assert (await http.post(PATH, json=chat())).status_code == 200
        first, second = pinned.bench.engine.requests
        assert first.cache_domain is None or first.cache_domain != second.cache_domain


async def test_fields_of_the_seal_are_not_needed_and_others_are_checked(tmp_path: Path) -> None:
    async with listening(tmp_path) as pinned, client(pinned) as http:
        old = {"date": "Mon, 01 Jan 2001 00:00:00 GMT", "x-cloister-nonce": "no nonce"}
        assert (await http.post(PATH, json=chat(), headers=old)).status_code == 200
        wrong = await http.post(PATH, json=chat(), headers={"x-cloister-cache-secret": "short"})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "bad_cache_secret")
        twice = [("authorization", "Bearer a"), ("authorization", "Bearer b")]
        assert (await http.post(PATH, json=chat(), headers=twice)).status_code == 401


async def test_errors_have_the_shape_of_their_api(tmp_path: Path) -> None:
    async with listening(tmp_path) as pinned, client(pinned) as http:
        bad = await http.post(PATH, content=b'{"model": secret-marker}')
        assert (bad.status_code, bad.json()["error"]["code"]) == (400, "bad_json")
        assert b"secret-marker" not in bad.content
        bad = await http.post("/v1/messages", content=b"{")
        assert (bad.status_code, bad.json()["type"]) == (400, "error")
        assert (await http.get(PATH)).status_code == 405
        assert (await http.get("/v1/nowhere")).json()["error"]["code"] == "unknown_path"


async def test_another_spelling_of_a_path_is_another_path(tmp_path: Path) -> None:
    async with listening(tmp_path) as pinned, client(pinned) as http:
        assert (await http.get("/v1/models")).status_code == 200
        assert (await http.get("/v1%2Fmodels")).status_code == 404


async def test_paths_of_replaced_servers_are_served_where_they_are_switched_on(
    tmp_path: Path,
) -> None:
    on = settings(compat=frozenset({Dialect.COSMIAN}))
    async with listening(tmp_path, settings=on) as pinned, client(pinned) as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.post("/generate", json={"query": "hello"})).json()["response"]
    async with listening(tmp_path) as pinned, client(pinned) as http:
        assert (await http.get("/health")).status_code == 404


async def test_the_report_and_the_seal_are_there_as_well(tmp_path: Path) -> None:
    async with listening(tmp_path) as pinned, client(pinned) as http:
        report = (await http.get("/v1/aci/attestation", params={"nonce": "0" * 64})).json()
        assert report["workload_keyset_digest"] == keyset(pinned).digest
        sealed = pinned.bench.peer.seal(document=chat())
        answer = await http.post(
            "/ohttp", content=sealed.body, headers={"content-type": sealed.media_type.decode()}
        )
        assert b"word0" in b"".join(sealed.open(answer.content))


# Where it is not


async def test_the_other_listener_takes_no_plaintext(tmp_path: Path) -> None:
    async with listening(tmp_path) as pinned:
        async with client(pinned) as http:
            assert (await http.post(PATH, json=chat())).status_code == 200
        body = json.dumps(chat()).encode()
        for path in (PATH, "/v1/models"):
            refused = await call(pinned.bench.worker, "POST", path, body=body)
            assert refused.status == 403
            assert b"plaintext_refused" in refused.body
        assert (await call(pinned.bench.worker, "GET", "/tls-certificate")).status == 404
        assert len(pinned.bench.engine.requests) == 1


async def test_it_is_not_there_unless_switched_on() -> None:
    async with running() as bench:
        assert (await bench.peer.ask(document=chat())).status == 200
        assert bench.peer.keyset.tls_public_keys == ()
        with pytest.raises(RuntimeError):
            await call(bench.worker.inside_tls, "GET", "/v1/models")
    with pytest.raises(TypeError):
        async with running(WorkerSettings(attested_tls=True)):
            pass


# What goes wrong on the way


async def test_a_client_that_leaves_frees_the_engine(tmp_path: Path) -> None:
    engine = FakeEngine(script=lambda *_: Answer(rate=50, tokens=("x",) * 1000))
    async with listening(tmp_path, engine=engine) as pinned:
        async with (
            client(pinned) as http,
            http.stream("POST", PATH, json=chat(stream=True)) as answer,
        ):
            await anext(answer.aiter_raw())
            assert pinned.bench.worker.open_requests == 1
        await until(lambda: engine.cancelled == 1)
        await until(lambda: pinned.bench.worker.open_requests == 0)


async def test_bodies_are_bounded_with_and_without_a_length(tmp_path: Path) -> None:
    bounded = settings(limits=Limits(max_request_bytes=2000))
    async with listening(tmp_path, settings=bounded) as pinned, client(pinned) as http:
        assert (await http.post(PATH, json=chat("x" * 1500))).status_code == 200

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b" " * 100

        for content in (b" " * 2001, chunks()):
            refused = await http.post(PATH, content=content)
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                413,
                "request_too_large",
            )
        assert len(pinned.bench.engine.requests) == 1
        await until(lambda: pinned.bench.worker.open_requests == 0)


async def test_heads_are_bounded_as_inside_the_seal(tmp_path: Path) -> None:
    bounded = settings(limits=Limits(max_header_bytes=1000, max_headers=20))
    async with listening(tmp_path, settings=bounded) as pinned, client(pinned) as http:
        for twin, headers in (
            ({"a": "x"}, {"a": "x" * 1000}),
            ({"a": "x"}, {f"a{number}": "x" for number in range(20)}),
        ):
            assert (await http.get("/v1/models", headers=twin)).status_code == 200
            refused = await http.get("/v1/models", headers=headers)
            assert refused.status_code == 413
        assert (await http.get("/v1/models?" + "x" * 1000)).status_code == 413


async def test_a_body_that_stops_coming_is_given_up(tmp_path: Path) -> None:
    slow = settings(limits=Limits(first_byte_s=0.2))
    async with listening(tmp_path, settings=slow) as pinned:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", pinned.port, ssl=pinned.context()
        )
        writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{" % PATH.encode())
        async with asyncio.timeout(60):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        writer.close()
        await until(lambda: pinned.bench.worker.open_requests == 0)


async def test_a_worker_that_stops_says_so_and_ends_streams_with_an_error(tmp_path: Path) -> None:
    engine = FakeEngine(script=lambda *_: Answer(rate=50, tokens=("x",) * 10_000))
    brief = settings(limits=Limits(drain_s=0.2))
    async with listening(tmp_path, engine=engine, settings=brief) as pinned, client(pinned) as http:
        async with http.stream("POST", PATH, json=chat(stream=True)) as answer:
            pieces = answer.aiter_raw()
            await anext(pieces)
            stopping = asyncio.create_task(pinned.bench.worker.stop())
            rest = b"".join([piece async for piece in pieces])
            await stopping
        assert b'"stopping"' in rest
        assert b"[DONE]" not in rest
        refused = await http.post(PATH, json=chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
