"""Values of OpenAI's fields that llama.cpp's server would take for something else.

It reads a value of a wrong type as if the field were not there, or as the nearest one that it
likes: a text as ``response_format`` leaves the answer free, a named ``tool_choice`` means "auto",
of several prompts only the shortest answer ends (tried: xllamacpp 2026.10.11549). A caller would
believe that the field was heeded, so these are refused by name, or said in other words.

Some values cost it far more than their size: it answers all requests in one thread, and reads its
whole vocabulary for each of ``dry_sequence_breakers``, and all of ``stop`` and ``logit_bias`` for
each token. So these lists are bounded. `cloister.engine.llama_restrictions` bounds the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cloister.engine.llama_restrictions import (
    MAX_MEMBERS,
    MAX_SCHEMA,
    MAX_VALUES,
    is_grammar,
    is_schema,
)
from cloister.engine.requests import refuse

MAX_LISTED: Final = 1_024
"""Entries of ``stop`` and of ``logit_bias``."""
MAX_BREAKERS: Final = 4
"""As many as it has by itself; each takes some milliseconds per 1,000 tokens of its vocabulary."""
MAX_MESSAGES: Final = 8_192
"""Of a chat: more do not fit into any context, but it would put them through its template."""
_MAX_SAMPLERS: Final = 32
_MAX_TOOLS: Final = 128
_MAX_TEXT: Final = 64  # characters of a bias' token, or a breaker
_INT: Final = (1 << 31) - 1
REASONING_FORMATS: Final = ("auto", "deepseek", "deepseek-legacy", "none")
_FORMATS: Final = ("json_object", "json_schema", "text")
_CONSTRAINTS: Final = ("grammar", "json_schema", "response_format")


def check_values(body: dict[str, Any], *, chat: bool, parallel: int) -> None:
    """Check the fields of a chat completion or completion, and put `body` into the server's words.

    `parallel` is how many answers the engine computes at a time. EngineError (`REQUEST_REFUSED`)
    names the field. A null is as good as nothing, as in OpenAI's interface.
    """
    for name in [name for name, value in body.items() if value is None]:
        del body[name]
    for name, value in body.items():
        # It would take what is left of them in 32 bits.
        if name != "seed" and _is_whole(value) and abs(value) > _INT:
            raise refuse("a whole number is too large")
    for name, (holds, what) in (_CHAT if chat else _COMPLETION).items():
        if name in body and not holds(body[name]):
            raise refuse(f"the field '{name}' must be {what}", field=name)
    if body.get("n", 1) > parallel:
        raise refuse(f"the field 'n' can be at most {parallel} here", field="n")
    constraints = [name for name in _CONSTRAINTS if _constrains(body.get(name))]
    if len(constraints) > 1:
        named = " and ".join(f"'{name}'" for name in constraints)
        raise refuse(f"an answer cannot obey {named} at once", field=constraints[-1])
    if chat:
        _choose_tool(body)


def _constrains(value: object) -> bool:
    """Whether a field that restricts the answer is there and does."""
    return bool(value) and not (isinstance(value, dict) and value.get("type") == "text")


def _choose_tool(body: dict[str, Any]) -> None:
    """One function that has to be called: it is the only tool, and a call is required."""
    choice = body.get("tool_choice")
    if not isinstance(choice, dict):
        return
    named = choice["function"]["name"]
    tools = [tool for tool in body.get("tools", ()) if tool["function"]["name"] == named]
    if len(tools) != 1:
        raise refuse("the field 'tool_choice' names none of the tools", field="tool_choice")
    body["tools"], body["tool_choice"] = tools, "required"


# -- what each field may hold -------------------------------------------------------------------

Check = tuple[Callable[[Any], bool], str]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(low: float, high: float) -> Check:
    return (
        lambda value: _is_number(value) and low <= value <= high,
        f"a number from {low} to {high}",
    )


def _whole(low: int, high: int | None = None) -> Check:
    bound = f"at least {low}" if high is None else f"from {low} to {high}"

    def holds(value: object) -> bool:
        return isinstance(value, int) and _is_whole(value) and low <= value <= (high or value)

    return holds, f"a whole number, {bound}"


def _boolean() -> Check:
    return lambda value: isinstance(value, bool), "true or false"


def _texts(value: object) -> bool:
    listed = value if isinstance(value, list) else [value]
    return len(listed) <= MAX_LISTED and all(isinstance(one, str) and one for one in listed)


def _short_texts(most: int) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, list)
        and len(value) <= most
        and all(isinstance(one, str) and len(one) <= _MAX_TEXT for one in value)
    )


def _is_prompt(value: object) -> bool:
    """One text, or the numbers of one text's tokens."""
    if isinstance(value, list):
        return bool(value) and all(_is_whole(one) for one in value)
    return isinstance(value, str)


