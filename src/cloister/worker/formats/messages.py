"""Anthropic's messages as chat completions: the request.

Anthropic API reference, "Create a Message", version 2023-06-01. Refused is whatever chat
completions have no place for. ``cache_control`` is accepted where it stands: it asks for nothing
but speed, and changes no answer.
"""

# ruff: noqa: SIM905 - tables of names are easier to read without quotation marks

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cloister.worker.formats.content import NOT_FETCHED
from cloister.worker.formats.fields import check_fields, expect, wrong
from cloister.worker.formats.responses import Conversation
from cloister.worker.problems import RefusedError

PATH: Final = "/v1/messages"

SAME: Final = frozenset({"temperature", "top_k", "top_p"})
READ: Final = SAME | frozenset(
    """
    cache_control max_tokens messages metadata model output_config stop_sequences stream system
    thinking tool_choice tools
    """.split()
)
DOCUMENTED: Final = READ | frozenset(
    """
    container context_management diagnostics inference_geo mcp_servers output_format service_tier
    speed user_profile_id workspace_id
    """.split()
)
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_IMAGES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
THINKING_BUDGET: Final = "reasoning_budget_tokens"
"""What engines that can keep to a budget (llama.cpp) call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesRequest:
    """The chat completion to ask for."""

    chat: Mapping[str, Any] = field(repr=False)
    stop_sequences: tuple[str, ...] = field(repr=False)


def read_request(document: Mapping[str, Any], *, known: Collection[str] | None) -> MessagesRequest:
    """Translate a request whose model was checked; `known` are the engine's fields.

    RefusedError says what is wrong with it.
    """
    check_fields(document, READ, documented=DOCUMENTED)
    given = {name: value for name, value in document.items() if value is not None}
    stream = expect(given.get("stream", False), bool, "stream")
    chat: dict[str, Any] = {
        "model": given["model"],
        "messages": _messages(given),
        "max_tokens": expect(given.get("max_tokens"), int, "max_tokens"),
        "stream": stream,
    }
    if stream:
        chat["stream_options"] = {"include_usage": True}
    chat |= {name: given[name] for name in sorted(SAME & given.keys())}
    stops = expect(given.get("stop_sequences", []), list, "stop_sequences")
    if stops:
        chat["stop"] = [expect(one, str, "stop_sequences") for one in stops]
    chat |= _who(given.get("metadata", {}))
    chat |= _output(given.get("output_config", {}))
    chat |= _thinking(given.get("thinking", {"type": "adaptive"}), known)
    if "tools" in given:
        chat["tools"] = [_tool(one) for one in expect(given["tools"], list, "tools")]
    chat |= _tool_choice(given.get("tool_choice", {}))
    return MessagesRequest(chat=chat, stop_sequences=tuple(stops))


def _who(value: object) -> dict[str, Any]:
    metadata = expect(value, dict, "metadata")
    _only(metadata, {"user_id"}, "metadata")
    user = metadata.get("user_id")
    return {} if user is None else {"user": expect(user, str, "metadata")}


def _output(value: object) -> dict[str, Any]:
    config = expect(value, dict, "output_config")
    _only(config, {"effort", "format"}, "output_config")
    chat: dict[str, Any] = {}
    if config.get("effort") is not None:
        chat["reasoning_effort"] = expect(config["effort"], str, "output_config")
    if config.get("format") is not None:
        form = expect(config["format"], dict, "output_config")
        if form.get("type") != "json_schema":
            raise wrong("output_config", "`output_config.format` is of type json_schema.")
        _only(form, {"type", "schema"}, "output_config")
        schema = expect(form.get("schema"), dict, "output_config")
        chat["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": schema, "strict": True},
        }
    return chat


def _thinking(value: object, known: Collection[str] | None) -> dict[str, Any]:
    thinking = expect(value, dict, "thinking")
    match thinking.get("type"):
        case "adaptive" if thinking.keys() == {"type"}:
            return {}  # the model's own way
        case "disabled" if thinking.keys() == {"type"}:
            return {"chat_template_kwargs": {"enable_thinking": False}}
        case "enabled" if thinking.keys() == {"type", "budget_tokens"}:
            if known is None or THINKING_BUDGET not in known:
                raise wrong("thinking", "This engine keeps to no budget of `thinking`.")
            budget = expect(thinking["budget_tokens"], int, "thinking")
            return {"chat_template_kwargs": {"enable_thinking": True}, THINKING_BUDGET: budget}
        case _:
            raise wrong("thinking", "`thinking` is adaptive, disabled, or enabled with a budget.")


def _tool(value: object) -> dict[str, Any]:
    tool = expect(value, dict, "tools")
    if tool.get("type") not in (None, "custom"):
        raise wrong("tools", "Only tools of your own are supported: a worker runs nothing.")
    known = {"type", "name", "description", "input_schema", "cache_control", "strict"}
    _only(tool, known, "tools")
    function = {
        "name": expect(tool.get("name"), str, "tools"),
        "parameters": expect(tool.get("input_schema"), dict, "tools"),
    }
    function |= {one: tool[one] for one in ("description", "strict") if tool.get(one) is not None}
    return {"type": "function", "function": function}


def _tool_choice(value: object) -> dict[str, Any]:
    choice = expect(value, dict, "tool_choice")
    if not choice:
        return {}
    _only(choice, {"type", "name", "disable_parallel_tool_use"}, "tool_choice")
    chat: dict[str, Any] = {}
    if choice.get("disable_parallel_tool_use") is not None:
        single = expect(choice["disable_parallel_tool_use"], bool, "tool_choice")
        chat["parallel_tool_calls"] = not single
    kind = choice.get("type")
    if kind == "tool":
        name = expect(choice.get("name"), str, "tool_choice")
        return chat | {"tool_choice": {"type": "function", "function": {"name": name}}}
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise wrong("tool_choice", "`tool_choice` is auto, any, none or one tool.")
    return chat | {"tool_choice": _CHOICES[kind]}


# -- the conversation ----------------------------------------------------------------------------


def _messages(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    conversation = Conversation()
    if "system" in given:
        conversation.say("system", _plain(given["system"], "system"))
    for one in expect(given.get("messages"), list, "messages"):
        message = expect(one, dict, "messages")
        _only(message, {"role", "content"}, "messages")
        match message.get("role"):
            case "user":
                _asked(message.get("content"), conversation)
            case "assistant":
                _answered(message.get("content"), conversation)
            case _:
                raise wrong("messages", "A message is of the user or of the assistant.")
    return conversation.messages


def _asked(content: object, conversation: Conversation) -> None:
    """Add what the user said; results of tools come first, as they do in Anthropic's rules."""
    if isinstance(content, str):
        conversation.say("user", content)
        return
    parts: list[dict[str, Any]] = []
    for block in _blocks(content):
        if block.get("type") == "tool_result":
            if parts:
                raise wrong("messages", "Results of tools come before everything else.")
            _result(block, conversation)
        else:
            parts.append(_part(block))
    if parts:
        conversation.say("user", _simple(parts))


