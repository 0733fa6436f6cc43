"""Servers that somebody else started, behind the engine protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloister.engine.http_unix import LoopbackAddress, UnixAddress
from cloister.engine.openai_upstream import OpenAIUpstream, UpstreamSettings, parse_address
from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    NOT_RUNNING,
    REQUEST_REFUSED,
    Engine,
    EngineRequest,
)
from cloister.errors import ConfigurationError, EngineError
from cloister.testing.fake_engine import Answer, FakeEngine, serve
from support.sealed import until

LIMIT = 1 << 20


@contextlib.asynccontextmanager
async def served(tmp_path: Path, fake: FakeEngine) -> AsyncIterator[str]:
    await fake.start()
    path = str(tmp_path / "s")
    server = await serve(fake, path=path)
    try:
        yield f"unix:{path}"
    finally:
        server.close()
        await fake.aclose()
        await asyncio.sleep(0.02)


def upstream(
    address: str, *, name: str = "fake", salt: bool = False, start_timeout: float = 60.0
) -> OpenAIUpstream:
    settings = UpstreamSettings(
        address=address,
        name=name,
        cache_salt=salt,
        prefix_cache_off=not salt,
        start_timeout=start_timeout,
    )
    return OpenAIUpstream(settings, watch_every=0.02)


def request(domain: str | None = None, **more: object) -> EngineRequest:
    return EngineRequest(
        path=CHAT_COMPLETIONS,
        body=json.dumps({"messages": [], **more}).encode(),
        cache_domain=domain,
    )


def test_addresses_of_this_machine() -> None:
    assert parse_address("unix:/run/vllm.sock") == UnixAddress(path="/run/vllm.sock")
    assert parse_address("http://127.0.0.1:8000") == LoopbackAddress(host="127.0.0.1", port=8000)
    assert parse_address("http://127.9.9.9:1/") == LoopbackAddress(host="127.9.9.9", port=1)
    assert parse_address("http://[::1]:8000") == LoopbackAddress(host="::1", port=8000)


@pytest.mark.parametrize(
    "text",
    [
        "http://192.168.0.1:8000",
        "http://0.0.0.0:8000",
        "http://[::]:8000",
        "http://[fe80::1]:8000",
        "http://10.0.0.1:80",
        "http://128.0.0.1:80",
        "http://localhost:8000",
        "http://example.org:8000",
        "http://127.0.0.1",
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:80/v1",
        "http://127.0.0.1:80@example.org",
        "http://127.1:80",
        "https://127.0.0.1:80",
        "unix:relative",
        "unix:/" + "x" * 107,
        "unix:/a\0b",
        "",
    ],
)
def test_any_other_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_address(text)


async def test_it_answers_and_frees(tmp_path: Path) -> None:
    fake = FakeEngine(script=lambda _path, _body: Answer(rate=50))
    async with served(tmp_path, fake) as address:
        engine: Engine = upstream(address)
        with pytest.raises(EngineError) as caught:
            await engine.send(request())
        assert caught.value.code == NOT_RUNNING
        await engine.start()
        response = await engine.send(request(stream=True))
        assert response.content_type == "text/event-stream"
        await anext(aiter(response.chunks))
        assert fake.running == 1
        await response.aclose()
        await until(lambda: (fake.running, fake.cancelled) == (0, 1))
        await engine.aclose()
        assert not engine.alive


async def test_what_is_not_known_is_said_to_be_unproven(tmp_path: Path) -> None:
    engine = upstream("unix:/s")
    configuration = engine.configuration()
    assert configuration["model"] == {"name": "fake", "sha256": "unproven"}
    assert "not proven" in json.dumps(configuration["isolation"])
    assert engine.model.sha256 is None
    assert configuration["prefix_cache"] == "off (as stated)"
    assert upstream("unix:/s", salt=True).configuration()["prefix_cache"] == "salted"


async def test_prefix_caches_are_divided_by_domain(tmp_path: Path) -> None:
    fake = FakeEngine()
    async with served(tmp_path, fake) as address:
        engine = upstream(address, salt=True)
        await engine.start()
        for domain in ("one", "one", "two", None, None):
            await (await engine.send(request(domain))).read(LIMIT)
        sent = [json.loads(r.body) for r in fake.requests if r.path == CHAT_COMPLETIONS]
        salts = [body["cache_salt"] for body in sent]
        assert salts[:3] == ["one", "one", "two"]
        assert len(set(salts)) == 4  # nobody's requests share nothing, not even with each other
        await engine.aclose()
        plain = upstream(address)
        await plain.start()
        await (await plain.send(request("one"))).read(LIMIT)
        assert "cache_salt" not in json.loads(fake.requests[-1].body)
        for field in ("cache_salt", "kv_transfer_params"):
            with pytest.raises(EngineError, match=field) as caught:
                await plain.send(request(None, **{field: "x"}))
            assert caught.value.code == REQUEST_REFUSED
        await plain.aclose()


def test_the_operator_must_say_how_clients_are_kept_apart() -> None:
    with pytest.raises(ConfigurationError, match="cache_salt"):
        OpenAIUpstream(UpstreamSettings(address="unix:/s", name="fake"))


async def test_a_server_that_is_not_there_or_serves_something_else(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="in time"):
        await upstream(f"unix:{tmp_path}/none", start_timeout=0.5).start()
    async with served(tmp_path, FakeEngine()) as address:
        with pytest.raises(ConfigurationError, match="no model called other"):
            await upstream(address, name="other").start()


async def test_a_server_that_goes_away_is_noticed(tmp_path: Path) -> None:
    fake = FakeEngine()
    async with served(tmp_path, fake) as address:
        engine = upstream(address)
        await engine.start()
        waiting = asyncio.create_task(engine.wait_stopped())
        await asyncio.sleep(0.1)
        assert (engine.alive, waiting.done()) == (True, False)
    await asyncio.wait_for(waiting, 60)
    assert not engine.alive
    await engine.aclose()


def test_it_serves_what_it_is_said_to_serve() -> None:
    def settings(*serves: str) -> UpstreamSettings:
        return UpstreamSettings(
            address="unix:/s", name="fake", prefix_cache_off=True, serves=frozenset(serves)
        )

    engine = OpenAIUpstream(settings("/v1/embeddings"))
    assert engine.paths["/v1/embeddings"] is None
    assert "/v1/rerank" not in engine.paths
    assert engine.configuration()["serves"] == ["/v1/embeddings"]
    for path in ("/v1/other", "/slots", "/v1/chat/completions"):
        with pytest.raises(ConfigurationError) as caught:
            settings(path)
        assert caught.value.code == "configuration.upstream_paths"