def _is_bias(value: object) -> bool:
    """Numbers by tokens: OpenAI's are numbers of tokens, llama.cpp also takes texts."""
    return (
        isinstance(value, dict)
        and len(value) <= MAX_LISTED
        and all(len(token) <= _MAX_TEXT for token in value)
        and all(_is_number(bias) and -100 <= bias <= 100 for bias in value.values())
    )


def _is_stream_options(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() <= {"include_usage"}
        and all(isinstance(one, bool) for one in value.values())
    )


def _is_format(value: object) -> bool:
    if not isinstance(value, dict) or value.get("type") not in _FORMATS:
        return False
    wrapped = value.get("json_schema")
    if value["type"] == "json_schema":
        return isinstance(wrapped, dict) and is_schema(wrapped.get("schema"))
    return wrapped is None


def _is_tools(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _MAX_TOOLS and all(map(_is_tool, value))


def _is_tool(value: object) -> bool:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(function, dict):
        return False
    parameters = function.get("parameters")
    return (
        value.get("type") == "function"
        and isinstance(function.get("name"), str)
        and (parameters is None or is_schema(parameters))
    )


def _is_tool_choice(value: object) -> bool:
    if not isinstance(value, dict):
        return value in ("none", "auto", "required")
    function = value.get("function")
    return (
        value.get("type") == "function"
        and isinstance(function, dict)
        and isinstance(function.get("name"), str)
    )


def _is_messages(value: object) -> bool:
    return (
        isinstance(value, list) and 1 <= len(value) <= MAX_MESSAGES and all(map(_is_message, value))
    )


def _is_message(value: object) -> bool:
    """Its template and its parser of tool calls fail where these are of another shape."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    content, calls = value.get("content"), value.get("tool_calls")
    return (content is None or isinstance(content, str | list)) and (
        calls is None or (isinstance(calls, list) and all(map(_is_call, calls)))
    )


def _is_call(value: object) -> bool:
    function = value.get("function") if isinstance(value, dict) else None
    return (
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments"), str)
    )


_SCHEMA: Final = (
    f"a JSON schema of at most {MAX_SCHEMA} characters, {MAX_VALUES} values in each list and "
    f"{MAX_MEMBERS} members of each object"
)


_BOTH: Final[Mapping[str, Check]] = {
    "frequency_penalty": _number(-2, 2),
    "dry_sequence_breakers": (
        _short_texts(MAX_BREAKERS),
        f"at most {MAX_BREAKERS} texts of {_MAX_TEXT} characters",
    ),
    "grammar": (
        is_grammar,
        f"a text of at most {MAX_SCHEMA} characters, {MAX_VALUES} of them '(' or '|'",
    ),
    "json_schema": (is_schema, _SCHEMA),
    "logit_bias": (
        _is_bias,
        f"an object of at most {MAX_LISTED} tokens, each with a number from -100 to 100",
    ),
    "max_tokens": _whole(1, _INT),
    "min_p": _number(0, 1),
    "n": _whole(1),
    "presence_penalty": _number(-2, 2),
    "samplers": (_short_texts(_MAX_SAMPLERS), f"at most {_MAX_SAMPLERS} names"),
    "seed": _whole(-(1 << 63), (1 << 63) - 1),
    "stop": (_texts, f"a text or a list of at most {MAX_LISTED} texts"),
    "stream_options": (_is_stream_options, "an object with 'include_usage', true or false"),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
}
_CHAT: Final[Mapping[str, Check]] = {
    **_BOTH,
    "chat_template_kwargs": (lambda value: isinstance(value, dict), "an object"),
    "logprobs": _boolean(),
    "max_completion_tokens": _whole(1, _INT),
    "messages": (
        _is_messages,
        f"a list of 1 to {MAX_MESSAGES} messages, each with a role, and a function in each call",
    ),
    "parallel_tool_calls": _boolean(),
    "reasoning_effort": (lambda value: isinstance(value, str), "a text"),
    "reasoning_format": (
        lambda value: value in REASONING_FORMATS,
        f"one of {', '.join(REASONING_FORMATS)}",
    ),
    "response_format": (
        _is_format,
        "an object of type text, json_object, or json_schema with a 'schema' in 'json_schema', "
        + _SCHEMA,
    ),
    "tool_choice": (_is_tool_choice, "none, auto, required or one function by its name"),
    "tools": (
        _is_tools,
        f"a list of at most {_MAX_TOOLS} functions, each with a name and {_SCHEMA}",
    ),
    "top_logprobs": _whole(0, 20),
}
_COMPLETION: Final[Mapping[str, Check]] = {
    **_BOTH,
    "logprobs": _whole(0, 20),
    "prompt": (_is_prompt, "one text, or the token numbers of one"),
}
