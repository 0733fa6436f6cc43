"""The official OpenAI SDK against a scripted engine: bare, sealed, and through the local proxy.

The engine words its chat completions as OpenAI's reference, llama.cpp or vLLM do. What the SDK
makes of an answer is compared with what it makes of the bare engine's, member by member
(`support.sameness` lists what is left out), and so is what reached the engine.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletion

from cloister.testing.fake_dialects import Dialect
from cloister.testing.fake_engine import Answer
from cloister.testing.fake_formats import ToolCall
from support.endpoints import WAYS, Ground, Way, scripted
from support.sdks import Place, async_openai_client, place_on, same

ASKED: Any = [{"role": "user", "content": "Is it raining in Oslo?"}]
WORDS = ("It ", "rains", " \N{SNOWMAN}", ".")
TEXT = "".join(WORDS)
WEATHER = ToolCall(name="weather", arguments=('{"city"', ':"Os', 'lo"}'), id="call_a")
TIME = ToolCall(name="time", arguments=('{"zone":"CET"}',), id="call_b")
PICTURE = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n picture").decode()
USAGE: Any = {"include_usage": True}


class weather(pydantic.BaseModel):  # noqa: N801 - a tool is called by the name of its class
    """Say the weather."""

    city: str


class time(pydantic.BaseModel):  # noqa: N801 - as above
    """Say the time."""

    zone: str


TOOLS: Any = [openai.pydantic_function_tool(weather), openai.pydantic_function_tool(time)]


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with scripted() as made:
        yield made


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    return chosen


@pytest.fixture(params=Dialect, ids=lambda dialect: dialect.value)
def place(ground: Ground, way: Way, request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_on(ground, way) as made:
        made.script.speak(request.param)
        yield made
        made.script.speak(Dialect.PLAIN)


def create(**fields: Any) -> Callable[[openai.OpenAI], Any]:
    return lambda client: client.chat.completions.create(model="fake", messages=ASKED, **fields)


def listed(**fields: Any) -> Callable[[openai.OpenAI], Any]:
    """The chunks of a stream, each as it came."""
    return lambda client: list(create(stream=True, stream_options=USAGE, **fields)(client))


def reasoning_of(message: Any) -> str:
    extra = message.model_extra
    return str(extra.get("reasoning_content") or extra.get("reasoning") or "")


def test_a_whole_chat_with_every_field(place: Place) -> None:
    place.will(tokens=WORDS, reasoning=("Rain", "?"))
    answer = place.same(
        create(
            seed=7, stop=["\n"], n=2, logprobs=True, top_logprobs=1, temperature=0.5, top_p=0.9,
            frequency_penalty=0.5, presence_penalty=0.25, max_completion_tokens=9,
            logit_bias={"5": 1}, user="ann", reasoning_effort="low",
        )
    )  # fmt: skip
    place.unaltered()
    assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]
    assert reasoning_of(answer.choices[0].message) == "Rain?"
    assert [one.token for one in answer.choices[1].logprobs.content] == list(WORDS)
    assert answer.usage.total_tokens == len(WORDS) + 1


def test_a_streamed_chat_event_by_event(place: Place) -> None:
    place.will(tokens=WORDS, reasoning=("Rain", "?"))
    chunks = place.same(listed(logprobs=True))
    place.unaltered()
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert [one for one in said if one] == list(WORDS)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(WORDS)


@pytest.mark.parametrize("calls", [(WEATHER,), (WEATHER, TIME)], ids=["one", "parallel"])
def test_tool_calls_whole_and_streamed(place: Place, calls: tuple[ToolCall, ...]) -> None:
    place.will(tokens=(), calls=calls)
    fields: Any = {"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": len(calls) > 1}
    [choice] = place.same(create(**fields)).choices
    place.unaltered()
    assert choice.finish_reason == "tool_calls"
    assert [
        (one.id, one.function.name, one.function.arguments) for one in choice.message.tool_calls
    ] == [(one.id, one.name, one.joined) for one in calls]
    chunks = place.same(listed(**fields))
    pieces: dict[int, list[str]] = {}
    for chunk in chunks:
        for call in (chunk.choices[0].delta.tool_calls or ()) if chunk.choices else ():
            pieces.setdefault(call.index, []).append(call.function.arguments or "")
    assert {index: "".join(each) for index, each in pieces.items()} == {
        index: one.joined for index, one in enumerate(calls)
    }
    # Arguments arrive in the pieces in which the engine made them.
    assert [piece for piece in pieces[0] if piece] == list(WEATHER.arguments)


def test_the_stream_helper_and_its_events(place: Place) -> None:
    place.will(tokens=WORDS, reasoning=("Rain?",), calls=(WEATHER, TIME))

    def ask(client: openai.OpenAI) -> Any:
        with client.chat.completions.stream(
            model="fake", messages=ASKED, tools=TOOLS, stream_options=USAGE
        ) as stream:
            events = list(stream)
            return [event.model_dump() for event in events], stream.get_final_completion()

    events, answer = place.same(ask)
    kinds = [event["type"] for event in events]
    told = [event["delta"] for event in events if event["type"] == "content.delta"]
    assert [one for one in told if one] == list(WORDS)
    assert kinds.count("content.done") == 1
    assert kinds.count("tool_calls.function.arguments.done") == 2
    message = answer.choices[0].message
    assert [call.function.parsed_arguments for call in message.tool_calls] == [
        weather(city="Oslo"),
        time(zone="CET"),
    ]
    assert answer.usage.completion_tokens == len(WORDS)


def test_tool_calls_parsed_by_the_sdk(place: Place) -> None:
    place.will(tokens=(), calls=(WEATHER,))
    answer = place.same(
        lambda client: client.chat.completions.parse(model="fake", messages=ASKED, tools=TOOLS)
    )
    calls = answer.choices[0].message.tool_calls or []
    assert [call.function.parsed_arguments for call in calls] == [weather(city="Oslo")]


def test_an_agent_goes_on_with_what_its_tools_said(place: Place) -> None:
    place.script.turns(
        Answer(tokens=(), reasoning=("Look.",), calls=(WEATHER, TIME)), Answer(tokens=WORDS)
    )

    def ask(client: openai.OpenAI) -> ChatCompletion:
        turns = list(ASKED)
        for _ in range(4):
            answer = client.chat.completions.create(model="fake", messages=turns, tools=TOOLS)
            message = answer.choices[0].message
            if not message.tool_calls:
                return answer
            turns.append(message.model_dump(exclude_none=True))
            turns += [
                {"role": "tool", "tool_call_id": call.id, "content": "rain"}
                for call in message.tool_calls
            ]
        raise AssertionError("it called for ever")

    assert place.same(ask).choices[0].message.content == TEXT
    place.unaltered()
    asked = place.script.asked(place.way)["messages"]
    assert [turn["role"] for turn in asked] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in asked[1]["tool_calls"]] == ["call_a", "call_b"]


def test_an_image_is_shown_and_one_is_answered(place: Place) -> None:
    def sees(_: str, body: Mapping[str, Any]) -> Answer:
        [text, image] = body["messages"][0]["content"]
        data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
        return Answer(
            tokens=(text["text"], f" {len(data)} bytes, {data[:4]!r}"),
            images=(image["image_url"]["url"],),
        )

    place.script.said = sees
    shown: Any = [
        {"type": "text", "text": "I see"},
        {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
    ]

    def ask(client: openai.OpenAI, **more: Any) -> Any:
        turns: Any = [{"role": "user", "content": shown}]
        return client.chat.completions.create(model="fake", messages=turns, **more)

    message = place.same(ask).choices[0].message
    place.unaltered()
    assert message.content == "I see 16 bytes, b'\\x89PNG'"
    assert message.model_extra["images"][0]["image_url"]["url"] == PICTURE
    chunks = place.same(lambda client: list(ask(client, stream=True)))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    images = [one for delta in deltas for one in (delta.model_extra or {}).get("images", ())]
    assert [one["image_url"]["url"] for one in images] == [PICTURE]


def test_completions(place: Place) -> None:
    place.will(tokens=WORDS)

    def ask(client: openai.OpenAI, **more: Any) -> Any:
        return client.completions.create(model="fake", prompt="So", max_tokens=9, seed=1, **more)

    answer = place.same(lambda client: ask(client, n=2, stop=["."]))
    place.unaltered()
    assert [choice.text for choice in answer.choices] == [TEXT, TEXT]
    pieces = place.same(lambda client: list(ask(client, stream=True)))
    assert [piece.choices[0].text for piece in pieces if piece.choices[0].text] == list(WORDS)


def test_what_the_sdk_shows_raw(place: Place) -> None:
    """Status and content type are the engine's; no header of the way shows through the seal."""
    place.will(tokens=WORDS)
    raw = place.client.chat.completions.with_raw_response.create(model="fake", messages=ASKED)
    assert raw.status_code == 200
    assert raw.headers["content-type"] == "application/json"
    assert json.loads(raw.text)["choices"][0]["message"]["content"] == TEXT
    with place.client.chat.completions.with_streaming_response.create(
        model="fake", messages=ASKED, stream=True
    ) as streamed:
        assert streamed.headers["content-type"] == "text/event-stream"
        lines = [line for line in streamed.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"


# -- asynchronous --------------------------------------------------------------------------------


async def test_the_asynchronous_client(ground: Ground, way: Way) -> None:
    assert ground.script is not None
    ground.script.will(tokens=WORDS, calls=(WEATHER,))

    async def ask(client: openai.AsyncOpenAI) -> Any:
        whole = await client.chat.completions.create(model="fake", messages=ASKED, tools=TOOLS)
        stream = await client.chat.completions.create(
            model="fake", messages=ASKED, tools=TOOLS, stream=True, stream_options=USAGE
        )
        pieces = [chunk async for chunk in stream]
        async with client.chat.completions.stream(
            model="fake", messages=ASKED, tools=TOOLS
        ) as helper:
            final = await helper.get_final_completion()
        response = await client.responses.create(model="fake", input="Rain?")
        vectors = await client.embeddings.create(model="fake", input=["a", "bcd"])
        return whole, pieces, final, response.output_text, vectors.data

    whole, _, final, text, vectors = await same(ground, way, ask)
    assert whole.choices[0].message.content == final.choices[0].message.content == text == TEXT
    assert [one.embedding[0] for one in vectors] == [1.0, 3.0]


async def test_many_at_once(ground: Ground, way: Way) -> None:
    assert ground.script is not None
    ground.script.said = lambda _, body: Answer(
        tokens=("you", " said ", body["messages"][0]["content"]), rate=200.0
    )

    async def one(client: openai.AsyncOpenAI, text: str) -> str:
        turns: Any = [{"role": "user", "content": text}]
        stream = await client.chat.completions.create(model="fake", messages=turns, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async with async_openai_client(ground, way) as client:
        texts = [f"marker {number}" for number in range(16)]
        answers = await asyncio.gather(*(one(client, text) for text in texts))
    assert answers == [f"you said {text}" for text in texts]
