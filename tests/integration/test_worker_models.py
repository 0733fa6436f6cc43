"""Several models in one worker: who answers, and what the receipt says of it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from cloister.engine.protocol import CHAT_COMPLETIONS, COMPLETIONS, EMBEDDINGS, MODELS
from cloister.errors import EngineError
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.settings import Dialect, WorkerSettings
from support.sealed import chat, until
from support.worker import running

MODEL = FakeEngine().model


def engine(name: str, digit: str, **options: Any) -> FakeEngine:
    """An engine that answers with its model's name."""
    model = dataclasses.replace(MODEL, name=name, sha256=digit * 64)
    return FakeEngine(
        script=lambda _path, _body: Answer.text(f"I am {name}"), model=model, **options
    )


def pair() -> tuple[FakeEngine, FakeEngine]:
    return engine("first", "1"), engine("second", "2")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT_COMPLETIONS, {"messages": [{"role": "user", "content": "x"}]}),
        (COMPLETIONS, {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}),
    ],
)
async def test_the_model_that_is_asked_for_answers_and_is_named(
    path: str, fields: dict[str, Any], stream: bool
) -> None:
    first, second = pair()
    async with running(engine=first, others=[second]) as bench:
        for asked, name, digit in ((first, "first", "1"), (second, "second", "2")):
            inner = await bench.peer.ask(path, {"model": name, "stream": stream, **fields})
            assert inner.status == 200
            assert f"I am {name}".split()[-1].encode() in inner.body
            assert inner.receipt is not None
            event = inner.receipt.event("cloister.model")
            assert (event["name"], event["sha256"]) == (name, digit * 64)
            assert inner.receipt.document["model"] == name
            assert len(asked.requests) == 1
            assert json.loads(asked.requests[0].body)["model"] == name


async def test_lists_go_to_the_model_that_is_asked_for() -> None:
    first, second = pair()
    async with running(engine=first, others=[second]) as bench:
        inner = await bench.peer.ask(EMBEDDINGS, {"model": "second", "input": "x"})
    assert (inner.status, inner.json["model"]) == (200, "second")
    assert (len(first.requests), len(second.requests)) == (0, 1)


async def test_a_model_that_is_not_served_is_refused_as_openai_does() -> None:
    first, second = pair()
    async with running(engine=first, others=[second]) as bench:
        assert (await bench.peer.ask(document=chat(model="second"))).status == 200
        inner = await bench.peer.ask(document=chat(model="canary"))
        assert (inner.status, inner.error["code"]) == (404, "model_not_found")
        assert inner.error["param"] == "model"
        assert b"canary" not in inner.body
    assert (len(first.requests), len(second.requests)) == (0, 1)


async def test_every_model_is_listed_in_order_with_its_digest() -> None:
    first, second = pair()
    async with running(engine=first, others=[second]) as bench:
        listed = (await bench.peer.ask(MODELS)).json["data"]
        one = await bench.peer.ask(MODELS + "/second")
        unknown = await bench.peer.ask(MODELS + "/third")
    assert [entry["id"] for entry in listed] == ["first", "second"]
    assert [entry["cloister"]["digest"][-1] for entry in listed] == ["1", "2"]
    assert one.json == listed[1]
    assert unknown.status == 404


async def test_a_model_whose_name_has_a_slash_is_found_as_sdks_ask_for_it() -> None:
    async with running(engine=engine("org/first", "1"), others=[engine("second", "2")]) as bench:
        for written in ("org/first", "org%2Ffirst"):
            one = await bench.peer.ask(f"{MODELS}/{written}")
            assert (one.status, one.json["id"]) == (200, "org/first")
        assert (await bench.peer.ask(f"{MODELS}/org%252Ffirst")).status == 404


async def test_a_path_that_only_one_model_serves() -> None:
    first = engine("first", "1", paths={CHAT_COMPLETIONS: None})
    second = engine("second", "2")
    async with running(engine=first, others=[second]) as bench:
        asked = {"input": "x"}
        assert (await bench.peer.ask(EMBEDDINGS, {"model": "second", **asked})).status == 200
        assert (await bench.peer.ask(EMBEDDINGS, {"model": "first", **asked})).status == 404
        listed = (await bench.peer.ask(MODELS)).json["data"]
    assert [EMBEDDINGS in entry["cloister"]["paths"] for entry in listed] == [False, True]


async def test_one_models_engine_that_died_does_not_take_the_other_along() -> None:
    first, second = pair()
    async with running(engine=first, others=[second]) as bench:
        assert bench.worker.readiness == {"first": True, "second": True}
        first.fail_starts = 1_000
        first.crash()
        down = await bench.peer.ask(document=chat(model="first"))
        assert (down.status, down.error["code"]) == (503, "engine_restarting")
        assert (await bench.peer.ask(document=chat(model="second"))).status == 200
        assert bench.worker.readiness == {"first": False, "second": True}
        assert not bench.worker.ready
        first.fail_starts = 0
        await until(lambda: first.alive)
        assert (await bench.peer.ask(document=chat(model="first"))).status == 200
        metrics = bench.worker.context.metrics.exposition()
    assert b'cloister_engine_restarts_total{model="first"} 1.0' in metrics
    assert b'cloister_engine_restarts_total{model="second"} 1.0' not in metrics


async def test_a_worker_does_not_start_without_every_engine() -> None:
    first, second = pair()
    async with running(engine=first, others=[second]):
        pass
    broken = engine("second", "2", fail_starts=1)
    with pytest.raises(EngineError):
        async with running(engine=first, others=[broken]):
            pytest.fail("it started")
    assert not first.alive


async def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="another name"):
        async with running(engine=engine("one", "1"), others=[engine("one", "2")]):
            pytest.fail("it started")


async def test_a_model_that_is_called_as_others_call_their_first_one() -> None:
    first, second = engine("first", "1"), engine("ensemble", "2")
    settings = WorkerSettings(compat=frozenset(Dialect))
    async with running(settings, engine=first, others=[second]) as bench:
        inner = await bench.peer.ask("/v2/models/ensemble/generate", {"text_input": "x"})
    assert inner.json["text_output"] == "I am ensemble"
    assert (len(first.requests), len(second.requests)) == (0, 1)


async def test_other_servers_paths() -> None:
    first, second = pair()
    compat = frozenset(Dialect)
    async with running(WorkerSettings(compat=compat), engine=first, others=[second]) as bench:
        for name, answers in (("second", second), ("first", first), ("ensemble", first)):
            before = len(answers.requests)
            path = f"/v2/models/{name}/generate"
            inner = await bench.peer.ask(path, {"text_input": "x"})
            assert inner.status == 200
            assert inner.json["text_output"] == f"I am {answers.model.name}"
            assert len(answers.requests) == before + 1
        unknown = await bench.peer.ask("/v2/models/third/generate", {"text_input": "x"})
        assert unknown.status == 404
        inner = await bench.peer.ask("/generate", {"query": "x"})
        assert inner.json == {"response": "I am first"}
