"""The official SDKs for Node.js, `openai` and `@anthropic-ai/sdk`: bare, and through the proxy.

`tests/interop/node/sdk.mjs` asks; the packages are pinned by hash. What an SDK makes of an answer
that came through `cloister proxy` has to be what it makes of the engine's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cloister.testing.fake_dialects import Dialect
from cloister.testing.fake_engine import Answer
from cloister.testing.fake_formats import ToolCall, vector_of
from support.endpoints import Ground, Script, embedded, scripted
from support.node import Peer, running
from support.sameness import normalised
from support.scene import until

pytestmark = pytest.mark.node

ASKED = [{"role": "user", "content": "What is a TEE?"}]
WORDS = ("It ", "rains", " \N{SNOWMAN}", ".")
TEXT = "".join(WORDS)
WEATHER = ToolCall(name="weather", arguments=('{"city"', ':"Oslo"}'), id="call_a")
TIME = ToolCall(name="time", arguments=('{"zone":"CET"}',), id="call_b")
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
RELEASES = ("openai", "openai-6")
EXACT = {"temperature": 0, "seed": 1}
TERSE = {"logit_bias": dict.fromkeys((" ", "  ", "   ", "\n"), -100), "max_tokens": 200}


@dataclass(slots=True, kw_only=True)
class Asker:
    """Node.js, and where it shall ask."""

    peer: Peer
    ground: Ground
    sdk: str = "openai"

    @property
    def script(self) -> Script:
        assert self.ground.script is not None
        return self.ground.script

    def ask(self, url: str, command: str, **arguments: Any) -> Any:
        return self.peer.ask(command, url=url, sdk=self.sdk, **arguments)

    def same(self, command: str, **body: Any) -> Any:
        """Ask through the proxy, expect what the engine itself says, and return the answer."""
        body = {"model": self.ground.model, **body}
        bare, got = (
            self.ask(url, command, body=body) for url in (self.ground.direct, self.ground.proxied)
        )
        assert "answer" in got, got
        assert _comparable(got) == _comparable(bare)
        return got["answer"]

    def fails(self, command: str, **arguments: Any) -> Any:
        """Ask through the proxy what cannot be answered."""
        return self.ask(self.ground.proxied, command, **arguments)["failure"]


UNSAID = frozenset({"cache_read_input_tokens", "cache_creation_input_tokens", "container"})
"""Members of Anthropic's messages that the scripted engine leaves out."""


