"""OpenAI's responses as chat completions: the request.

OpenAI API reference, "Create a model response". Stateless: what would be kept between requests
is refused by name. Refused as well is whatever chat completions have no place for.
"""

# ruff: noqa: SIM905 - tables of names are easier to read without quotation marks

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cloister.worker.formats.content import NOT_FETCHED, is_data
from cloister.worker.formats.fields import INERT, check_fields, expect, wrong
from cloister.worker.problems import RefusedError

PATH: Final = "/v1/responses"

SAME: Final = frozenset({"parallel_tool_calls", "temperature", "top_p"})
"""Fields that chat completions have under the same name."""
BESIDE: Final = frozenset(
    """
    chat_template_kwargs frequency_penalty logit_bias min_p presence_penalty repeat_penalty
    repetition_penalty seed stop top_k
    """.split()
)
"""Fields of chat completions that the reference lacks, but engines take here."""
READ: Final = (
    SAME
    | BESIDE
    | frozenset(
        """
        include input instructions max_output_tokens model reasoning stream stream_options text
        tool_choice tools top_logprobs
        """.split()
    )
)
DOCUMENTED: Final = (
    READ
    | INERT
    | frozenset(
        """
        background context_management conversation max_tool_calls moderation previous_response_id
        prompt prompt_cache_options prompt_cache_retention service_tier store truncation
        """.split()
    )
)
_ECHOED: Final = ("prompt_cache_key", "safety_identifier", "user")
_MAX_PAIRS, _MAX_NAME, _MAX_TEXT = 16, 64, 512
"""Of what asks for nothing and is said again in three events of a stream; as the reference has
them."""
LOGPROBS: Final = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesRequest:
    """The chat completion to ask for, and what the answer repeats of the request."""

    chat: Mapping[str, Any] = field(repr=False)
    repeated: Mapping[str, Any] = field(repr=False)


def read_request(document: Mapping[str, Any]) -> ResponsesRequest:
    """Translate a request whose model was checked. RefusedError says what is wrong with it."""
    check_fields(document, READ, documented=DOCUMENTED)
    given = {name: value for name, value in document.items() if value is not None}
    stream = expect(given.get("stream", False), bool, "stream")
    _check_stream_options(given.get("stream_options", {}))
    chat: dict[str, Any] = {"model": given["model"], "messages": _messages(given), "stream": stream}
    if stream:
        chat["stream_options"] = {"include_usage": True}
    chat |= {name: given[name] for name in sorted((SAME | BESIDE) & given.keys())}
    if "max_output_tokens" in given:
        chat["max_tokens"] = given["max_output_tokens"]
    chat |= _logprobs(given)
    chat |= _reasoning(given.get("reasoning", {}))
    chat |= _text_format(given.get("text", {}))
    if "tools" in given:
        chat["tools"] = [_tool(one) for one in expect(given["tools"], list, "tools")]
    if "tool_choice" in given:
        chat["tool_choice"] = _tool_choice(given["tool_choice"])
    return ResponsesRequest(chat=chat, repeated=_repeated(given))


