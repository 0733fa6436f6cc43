"""How engines word a chat completion: what of the fake engine's answers is whose.

llama.cpp and vLLM stream tool calls and reasoning in shapes of their own, and clients have to
understand both. llama.cpp's is what its server sent (xllamacpp 2026.10.11549; its tool calls
were not compared); vLLM's is that of its records ``ChatMessage``, ``DeltaMessage`` and
``DeltaToolCall`` (``vllm/entrypoints/openai``), not compared with a running vLLM. For images that
a model made there is no standard: ``images`` is what several servers call them.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any, Final

from cloister.testing.fake_formats import Said, ToolCall


class Dialect(Enum):
    """Whose chat completions an answer looks like."""

    PLAIN = "plain"
    """No more than OpenAI's reference asks for, and ``reasoning_content``."""
    LLAMA = "llama.cpp"
    VLLM = "vllm"


_REASONING: Final = {Dialect.VLLM: "reasoning"}
_TIMINGS: Final = {"cache_n": 0, "prompt_n": 1, "predicted_n": 1, "predicted_per_second": 0.5}


def message(dialect: Dialect, said: Said) -> dict[str, Any]:
    """The message of a whole chat completion."""
    made: dict[str, Any] = {"role": "assistant", "content": said.text}
    if dialect is Dialect.VLLM:
        made |= {"refusal": None, "annotations": None, "audio": None, "function_call": None}
        made["tool_calls"] = []
    if said.reasoning:
        made[_REASONING.get(dialect, "reasoning_content")] = "".join(said.reasoning)
    if said.images:
        made["images"] = [_image(url) for url in said.images]
    if said.calls:
        made["content"] = said.text or None
        made["tool_calls"] = [_whole_call(call) for call in said.calls]
    return made


def before_text(dialect: Dialect, said: Said) -> Iterator[dict[str, Any]]:
    """The deltas of a stream up to its text."""
    if dialect is Dialect.LLAMA:
        yield {"role": "assistant", "content": None}
    if dialect is Dialect.VLLM:
        yield {"role": "assistant", "content": ""}
    member = _REASONING.get(dialect, "reasoning_content")
    for thought in said.reasoning:
        yield {member: thought}


def after_text(dialect: Dialect, said: Said) -> Iterator[dict[str, Any]]:
    """The deltas of a stream after its text."""
    for url in said.images:
        yield {"images": [_image(url)]}
    for index, call in enumerate(said.calls):
        for delta in _call_deltas(dialect, call):
            yield {"tool_calls": [{"index": index, **delta}]}


def beside_usage(dialect: Dialect) -> dict[str, Any]:
    """What stands in a stream's last event beside the usage."""
    return {"timings": dict(_TIMINGS)} if dialect is Dialect.LLAMA else {}


def _image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _whole_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.joined}
    return {"id": call.id, "type": "function", "function": function}


def _call_deltas(dialect: Dialect, call: ToolCall) -> Iterator[dict[str, Any]]:
    """One call's pieces. llama.cpp's first piece has the first of the arguments, vLLM's none."""
    first, rest = "", call.arguments
    if dialect is Dialect.LLAMA:
        first, rest = call.arguments[0], call.arguments[1:]
    function: dict[str, Any] = {"name": call.name}
    if dialect is not Dialect.VLLM:
        function["arguments"] = first
    yield {"id": call.id, "type": "function", "function": function}
    for piece in rest:
        yield {"function": {"arguments": piece}}
