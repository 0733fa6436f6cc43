"""A caller and an enclave, every message under a key of its own."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pytest

from cloister.aws.messages import (
    MAX_AGE_S,
    CallersKms,
    Message,
    ReplayMemory,
    open_answer,
    open_question,
    seal_answer,
    seal_question,
)
from cloister.errors import AuthenticationError, CloisterError, KeyReleaseDenied, MalformedError
from support.kms import NOW, Cloud

AT = int(NOW.timestamp())
LONG = "Ä Question, with Capitals, \U0001f512 and more than KMS takes. ".encode() * 2000


class Parties:
    """Both sides of one conversation."""

    def __init__(self) -> None:
        self.cloud = Cloud()
        caller = self.cloud.client("caller")
        self.asks = CallersKms(caller, key_arn=self.cloud.questions)
        self.hears = CallersKms(caller, key_arn=self.cloud.answers)
        self.opens = self.cloud.attested(self.cloud.questions)
        self.answers = self.cloud.attested(self.cloud.answers)
        self.memory = ReplayMemory()

    def question(self, text: bytes = LONG) -> Message:
        return seal_question(text, self.asks, random=os.urandom, now=AT)

    def take(self, message: Message, now: int = AT) -> bytes:
        return open_question(message, self.opens, memory=self.memory, now=now)

    def answer(self, question: Message, text: bytes = LONG) -> Message:
        return seal_answer(text, question, self.answers, random=os.urandom, now=AT)


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties()


def test_messages_arrive_as_they_are_whatever_their_length(parties: Parties) -> None:
    for text in (b"", b"UPPER lower", LONG):
        question = parties.question(text)
        travelled = Message.parse(question.encode())
        assert travelled == question
        assert text not in question.encode() or not text
        assert parties.take(travelled) == text
        answer = Message.parse(parties.answer(travelled, text + b"!").encode())
        assert open_answer(answer, question, parties.hears) == text + b"!"


def test_every_message_has_a_key_of_its_own(parties: Parties) -> None:
    first, second = parties.question(), parties.question()
    assert first.wrapped_key != second.wrapped_key
    assert first.nonce != second.nonce


def test_a_question_is_taken_once_and_only_while_it_is_young(parties: Parties) -> None:
    question = parties.question()
    parties.take(question)
    refused(lambda: parties.take(question), "kms.replay")
    assert parties.take(parties.question(), now=AT + MAX_AGE_S) == LONG
    refused(lambda: parties.take(parties.question(), now=AT + MAX_AGE_S + 1), "kms.replay")
    refused(lambda: parties.take(parties.question(), now=AT - MAX_AGE_S - 1), "kms.replay")


def test_what_was_asked_before_or_is_old_costs_no_request_to_kms(parties: Parties) -> None:
    question = parties.question()
    parties.take(question)
    asked = len(parties.cloud.kms.log)
    refused(lambda: parties.take(question), "kms.replay")
    refused(lambda: parties.take(question, now=AT + MAX_AGE_S + 1), "kms.replay")
    assert len(parties.cloud.kms.log) == asked


def refused(act: Any, code: str) -> None:
    with pytest.raises(CloisterError) as caught:
        act()
    assert caught.value.code == code


def test_an_answer_is_to_one_question(parties: Parties) -> None:
    question, other = parties.question(), parties.question()
    answer = parties.answer(question)
    assert open_answer(answer, question, parties.hears) == LONG
    refused(lambda: open_answer(answer, other, parties.hears), "kms.message")


def test_directions_are_not_exchanged(parties: Parties) -> None:
    question = parties.question()
    answer = parties.answer(question)
    refused(lambda: parties.take(answer), "kms.message")
    refused(lambda: open_answer(question, question, parties.hears), "kms.message")


def test_nothing_in_a_message_can_be_changed(parties: Parties) -> None:
    question = parties.question(b"text")
    parties.take(dataclasses.replace(question))
    other = parties.question(b"text")

    def context(**changed: str) -> Message:
        return dataclasses.replace(question, context={**question.context, **changed})

    changed = [
        dataclasses.replace(question, ciphertext=other.ciphertext),
        dataclasses.replace(question, nonce=other.nonce),
        dataclasses.replace(question, wrapped_key=other.wrapped_key),
        dataclasses.replace(question, ciphertext=question.ciphertext[:-1]),
        context(id=other.context["id"]),
        context(made_at=str(AT + 1)),
        context(made_at="-1"),
        context(made_at="1" * 13),
        context(format="cloister.kms-message/2"),
        context(more="x"),
    ]
    for message in changed:
        with pytest.raises((AuthenticationError, KeyReleaseDenied)):
            open_question(message, parties.opens, memory=ReplayMemory(), now=AT)


def test_the_memory_refuses_rather_than_forgets() -> None:
    memory = ReplayMemory(max_age_s=10, max_seen=2)
    memory.take("a", 100, 100)
    memory.take("b", 100, 100)
    refused(lambda: memory.take("c", 100, 100), "kms.replay")
    refused(lambda: memory.take("a", 100, 105), "kms.replay")
    memory.take("c", 111, 111)  # the others are too old to be taken anyway
    refused(lambda: memory.take("a", 100, 111), "kms.replay")


def test_a_refused_message_does_not_fill_the_memory(parties: Parties) -> None:
    memory = ReplayMemory(max_seen=1)
    question = parties.question(b"text")
    forged = dataclasses.replace(question, ciphertext=bytes(20))
    with pytest.raises(AuthenticationError):
        open_question(forged, parties.opens, memory=memory, now=AT)
    assert open_question(question, parties.opens, memory=memory, now=AT) == b"text"


@pytest.mark.parametrize(
    "change",
    [{"nonce": "AAAA"}, {"context": []}, {"context": {"a": 1}}, {"more": 1}, {"wrapped_key": "%"}],
)
def test_other_documents_are_malformed(parties: Parties, change: dict[str, Any]) -> None:
    document = json.loads(parties.question(b"x").encode())
    with pytest.raises(MalformedError):
        Message.parse(json.dumps({**document, **change}).encode())
