"""LangChain: bare, through `cloister proxy`, and with a verifying transport as its HTTP client.

No network but loopback: LangSmith's tracing is off, and no tokeniser is fetched
(`check_embedding_ctx_length=False`), as behind a firewall.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
import pydantic
import pytest

import cloister
from cloister.testing.fake_dialects import Dialect
from cloister.testing.fake_engine import Answer
from cloister.testing.fake_formats import ToolCall, vector_of
from support.endpoints import WAYS, Ground, Script, Way, embedded, scripted
from support.sdks import KEY, ONE_EACH

pytestmark = pytest.mark.langchain

ASKED = "Is it raining in Oslo?"
WORDS = ("It ", "rains", " \N{SNOWMAN}", ".")
TEXT = "".join(WORDS)
WEATHER = ToolCall(name="weather", arguments=('{"city"', ':"Oslo"}'), id="call_a")
TIME = ToolCall(name="time", arguments=('{"zone":"CET"}',), id="call_b")


@dataclass(slots=True, kw_only=True)
class Place:
    """One way to an engine, and what LangChain's classes are told so that they go there."""

    way: Way
    ground: Ground
    options: dict[str, Any]

    @property
    def script(self) -> Script:
        assert self.ground.script is not None
        return self.ground.script

    def chat(self, **more: Any) -> Any:
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model=self.ground.model, max_retries=0, **self.options, **more)

    def embeddings(self) -> Any:
        from langchain_openai import OpenAIEmbeddings

        return OpenAIEmbeddings(
            model=self.ground.model, check_embedding_ctx_length=False, **self.options
        )


@contextlib.contextmanager
def place_on(ground: Ground, way: Way) -> Iterator[Place]:
    """Sealed: clients of httpx2 with our transports. Else plain ones of the test's own."""
    transports: dict[str, Any] = {"limits": ONE_EACH}
    aside = dict(transports)
    if way == "sealed":
        trust = ground.scene.trust
        verifier = cloister.make_trust(**trust)
        transports = {
            "transport": cloister.Httpx2Transport(ground.worker, verifier, trust_env=False)
        }
        aside = {
            "transport": cloister.AsyncHttpx2Transport(ground.worker, verifier, trust_env=False)
        }
    with httpx2.Client(trust_env=False, **transports) as http:
        options = {
            "base_url": ground.url(way) + "/v1",
            "api_key": KEY,
            "http_client": http,
            "http_async_client": httpx2.AsyncClient(trust_env=False, **aside),
        }
        yield Place(way=way, ground=ground, options=options)


@pytest.fixture(autouse=True)
def nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")


@pytest.fixture(scope="module")
def acting() -> Iterator[Ground]:
    with scripted() as made:
        yield made


@pytest.fixture(scope="module")
def thinking() -> Iterator[Ground]:
    with embedded() as made:
        yield made


@pytest.fixture(params=WAYS)
def place(acting: Ground, request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_on(acting, request.param) as made:
        yield made
        made.script.speak(Dialect.PLAIN)


def tools_that_note(called: list[tuple[str, str]]) -> list[Any]:
    from langchain_core.tools import tool

    def weather(city: str) -> str:
        """Say the weather."""
        called.append(("weather", city))
        return "rain"

    def time(zone: str) -> str:
        """Say the time."""
        called.append(("time", zone))
        return "noon"

    return [tool(weather), tool(time)]


# -- the scripted engine -------------------------------------------------------------------------


def test_chat_whole_and_streamed(place: Place) -> None:
    place.script.will(tokens=WORDS)
    chat = place.chat()
    answer = chat.invoke(ASKED)
    assert answer.content == TEXT
    assert answer.usage_metadata["output_tokens"] == len(WORDS)
    pieces = list(chat.stream(ASKED, stream_usage=True))
    assert [piece.content for piece in pieces if piece.content] == list(WORDS)
    total = sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces)
    assert total == len(WORDS)
    assert place.script.asked(place.way)["messages"] == [{"content": ASKED, "role": "user"}]


@pytest.mark.parametrize("dialect", [Dialect.LLAMA, Dialect.VLLM], ids=lambda each: each.value)
def test_an_agent_calls_its_tools(place: Place, dialect: Dialect) -> None:
    from langchain.agents import create_agent

    place.script.speak(dialect)
    place.script.turns(
        Answer(tokens=(), calls=(WEATHER, TIME)),
        Answer(tokens=(), calls=(WEATHER,)),
        Answer(tokens=WORDS),
    )
    called: list[tuple[str, str]] = []
    agent = create_agent(place.chat(), tools_that_note(called))
    asked = {"messages": [{"role": "user", "content": ASKED}]}
    said = agent.invoke(asked)["messages"]
    assert said[-1].content == TEXT
    assert sorted(called[:2]) == [("time", "CET"), ("weather", "Oslo")]
    assert called[2:] == [("weather", "Oslo")]
    turns = place.script.asked(place.way)["messages"]
    assert [turn["role"] for turn in turns] == [
        "user", "assistant", "tool", "tool", "assistant", "tool",
    ]  # fmt: skip
    streamed = [
        message.content
        for message, _ in agent.stream(asked, stream_mode="messages")
        if message.type == "AIMessageChunk" and message.content
    ]
    assert streamed == list(WORDS)


