"""The official OpenAI SDK: the same questions to a sealed worker and to the engine itself.

The worker translates; the scripted engine (`cloister.testing.fake_formats`) has every format
itself. What the SDK makes of either must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
from openai.types.responses import ResponseTextDeltaEvent

from cloister.testing.fake_formats import ToolCall, vector_of
from support.endpoints import WAYS, Ground, scripted
from support.sdks import Place, place_on

ASKED: Any = [{"role": "user", "content": "What is a TEE?"}]
WORDS = ("A ", "TEE ", "is ", "\N{SNOWMAN}", ".")
TEXT = "".join(WORDS)
WEATHER = ToolCall(name="weather", arguments=('{"city":', '"Oslo"}'), id="call_a")
TIME = ToolCall(name="time", arguments=('{"zone":"', "CET", '"}'), id="call_b")
CHAT_TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {}}}
TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with scripted() as made:
        yield made


@pytest.fixture(params=WAYS)
def place(ground: Ground, request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_on(ground, request.param) as made:
        yield made


# -- chat completions ----------------------------------------------------------------------------


def test_chat_whole(place: Place) -> None:
    client = place.will(tokens=WORDS, reasoning=("I ", "think."), calls=(WEATHER, TIME))
    answer = client.chat.completions.create(
        model="fake", messages=ASKED, tools=[CHAT_TOOL], seed=7, stop=["\n"], logprobs=True,
        frequency_penalty=0.5, presence_penalty=0.25, n=2, top_logprobs=1,
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1]
    choice = answer.choices[0]
    assert choice.message.content == TEXT
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    assert [
        (call.id, call.function.name, call.function.arguments)
        for call in choice.message.tool_calls
        if call.type == "function"
    ] == [("call_a", "weather", '{"city":"Oslo"}'), ("call_b", "time", '{"zone":"CET"}')]
    assert choice.message.model_extra == {"reasoning_content": "I think."}
    assert choice.logprobs is not None
    assert [entry.token for entry in choice.logprobs.content or ()] == list(WORDS)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(WORDS)
    if place.asked is not None:
        rest = {"seed": 7, "stop": ["\n"], "frequency_penalty": 0.5, "presence_penalty": 0.25}
        assert place.asked.items() >= {**rest, "n": 2, "logprobs": True, "top_logprobs": 1}.items()


def test_chat_streamed_with_calls_and_usage(place: Place) -> None:
    client = place.will(tokens=WORDS, reasoning=("I ", "think."), calls=(WEATHER, TIME))
    with client.chat.completions.stream(
        model="fake", messages=ASKED, stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_completion()
    assert kinds.count("content.delta") == len(WORDS)
    message = answer.choices[0].message
    assert message.content == TEXT
    assert message.tool_calls is not None
    assert [call.function.arguments for call in message.tool_calls] == [
        '{"city":"Oslo"}',
        '{"zone":"CET"}',
    ]
    assert message.model_extra is not None
    assert message.model_extra["reasoning_content"] == "I think."
    assert answer.usage is not None
    assert answer.usage.total_tokens == len(WORDS) + 1


class Person(pydantic.BaseModel):
    name: str
    age: int


def test_chat_parses_structured_output(place: Place) -> None:
    client = place.will(tokens=('{"name":"Ada",', '"age":36}'))
    answer = client.chat.completions.parse(model="fake", messages=ASKED, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
    if place.asked is not None:
        assert place.asked["response_format"]["json_schema"]["schema"]["required"] == [
            "name",
            "age",
        ]


# -- responses -----------------------------------------------------------------------------------


def test_a_response(place: Place) -> None:
    client = place.will(tokens=WORDS)
    response = client.responses.create(
        model="fake", input="What is a TEE?", instructions="Be short.", max_output_tokens=9,
        store=False, temperature=0,
    )  # fmt: skip
    assert response.status == "completed"
    assert response.output_text == TEXT
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (1, len(WORDS))
    assert [item.type for item in response.output] == ["message"]
    assert place.asked in (
        None,
        {
            "model": "fake",
            "messages": [{"role": "system", "content": "Be short."}, *ASKED],
            "stream": False,
            "temperature": 0,
            "max_tokens": 9,
        },
    )


def test_a_response_that_was_cut(place: Place) -> None:
    response = place.will(tokens=WORDS, finish="length").responses.create(model="fake", input="x")
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text == TEXT


def test_a_response_streamed(place: Place) -> None:
    client = place.will(tokens=WORDS, reasoning=("I ", "think."), calls=(WEATHER, TIME))
    with client.responses.stream(model="fake", input="x", tools=[TOOL]) as stream:
        events = list(stream)
        response = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    item = ("output_item.added", "content_part.added")
    done = ("content_part.done", "output_item.done")
    call = ("output_item.added", *("function_call_arguments.delta",) * 2)
    assert kinds == [
        "created",
        "in_progress",
        *(*item, "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done", *done),
        *(*item, *("output_text.delta",) * 5, "output_text.done", *done),
        *(*call, "function_call_arguments.done", "output_item.done"),
        *(*call, "function_call_arguments.delta", "function_call_arguments.done"),
        *("output_item.done", "completed"),
    ]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert tuple(deltas) == WORDS
    assert [item.type for item in response.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert response.output_text == TEXT
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(call.call_id, call.name, call.arguments) for call in calls] == [
        ("call_a", "weather", '{"city":"Oslo"}'),
        ("call_b", "time", '{"zone":"CET"}'),
    ]
    thought = response.output[0]
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == "I think."


def test_a_response_in_raw_events(place: Place) -> None:
    stream = place.will(tokens=WORDS).responses.create(model="fake", input="x", stream=True)
    deltas = [event.delta for event in stream if isinstance(event, ResponseTextDeltaEvent)]
    assert tuple(deltas) == WORDS


def test_a_response_parses_structured_output(place: Place) -> None:
    client = place.will(tokens=('{"name":"Ada",', '"age":36}'))
    response = client.responses.parse(model="fake", input="x", text_format=Person)
    assert response.output_parsed == Person(name="Ada", age=36)
    if place.asked is not None:
        form = place.asked["response_format"]
        assert (form["type"], form["json_schema"]["name"]) == ("json_schema", "Person")
        assert form["json_schema"]["strict"] is True


def test_a_conversation_goes_on_from_what_was_answered(place: Place) -> None:
    client = place.will(tokens=(), reasoning=("Hm.",), calls=(WEATHER, TIME))
    first = client.responses.create(model="fake", input="x", tools=[TOOL])
    turn: list[Any] = [
        {"role": "user", "content": "x"},
        *(item.model_dump(exclude_none=True) for item in first.output),
        {"type": "function_call_output", "call_id": "call_a", "output": "Rain"},
        {"type": "function_call_output", "call_id": "call_b", "output": "Noon"},
    ]
    second = place.will(tokens=("Rain at noon.",)).responses.create(model="fake", input=turn)
    assert second.output_text == "Rain at noon."
    if place.asked is not None:
        called = [
            {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id_, name, arguments in (
                ("call_a", "weather", '{"city":"Oslo"}'),
                ("call_b", "time", '{"zone":"CET"}'),
            )
        ]
        assert place.asked["messages"] == [
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Hm.",
                "tool_calls": called,
            },
            {"role": "tool", "tool_call_id": "call_a", "content": "Rain"},
            {"role": "tool", "tool_call_id": "call_b", "content": "Noon"},
        ]


# -- embeddings and models -----------------------------------------------------------------------


@pytest.mark.parametrize("given", ["one", ["one", "three"], [1, 2, 3], [[1], [2, 3]]])
@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}])
def test_embeddings(place: Place, given: Any, encoding: Any) -> None:
    """Without a format the SDK asks for base64 and decodes it itself."""
    answer = place.will().embeddings.create(model="fake", input=given, **encoding)
    many = isinstance(given, list) and not isinstance(given[0], int)
    inputs = given if many else [given]
    assert [entry.embedding for entry in answer.data] == [vector_of(one) for one in inputs]
    assert [entry.index for entry in answer.data] == list(range(len(inputs)))
    assert answer.usage.prompt_tokens == len(inputs)


def test_models(place: Place) -> None:
    [model] = place.client.models.list()
    assert (model.id, model.object) == ("fake", "model")
    if place.way != "direct":
        assert model.model_extra is not None
        assert model.model_extra["cloister"] == {
            "attested_name": "fake",
            "digest": "sha256:" + "0" * 64,
            "files": {},
            "context_length": 4096,
            "quantisation": "none",
            "paths": [
                "/v1/chat/completions",
                "/v1/completions",
                "/v1/embeddings",
                "/v1/messages",
                "/v1/models",
                "/v1/rerank",
                "/v1/responses",
                "/v1/tokenize",
            ],
        }
