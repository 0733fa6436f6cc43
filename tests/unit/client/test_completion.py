"""``cloister.completion.create``: verified, sealed, checked, and then a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import cloister
from cloister.channel import bhttp
from cloister.client import Connection, completion, open_connection
from cloister.errors import (
    AppraisalError,
    ChannelError,
    ConfigurationError,
    EngineError,
    MalformedError,
)
from support.fake_worker import (
    Answer,
    FakeVerifier,
    FakeWorker,
    field_of,
    json_answer,
    openai_like,
)
from support.hostile import HostileProxy, cut_reply
from support.scene import launched, live_worker, trust_in
from support.wire import Handler, Httpx2Wire


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (completion.URL_VARIABLE, completion.KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def connected(handler: Handler, verifier: FakeVerifier | None = None) -> Connection:
    return open_connection(
        "http://worker.test", verifier=verifier or FakeVerifier(), inner=Httpx2Wire(handler)
    )


def answering(document: object, status: int = 200) -> Callable[..., Answer]:
    return lambda _head, _body: json_answer(document, status)


def sent(worker: FakeWorker) -> dict[str, Any]:
    body = json.loads(worker.opened[-1][1])
    assert isinstance(body, dict)
    return body


def test_a_question_gets_a_text() -> None:
    worker = FakeWorker(application=openai_like)
    with connected(worker) as connection:
        text = cloister.completion.create(
            model="tiny", prompt="one two", connection=connection, api_key="sk-mine"
        )
        assert text == "one two"
        assert sent(worker) == {
            "model": "tiny",
            "messages": [{"role": "user", "content": "one two"}],
        }
        assert field_of(worker.opened[-1][0], b"authorization") == b"Bearer sk-mine"
        assert connection.last_exchange is not None
        assert connection.last_exchange.receipt_verified


def test_parameters_are_sent_and_nothing_else() -> None:
    worker = FakeWorker(application=openai_like)
    with connected(worker) as connection:
        completion.create(
            model="tiny",
            prompt="x",
            system="be brief",
            max_tokens=5,
            temperature=0,
            seed=0,
            stop="end",
            connection=connection,
        )
    assert sent(worker) == {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "x"},
        ],
        "max_tokens": 5,
        "temperature": 0,
        "seed": 0,
        "stop": ["end"],
    }
    assert field_of(worker.opened[-1][0], b"authorization") is None


def test_one_connection_is_verified_once() -> None:
    worker, verifier = FakeWorker(application=openai_like), FakeVerifier()
    with connected(worker, verifier) as connection:
        for _ in range(3):
            completion.create(model="tiny", prompt="x", connection=connection)
    assert verifier.appraised == 1


def test_nothing_is_sent_to_a_refused_worker() -> None:
    worker = FakeWorker(application=openai_like, refuse="made_up")
    with connected(worker) as connection, pytest.raises(AppraisalError):
        completion.create(model="tiny", prompt="secret", connection=connection)
    assert not worker.opened


def test_a_cut_answer_is_none() -> None:
    proxy = HostileProxy(FakeWorker(application=openai_like))
    with connected(proxy) as connection:
        assert completion.create(model="tiny", prompt="one", connection=connection) == "one"
        proxy.on_reply = cut_reply(1)
        with pytest.raises(ChannelError):
            completion.create(model="tiny", prompt="one", connection=connection)


def test_errors_of_the_worker_are_errors() -> None:
    worker = FakeWorker(application=answering({"error": {"message": "no", "code": "busy"}}, 503))
    with connected(worker) as connection, pytest.raises(EngineError, match="no") as caught:
        completion.create(model="tiny", prompt="x", connection=connection)
    assert caught.value.code == "busy"


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        "text",
        {"choices": []},
        {"choices": [{"message": {}}]},
        {"choices": [{"message": {"content": None}}]},
        {"choices": [{"message": {"content": ["x"]}}]},
    ],
)
def test_an_answer_without_a_text_is_malformed(document: object) -> None:
    good = {"choices": [{"message": {"content": "x"}}]}
    with connected(FakeWorker(application=answering(good))) as connection:
        assert completion.create(model="tiny", prompt="x", connection=connection) == "x"
    with (
        connected(FakeWorker(application=answering(document))) as connection,
        pytest.raises(MalformedError, match="no text"),
    ):
        completion.create(model="tiny", prompt="x", connection=connection)


def test_an_answer_that_is_no_json_is_malformed() -> None:
    def application(_head: bhttp.RequestHead, _body: bytes) -> Answer:
        return Answer(status=200, headers=(), pieces=[b"not json"])

    with (
        connected(FakeWorker(application=application)) as connection,
        pytest.raises(MalformedError, match="no text"),
    ):
        completion.create(model="tiny", prompt="x", connection=connection)


def test_the_receipt_must_name_the_model() -> None:
    # This worker answers under any name; its receipts say what answered.
    with (
        connected(FakeWorker(application=openai_like)) as connection,
        pytest.raises(MalformedError, match="another model"),
    ):
        completion.create(model="large", prompt="x", connection=connection)


def test_one_worker_must_be_named() -> None:
    with pytest.raises(ConfigurationError, match="CLOISTER_URL"):
        completion.create(model="tiny", prompt="x")
    with connected(FakeWorker(application=openai_like)) as connection:
        for more in ({"url": "http://worker.test"}, {"development": True}):
            with pytest.raises(ConfigurationError, match="already"):
                completion.create(
                    model="tiny",
                    prompt="x",
                    connection=connection,
                    **more,
                )


def test_a_worker_at_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    attester = launched()
    options = {**trust_in(attester), "trust_env": False}
    with live_worker(attester=attester) as live:
        text = completion.create(model="fake", prompt="x", url=live.url, **options)  # type: ignore[arg-type]  # of `Options`
        assert text.startswith(" word0 word1")
        monkeypatch.setenv(completion.URL_VARIABLE, live.url)
        assert completion.create(model="fake", prompt="x", **options) == text  # type: ignore[arg-type]  # of `Options`
        with pytest.raises(EngineError) as caught:
            completion.create(model="other", prompt="x", **options)  # type: ignore[arg-type]  # of `Options`
        assert caught.value.code == "model_not_found"
        with pytest.raises(ConfigurationError):
            completion.create(model="fake", prompt="x", trust_env=False)
    assert live.prompts == ["x", "x"]
