"""Anthropic's SDK: through the local proxy to a sealed worker, and to a server in clear."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from cloister.cli.proxy import allowed_hosts
from cloister.cli.verify import encode
from cloister.client import open_async_connection
from cloister.client.proxy import LocalProxy
from cloister.testing.fake_engine import Answer, FakeEngine, serve
from cloister.testing.fake_formats import ToolCall
from cloister.worker.api_keys import ApiKeyFile
from support.scene import Scene, scene

anthropic = pytest.importorskip("anthropic")

ASKED: Any = [{"role": "user", "content": "What is a TEE?"}]
WORDS = ("A ", "TEE ", "is ", "\N{SNOWMAN}", ".")
TEXT = "".join(WORDS)
WEATHER = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'), id="call_a")
TIME = ToolCall(name="time", arguments=('{"zone":"CET"}',), id="call_b")
TOOL: Any = {"name": "weather", "description": "Says it.", "input_schema": {"type": "object"}}


@dataclass(slots=True)
class Place:
    """A server, Anthropic's client for it, and what the server shall answer."""

    client: Any
    scene: Scene | None
    answers: list[Answer] = field(default_factory=lambda: [Answer(tokens=WORDS)])

    def answer(self, *_: object) -> Answer:
        return self.answers[-1]

    def will(self, **answer: Any) -> Any:
        self.answers.append(Answer(**answer))
        return self.client

    @property
    def asked(self) -> dict[str, Any] | None:
        if self.scene is None:
            return None
        return dict(json.loads(self.scene.live.engine.requests[-1].body))


@pytest.fixture(params=["sealed", "plain"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with sealed() if request.param == "sealed" else plain() as made:
        yield made


@contextlib.contextmanager
def in_a_thread(url: str, **trust: Any) -> Iterator[str]:
    """The local proxy, on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    connection = open_async_connection(url, trust_env=False, **trust)
    app = LocalProxy(connection, allowed_hosts=allowed_hosts("127.0.0.1", port), encode=encode)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", lifespan="off"))

    async def run() -> None:
        async with connection:
            await server.serve()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@contextlib.contextmanager
def client_of(url: str, key: str = "sk-ant-x") -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as client:
        yield client


@contextlib.contextmanager
def sealed(key: str = "sk-ant-x", **options: Any) -> Iterator[Place]:
    engine = FakeEngine()
    with (
        scene(engine=engine, **options) as made,
        in_a_thread(made.url, **made.trust) as url,
        client_of(url, key) as client,
    ):
        place = Place(client, made)
        engine.script = place.answer
        yield place


@contextlib.contextmanager
def plain() -> Iterator[Place]:
    engine = FakeEngine()
    started, stop = threading.Event(), asyncio.Event()
    where: list[Any] = []

    async def run() -> None:
        await engine.start()
        server = await serve(engine, port=0)
        where.extend((server.sockets[0].getsockname()[1], asyncio.get_running_loop()))
        started.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    started.wait(10)
    with client_of(f"http://127.0.0.1:{where[0]}") as client:
        place = Place(client, None)
        engine.script = place.answer
        yield place
    where[1].call_soon_threadsafe(stop.set)
    thread.join()


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
        assert place.scene is not None
        message = place.client.messages.create(model="fake", max_tokens=9, messages=ASKED)
        assert message.content[0].text == TEXT
        assert place.scene.proxy.seen
        for request in place.scene.proxy.seen:
            assert request.header("x-api-key") is None
            assert request.header("anthropic-version") is None
            assert key.encode() not in repr(request.headers).encode() + request.body
        with pytest.raises(anthropic.AuthenticationError) as refused:
            place.client.with_options(api_key="wrong").messages.create(
                model="fake", max_tokens=9, messages=ASKED
            )
        assert refused.value.body["error"]["type"] == "authentication_error"