def _repeated(given: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a response object that say what was asked, with their defaults."""
    text = dict(given.get("text", {}))
    text.setdefault("format", {"type": "text"})
    for name in _ECHOED:
        if len(expect(given.get(name, ""), str, name)) > _MAX_TEXT:
            raise wrong(name, f"`{name}` has at most {_MAX_TEXT} characters.")
    names = ("instructions", "max_output_tokens", *_ECHOED)
    return {
        "background": False,
        **{name: given.get(name) for name in names},
        "max_tool_calls": None,
        "metadata": _metadata(given.get("metadata", {})),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None} | dict(given.get("reasoning", {})),
        "service_tier": "default",
        "store": False,
        "temperature": given.get("temperature"),
        "text": text,
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools", []),
        "top_logprobs": given.get("top_logprobs", 0),
        "top_p": given.get("top_p"),
        "truncation": "disabled",
    }


def _metadata(value: object) -> dict[str, str]:
    metadata: dict[str, Any] = expect(value, dict, "metadata")
    short = len(metadata) <= _MAX_PAIRS and all(len(name) <= _MAX_NAME for name in metadata)
    if not short or any(
        not isinstance(text, str) or len(text) > _MAX_TEXT for text in metadata.values()
    ):
        raise wrong(
            "metadata",
            f"`metadata` has at most {_MAX_PAIRS} names of {_MAX_NAME} characters, each with a "
            f"text of {_MAX_TEXT}.",
        )
    return metadata


def _check_stream_options(value: object) -> None:
    # Sizes are padded by the channel; the field that OpenAI pads its events with is not made.
    options = expect(value, dict, "stream_options")
    _only(options, {"include_obfuscation"}, "stream_options")
    if options.get("include_obfuscation"):
        raise wrong("stream_options", "`include_obfuscation` can only be false: the channel pads.")


def _logprobs(given: Mapping[str, Any]) -> dict[str, Any]:
    include = expect(given.get("include", []), list, "include")
    if any(one != LOGPROBS for one in include):
        raise wrong("include", f"`include` can only hold {LOGPROBS}.")
    top = expect(given.get("top_logprobs", 0), int, "top_logprobs")
    if top and not include:
        raise wrong("top_logprobs", f"`top_logprobs` needs {LOGPROBS} in `include`.")
    return {"logprobs": True, **({"top_logprobs": top} if top else {})} if include else {}


def _reasoning(value: object) -> dict[str, Any]:
    reasoning = expect(value, dict, "reasoning")
    _only(reasoning, {"effort"}, "reasoning")
    effort = reasoning.get("effort")
    return {} if effort is None else {"reasoning_effort": expect(effort, str, "reasoning")}


def _text_format(value: object) -> dict[str, Any]:
    text = expect(value, dict, "text")
    _only(text, {"format", "verbosity"}, "text")
    chat: dict[str, Any] = {}
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    form = expect(text.get("format") or {"type": "text"}, dict, "text")
    match form.get("type"):
        case "text":
            _only(form, {"type"}, "text")
        case "json_object":
            _only(form, {"type"}, "text")
            chat["response_format"] = {"type": "json_object"}
        case "json_schema":
            _only(form, {"type", "name", "schema", "strict", "description"}, "text")
            expect(form.get("schema"), dict, "text")
            schema = {name: part for name, part in form.items() if name != "type"}
            chat["response_format"] = {"type": "json_schema", "json_schema": schema}
        case _:
            raise wrong("text", "`text.format` is text, json_object or json_schema.")
    return chat


def _tool(value: object) -> dict[str, Any]:
    tool = expect(value, dict, "tools")
    if tool.get("type") != "function":
        raise wrong("tools", "Only tools of type function are supported: a worker runs nothing.")
    _only(tool, {"type", "name", "description", "parameters", "strict"}, "tools")
    expect(tool.get("name"), str, "tools")
    function = {name: part for name, part in tool.items() if name != "type" and part is not None}
    return {"type": "function", "function": function}


def _tool_choice(value: object) -> object:
    if value in ("none", "auto", "required"):
        return value
    choice = expect(value, dict, "tool_choice")
    if choice.get("type") != "function" or choice.keys() != {"type", "name"}:
        raise wrong("tool_choice", "`tool_choice` is none, auto, required or one function.")
    return {"type": "function", "function": {"name": expect(choice["name"], str, "tool_choice")}}


# -- the conversation ----------------------------------------------------------------------------


def _messages(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = Conversation()
    if "instructions" in given:
        messages.say("system", expect(given["instructions"], str, "instructions"))
    asked = given.get("input")
    if isinstance(asked, str):
        messages.say("user", asked)
    else:
        for one in expect(asked, list, "input"):
            _item(expect(one, dict, "input"), messages)
    return messages.messages


class Conversation:
    """Messages of chat completions, put together from smaller things."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._reasoning = ""

    def say(self, role: str, content: object) -> None:
        """Add a message; system messages at the beginning become one, as templates want it."""
        last = self.messages[-1] if self.messages else None
        texts = isinstance(content, str) and last is not None and isinstance(last["content"], str)
        if role == "system" and len(self.messages) == 1 and last and last["role"] == role and texts:
            last["content"] += f"\n\n{content}"
            return
        message: dict[str, Any] = {"role": role, "content": content}
        if role == "assistant" and self._reasoning:
            message["reasoning_content"] = self._reasoning
            self._reasoning = ""
        self.messages.append(message)

    def think(self, text: str) -> None:
        """Keep reasoning for the assistant's next message."""
        self._reasoning += text

    def call(self, call_id: str, name: str, arguments: str) -> None:
        """Add a call to the assistant's message that is being made, or to a new one."""
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != "assistant" or self._reasoning:
            self.say("assistant", None)
            last = self.messages[-1]
        function = {"name": name, "arguments": arguments}
        calls = last.setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})

    def result(self, call_id: str, content: object) -> None:
        """Add what a call came to."""
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})


