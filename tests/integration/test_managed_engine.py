"""Managed engines in their real sandbox, behind the exact command lines, with stand-ins."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.engine.command_lines import ManagedKind
from cloister.engine.managed import ManagedEngine, ManagedSettings
from cloister.engine.managed_sandbox import ManagedSandbox
from cloister.engine.models import model_of_files, resolve_model
from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    HEALTH,
    MODELS,
    NOT_RUNNING,
    PATH_REFUSED,
    REQUEST_REFUSED,
    EngineRequest,
    ModelInfo,
)
from cloister.errors import ConfigurationError, EngineError
from cloister.model_digest import Role
from support.stand_ins import folder, folder_model, install

pytestmark = pytest.mark.sandbox

FOLDERS = [ManagedKind.VLLM, ManagedKind.SGLANG, ManagedKind.TGI, ManagedKind.TRITON]
SMALL = ManagedSandbox(scratch=64 << 20, shared=16 << 20)


@pytest.fixture
def model(tmp_path: Path) -> ModelInfo:
    return folder_model(folder(tmp_path / "model"))


def made(kind: ManagedKind, model: ModelInfo, place: Path, **settings: Any) -> ManagedEngine:
    return ManagedEngine(
        model,
        install(kind, place / kind.value),
        ManagedSettings(kind=kind, start_timeout=60, **settings),
        sandbox=SMALL,
    )


@contextlib.asynccontextmanager
async def running(engine: ManagedEngine) -> AsyncIterator[ManagedEngine]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


def chat(text: str, *, domain: str | None = None, **fields: Any) -> EngineRequest:
    body = {"model": "stand-in", "messages": [{"role": "user", "content": text}], **fields}
    return EngineRequest(path=CHAT_COMPLETIONS, body=json.dumps(body).encode(), cache_domain=domain)


async def told(engine: ManagedEngine, request: EngineRequest) -> dict[str, Any]:
    """What the stand-in says of itself in its answer."""
    response = await engine.send(request)
    answer = json.loads(await response.read(1 << 20))
    assert response.status == 200, answer
    found: dict[str, Any] = json.loads(answer["choices"][0]["message"]["content"])
    return found


@pytest.mark.parametrize("kind", FOLDERS)
async def test_each_is_started_by_its_command_line_and_answers(
    kind: ManagedKind, model: ModelInfo, tmp_path: Path
) -> None:
    async with running(made(kind, model, tmp_path)) as engine:
        assert engine.alive
        found = await told(engine, chat("hello"))
        assert found["words"] == list(engine._command.arguments)
        assert found["environment"].items() >= engine._command.environment.items()
        inherited = found["environment"].keys() - engine._command.environment.keys()
        assert inherited <= {"HOME", "TMPDIR", "LANG", "PATH", "PWD", "LC_CTYPE"}
        for path in (HEALTH, MODELS):
            assert (await engine.send(EngineRequest(path=path))).status == 200
        assert engine.output_bytes > 0  # it said something, and nobody listened
    assert not _alive(engine)
    with pytest.raises(EngineError) as caught:
        await engine.send(chat("hello"))
    assert caught.value.code == NOT_RUNNING


def _alive(engine: ManagedEngine) -> bool:  # a call, so that mypy does not remember the answer
    return engine.alive


async def test_vllm_shares_a_prefix_within_a_domain_and_never_beyond(
    model: ModelInfo, tmp_path: Path
) -> None:
    text = "the same words, which somebody else has asked before"
    async with running(made(ManagedKind.VLLM, model, tmp_path)) as engine:
        assert (await told(engine, chat(text, domain="a" * 64)))["cached"] == 0
        again = await told(engine, chat(text, domain="a" * 64))
        assert again["cached"] > len(text)  # so the stand-in has a cache to be kept apart
        assert again["salt"] == "a" * 64
        assert (await told(engine, chat(text, domain="b" * 64)))["cached"] == 0
        unnamed = [await told(engine, chat(text)) for _ in range(2)]
        assert [one["cached"] for one in unnamed] == [0, 0]
        assert unnamed[0]["salt"] != unnamed[1]["salt"]


@pytest.mark.parametrize("kind", [ManagedKind.SGLANG, ManagedKind.TRITON])
async def test_where_prefixes_cannot_be_kept_apart_none_is_salted(
    kind: ManagedKind, model: ModelInfo, tmp_path: Path
) -> None:
    async with running(made(kind, model, tmp_path)) as engine:
        found = await told(engine, chat("hello", domain="a" * 64))
        assert (found["salt"], found["cached"]) == (None, 0)
        assert engine.configuration()["prefix_cache"] == "off"


@pytest.mark.parametrize("kind", [ManagedKind.VLLM, ManagedKind.SGLANG])
async def test_a_stream_given_up_reaches_the_engine(
    kind: ManagedKind, model: ModelInfo, tmp_path: Path
) -> None:
    async with running(made(kind, model, tmp_path)) as engine:
        whole = await engine.send(chat("hello", stream=True, max_tokens=3))
        text = b"".join([chunk async for chunk in whole.chunks])
        assert text.count(b"word") == 3
        assert text.endswith(b"data: [DONE]\n\n")
        assert (await told(engine, chat("how many?")))["given_up"] == 0
        for count, silent in ((1, False), (2, True)):
            fields: dict[str, Any] = {"stream": True, "max_tokens": 100_000, "silent": silent}
            response = await engine.send(chat("hello", **fields))
            await anext(response.chunks.__aiter__())
            await response.aclose()
            async with asyncio.timeout(60):
                while (await told(engine, chat("how many?")))["given_up"] != count:
                    await asyncio.sleep(0.05)


async def test_a_killed_engine_ends_its_streams_and_starts_again(
    model: ModelInfo, tmp_path: Path
) -> None:
    async with running(made(ManagedKind.SGLANG, model, tmp_path)) as engine:
        response = await engine.send(chat("hello", stream=True, max_tokens=100_000))
        chunks = response.chunks.__aiter__()
        await anext(chunks)
        assert engine._confined is not None
        assert engine._confined._inner is not None
        signal.pidfd_send_signal(engine._confined._inner, signal.SIGKILL)
        with pytest.raises(EngineError):
            while True:
                await anext(chunks)
        async with asyncio.timeout(60):
            await engine.wait_stopped()
        assert not engine.alive
        await engine.start()
        assert (await told(engine, chat("hello")))["given_up"] == 0


async def test_fields_that_reach_further_are_refused(model: ModelInfo, tmp_path: Path) -> None:
    async with running(made(ManagedKind.VLLM, model, tmp_path)) as engine:
        assert await told(engine, chat("hello"))
        for field in ("cache_salt", "kv_transfer_params", "prompt_embeds", "lora_path"):
            with pytest.raises(EngineError, match=field) as caught:
                await engine.send(chat("hello", **{field: "x"}))
            assert caught.value.code == REQUEST_REFUSED
        with pytest.raises(EngineError) as caught:
            await engine.send(EngineRequest(path="/v1/embeddings", body=b"{}"))
        assert caught.value.code == PATH_REFUSED


async def test_another_model_is_not_served(model: ModelInfo, tmp_path: Path) -> None:
    engine = made(ManagedKind.VLLM, model, tmp_path)
    async with running(engine):
        pass
    folder(tmp_path / "model", content=bytes(7) + b"x")
    with pytest.raises(ConfigurationError, match="no longer the one") as caught:
        await engine.start()
    assert caught.value.code == "configuration.model_digest"
    assert not engine.alive


async def test_a_file_put_beside_the_model_is_refused_and_not_seen(
    model: ModelInfo, tmp_path: Path
) -> None:
    engine = made(ManagedKind.VLLM, model, tmp_path)
    async with running(engine):
        pass
    (tmp_path / "model" / "modeling_evil.py").write_text("print('ran')")
    with pytest.raises(ConfigurationError, match=r"modeling_evil\.py"):
        await engine.start()


async def test_a_sandbox_that_has_ended_before_anybody_looked(
    model: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = made(ManagedKind.VLLM, model, tmp_path)
    async with running(good):
        pass

    def gone(pid: int, flags: int = 0) -> int:
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", gone)
    broken = install(ManagedKind.VLLM, tmp_path / "broken")
    broken.program.write_text("#!/nonexistent/python3\n")
    engine = ManagedEngine(
        model, broken, ManagedSettings(kind=ManagedKind.VLLM, start_timeout=60), sandbox=SMALL
    )
    with pytest.raises(EngineError, match="cannot be run inside the sandbox"):
        await engine.start()
    with pytest.raises(EngineError, match="first process is gone"):
        await good.start()  # it may not serve where nothing is held that could end it


async def test_failures_are_told_in_our_words(
    model: ModelInfo, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = made(ManagedKind.VLLM, model, tmp_path)
    async with running(good):
        pass
    unknown = replace(good._command, arguments=(*good._command.arguments, "--no-such-word"))
    good._command = unknown
    with pytest.raises(EngineError, match="ended before it answered"):
        await good.start()
    broken = install(ManagedKind.VLLM, tmp_path / "broken")
    broken.program.write_text("#!/nonexistent/python3\n")
    engine = ManagedEngine(
        model, broken, ManagedSettings(kind=ManagedKind.VLLM, start_timeout=60), sandbox=SMALL
    )
    with pytest.raises(EngineError, match="cannot be run inside the sandbox"):
        await engine.start()
    (tmp_path / "model" / "added_tokens.json").write_text("{}")
    loading = made(ManagedKind.SGLANG, folder_model(tmp_path / "model"), tmp_path)
    with pytest.raises(EngineError, match="ended while it loaded"):
        await loading.start()
    assert "MARKER" not in "".join(capfd.readouterr())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ManagedEngine:
    place = tmp_path_factory.mktemp("llama")
    return ManagedEngine(
        resolve_model("demo"),
        install(ManagedKind.LLAMA_SERVER, place / "llama"),
        ManagedSettings(kind=ManagedKind.LLAMA_SERVER, parallel=2, threads=1, start_timeout=60),
        sandbox=SMALL,
    )


async def test_llama_server_answers_with_a_real_model_and_reuses_nothing(
    llama: ManagedEngine,
) -> None:
    fields: dict[str, Any] = {"model": llama.model.name, "max_tokens": 24, "temperature": 0}
    async with running(llama):
        answers = []
        for _ in range(2):
            response = await llama.send(chat("What is a TEE?", **fields))
            answers.append(json.loads(await response.read(1 << 20)))
            assert response.status == 200
        assert "TEE" in answers[0]["choices"][0]["message"]["content"]
        assert [answer["timings"]["cache_n"] for answer in answers] == [0, 0]
        with pytest.raises(EngineError, match="cache_prompt"):
            await llama.send(chat("hello", cache_prompt=True, **fields))
        for path in ("/slots", "/props"):
            with pytest.raises(EngineError):
                await llama.send(EngineRequest(path=path))


async def test_a_sibling_is_another_process_of_the_same_kind(
    llama: ManagedEngine, tmp_path: Path, model: ModelInfo
) -> None:
    engine = made(ManagedKind.VLLM, model, tmp_path)
    other = engine.sibling()
    assert other is not None
    assert other.configuration() == engine.configuration()
    async with running(engine), running(other):
        assert engine._confined is not None
        assert other._confined is not None
        assert engine._confined.pid != other._confined.pid
        assert await told(engine, chat("hello"))
        assert await told(other, chat("hello"))
    gpus = ManagedEngine(
        model,
        install(ManagedKind.VLLM, tmp_path / "again"),
        ManagedSettings(kind=ManagedKind.VLLM, gpus=(0,)),
        sandbox=SMALL,
    )
    assert gpus.sibling() is None
    assert llama.sibling() is not None


async def test_links_and_strangers_in_an_installation_stay_outside(
    model: ModelInfo, tmp_path: Path
) -> None:
    engine = made(ManagedKind.VLLM, model, tmp_path)
    # The environment leads to the interpreter; nothing else of this directory is to be seen.
    (tmp_path / "beside").write_text("beside")
    probe = engine.installation.program
    probe.write_text(
        probe.read_text().replace(
            '"pid": os.getpid()', f'"pid": os.path.exists({str(tmp_path / "beside")!r})'
        )
    )
    async with running(engine):
        assert (await told(engine, chat("hello")))["pid"] is False
    shutil.rmtree(tmp_path / "vllm")


def test_files_beside_the_weights_are_not_served_in_silence(
    llama: ManagedEngine, tmp_path: Path
) -> None:
    weights = resolve_model("demo").files[Role.MODEL]
    for role in (Role.ADAPTER, Role.DRAFT, Role.PROJECTOR):
        composed = model_of_files({Role.MODEL: weights, role: weights}, name="composed")
        with pytest.raises(ConfigurationError, match="beside its weights"):
            made(ManagedKind.LLAMA_SERVER, composed, tmp_path / role.value)
