"""A conversation remembers what was said once its answer has ended, receipt checked."""

from __future__ import annotations

import json

import pytest

from cloister.channel import bhttp
from cloister.client import open_connection
from cloister.client.conversation import Conversation
from cloister.errors import ChannelError, EngineError, MalformedError
from support.fake_worker import (
    Answer,
    FakeVerifier,
    FakeWorker,
    events_answer,
    field_of,
    json_answer,
    openai_like,
)
from support.hostile import HostileProxy, cut_reply
from support.wire import Handler, Httpx2Wire


def begin(handler: Handler, **options: str) -> Conversation:
    connection = open_connection(
        "http://worker.test", verifier=FakeVerifier(), inner=Httpx2Wire(handler)
    )
    return Conversation(connection, **options)


def test_questions_and_answers_add_up() -> None:
    worker = FakeWorker(application=openai_like)
    conversation = begin(worker, system="be brief", api_key="sk-mine")
    assert "".join(conversation.ask("one two")).split() == ["one", "two"]
    assert conversation.model == "tiny"
    "".join(conversation.ask("three", temperature=0))
    sent = json.loads(worker.opened[-1][1])
    assert [message["role"] for message in sent["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert sent["temperature"] == 0
    assert field_of(worker.opened[-1][0], b"authorization") == b"Bearer sk-mine"
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "be brief"}]


def test_an_answer_that_is_cut_is_not_remembered() -> None:
    proxy = HostileProxy(FakeWorker(application=openai_like))
    conversation = begin(proxy)
    "".join(conversation.ask("one two"))
    before = list(conversation.messages)
    proxy.on_reply = cut_reply(6)
    with pytest.raises(ChannelError):
        "".join(conversation.ask("three four five"))
    assert conversation.messages == before


@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [
        (json_answer({"error": {"message": "no", "code": "busy"}}, 429), EngineError, "busy"),
        (json_answer({"error": "no"}, 500), EngineError, "engine.answered"),
        (json_answer([], 500), EngineError, "engine.answered"),
        (events_answer([b'data: {"error":{"message":"stopped"}}\n\n']), EngineError,
         "engine.answered"),
        (events_answer([b"data: nonsense\n\n"]), MalformedError, "malformed"),
        (events_answer([b"data: 1\n\n"]), MalformedError, "malformed"),
        (events_answer([b'data: {"choices":[1]}\n\n']), MalformedError, "malformed"),
    ],
)  # fmt: skip
def test_errors(answer: Answer, error: type[Exception], code: str) -> None:
    def application(head: bhttp.RequestHead, body: bytes) -> Answer:
        return openai_like(head, body) if head.path == b"/v1/models" else answer

    conversation = begin(FakeWorker(application=application))
    with pytest.raises(error) as caught:
        "".join(conversation.ask("one"))
    assert caught.value.code == code  # type: ignore[attr-defined]
    assert conversation.messages == []


def test_a_list_of_models_that_is_none() -> None:
    conversation = begin(FakeWorker(application=lambda _, __: json_answer({"data": 5})))
    with pytest.raises(MalformedError):
        conversation.models()
