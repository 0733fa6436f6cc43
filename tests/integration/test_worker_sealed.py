"""Sealed requests through the whole ASGI application, with a fake engine behind it."""

from __future__ import annotations

import pytest
from cloister.channel.hpke import Kem
from cloister.testing.fake_engine import Answer, FakeEngine

from support.sealed import chat
from support.worker import running


@pytest.mark.parametrize("kem", [Kem.MLKEM768_X25519, Kem.X25519])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_chat_streams_and_its_receipt_verifies(kem: Kem, chunked: bool) -> None:
    engine = FakeEngine(script=lambda _path, _body: Answer.text("a b c d"))
    async with running(engine=engine) as bench:
        inner = await bench.peer.ask(document=chat(stream=True), kem=kem, chunked=chunked)
    assert inner.status == 200
    assert inner.headers["content-type"] == "text/event-stream"
    assert inner.text == "a b c d"
    assert inner.events[-1] == "[DONE]"
    assert inner.receipt is not None
    assert inner.receipt.event("cloister.model") == {
        "type": "cloister.model",
        "name": "fake",
        "sha256": "0" * 64,
    }


async def test_a_chat_that_is_not_streamed() -> None:
    async with running() as bench:
        inner = await bench.peer.ask(document=chat())
    assert inner.status == 200
    assert inner.json["choices"][0]["message"]["content"].startswith(" word0")
    assert inner.receipt is not None
