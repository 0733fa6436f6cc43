"""The official SDKs' clients on each way to an engine, and what they are compared by."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2
import openai

import cloister
from support.endpoints import Ground, Script, Way
from support.sameness import normalised

T = TypeVar("T")
KEY = "unused"
ONE_EACH = httpx2.Limits(max_keepalive_connections=0)
"""llama.cpp closes connections when it likes; a client without retries must not reuse one."""


@dataclass(slots=True)
class Place:
    """One way to an engine, and the OpenAI SDK's client on it."""

    way: Way
    ground: Ground
    client: openai.OpenAI
    bare: openai.OpenAI = field(repr=False)
    """The client on the engine itself."""

    @property
    def model(self) -> str:
        return self.ground.model

    @property
    def script(self) -> Script:
        assert self.ground.script is not None
        return self.ground.script

    def will(self, **answer: Any) -> openai.OpenAI:
        """Let the engine answer like this, and return the client."""
        self.script.will(**answer)
        return self.client

    @property
    def asked(self) -> dict[str, Any] | None:
        """What the engine behind the seal was asked last; None on the way without one."""
        return None if self.way == "direct" else self.script.asked(self.way)

    def same(self, ask: Callable[[openai.OpenAI], T]) -> T:
        """Ask, expect what the engine itself says to the same, and return the answer."""
        expected, got = ask(self.bare), ask(self.client)
        assert normalised(got) == normalised(expected)
        return got

    def unaltered(self) -> None:
        """What reached the engine last is what the SDK sends an engine that it asks itself."""
        asked, sent = self.script.asked(self.way), self.script.asked("direct")
        assert json.dumps(asked, sort_keys=True) == json.dumps(sent, sort_keys=True)

    def failures(self, ask: Callable[[openai.OpenAI], object]) -> tuple[Any, Any]:
        """The SDK's exceptions when the engine itself is asked, and on this way."""
        return _failure(ask, self.bare), _failure(ask, self.client)


def _failure(ask: Callable[[openai.OpenAI], object], client: openai.OpenAI) -> openai.APIError:
    try:
        ask(client)
    except openai.APIError as error:
        return error
    raise AssertionError("it did not fail")


@contextlib.contextmanager
def place_on(ground: Ground, way: Way, **options: Any) -> Iterator[Place]:
    """A place with clients of its own; `options` are the SDK's."""
    with (
        openai_client(ground, way, **options) as client,
        openai_client(ground, "direct", **options) as bare,
    ):
        yield Place(way, ground, client, bare)


def openai_client(ground: Ground, way: Way, **options: Any) -> openai.OpenAI:
    """The SDK's client, as somebody would make it who came this way."""
    options = {"max_retries": 0, "api_key": KEY, **options}
    base_url = ground.url(way) + "/v1"
    if way == "sealed":
        trust: dict[str, Any] = {**ground.scene.trust, "trust_env": False}
        return cloister.OpenAI(base_url=base_url, **trust, **options)
    http = openai.DefaultHttpxClient(trust_env=False, limits=ONE_EACH)
    return openai.OpenAI(base_url=base_url, http_client=http, **options)


def async_openai_client(ground: Ground, way: Way, **options: Any) -> openai.AsyncOpenAI:
    """As `openai_client`, asynchronous."""
    options = {"max_retries": 0, "api_key": KEY, **options}
    base_url = ground.url(way) + "/v1"
    if way == "sealed":
        trust: dict[str, Any] = {**ground.scene.trust, "trust_env": False}
        return cloister.AsyncOpenAI(base_url=base_url, **trust, **options)
    http = openai.DefaultAsyncHttpxClient(trust_env=False, limits=ONE_EACH)
    return openai.AsyncOpenAI(base_url=base_url, http_client=http, **options)


async def same(ground: Ground, way: Way, ask: Callable[[openai.AsyncOpenAI], Awaitable[T]]) -> T:
    """As `Place.same`, asynchronous."""
    async with (
        async_openai_client(ground, "direct") as bare,
        async_openai_client(ground, way) as client,
    ):
        expected, got = await ask(bare), await ask(client)
    assert normalised(got) == normalised(expected)
    return got