def _item(item: dict[str, Any], messages: Conversation) -> None:
    match item.get("type", "message"):
        case "message":
            _only(item, {"type", "role", "content", "id", "status", "phase"}, "input")
            role = item.get("role")
            if role not in ("user", "assistant", "system", "developer"):
                raise wrong("input", "A message in `input` has a role that is not known.")
            # Templates know no developer: for them that is the system.
            role = "system" if role == "developer" else role
            messages.say(role, _content(item.get("content")))
        case "function_call":
            _only(item, {"type", "call_id", "name", "arguments", "id", "status"}, "input")
            call_id, name, arguments = (
                expect(item.get(one), str, "input") for one in ("call_id", "name", "arguments")
            )
            messages.call(call_id, name, arguments)
        case "function_call_output":
            _only(item, {"type", "call_id", "output", "id", "status"}, "input")
            call_id = expect(item.get("call_id"), str, "input")
            messages.result(call_id, _content(item.get("output")))
        case "reasoning":
            _reasoning_item(item, messages)
        case _:
            raise wrong("input", "`input` holds an item of a type that is not supported.")


def _reasoning_item(item: dict[str, Any], messages: Conversation) -> None:
    if item.get("encrypted_content") is not None or item.get("summary"):
        raise wrong("input", "Reasoning in `input` is in clear and not summarised.")
    _only(item, {"type", "id", "content", "status", "summary", "encrypted_content"}, "input")
    for one in expect(item.get("content") or [], list, "input"):
        part = expect(one, dict, "input")
        if part.get("type") != "reasoning_text":
            raise wrong("input", "Reasoning in `input` is of type reasoning_text.")
        messages.think(expect(part.get("text"), str, "input"))


def _content(value: object) -> object:
    """Content for a message: a text where there is nothing else."""
    if isinstance(value, str):
        return value
    parts = [_part(expect(one, dict, "input")) for one in expect(value, list, "input")]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def _part(part: dict[str, Any]) -> dict[str, Any]:
    match part.get("type"):
        case "input_text" | "output_text":
            _only(part, {"type", "text", "annotations", "logprobs"}, "input")
            return {"type": "text", "text": expect(part.get("text"), str, "input")}
        case "refusal":
            return {"type": "text", "text": expect(part.get("refusal"), str, "input")}
        case "input_image":
            _only(part, {"type", "image_url", "detail"}, "input")
            if not is_data(part.get("image_url")):
                raise RefusedError(NOT_FETCHED)
            image = {"url": part["image_url"]}
            if part.get("detail") is not None:
                image["detail"] = part["detail"]
            return {"type": "image_url", "image_url": image}
        case _:
            raise wrong("input", "`input` holds content of a type that is not supported.")


def _only(members: Mapping[str, Any], known: Collection[str], name: str) -> None:
    """RefusedError naming the field, if a part of it would be ignored."""
    if any(value is not None and member not in known for member, value in members.items()):
        raise wrong(name, f"`{name}` holds something that is not supported here.")
