"""Reasoning, apart from the answer, with the embedded engine and templates that mark it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.models import describe_model
from cloister.engine.protocol import CHAT_COMPLETIONS
from cloister.engine.sandbox import Sandbox
from support.sealed import Inner, Peer
from support.tiny_parts import write_with_template
from support.worker import running

pytestmark = pytest.mark.sandbox

ASKED = [{"role": "user", "content": "What is a TEE?"}]
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['reasoning_content'] %}"
    "{{ '<think>\\n' + m['reasoning_content'] + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] if m['content'] else '' }}{{ '<|im_end|>\\n' }}{% endfor %}"
)
CLOSED = (
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}"
)
ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
MARKED = TURNS + ANSWER + CLOSED + "{% endif %}{% endif %}"
"""The model itself begins to think, or not."""
OPENED = TURNS + ANSWER + CLOSED + "{% else %}{{ '<think>\\n' }}{% endif %}{% endif %}"
"""The model always thinks, unless it is told not to."""
THOUGHT = 'root ::= "<think>\\nplan it\\n</think>\\n\\nThe answer."'


@contextlib.asynccontextmanager
async def thinking(template: str, folder: Path) -> AsyncIterator[Peer]:
    model = describe_model(write_with_template(folder / "model.gguf", template), name="thinker")
    settings = LlamaSettings(parallel=1, threads=1, embeddings=False)
    engine = LlamaEngine(model, isolation=Sandbox(), settings=settings)
    async with running(engine=engine) as bench:  # type: ignore[arg-type]  # an engine like others
        yield bench.peer


async def ask(peer: Peer, path: str, **fields: Any) -> Inner:
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    asked = "input" if path == RESPONSES else "messages"
    body = {"model": "thinker", asked: ASKED, limit: 24, "temperature": 0, **fields}
    inner = await peer.ask(path, body)
    assert inner.status == 200, inner.body
    return inner


async def test_what_the_template_marks_is_apart_whole_and_streamed(tmp_path: Path) -> None:
    async with thinking(MARKED, tmp_path) as peer:
        whole = await ask(peer, CHAT_COMPLETIONS, grammar=THOUGHT, max_tokens=60)
        message = whole.json["choices"][0]["message"]
        assert message["reasoning_content"].strip() == "plan it"
        assert message["content"] == "The answer."
        streamed = await ask(peer, CHAT_COMPLETIONS, grammar=THOUGHT, max_tokens=60, stream=True)
        deltas = [event["choices"][0]["delta"] for event in streamed.events[:-1]]
        for name in ("reasoning_content", "content"):
            assert "".join(delta.get(name) or "" for delta in deltas) == message[name]
        # Whoever wants it in one piece says so.
        raw = await ask(
            peer, CHAT_COMPLETIONS, grammar=THOUGHT, max_tokens=60, reasoning_format="none"
        )
        message = raw.json["choices"][0]["message"]
        assert message["content"] == "<think>\nplan it\n</think>\n\nThe answer."
        assert "reasoning_content" not in message


async def test_every_format_keeps_thinking_apart(tmp_path: Path) -> None:
    async with thinking(OPENED, tmp_path) as peer:
        chat = await ask(peer, CHAT_COMPLETIONS)
        thought = chat.json["choices"][0]["message"]["reasoning_content"]
        assert thought
        assert not chat.json["choices"][0]["message"].get("content")

        response = await ask(peer, RESPONSES)
        assert [item["type"] for item in response.json["output"]] == ["reasoning"]
        assert response.json["output"][0]["content"] == [
            {"type": "reasoning_text", "text": thought}
        ]
        streamed = await ask(peer, RESPONSES, stream=True)
        told = [e["delta"] for e in streamed.events if e["type"] == "response.reasoning_text.delta"]
        assert "".join(told) == thought

        message = await ask(peer, MESSAGES)
        assert message.json["content"] == [
            {"type": "thinking", "thinking": thought, "signature": ""}
        ]
        streamed = await ask(peer, MESSAGES, stream=True)
        deltas = [e["delta"] for e in streamed.events if e["type"] == "content_block_delta"]
        assert "".join(delta.get("thinking", "") for delta in deltas) == thought


async def test_thinking_can_be_switched_off_and_bounded(tmp_path: Path) -> None:
    async with thinking(OPENED, tmp_path) as peer:
        off = await ask(peer, MESSAGES, thinking={"type": "disabled"})
        assert [block["type"] for block in off.json["content"]] == ["text"]
        kwargs = {"enable_thinking": False}
        chat = await ask(peer, CHAT_COMPLETIONS, chat_template_kwargs=kwargs)
        assert chat.json["choices"][0]["message"]["content"] == off.json["content"][0]["text"]
        bounded = await ask(
            peer, MESSAGES, thinking={"type": "enabled", "budget_tokens": 4}, max_tokens=40
        )
        thought, text = bounded.json["content"]
        assert (thought["type"], text["type"]) == ("thinking", "text")
        free = await ask(peer, MESSAGES, max_tokens=40)
        assert len(thought["thinking"]) < len(free.json["content"][0]["thinking"])
