"""The embedded engine with files beside the weights: an adapter, a draft model, a projector."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.models import model_of_files, resolve_model, sha256_file
from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    REQUEST_REFUSED,
    EngineRequest,
    ModelFile,
    ModelInfo,
)
from cloister.engine.sandbox import Sandbox
from cloister.errors import ConfigurationError, EngineError
from cloister.model_digest import Role, model_digest
from support.pictures import data_url, png
from support.tiny_parts import WIDTH, write_adapter, write_projector

pytestmark = pytest.mark.sandbox

QUESTIONS = ("What is a TEE?", "Can you see what I write?", "Remember the code 7391.")


def composed(**files: Path) -> ModelInfo:
    """The demonstration model with these files beside it."""
    made = {
        Role(role): ModelFile(path=path, sha256=sha256_file(path)) for role, path in files.items()
    }
    return model_of_files({**resolve_model("demo").files, **made}, name="composed")


@contextlib.asynccontextmanager
async def running(model: ModelInfo) -> AsyncIterator[LlamaEngine]:
    settings = LlamaSettings(parallel=2, threads=1)
    engine = LlamaEngine(model, isolation=Sandbox(), settings=settings)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


async def ask(engine: LlamaEngine, path: str, **body: object) -> dict[str, Any]:
    request = EngineRequest(path=path, body=json.dumps({"model": "composed", **body}).encode())
    response = await engine.send(request)
    answer: dict[str, Any] = json.loads(await response.read(1 << 20))
    assert response.status == 200, answer
    return answer


async def said(engine: LlamaEngine, content: object, **more: object) -> str:
    messages = [{"role": "user", "content": content}]
    asked = {"messages": messages, "max_tokens": 48, "temperature": 0, **more}
    answer = await ask(engine, CHAT_COMPLETIONS, **asked)
    text = answer["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


async def all_said(engine: LlamaEngine) -> list[str]:
    return [await said(engine, question) for question in QUESTIONS]


async def test_an_adapter_changes_what_is_answered(tmp_path: Path) -> None:
    plain = resolve_model("demo")
    without_effect = composed(adapter=write_adapter(tmp_path / "zero.gguf", scale=0))
    adapted = composed(adapter=write_adapter(tmp_path / "adapter.gguf"))
    assert len({plain.sha256, without_effect.sha256, adapted.sha256}) == 3
    async with running(plain) as engine:
        expected = await all_said(engine)
    async with running(without_effect) as engine:
        assert await all_said(engine) == expected
    async with running(adapted) as engine:
        changed = await all_said(engine)
        assert engine.configuration()["model"] == {
            "name": "composed",
            "sha256": model_digest(adapted.digests),
            "files": {"model": plain.sha256, "adapter": adapted.digests[Role.ADAPTER]},
        }
    assert all(ours != theirs for ours, theirs in zip(changed, expected, strict=True))


async def test_a_draft_model_changes_nothing_that_is_answered(tmp_path: Path) -> None:
    plain = resolve_model("demo")
    assert plain.path is not None
    async with running(plain) as engine:
        expected = await all_said(engine)
        sampled = await said(engine, QUESTIONS[0], seed=7, temperature=1.0)
    async with running(composed(draft=plain.path)) as engine:
        assert await all_said(engine) == expected
        assert await said(engine, QUESTIONS[0], seed=7, temperature=1.0) == sampled
        answer = await ask(engine, COMPLETIONS, prompt="A TEE is", max_tokens=32, temperature=0)
    # It was used: without this the test would show nothing.
    assert answer["timings"]["draft_n"] >= answer["timings"]["draft_n_accepted"] > 0


async def test_a_projector_lets_it_see(tmp_path: Path) -> None:
    async with running(composed(projector=write_projector(tmp_path / "projector.gguf"))) as engine:
        text = {"type": "text", "text": "What is it?"}
        answers = [await said(engine, [text])]
        for colour in ((255, 0, 0), (0, 0, 255)):
            part = {"type": "image_url", "image_url": {"url": data_url(png(28, 28, colour))}}
            answers += [await said(engine, [text, part]), await said(engine, [text, part])]
        nothing, red, red_again, blue, blue_again = answers
        assert (red, blue) == (red_again, blue_again)
        assert len({nothing, red, blue}) == 3
        with pytest.raises(EngineError, match="PNG") as caught:
            await said(engine, [{"type": "image_url", "image_url": {"url": data_url(b"x")}}])
        assert caught.value.code == REQUEST_REFUSED


async def test_without_a_projector_an_image_is_refused_by_name() -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(png(28, 28))}}
    async with running(resolve_model("demo")) as engine:
        assert await said(engine, [{"type": "text", "text": "What is it?"}])
        with pytest.raises(EngineError, match=r"projector.*'image_url'") as caught:
            await said(engine, [part])
    assert caught.value.code == REQUEST_REFUSED


async def test_all_of_them_together_and_embeddings_besides(tmp_path: Path) -> None:
    plain = resolve_model("demo")
    assert plain.path is not None
    model = composed(
        adapter=write_adapter(tmp_path / "adapter.gguf"),
        draft=plain.path,
        projector=write_projector(tmp_path / "projector.gguf"),
    )
    part = {"type": "image_url", "image_url": {"url": data_url(png(28, 28))}}
    async with running(model) as engine:
        assert await said(engine, [{"type": "text", "text": "What is it?"}, part])
        answer = await ask(engine, EMBEDDINGS, input=["hello", "world"])
    assert [len(one["embedding"]) for one in answer["data"]] == [WIDTH, WIDTH]


@pytest.mark.parametrize("role", [Role.ADAPTER, Role.DRAFT, Role.PROJECTOR])
async def test_a_file_that_changed_after_it_was_measured_is_refused(
    role: Role, tmp_path: Path
) -> None:
    path = tmp_path / "beside.gguf"
    match role:
        case Role.ADAPTER:
            write_adapter(path)
        case Role.PROJECTOR:
            write_projector(path)
        case _:
            source = resolve_model("demo").path
            assert source is not None
            path.write_bytes(source.read_bytes())
    model = composed(**{role.value: path})
    async with running(model):
        pass
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    engine = LlamaEngine(model, isolation=Sandbox(), settings=LlamaSettings(threads=1))
    with pytest.raises(ConfigurationError, match="no longer the one") as caught:
        await engine.start()
    assert caught.value.code == "configuration.model_digest"
    assert not engine.alive


@pytest.mark.parametrize("role", [Role.ADAPTER, Role.DRAFT, Role.PROJECTOR])
async def test_a_file_that_does_not_fit_is_an_error_of_ours(role: Role, tmp_path: Path) -> None:
    path = tmp_path / "beside.gguf"
    if role is Role.ADAPTER:
        write_adapter(path, layers=9)  # the model has six
    else:
        write_adapter(path)
    engine = LlamaEngine(composed(**{role.value: path}), isolation=Sandbox())
    with pytest.raises(EngineError, match="a file beside it"):
        await engine.start()
    assert not engine.alive
