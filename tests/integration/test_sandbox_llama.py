"""The embedded engine, in its sandbox, with the demo model: answers, forgets, restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.engine import sandbox
from cloister.engine.http_unix import HttpClient, UnixAddress
from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.models import describe_model, resolve_model
from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    HEALTH,
    MODELS,
    NOT_RUNNING,
    PATH_REFUSED,
    REQUEST_REFUSED,
    EngineRequest,
    ModelFile,
)
from cloister.engine.sandbox import Sandbox, UnsafeNoSandbox
from cloister.errors import ConfigurationError, EngineError
from cloister.model_digest import Role
from support.processes import processes

pytestmark = pytest.mark.sandbox

LIMIT = 1 << 20
SOURCE = Path(sandbox.__file__).parents[2]


@contextlib.asynccontextmanager
async def running(parallel: int = 2) -> AsyncIterator[LlamaEngine]:
    settings = LlamaSettings(parallel=parallel, threads=1)
    engine = LlamaEngine(resolve_model("demo"), isolation=Sandbox(), settings=settings)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


def chat(text: str, **more: object) -> EngineRequest:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 40, **more}
    return EngineRequest(path=CHAT_COMPLETIONS, body=json.dumps(body).encode())


def completion(**more: object) -> EngineRequest:
    return EngineRequest(path=COMPLETIONS, body=json.dumps({"prompt": "Tell me", **more}).encode())


async def answer(engine: LlamaEngine, request: EngineRequest) -> tuple[int, dict[str, Any]]:
    response = await engine.send(request)
    return response.status, json.loads(await response.read(LIMIT))


@pytest.mark.parametrize("parallel", [1, 3, 10])
async def test_any_number_of_requests_at_a_time(parallel: int) -> None:
    # Embeddings on, as everywhere: an input is computed at once, beside any number of others.
    async with running(parallel) as engine:
        assert (await answer(engine, chat("What is a TEE?", max_tokens=4)))[0] == 200
        body = json.dumps({"model": "cloister-demo", "input": "word " * 300}).encode()
        status, found = await answer(engine, EngineRequest(path=EMBEDDINGS, body=body))
        assert (status, len(found["data"])) == (200, 1)


async def test_it_answers_whole_and_streamed() -> None:
    async with running() as engine:
        status, whole = await answer(engine, chat("What is a TEE?", temperature=0, seed=1))
        assert status == 200
        text = whole["choices"][0]["message"]["content"]
        assert text
        async with await engine.send(
            chat("What is a TEE?", temperature=0, seed=1, stream=True)
        ) as response:
            assert response.content_type == "text/event-stream"
            stream = b"".join([chunk async for chunk in response.chunks])
        events = [line[6:] for line in stream.decode().splitlines() if line.startswith("data: ")]
        assert events.pop() == "[DONE]"
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
        assert "".join(delta.get("content") or "" for delta in deltas) == text
        status, models = await answer(engine, EngineRequest(path=MODELS))
        assert [model["id"] for model in models["data"]] == [engine.model.name]
        assert (await answer(engine, EngineRequest(path=HEALTH)))[0] == 200


async def test_no_prompt_is_reused_between_requests() -> None:
    async with running(parallel=1) as engine:
        for _ in range(3):
            _, whole = await answer(engine, chat("What is a TEE? " * 8))
            assert whole["timings"]["cache_n"] == 0
            assert whole["timings"]["prompt_n"] > 40
            assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    "request_",
    [
        chat("What is a TEE?", logprobs=True, top_logprobs=2),
        chat("Hello", n=2),
        chat("Ping", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        completion(max_tokens=20),
        completion(max_tokens=20, logprobs=2),
    ],
)
async def test_a_whole_answer_is_the_one_the_engine_gives(request_: EngineRequest) -> None:
    body = {**json.loads(request_.body), "temperature": 0, "seed": 1}
    async with running() as engine:
        status, ours = await answer(engine, replace(request_, body=json.dumps(body).encode()))
        client = HttpClient(UnixAddress(path=engine.socket_path))
        direct = await client.request(
            "POST", request_.path, json.dumps({**body, "cache_prompt": False}).encode()
        )
        theirs = json.loads(await direct.read(LIMIT))
        assert status == direct.status == 200
        for document in (ours, theirs):
            for name in ("id", "created", "timings"):
                assert document.pop(name)
            for choice in document["choices"]:
                for call in choice.get("message", {}).get("tool_calls", []):
                    assert call.pop("id")
        assert ours == theirs


@pytest.mark.parametrize("path", ["/slots", "/metrics", "/", "/v1/rerank"])
async def test_the_engine_itself_keeps_other_endpoints_shut(path: str) -> None:
    """Beside the list of paths: straight to its socket, as only this process can."""
    async with running() as engine:
        reader, writer = await asyncio.open_unix_connection(engine.socket_path)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answered = await reader.read()
        assert answered.split(b" ")[1] in (b"403", b"404", b"501")
        writer.close()
        await writer.wait_closed()


async def test_paths_and_fields_that_reach_further_are_refused() -> None:
    async with running() as engine:
        assert (await answer(engine, completion(max_tokens=1)))[0] == 200
        for path in (
            "/slots",
            "/props",
            "/v1/rerank",
            "/v1/responses",
            "/v1/models/../../slots",
            "",
        ):
            with pytest.raises(EngineError) as caught:
                await engine.send(EngineRequest(path=path))
            assert caught.value.code == PATH_REFUSED
        fields: list[dict[str, object]] = [{"id_slot": 0}, {"cache_prompt": True}, {"lora": []}]
        for field in fields:
            with pytest.raises(EngineError, match=next(iter(field))) as caught:
                await engine.send(completion(max_tokens=1, **field))
            assert caught.value.code == REQUEST_REFUSED


@pytest.mark.parametrize("stream", [True, False])
async def test_giving_up_frees_the_slot(stream: bool) -> None:
    long = completion(max_tokens=480, ignore_eos=True, stream=stream)
    async with running(parallel=1) as engine:

        async def work(give_up: bool) -> float:
            before = cpu_seconds(engine)
            task = asyncio.create_task(_all(engine, long))
            while give_up and not task.done() and cpu_seconds(engine) == before:
                await asyncio.sleep(0.001)  # until it has begun
            if give_up:
                task.cancel()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            await answer(engine, completion(max_tokens=1))  # waits for the slot
            assert give_up or not isinstance(result, BaseException)
            return cpu_seconds(engine) - before

        whole = await work(give_up=False)
        # Where this process gets no turn for long, the engine is told late; not each time.
        spent = [await work(give_up=True) for _ in range(4)]
        assert min(spent) < whole * 0.7


def cpu_seconds(engine: LlamaEngine) -> float:
    """How long the engine's process has computed, by the kernel's account."""
    assert engine._confined is not None
    inner = max(processes(engine._confined.pid))
    fields = Path(f"/proc/{inner}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _all(engine: LlamaEngine, request: EngineRequest) -> bytes:
    response = await engine.send(request)
    return b"".join([chunk async for chunk in response.chunks])


async def test_a_crash_ends_the_stream_and_it_can_be_started_again() -> None:
    async with running() as engine:
        # With so much beside each token that it has no room on its way until somebody reads it.
        long = completion(max_tokens=480, ignore_eos=True, stream=True, logprobs=20)
        response = await engine.send(long)
        chunks = response.chunks.__aiter__()
        await anext(chunks)
        assert engine._confined is not None
        assert engine._confined._inner is not None
        signal.pidfd_send_signal(engine._confined._inner, signal.SIGKILL)
        with pytest.raises(EngineError) as caught:
            while True:
                await anext(chunks)
        assert caught.value.code == "engine.truncated"
        async with asyncio.timeout(60):
            await engine.wait_stopped()
        assert not _alive(engine)
        with pytest.raises(EngineError) as caught:
            await engine.send(completion(max_tokens=1))
        assert caught.value.code == NOT_RUNNING
        await engine.start()
        assert _alive(engine)
        assert (await answer(engine, completion(max_tokens=1)))[0] == 200


def _alive(engine: LlamaEngine) -> bool:  # a call, so that mypy does not remember the answer
    return engine.alive


async def test_another_model_file_is_not_served(tmp_path: Path) -> None:
    source = resolve_model("demo")
    assert source.path is not None
    path = tmp_path / "model.gguf"
    shutil.copyfile(source.path, path)
    engine = LlamaEngine(describe_model(path), isolation=Sandbox())
    await engine.start()
    await engine.aclose()
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ConfigurationError, match="no longer the one") as caught:
        await engine.start()
    assert caught.value.code == "configuration.model_digest"
    assert not engine.alive


async def test_a_broken_model_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    model = resolve_model("demo")
    assert model.sha256 is not None
    files = {Role.MODEL: ModelFile(path=path, sha256=model.sha256)}
    model = replace(model, path=path, files=files)
    with pytest.raises(EngineError, match="cannot load the model"):
        await LlamaEngine(model, isolation=Sandbox()).start()


async def test_nothing_a_prompt_says_reaches_logs_or_output(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    marker = secrets.token_hex(12)
    async with running() as engine:
        assert (await answer(engine, chat(f"Repeat after me: {marker}")))[0] == 200
        status, refused = await answer(engine, chat(marker, grammar=f"root ::= {marker}"))
        assert status == 400
        assert "error" in refused
        with pytest.raises(EngineError) as caught:
            await engine.send(EngineRequest(path=CHAT_COMPLETIONS, body=marker.encode()))
        assert marker not in repr(caught.value)
        response = await engine.send(chat(marker, stream=True))
        await response.aclose()
        assert marker not in repr(vars(engine)) + repr(chat(marker)) + repr(response)
    captured = capfd.readouterr()
    assert marker not in caplog.text + captured.out + captured.err


async def test_the_configuration_is_known_before_and_says_how_it_is_isolated() -> None:
    model = resolve_model("demo")
    safe = LlamaEngine(model, isolation=Sandbox(landlock_abi=7))
    before = json.dumps(safe.configuration())
    unsafe = LlamaEngine(model, isolation=UnsafeNoSandbox())
    assert json.loads(before)["model"]["sha256"] == model.sha256
    assert "seccomp" in before
    assert "none (unsafe)" in json.dumps(unsafe.configuration())
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(EngineError))
        await safe.send(completion())
    await unsafe.start()
    try:
        assert (await answer(unsafe, completion(max_tokens=1)))[0] == 200
    finally:
        await unsafe.aclose()


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """Cloister and its engine where every user may read them: a checkout may lie below /root."""
    import xllamacpp

    engine = Path(xllamacpp.__file__).parent
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        for package in (SOURCE / "cloister", engine, engine.with_name("xllamacpp.libs")):
            if package.is_dir():
                shutil.copytree(package, directory / package.name)
        for path in directory.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield directory


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run unprivileged")
async def test_it_works_for_an_ordinary_user(everybodys: Path) -> None:
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    suits = "import sys; assert sys.version_info >= (3, 11); open(sys._base_executable).close()"
    interpreter = next(
        (
            python
            for python in (sys.executable, "/usr/bin/python3")
            if _runs([*drop, python, "-c", suits])
        ),
        None,
    )
    if interpreter is None:
        pytest.skip("no Python 3.11 that an ordinary user may run")
    code = (
        f"import asyncio, os, sys\nsys.path[:0] = {[str(everybodys)]!r}\n"
        "from cloister.engine.llama import LlamaEngine\n"
        "from cloister.engine.models import resolve_model\n"
        "from cloister.engine.protocol import MODELS, EngineRequest\n"
        "from cloister.engine.sandbox import Sandbox\n"
        "async def main():\n"
        "    engine = LlamaEngine(resolve_model('demo'), isolation=Sandbox())\n"
        "    await engine.start()\n"
        "    response = await engine.send(EngineRequest(path=MODELS))\n"
        "    print(os.geteuid(), response.status)\n"
        "    await engine.aclose()\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [*drop, interpreter, "-B", "-c", code], capture_output=True, timeout=60
    )
    assert done.stdout.split() == [b"65534", b"200"], done.stderr


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except OSError:
        return False
