"""Anthropic's SDK: through the local proxy to a sealed worker, and to the engine itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cloister.testing.fake_formats import ToolCall
from cloister.worker.api_keys import ApiKeyFile
from support.endpoints import Ground, Way, scripted

anthropic = pytest.importorskip("anthropic")

ASKED: Any = [{"role": "user", "content": "What is a TEE?"}]
WORDS = ("A ", "TEE ", "is ", "\N{SNOWMAN}", ".")
TEXT = "".join(WORDS)
WEATHER = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'), id="call_a")
TIME = ToolCall(name="time", arguments=('{"zone":"CET"}',), id="call_b")
TOOL: Any = {"name": "weather", "description": "Says it.", "input_schema": {"type": "object"}}


@dataclass(slots=True)
class Place:
    """One way to an engine, Anthropic's client on it, and what the engine shall answer."""

    client: Any
    way: Way
    ground: Ground

    def will(self, **answer: Any) -> Any:
        assert self.ground.script is not None
        self.ground.script.will(**answer)
        return self.client

    @property
    def asked(self) -> dict[str, Any] | None:
        assert self.ground.script is not None
        return None if self.way == "direct" else self.ground.script.asked(self.way)


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with scripted() as made:
        yield made


@pytest.fixture(params=["direct", "proxied"])
def place(ground: Ground, request: pytest.FixtureRequest) -> Iterator[Place]:
    with client_of(ground.url(request.param)) as client:
        yield Place(client, request.param, ground)


@contextlib.contextmanager
def client_of(url: str, key: str = "sk-ant-x") -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as client:
        yield client


@contextlib.contextmanager
def sealed(key: str = "sk-ant-x", **options: Any) -> Iterator[Place]:
    """A worker and a proxy of the test's own."""
    with scripted(watched=True, **options) as made, client_of(made.proxied, key) as client:
        place = Place(client, "proxied", made)
        place.will(tokens=WORDS)
        yield place


def test_a_message(place: Place) -> None:
    client = place.will(tokens=WORDS)
    message = client.messages.create(
        model="fake", max_tokens=9, messages=ASKED, system="Be short.", stop_sequences=["\n"],
        metadata={"user_id": "u"}, extra_body={"temperature": 0.5, "top_k": 3},
    )  # fmt: skip
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text == TEXT
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (1, len(WORDS))
    assert place.asked in (
        None,
        {
            "model": "fake",
            "messages": [{"role": "system", "content": "Be short."}, *ASKED],
            "max_tokens": 9,
            "stream": False,
            "temperature": 0.5,
            "top_k": 3,
            "stop": ["\n"],
            "user": "u",
        },
    )


def test_a_message_streamed(place: Place) -> None:
    client = place.will(tokens=WORDS, reasoning=("I ", "think."), calls=(WEATHER, TIME))
    with client.messages.stream(model="fake", max_tokens=9, messages=ASKED, tools=[TOOL]) as stream:
        events = list(stream)
        message = stream.get_final_message()
    raw = [event.type for event in events if event.type.startswith(("message", "content_block"))]
    block = ("content_block_start", "content_block_delta", "content_block_stop")
    assert raw == [
        "message_start",
        *(*block[:2], block[1], block[2]),
        *(block[0], *(block[1],) * len(WORDS), block[2]),
        *(*block[:2], block[1], block[2]),
        *block,
        "message_delta",
        "message_stop",
    ]
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[0].thinking == "I think."
    assert message.content[1].text == TEXT
    assert [(b.id, b.name, b.input) for b in message.content[2:]] == [
        ("call_a", "weather", {"city": "Oslo"}),
        ("call_b", "time", {"zone": "CET"}),
    ]
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (1, len(WORDS))


def test_a_message_with_calls(place: Place) -> None:
    client = place.will(tokens=(), calls=(WEATHER, TIME))
    choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    message = client.messages.create(
        model="fake", max_tokens=9, messages=ASKED, tools=[TOOL], tool_choice=choice
    )
    assert [(b.id, b.name, b.input) for b in message.content] == [
        ("call_a", "weather", {"city": "Oslo"}),
        ("call_b", "time", {"zone": "CET"}),
    ]
    if place.asked is not None:
        function = {
            "name": "weather",
            "parameters": {"type": "object"},
            "description": "Says it.",
        }
        assert place.asked["tools"] == [{"type": "function", "function": function}]
        assert place.asked["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
        assert place.asked["parallel_tool_calls"] is False
    turn = [
        *ASKED,
        {"role": "assistant", "content": [b.model_dump() for b in message.content]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_a", "content": "Rain"},
                {
                    "type": "tool_result",
                    "tool_use_id": "call_b",
                    "is_error": True,
                    "content": [{"type": "text", "text": "No clock"}],
                },
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    client = place.will(tokens=WORDS, finish="length")
    message = client.messages.create(model="fake", max_tokens=9, messages=turn)
    assert (message.content[0].text, message.stop_reason) == (TEXT, "max_tokens")
    if place.asked is not None:
        assert place.asked["messages"][1:] == [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.joined},
                    }
                    for call in (WEATHER, TIME)
                ],
            },
            {"role": "tool", "tool_call_id": "call_a", "content": "Rain"},
            {"role": "tool", "tool_call_id": "call_b", "content": "Error: No clock"},
            {"role": "user", "content": "So?"},
        ]


def test_errors_have_anthropics_shape() -> None:
    with sealed() as place:
        with pytest.raises(anthropic.NotFoundError) as missing:
            place.client.messages.create(model="other", max_tokens=9, messages=ASKED)
        assert missing.value.body["type"] == "error"
        assert missing.value.body["error"]["type"] == "not_found_error"
        assert missing.value.body["error"]["code"] == "model_not_found"
        with pytest.raises(anthropic.BadRequestError) as refused:
            place.client.messages.create(
                model="fake", max_tokens=9, messages=ASKED, extra_body={"container": "canary"}
            )
        assert "`container`" in refused.value.body["error"]["message"]
        assert "canary" not in str(refused.value.body)
        place.will(crash_after=2)
        with (
            pytest.raises(anthropic.APIStatusError, match="engine_failed"),
            place.client.messages.stream(model="fake", max_tokens=9, messages=ASKED) as stream,
        ):
            list(stream)


def test_the_key_travels_inside_the_seal(tmp_path: Any) -> None:
    file = ApiKeyFile(tmp_path / "keys.json")
    _, key = file.add("ann", at=0)
    with sealed(key, api_keys=tmp_path / "keys.json") as place:
        message = place.client.messages.create(model="fake", max_tokens=9, messages=ASKED)
        assert message.content[0].text == TEXT
        assert place.ground.scene.proxy.seen
        for request in place.ground.scene.proxy.seen:
            assert request.header("x-api-key") is None
            assert request.header("anthropic-version") is None
            assert key.encode() not in repr(request.headers).encode() + request.body
        with pytest.raises(anthropic.AuthenticationError) as refused:
            place.client.with_options(api_key="wrong").messages.create(
                model="fake", max_tokens=9, messages=ASKED
            )
        assert refused.value.body["error"]["type"] == "authentication_error"