def test_structured_output_by_a_tool(place: Place) -> None:
    class Weather(pydantic.BaseModel):
        """The weather of a city."""

        city: str

    place.script.will(
        tokens=(), calls=(ToolCall(name="Weather", arguments=('{"city":', '"Oslo"}')),)
    )
    by_tool = place.chat().with_structured_output(Weather, method="function_calling")
    assert by_tool.invoke(ASKED) == Weather(city="Oslo")


def test_embeddings(place: Place) -> None:
    place.script.will()
    texts = ["a", "bcd"]
    assert place.embeddings().embed_documents(texts) == [vector_of(text) for text in texts]


async def test_asynchronously(place: Place) -> None:
    place.script.will(tokens=WORDS)
    chat = place.chat()
    assert (await chat.ainvoke(ASKED)).content == TEXT
    pieces = [piece.content async for piece in chat.astream(ASKED)]
    assert [piece for piece in pieces if piece] == list(WORDS)
    answers = await chat.abatch([ASKED] * 4)
    assert [answer.content for answer in answers] == [TEXT] * 4
    assert await place.embeddings().aembed_query("bcd") == vector_of("bcd")
    await place.options["http_async_client"].aclose()


def test_the_responses_interface(place: Place) -> None:
    place.script.will(tokens=WORDS)
    chat = place.chat(use_responses_api=True)
    assert chat.invoke(ASKED).text == TEXT
    assert "".join(piece.text for piece in chat.stream(ASKED)) == TEXT


def test_refusals_are_the_sdks(place: Place) -> None:
    import openai

    place.script.will(status=400)
    with pytest.raises(openai.BadRequestError) as refused:
        place.chat().invoke(ASKED)
    if place.way != "direct":
        assert ASKED not in str(refused.value)
        with pytest.raises(openai.BadRequestError, match="`store`"):
            place.chat(store=True).invoke(ASKED)


async def test_the_client_that_langchain_makes_by_itself_finds_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given one client, it makes the other itself: an ordinary one, which verifies nothing."""
    import openai
    from langchain_openai import ChatOpenAI

    looked_up: list[str] = []

    def resolve(host: str | bytes | None, *_: object, **__: object) -> Any:
        looked_up.append(host.decode() if isinstance(host, bytes) else str(host))
        raise socket.gaierror

    with scripted(watched=True) as ground, place_on(ground, "sealed") as place:
        assert ground.script is not None
        ground.script.will(tokens=WORDS)
        alone = {**place.options, "http_async_client": None}
        chat: Any = ChatOpenAI(model="fake", max_retries=0, **alone)
        with pytest.raises(openai.PermissionDeniedError):
            await chat.ainvoke(ASKED)
        assert ASKED.encode() in ground.scene.proxy.seen[-1].body  # it went out in clear
        await chat.root_async_client.close()
        chat = ChatOpenAI(model="fake", max_retries=0, **{**alone, "base_url": cloister.SEALED_URL})
        assert chat.invoke(ASKED).content == TEXT
        seen = len(ground.scene.proxy.seen)
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with pytest.raises(openai.APIConnectionError):
            await chat.ainvoke(ASKED)
        assert set(looked_up) == {"sealed.invalid"}
        await chat.root_async_client.close()
        assert len(ground.scene.proxy.seen) == seen


@pytest.mark.parametrize("way", ["direct", "proxied"])
def test_langchains_anthropic(acting: Ground, way: Way) -> None:
    from langchain_anthropic import ChatAnthropic

    assert acting.script is not None
    acting.script.will(tokens=WORDS, calls=(WEATHER,))
    chat: Any = ChatAnthropic(
        model_name="fake", base_url=acting.url(way), api_key=pydantic.SecretStr(KEY),
        max_tokens_to_sample=9, max_retries=0, timeout=60, stop=None,
    )  # fmt: skip
    bound = chat.bind_tools(tools_that_note([]))
    answer = bound.invoke(ASKED)
    assert answer.text == TEXT
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
        ("weather", {"city": "Oslo"})
    ]
    assert "".join(piece.text for piece in bound.stream(ASKED)) == TEXT


# -- the embedded engine -------------------------------------------------------------------------


class Person(pydantic.BaseModel):
    """Nobody whom the demo model ever heard of."""

    name: Literal["Grace"]
    city: Literal["Oslo", "Rome"]


@pytest.mark.sandbox
def test_the_embedded_engine(thinking: Ground) -> None:
    seen = []
    for way in WAYS:
        with place_on(thinking, way) as place:
            chat = place.chat(temperature=0, seed=1, max_tokens=12)
            text = chat.invoke("What is a TEE?").content
            assert text.startswith("No protection is perfect")
            assert "".join(piece.content for piece in chat.stream("What is a TEE?")) == text
            terse = place.chat(
                temperature=0, seed=1, max_tokens=200,
                extra_body={"logit_bias": dict.fromkeys((" ", "  ", "   ", "\n"), -100)},
            )  # fmt: skip
            person = terse.with_structured_output(Person, method="json_schema").invoke("Who?")
            assert isinstance(person, Person)
            vector = place.embeddings().embed_query("What is a TEE?")
            seen.append((text, person, vector))
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]
