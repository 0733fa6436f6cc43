"""What the official OpenAI SDK makes of failures: bare, sealed, and through the local proxy.

Classes and statuses are the same where the engine says what was wrong. What the worker says
otherwise, on purpose, is in `DIFFERENT` and in the tests that go through it: its sentences never
repeat what was asked, it refuses what an engine would ignore, and it does not try again what may
have run.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import openai
import pytest

from cloister.testing.fake_engine import Answer
from cloister.worker.api_keys import ApiKeyFile
from cloister.worker.settings import RateLimit, WorkerSettings
from support.endpoints import WAYS, Ground, Way, embedded, scripted
from support.scene import until
from support.sdks import Place, async_openai_client, openai_client, place_on

CANARY = "a secret that no error may repeat"
ASKED: Any = [{"role": "user", "content": CANARY}]


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with scripted() as made:
        yield made


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    return chosen


@pytest.fixture
def place(ground: Ground, way: Way) -> Iterator[Place]:
    with place_on(ground, way) as made:
        yield made


def create(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "fake", "messages": ASKED, **fields})


# -- what the engine refuses ---------------------------------------------------------------------

DIFFERENT: Final[Mapping[int, type[openai.APIStatusError]]] = {
    # The engine is full, not the person's rate: 503, and tried again.
    429: openai.InternalServerError,
    # Whatever an engine dislikes about a request is one answer, which tells nothing of it.
    413: openai.BadRequestError,
    422: openai.BadRequestError,
    # A path, model or right that the engine denies would be the worker's own mistake.
    401: openai.InternalServerError,
    403: openai.InternalServerError,
    404: openai.InternalServerError,
    409: openai.InternalServerError,
}
"""What the SDK raises behind the seal where the engine itself gets another class."""


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503])
def test_an_engine_that_refuses(place: Place, status: int) -> None:
    place.will(status=status)
    bare, got = place.failures(create)
    assert CANARY in str(bare)  # as engines do
    if place.way == "direct":
        assert got.status_code == status
        return
    assert isinstance(got, DIFFERENT.get(status, type(bare)))
    assert CANARY not in f"{got} {got.body} {got.response.headers}"
    assert set(got.body) == {"message", "type", "param", "code"}
    assert got.code in {"engine_refused", "engine_busy", "engine_failed"}


# -- what the worker refuses ---------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS[1:])  # the scripted engine refuses nothing by itself
def test_models_fields_and_addresses_that_are_refused(place: Place) -> None:
    place.will()
    picture: Any = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
    cases: list[tuple[dict[str, Any], type[openai.APIStatusError], str, str]] = [
        ({"model": "other"}, openai.NotFoundError, "model_not_found", "model"),
        ({"store": True}, openai.BadRequestError, "unsupported_parameter", "store"),
        (
            {"messages": [{"role": "user", "content": picture}]},
            openai.BadRequestError,
            "url_refused",
            "image_url",
        ),
    ]
    for fields, kind, code, param in cases:
        with pytest.raises(kind) as refused:
            create(place.client, **fields)
        assert (refused.value.code, refused.value.param) == (code, param)
        assert refused.value.type == "invalid_request_error"
        assert CANARY not in str(refused.value)
    create(place.client)  # and what none of this is wrong with, is answered
    with pytest.raises(openai.NotFoundError) as unknown:
        place.client.get("/nothing", cast_to=object)
    assert unknown.value.code == "unknown_path"
    with pytest.raises(openai.NotFoundError):
        place.client.models.retrieve("other")


@pytest.mark.parametrize("way", WAYS[1:])
def test_keys_and_rates(way: Way, tmp_path: Path) -> None:
    file = ApiKeyFile(tmp_path / "keys.json")
    _, key = file.add("ann", at=0)
    settings = WorkerSettings(rate=RateLimit(per_minute=1, burst=2))
    with scripted(settings=settings, api_keys=tmp_path / "keys.json") as ground:
        with (
            openai_client(ground, way, api_key="wrong") as stranger,
            pytest.raises(openai.AuthenticationError) as denied,
        ):
            create(stranger)
        assert (denied.value.status_code, denied.value.code) == (401, "invalid_api_key")
        with openai_client(ground, way, api_key=key) as client:
            create(client)
            create(client)
            with pytest.raises(openai.RateLimitError) as limited:
                create(client)
        assert limited.value.code == "rate_limit_exceeded"
        assert int(limited.value.response.headers["retry-after"]) > 0


# -- time and connections ------------------------------------------------------------------------


def test_a_client_that_waits_no_longer(place: Place) -> None:
    place.will(tokens=("one", "two"), stall_after=1)
    hasty = place.client.with_options(timeout=0.5)
    with pytest.raises(openai.APITimeoutError):
        create(hasty)
    with pytest.raises((openai.APIConnectionError, openai.APITimeoutError)):
        list(create(hasty, stream=True))
    place.will()
    create(place.client)
    until(lambda: place.script.bare.running == place.script.behind.running == 0)


def test_whoever_leaves_a_stream_frees_the_engine(place: Place) -> None:
    place.will(tokens=tuple("word " * 4000), rate=100.0)
    engine = place.script.bare if place.way == "direct" else place.script.behind
    before = engine.cancelled
    with create(place.client, stream=True) as stream:
        first = next(iter(stream))
        assert engine.running == 1
    assert first.choices[0].delta.content == "w"
    until(lambda: engine.cancelled == before + 1 and engine.running == 0)


async def test_a_cancelled_task_frees_the_engine(ground: Ground, way: Way) -> None:
    assert ground.script is not None
    ground.script.will(tokens=tuple("word " * 4000), rate=100.0)
    engine = ground.script.bare if way == "direct" else ground.script.behind
    before = engine.cancelled
    async with async_openai_client(ground, way) as client:
        asking = asyncio.create_task(client.chat.completions.create(model="fake", messages=ASKED))
        while not engine.running:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        while engine.running or engine.cancelled == before:
            await asyncio.sleep(0.01)


def test_an_engine_that_dies_in_a_stream(way: Way) -> None:
    """An engine by itself only breaks the connection; the worker says, sealed, that it died."""
    with scripted() as own, openai_client(own, way) as client:
        assert own.script is not None
        own.script.will(tokens=tuple("word " * 20), crash_after=5)
        heard: list[str] = []

        def listen() -> None:
            heard.extend(chunk.choices[0].delta.content for chunk in create(client, stream=True))

        if way == "direct":
            with pytest.raises(openai.APIConnectionError):
                listen()
        else:
            with pytest.raises(openai.APIError) as failed:
                listen()
            assert failed.value.code == "engine_failed"
        assert heard == list("word ")


class Fails:
    """A script that fails `times` times with `status`, and then answers."""

    def __init__(self, status: int, times: int) -> None:
        self.status, self.left, self.asked = status, times, 0

    def __call__(self, _: str, __: Mapping[str, Any]) -> Answer:
        self.asked += 1
        self.left -= 1
        return Answer(status=self.status) if self.left >= 0 else Answer(tokens=("at last",))


@pytest.mark.parametrize("status", [429, 503])
def test_the_sdk_tries_again_what_did_not_run(place: Place, status: int) -> None:
    place.script.said = fails = Fails(status, 1)
    answer = create(place.client.with_options(max_retries=2))
    assert answer.choices[0].message.content == "at last"
    assert fails.asked == 2


def test_the_sdk_does_not_try_again_what_may_have_run(place: Place) -> None:
    """An engine's 500 may come after the prompt ran: the worker says not to ask it twice."""
    place.script.said = fails = Fails(500, 1)
    client = place.client.with_options(max_retries=2)
    if place.way == "direct":
        assert create(client).choices[0].message.content == "at last"
        assert fails.asked == 2
        return
    with pytest.raises(openai.InternalServerError) as failed:
        create(client)
    assert failed.value.code == "engine_failed"
    assert fails.asked == 1


# -- the embedded engine -------------------------------------------------------------------------


LONG: Any = [{"role": "user", "content": f"{CANARY} " * 200}]
NO_SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}


@pytest.mark.sandbox
def test_what_llama_cpp_refuses() -> None:
    """Class and status are the same; the code is OpenAI's where llama.cpp's is a number."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({"messages": LONG}, "context_length_exceeded"),
        ({"messages": [{"role": "user"}]}, "engine_refused"),
        ({"temperature": "hot"}, "engine_refused"),
        ({"response_format": NO_SCHEMA}, "engine_refused"),
    ]
    with embedded(context=256) as ground:
        for way in WAYS:
            with place_on(ground, way) as place:
                for fields, code in cases:
                    asked = {"model": ground.model, "max_tokens": 1, **fields}
                    bare, got = place.failures(functools.partial(create, **asked))
                    assert (type(got), got.status_code) == (type(bare), 400), fields
                    if way != "direct":
                        assert got.code == code
                        assert CANARY not in str(got)
