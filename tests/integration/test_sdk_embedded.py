"""The official OpenAI SDK against the embedded engine: bare, sealed, and through the local proxy.

Greedy decoding with one thread: the same question has one answer, to the last digit of the
probabilities. `support.sameness` lists what is left out of the comparison.
"""

from __future__ import annotations

import array
import base64
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai.types import CreateEmbeddingResponse

from support.endpoints import WAYS, Ground, Way, embedded
from support.sameness import normalised
from support.sdks import Place, place_on, same

pytestmark = pytest.mark.sandbox

QUESTION = "What is a TEE?"
ASKED: Any = [{"role": "user", "content": QUESTION}]
EXACT: Any = {"temperature": 0, "seed": 1}
USAGE: Any = {"include_usage": True}
FIRST_WORDS = "No protection is perfect"
"""With which the demo model answers. It is trained on these words, so no machine's rounding
changes them."""


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with embedded() as made:
        yield made


@pytest.fixture(params=WAYS)
def place(ground: Ground, request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_on(ground, request.param) as made:
        yield made


def create(model: str, **fields: Any) -> Callable[[openai.OpenAI], Any]:
    fields = {"messages": ASKED, "max_tokens": 12, **EXACT, **fields}
    return lambda client: client.chat.completions.create(model=model, **fields)


def test_chat_whole_and_streamed(place: Place) -> None:
    answer = place.same(create(place.model))
    text = answer.choices[0].message.content
    assert text.startswith(FIRST_WORDS)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.model, answer.usage.completion_tokens) == (place.model, 12)
    chunks = place.same(
        lambda client: list(create(place.model, stream=True, stream_options=USAGE)(client))
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage == answer.usage


def test_the_stream_helper(place: Place) -> None:
    def ask(client: openai.OpenAI) -> Any:
        with client.chat.completions.stream(
            model=place.model, messages=ASKED, stop=["perfect"], **EXACT
        ) as stream:
            told = [event.delta for event in stream if event.type == "content.delta"]
            return told, stream.get_final_completion()

    told, answer = place.same(ask)
    assert "".join(told) == answer.choices[0].message.content == "No protection is "


def test_probabilities_choices_and_stops(place: Place) -> None:
    answer = place.same(create(place.model, n=2, logprobs=True, top_logprobs=3))
    first, second = answer.choices
    assert first.message.content == second.message.content
    assert {len(one.top_logprobs) for one in first.logprobs.content} == {3}
    assert "".join(one.token for one in first.logprobs.content) == first.message.content
    stopped = place.same(create(place.model, stop=[" is"])).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("No protection", "stop")
    warm = {"temperature": 1.5, "seed": 42}
    assert place.same(create(place.model, **warm)) is not None  # a seed makes chance repeatable
    barred = place.same(create(place.model, logit_bias={"866": -100})).choices[0]
    assert not barred.message.content.startswith("No")


class Whereabouts(pydantic.BaseModel):
    city: Literal["Oslo", "Rome"]
    zone: Literal["CET"]


class Person(pydantic.BaseModel):
    """Nobody whom the demo model ever heard of."""

    name: Literal["Grace"]
    age: Literal[36, 37]
    whereabouts: Whereabouts


TERSE: Any = {"logit_bias": dict.fromkeys((" ", "  ", "   ", "\n"), -100), "max_tokens": 200}
"""The grammar allows blanks between members, and so small a model does not stop making them."""


def test_structured_output_is_enforced_by_the_engine(place: Place) -> None:
    """No prompt mentions the schema, so nothing but its grammar makes the model keep to it."""
    fields: Any = {"model": place.model, "messages": ASKED, **EXACT, **TERSE}

    def ask(client: openai.OpenAI) -> Any:
        return client.chat.completions.parse(response_format=Person, **fields)

    message = place.same(ask).choices[0].message
    assert isinstance(message.parsed, Person)
    assert Person.model_validate_json(message.content) == message.parsed

    def stream(client: openai.OpenAI) -> Any:
        with client.chat.completions.stream(response_format=Person, **fields) as events:
            return events.get_final_completion()

    assert place.same(stream).choices[0].message.parsed == message.parsed
    free = place.same(create(place.model)).choices[0].message.content
    with pytest.raises(pydantic.ValidationError):
        Person.model_validate_json(free)


def test_json_mode(place: Place) -> None:
    form: Any = {"type": "json_object"}
    answer = place.same(create(place.model, response_format=form, **TERSE, stop=["}"]))
    assert answer.choices[0].message.content.startswith("{")


def test_completions(place: Place) -> None:
    def ask(client: openai.OpenAI, **more: Any) -> Any:
        return client.completions.create(
            model=place.model, prompt="A TEE is", max_tokens=6, **EXACT, **more
        )

    whole = place.same(ask)
    pieces = place.same(lambda client: list(ask(client, stream=True)))
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text != ""


# -- embeddings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}], ids=["base64", "float"])
def test_embeddings(place: Place, encoding: Any) -> None:
    """Without a format the SDK asks for base64 and decodes it itself."""
    inputs = [QUESTION, "What is a hypervisor?"]

    def ask(client: openai.OpenAI, given: Any) -> list[list[float]]:
        return _vectors(client.embeddings.create(model=place.model, input=given, **encoding))

    answers = [place.same(lambda client, one=one: ask(client, one)) for one in inputs]  # type: ignore[misc]  # a default that mypy cannot infer
    assert [len(vector) for [vector] in answers] == [256, 256]
    assert answers[0] != answers[1]
    # Several at once are one after the other here: in the engine's own batches they depend, in
    # their last digits, on what else is in the batch.
    if place.way != "direct":
        assert ask(place.client, inputs) == [vector for [vector] in answers]


def test_embeddings_in_base64_as_they_come(place: Place) -> None:
    raw = place.client.embeddings.with_raw_response.create(
        model=place.model, input="one", encoding_format="base64"
    )
    [entry] = json.loads(raw.text)["data"]
    vector = list(struct.unpack("<256f", base64.b64decode(entry["embedding"])))
    [alone] = place.client.embeddings.create(model=place.model, input="one").data
    assert vector == alone.embedding


def _vectors(answer: CreateEmbeddingResponse) -> list[list[float]]:
    # 32-bit floats: base64 holds those, and JSON more digits of the same.
    return [list(array.array("f", one.embedding)) for one in answer.data]


# -- responses -----------------------------------------------------------------------------------


def test_responses_say_what_the_engine_says(place: Place) -> None:
    """The worker makes this format itself, so what is compared is what it says, not its frame."""

    def ask(client: openai.OpenAI) -> Any:
        response = client.responses.create(
            model=place.model, input=QUESTION, max_output_tokens=12, temperature=0
        )
        usage = response.usage
        assert usage is not None
        return response.output_text, usage.input_tokens, usage.output_tokens

    text, _, tokens = place.same(ask)
    assert (text.startswith(FIRST_WORDS), tokens) == (True, 12)

    def stream(client: openai.OpenAI) -> list[str]:
        events = client.responses.create(
            model=place.model, input=QUESTION, max_output_tokens=12, temperature=0, stream=True
        )
        return [event.delta for event in events if event.type == "response.output_text.delta"]

    assert "".join(place.same(stream)) == text


def test_the_response_helpers(ground: Ground) -> None:
    """llama.cpp numbers neither events nor items, so the SDK's helper cannot follow it bare."""
    fields: Any = {
        "model": ground.model, "input": QUESTION, "text_format": Person, "max_output_tokens": 200,
        "temperature": 0, "extra_body": {"logit_bias": TERSE["logit_bias"]},
    }  # fmt: skip
    seen: list[Any] = []
    for way in ("sealed", "proxied"):
        with place_on(ground, way) as place:
            with place.client.responses.stream(**fields) as stream:
                kinds = [event.type for event in stream]
                parsed = stream.get_final_response().output_parsed
            again = place.client.responses.parse(**fields)
            assert again.output_parsed == parsed
            assert isinstance(parsed, Person)
            seen.append(normalised([kinds, again]))
    assert seen[0] == seen[1]
    with (
        place_on(ground, "direct") as place,
        pytest.raises(TypeError),
        place.client.responses.stream(**fields) as stream,
    ):
        list(stream)


# -- models --------------------------------------------------------------------------------------


def test_models(place: Place) -> None:
    """Whose list it is differs on purpose; what it lists does not."""
    listed = place.same(lambda client: [model.id for model in client.models.list()])
    assert listed == [place.model]
    if place.way == "direct":
        return
    model = place.client.models.retrieve(place.model)
    assert model.owned_by == "cloister"
    assert model.model_extra is not None
    told = model.model_extra["cloister"]
    claimed = place.ground.scene.live.attester.claims_document.models[-1]
    assert told["digest"] == f"sha256:{claimed.sha256}"
    assert told["attested_name"] == claimed.name == place.model


@pytest.mark.parametrize("way", WAYS)
async def test_the_asynchronous_client(ground: Ground, way: Way) -> None:
    async def ask(client: openai.AsyncOpenAI) -> Any:
        fields: Any = {"messages": ASKED, "max_tokens": 12, **EXACT}
        stream = await client.chat.completions.create(model=ground.model, stream=True, **fields)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        parsed = await client.chat.completions.parse(
            model=ground.model, messages=ASKED, response_format=Person, **EXACT, **TERSE
        )
        return pieces, parsed

    pieces, parsed = await same(ground, way, ask)
    assert "".join(pieces).startswith(FIRST_WORDS)
    assert isinstance(parsed.choices[0].message.parsed, Person)