def _comparable(value: Any) -> Any:
    value = normalised(value)
    if isinstance(value, dict):
        return {name: _comparable(one) for name, one in value.items() if name not in UNSAID}
    return [_comparable(one) for one in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with running("sdk.mjs") as made:
        yield made


@pytest.fixture(scope="module")
def acting() -> Iterator[Ground]:
    with scripted() as made:
        yield made


@pytest.fixture(scope="module")
def thinking() -> Iterator[Ground]:
    with embedded() as made:
        yield made


@pytest.fixture(params=RELEASES)
def asker(peer: Peer, acting: Ground, request: pytest.FixtureRequest) -> Iterator[Asker]:
    made = Asker(peer=peer, ground=acting, sdk=request.param)
    yield made
    made.script.speak(Dialect.PLAIN)


# -- the scripted engine -------------------------------------------------------------------------


# The SDK's helper wants a role in the first event, which the plain dialect leaves out.
@pytest.mark.parametrize("dialect", [Dialect.LLAMA, Dialect.VLLM], ids=lambda each: each.value)
def test_chat_with_calls(asker: Asker, dialect: Dialect) -> None:
    asker.script.speak(dialect)
    asker.script.will(tokens=WORDS, reasoning=("Rain?",), calls=(WEATHER, TIME))
    [choice] = asker.same("chat", messages=ASKED, tools=TOOLS)["choices"]
    assert choice["message"]["content"] == TEXT
    calls = [one["function"] for one in choice["message"]["tool_calls"]]
    assert [(one["name"], one["arguments"]) for one in calls] == [
        (one.name, one.joined) for one in (WEATHER, TIME)
    ]
    usage = {"include_usage": True}
    chunks = asker.same("stream", messages=ASKED, tools=TOOLS, stream_options=usage)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == TEXT
    assert chunks[-1]["usage"]["completion_tokens"] == len(WORDS)
    told = asker.same("helper", messages=ASKED, tools=TOOLS)
    assert [piece for piece in told["pieces"] if piece] == list(WORDS)
    assert len(told["final"]["choices"][0]["message"]["tool_calls"]) == 2


def test_the_sdk_runs_tools_by_itself(asker: Asker) -> None:
    asker.script.turns(Answer(tokens=(), calls=(WEATHER, TIME)), Answer(tokens=WORDS))
    done = asker.same("agent", messages=ASKED)
    assert done == {
        "final": TEXT,
        "called": [["weather", {"city": "Oslo"}], ["time", {"zone": "CET"}]],
    }
    asked = asker.script.asked("proxied")["messages"]
    assert [one.get("tool_call_id") for one in asked[2:]] == ["call_a", "call_b"]


def test_responses_vectors_and_models(asker: Asker) -> None:
    asker.script.will(tokens=WORDS, calls=(WEATHER,))
    told = asker.same("responses", input="Rain?")
    assert told["text"] == TEXT
    assert told["kinds"][-1] == "response.completed"
    assert [item["type"] for item in told["output"]] == ["message", "function_call"]
    vectors = asker.same("embeddings", input=["a", "bcd"])  # the SDK asks for base64
    assert vectors == [vector_of("a"), vector_of("bcd")]
    assert asker.same("models") == ["fake"]


def test_errors(asker: Asker) -> None:
    asker.script.will()
    body = {"model": "fake", "messages": ASKED}
    missing = asker.fails("chat", body={**body, "model": "other"})
    assert (missing["class"], missing["code"]) == ("NotFoundError", "model_not_found")
    unheeded = asker.fails("chat", body={**body, "store": True})
    assert (unheeded["class"], unheeded["code"]) == ("BadRequestError", "unsupported_parameter")
    asker.script.will(tokens=WORDS, status=400)
    refused = asker.fails("chat", body=body)
    assert (refused["status"], refused["code"]) == (400, "engine_refused")
    assert "TEE" not in refused["message"]


def test_whoever_leaves_a_stream_frees_the_engine(asker: Asker) -> None:
    asker.script.will(tokens=tuple("word " * 4000), rate=100.0)
    engine = asker.script.behind
    before = engine.cancelled
    body = {"model": "fake", "messages": ASKED}
    first = asker.ask(asker.ground.proxied, "leave", body=body)
    assert first["answer"] == {"content": "w"}
    until(lambda: engine.cancelled == before + 1 and engine.running == 0)


def test_anthropics_messages(peer: Peer, acting: Ground) -> None:
    asker = Asker(peer=peer, ground=acting)
    asker.script.will(tokens=WORDS, reasoning=("Rain?",), calls=(WEATHER,))
    tool = {"name": "weather", "input_schema": {"type": "object"}}
    message = asker.same("messages", messages=ASKED, max_tokens=9, tools=[tool])
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use"]
    assert message["content"][2]["input"] == {"city": "Oslo"}
    told = asker.same("messages_stream", messages=ASKED, max_tokens=9, tools=[tool])
    assert told["final"]["content"][1]["text"] == TEXT
    assert told["kinds"][-1] == "message_stop"
    failed = asker.fails("messages", body={"model": "x", "messages": ASKED, "max_tokens": 9})
    assert (failed["class"], failed["status"]) == ("NotFoundError", 404)


# -- the embedded engine -------------------------------------------------------------------------


@pytest.mark.sandbox
@pytest.mark.parametrize("sdk", RELEASES)
def test_the_embedded_engine(peer: Peer, thinking: Ground, sdk: str) -> None:
    asker = Asker(peer=peer, ground=thinking, sdk=sdk)
    asked = {"messages": ASKED, "max_tokens": 12, **EXACT}
    text = asker.same("chat", **asked)["choices"][0]["message"]["content"]
    assert text.startswith("No protection is perfect")
    chunks = asker.same("stream", **asked)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == text
    person = asker.same("parsed", messages=ASKED, **EXACT, **TERSE)
    assert person["name"] == "Grace"
    assert person["whereabouts"]["zone"] == "CET"
    [vector] = asker.same("embeddings", input="one")
    assert len(vector) == 256
    # The worker makes these two formats itself: what they say is compared, not their frames.
    asking = {"model": thinking.model, "input": "What is a TEE?", "temperature": 0}
    told = asker.ask(thinking.proxied, "responses", body={**asking, "max_output_tokens": 12})[
        "answer"
    ]
    assert told["text"] == text
    body = {"model": thinking.model, "messages": ASKED, "max_tokens": 12, "temperature": 0}
    for command in ("messages", "messages_stream"):
        message = asker.ask(thinking.proxied, command, body=body)["answer"]
        assert message.get("final", message)["content"] == [{"type": "text", "text": text}]
