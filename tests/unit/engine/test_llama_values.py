"""Values that llama.cpp's server would misread are refused by name before it sees them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cloister.engine.llama_fields import PATHS
from cloister.engine.llama_restrictions import MAX_MEMBERS, MAX_SCHEMA, MAX_VALUES
from cloister.engine.llama_values import MAX_BREAKERS, MAX_LISTED, MAX_MESSAGES, check_values
from cloister.engine.protocol import CHAT_COMPLETIONS, COMPLETIONS, REQUEST_REFUSED
from cloister.errors import EngineError

ASKED = [{"role": "user", "content": "canary"}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
MANY = list(range(MAX_VALUES + 1))


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def calling(call: object) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": None, "tool_calls": [call]}]


CHAT: dict[str, tuple[list[Any], list[Any]]] = {
    "chat_template_kwargs": ([{}, {"enable_thinking": False}], ["canary", []]),
    "dry_sequence_breakers": (
        [[], ["\n", ":"]],
        ["canary", ["\n"] * (MAX_BREAKERS + 1), ["a" * 65], [1]],
    ),
    "frequency_penalty": ([-2, 0.5, 2], ["canary", 2.1, True]),
    "grammar": (
        ['root ::= "a"', "(" * MAX_VALUES, "|" * MAX_VALUES, "a" * MAX_SCHEMA],
        [1, {}, "(" * (MAX_VALUES + 1), "|" * (MAX_VALUES + 1), "a" * (MAX_SCHEMA + 1)],
    ),
    "json_schema": (
        [
            {"const": 1},
            {"enum": MANY[1:]},
            {"properties": {str(one): True for one in range(MAX_MEMBERS)}},
        ],
        [
            *("canary", [], True),
            {"enum": MANY},
            {"anyOf": [{"enum": MANY}]},
            {"properties": {str(one): True for one in range(MAX_MEMBERS + 1)}},
            {"const": "a" * MAX_SCHEMA},
        ],
    ),
    "logit_bias": (
        [{}, {"5": -100}, {" the": 1.5}, {str(one): 1 for one in range(MAX_LISTED)}],
        [
            *("canary", [[5, 1]], {"5": "1"}, {"5": 101}, {"a" * 65: 1}),
            {str(one): 1 for one in range(MAX_LISTED + 1)},
        ],
    ),
    "logprobs": ([True, False], [1, "canary"]),
    "max_completion_tokens": ([1, 10**6], [0, -1, 1.5, "9", True]),
    "max_tokens": ([1, (1 << 31) - 1], [0, -1, 1.5, "9", True]),
    "messages": (
        [
            *(ASKED, ASKED * MAX_MESSAGES),
            calling({"function": {"name": "f", "arguments": "{}"}}),
        ],
        [
            ASKED * (MAX_MESSAGES + 1),
            *([], "canary", ["canary"], {}),
            [{"content": "canary"}],
            [{"role": 5, "content": "canary"}],
            [{"role": "user", "content": {}}],
            calling("canary"),
            calling({"function": {"name": "f", "arguments": {}}}),
        ],
    ),
    "min_p": ([0, 1], [-0.1, "canary"]),
    "n": ([1, 4], [0, 5, "2", True]),
    "parallel_tool_calls": ([True, False], ["canary", 1]),
    "presence_penalty": ([-2, 2], [3, "canary"]),
    "reasoning_effort": (["low"], [3, {}]),
    "reasoning_format": (["none", "auto"], ["canary", 1]),
    "response_format": (
        [{"type": "text"}, {"type": "json_object"}, SCHEMA],
        [
            "canary",
            {},
            {"type": "canary"},
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": "canary"},
            {"type": "json_schema", "json_schema": {"schema": "canary"}},
            {"type": "json_object", "json_schema": {"schema": {}}},
            {"type": "json_schema", "json_schema": {"schema": {"enum": MANY}}},
        ],
    ),
    "samplers": ([["top_k", "temperature"]], ["canary", ["top_k"] * 33, [1]]),
    "seed": ([0, -1, 1 << 40], [1.5, "canary", True, 1 << 63]),
    "stop": (
        ["a", ["a", "b"], [], ["a"] * MAX_LISTED],
        [1, [1], "", ["a", ""], {}, ["a"] * (MAX_LISTED + 1)],
    ),
    "stream_options": (
        [{}, {"include_usage": True}],
        ["canary", {"include_usage": 1}, {"canary": True}],
    ),
    "temperature": ([0, 0.7, 2], [-0.1, 2.1, "canary", True]),
    "tool_choice": (
        ["none", "auto", "required"],
        ["canary", {}, {"type": "canary"}, {"type": "function", "function": "canary"}],
    ),
    "tools": (
        [[], [tool("f")], [named("f")]],
        [
            *("canary", ["canary"], [{"type": "function"}]),
            [{**tool("f"), "type": "canary"}],
            [tool("f")] * 129,
            [{"type": "function", "function": {"name": "f", "parameters": {"enum": MANY}}}],
        ],
    ),
    "top_logprobs": ([0, 20], [21, -1, "canary"]),
    "top_p": ([0, 1], [1.1, "canary"]),
}
COMPLETION: dict[str, tuple[list[Any], list[Any]]] = {
    "logprobs": ([0, 5], [True, 21, "canary"]),
    "prompt": (["canary", "", [1, 2]], [["canary", "b"], [[1], [2]], [], {}, 1]),
    "max_tokens": CHAT["max_tokens"],
}


def refused(body: dict[str, Any], *, chat: bool = True) -> EngineError:
    with pytest.raises(EngineError) as caught:
        check_values(body, chat=chat, parallel=4)
    assert caught.value.code == REQUEST_REFUSED
    assert "canary" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", CHAT)
def test_a_chats_fields(name: str) -> None:
    good, bad = CHAT[name]
    for value in good:
        check_values({"messages": ASKED, name: value}, chat=True, parallel=4)
    for value in bad:
        error = refused({"messages": ASKED, name: value})
        assert error.field == name, value
        assert f"'{name}'" in str(error)


@pytest.mark.parametrize("name", COMPLETION)
def test_a_completions_fields(name: str) -> None:
    good, bad = COMPLETION[name]
    for value in good:
        check_values({"prompt": "x", name: value}, chat=False, parallel=4)
    for value in bad:
        assert refused({"prompt": "x", name: value}, chat=False).field == name, value


def test_every_field_that_is_checked_is_one_that_the_engine_reads() -> None:
    assert CHAT.keys() <= (PATHS[CHAT_COMPLETIONS] or set())
    assert COMPLETION.keys() <= (PATHS[COMPLETIONS] or set())


@pytest.mark.parametrize("name", ["max_tokens", "n_predict", "top_k"])
def test_what_32_bits_do_not_hold_is_refused(name: str) -> None:
    check_values({"messages": ASKED, name: (1 << 31) - 1}, chat=True, parallel=1)
    for value in (1 << 31, (1 << 32) + 1, -(1 << 32), 10**30):
        assert "too large" in str(refused({"messages": ASKED, name: value}))


def test_null_is_as_good_as_nothing() -> None:
    body: dict[str, Any] = {"messages": ASKED, "stop": None, "response_format": None, "other": None}
    check_values(body, chat=True, parallel=1)
    assert body == {"messages": ASKED}


def test_one_restriction_at_a_time() -> None:
    restrictions: dict[str, Any] = {
        "grammar": 'root ::= "a"',
        "json_schema": {"const": 1},
        "response_format": SCHEMA,
    }
    for first, second in (
        ("grammar", "json_schema"),
        ("grammar", "response_format"),
        ("json_schema", "response_format"),
    ):
        body = {"messages": ASKED, first: restrictions[first], second: restrictions[second]}
        assert f"'{first}' and '{second}'" in str(refused(body))
    free = {"messages": ASKED, "grammar": "root ::= [a-z]", "response_format": {"type": "text"}}
    check_values(free, chat=True, parallel=1)


def test_a_function_that_has_to_be_called_is_the_only_one() -> None:
    body: dict[str, Any] = {
        "messages": ASKED,
        "tools": [tool("f"), tool("g")],
        "tool_choice": named("g"),
    }
    asked = copy.deepcopy(body)
    check_values(asked, chat=True, parallel=1)
    assert asked == {"messages": ASKED, "tools": [tool("g")], "tool_choice": "required"}
    for tools in ([tool("f")], [tool("g"), tool("g")], [], None):
        assert refused({**body, "tools": tools}).field == "tool_choice"