def _answered(content: object, conversation: Conversation) -> None:
    if isinstance(content, str):
        conversation.say("assistant", content)
        return
    for block in _blocks(content):
        match block.get("type"):
            case "thinking":
                # The signature is Anthropic's own proof of origin; here it is always empty.
                _only(block, {"type", "thinking", "signature"}, "messages")
                conversation.think(expect(block.get("thinking"), str, "messages"))
            case "tool_use":
                _only(block, {"type", "id", "name", "input", "cache_control"}, "messages")
                called = expect(block.get("input"), dict, "messages")
                conversation.call(
                    expect(block.get("id"), str, "messages"),
                    expect(block.get("name"), str, "messages"),
                    json.dumps(called, separators=(",", ":")),
                )
            case _:
                conversation.say("assistant", _simple([_part(block)]))


def _result(block: dict[str, Any], conversation: Conversation) -> None:
    known = {"type", "tool_use_id", "content", "is_error", "cache_control"}
    _only(block, known, "messages")
    content = block.get("content", "")
    parts = [] if isinstance(content, str) else [_part(one) for one in _blocks(content)]
    said = content if isinstance(content, str) else _simple(parts) if parts else ""
    if expect(block.get("is_error") or False, bool, "messages"):
        # Chat completions cannot say that a tool failed but in words.
        error = "Error: "
        said = error + said if isinstance(said, str) else [{"type": "text", "text": error}, *parts]
    conversation.result(expect(block.get("tool_use_id"), str, "messages"), said)


def _blocks(content: object) -> list[dict[str, Any]]:
    return [expect(one, dict, "messages") for one in expect(content, list, "messages")]


def _simple(parts: list[dict[str, Any]]) -> object:
    only = parts[0]
    return only["text"] if len(parts) == 1 and only["type"] == "text" else parts


def _part(block: dict[str, Any]) -> dict[str, Any]:
    match block.get("type"):
        case "text":
            _only(block, {"type", "text", "cache_control"}, "messages")
            return {"type": "text", "text": expect(block.get("text"), str, "messages")}
        case "image":
            _only(block, {"type", "source", "cache_control"}, "messages")
            return {"type": "image_url", "image_url": {"url": _image(block.get("source"))}}
        case _:
            raise wrong("messages", "`messages` hold content of a type that is not supported.")


def _image(value: object) -> str:
    source = expect(value, dict, "messages")
    if source.get("type") != "base64":
        raise RefusedError(NOT_FETCHED)
    kind, data = source.get("media_type"), expect(source.get("data"), str, "messages")
    if not isinstance(kind, str) or kind not in _IMAGES:
        raise wrong("messages", "An image is JPEG, PNG, GIF or WebP.")
    return f"data:{kind};base64,{data}"


def _plain(value: object, name: str) -> str:
    """A text, or the texts of blocks."""
    if isinstance(value, str):
        return value
    texts = []
    for one in expect(value, list, name):
        block = expect(one, dict, name)
        _only(block, {"type", "text", "cache_control"}, name)
        if block.get("type") != "text":
            raise wrong(name, f"`{name}` holds texts only.")
        texts.append(expect(block.get("text"), str, name))
    return "\n\n".join(texts)


def _only(members: Mapping[str, Any], known: Collection[str], name: str) -> None:
    """RefusedError naming the field, if a part of it would be ignored."""
    # Empty lists (of citations, say) are what SDKs send back of an answer of ours.
    if any(value and member not in known for member, value in members.items()):
        raise wrong(name, f"`{name}` holds something that is not supported here.")
