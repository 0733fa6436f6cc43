"""What load measurements say of answers that are right, wrong, cut or somebody else's."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from cloister.client.load import (
    MARKER_DIGITS,
    Level,
    Load,
    Markers,
    first_model,
    percentile,
    run_level,
)
from cloister.errors import ConfigurationError, FetchError

LOAD = Load(model="m", requests=3)


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def said(text: str) -> bytes:
    return event({"choices": [{"delta": {"content": text}}]})


END = event({"choices": [], "usage": {"completion_tokens": 5}}) + b"data: [DONE]\n\n"


class Body(httpx2.AsyncByteStream):
    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part


def marker_of(request: httpx2.Request) -> str:
    prompt: str = json.loads(request.content)["messages"][0]["content"]
    return prompt.rpartition(" ")[2]


def honest(request: httpx2.Request) -> httpx2.Response:
    marker = marker_of(request)
    # Cut in the middle of a line, and of the marker.
    whole = said("Here: ") + said(marker[:2]) + said(marker[2:]) + END
    return httpx2.Response(200, stream=Body(whole[:20], whole[20:25], whole[25:]))


async def level(
    answer: Callable[[httpx2.Request], httpx2.Response], streams: int = 2, **options: Any
) -> Level:
    counter = itertools.count()
    async with httpx2.AsyncClient(
        transport=httpx2.MockTransport(answer), base_url="http://x"
    ) as client:
        return await run_level(
            client, LOAD, streams, markers=Markers(lambda _: next(counter)), **options
        )


async def test_an_honest_endpoint() -> None:
    cpu = iter([10.0, 12.5])
    got = await level(honest, server_cpu=lambda: next(cpu))
    assert (len(got.answers), len(got.whole), got.own, got.foreign) == (6, 6, 6, 0)
    assert got.tokens == 30
    assert len(got.first_times) == 6
    assert len(got.gaps) == 12
    assert got.server_cpu == 2.5
    assert got.wall > 0
    assert got.client_cpu >= 0


async def test_an_answer_with_the_marker_of_another_request() -> None:
    first: list[str] = []

    def mixed(request: httpx2.Request) -> httpx2.Response:
        first.append(marker_of(request))
        return httpx2.Response(200, stream=Body(said(f"It is {first[0]}."), END))

    got = await level(mixed)
    assert (got.own, got.foreign) == (1, 5)


async def test_a_forgetful_model_is_no_leak() -> None:
    got = await level(lambda _: httpx2.Response(200, stream=Body(said("12 or 1000009"), END)))
    assert (got.own, got.foreign, len(got.whole)) == (0, 0, 6)


async def test_a_leak_before_a_failure_counts() -> None:
    got = await level(lambda _: httpx2.Response(200, stream=Body(said("100000 "), b"data: {\n\n")))
    assert got.whole == ()
    assert got.foreign == 5


async def test_without_usage_pieces_are_counted() -> None:
    got = await level(lambda _: httpx2.Response(200, stream=Body(said("a") + said("b"))))
    assert got.tokens == 12


def lost(_: httpx2.Request) -> httpx2.Response:
    raise httpx2.ReadError("gone, and what was said with it")


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (lambda _: httpx2.Response(500, json={"error": "secret"}), "HTTP 500"),
        (lambda _: httpx2.Response(200, stream=Body(b"data: {\n\n")), "bench.event"),
        (lambda _: httpx2.Response(200, stream=Body(b"data: 1\n\n")), "bench.event"),
        (lambda _: httpx2.Response(200, stream=Body(event({"choices": 7}))), "bench.event"),
        (lambda _: httpx2.Response(200, stream=Body(event({"choices": [{}]}))), "bench.event"),
        (lambda _: httpx2.Response(200, stream=Body(b"x" * (3 << 20))), "bench.event"),
        (
            lambda _: httpx2.Response(200, stream=Body(event({"error": {"message": "secret"}}))),
            "bench.error_event",
        ),
        (lambda _: httpx2.Response(200, stream=Body(END)), "no text"),
        (lost, "ReadError"),
    ],
)
async def test_failures_are_counted_by_their_kind_alone(
    answer: Callable[[httpx2.Request], httpx2.Response], failure: str
) -> None:
    assert {one.failure for one in (await level(honest)).answers} == {None}
    got = await level(answer)
    assert {one.failure for one in got.answers} == {failure}
    assert (got.tokens, got.first_times, got.gaps) == (0, [], [])


def test_markers_are_drawn_once() -> None:
    numbers = iter([5, 5, 7])
    markers = Markers(lambda _: next(numbers))
    assert [markers.draw(), markers.draw()] == ["100005", "100007"]
    assert all(len(marker) == MARKER_DIGITS for marker in markers.issued)


async def test_the_first_model_of_the_list() -> None:
    async def ask(document: object, status: int = 200) -> str:
        transport = httpx2.MockTransport(lambda _: httpx2.Response(status, json=document))
        async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
            return await first_model(client, "key")

    assert await ask({"data": [{"id": "m"}, {"id": "n"}]}) == "m"
    wrong: list[object] = [{}, {"data": []}, {"data": [{"id": 1}]}, []]
    for document in wrong:
        with pytest.raises(FetchError):
            await ask(document)


def test_a_prompt_without_a_marker_is_refused() -> None:
    body = json.loads(Load(model="m", extra={"ignore_eos": True}).body("123456"))
    assert body["messages"][0]["content"].endswith("123456")
    assert body["ignore_eos"] is True
    with pytest.raises(ConfigurationError):
        Load(model="m", prompt="Hello")


def test_percentiles() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([0.0, 10.0], 0.95) == pytest.approx(9.5)
