"""Sealed requests through the whole ASGI application, with a fake engine behind it."""

from __future__ import annotations

import functools
from collections.abc import Mapping

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


async def test_completions_that_are_not_chats() -> None:
    async with running() as bench:
        inner = await bench.peer.ask("/v1/completions", {"model": "fake", "prompt": "x"})
    assert (inner.status, bench.engine.requests[0].path) == (200, "/v1/completions")


async def test_the_engine_gets_the_exact_bytes() -> None:
    body = b'{ "model": "fake", "messages": [],\n "temperature": 0.30, "unheard_of": {"x": 1e3} }'
    async with running() as bench:
        sealed = bench.peer.seal(body=body)
        assert sealed.opened(await bench.peer.send(sealed)).status == 200
        assert bench.engine.requests[0].body == body


async def test_models() -> None:
    async with running() as bench:
        listed = await bench.peer.ask("/v1/models")
        one = await bench.peer.ask("/v1/models/fake")
        unknown = await bench.peer.ask("/v1/models/gpt-4")
    assert [model["id"] for model in listed.json["data"]] == ["fake"]
    assert one.json["id"] == "fake"
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")


async def test_every_answer_carries_the_standard_fields() -> None:
    async with running() as bench:
        answers = [
            await bench.peer.ask(document=chat()),
            await bench.peer.ask("/v1/nowhere"),
            await bench.peer.ask(document=chat(), nonce=b"short"),
        ]
        for inner in answers:
            assert inner.headers["x-aci-version"] == "aci/1"
            assert inner.headers["x-aci-keyset-digest"] == bench.peer.keyset.digest
            assert len(inner.headers["x-cloister-nonce"]) == 43
        nonces = {inner.headers["x-cloister-nonce"] for inner in answers}
        assert len(nonces) == 3
        assert [inner.status for inner in answers] == [200, 404, 400]
        assert answers[1].receipt is not None


async def test_a_receipt_can_be_looked_up_inside_the_channel_for_a_while() -> None:
    async with running() as bench:
        inner = await bench.peer.ask(document=chat())
        assert inner.receipt is not None
        path = f"/v1/aci/receipts/{inner.receipt.receipt_id}"
        found = await bench.peer.ask(path)
        assert (found.status, found.json) == (200, inner.receipt.document)
        assert (await bench.peer.ask(path + "0")).status == 404
        bench.clocks.steady_offset += 601
        gone = await bench.peer.ask(path)
        assert (gone.status, gone.error["type"]) == (404, "not_found")


async def test_a_wrong_method_is_refused() -> None:
    async with running() as bench:
        inner = await bench.peer.ask("/v1/chat/completions", method="GET")
        assert inner.status == 405


def _says(text: str, _path: str, _body: Mapping[str, object]) -> Answer:
    return Answer.text(text)


async def test_streams_are_padded_to_a_bucket_and_bodies_too() -> None:
    texts = ["a", "a longer answer, with words of many lengths", "x" * 700]
    async with running() as bench:
        sizes = set()
        for text in texts:
            bench.engine.script = functools.partial(_says, text)
            streamed = await bench.peer.ask(document=chat(stream=True))
            assert streamed.text == text
            for piece in streamed.pieces[1:-1]:
                assert len(piece) % 256 == 0
            whole = await bench.peer.ask(document=chat())
            assert sum(len(piece) for piece in whole.pieces) % 1024 == 0
            sizes.add(sum(len(piece) for piece in whole.pieces))
        assert len(sizes) < len(texts) + 1


async def test_tokens_of_one_stream_look_alike() -> None:
    tokens = tuple("x" * size for size in (1, 2, 3, 5, 8, 13, 20))
    engine = FakeEngine(script=lambda *_: Answer(tokens=tokens))
    async with running(engine=engine) as bench:
        inner = await bench.peer.ask(document=chat(stream=True))
    assert inner.text == "".join(tokens)
    assert len({len(piece) for piece in inner.pieces[1 : len(tokens)]}) == 1


@pytest.mark.parametrize(
    ("provider", "status", "kind"),
    [
        ({"aci_verified": True}, 200, None),
        ({"aci_verified": False}, 200, None),
        ({"order": ["x"]}, 200, None),
        ({"aci_session_ids": ["ab" * 32]}, 412, "session_not_accepted"),
        ({"aci_session_ids": []}, 400, "invalid_request_error"),
        ({"aci_session_ids": ["ab" * 32], "aci_verified": False}, 400, "invalid_request_error"),
        ({"aci_verified": 1}, 400, "invalid_request_error"),
        ({"aci_unheard_of": 1}, 400, "invalid_request_error"),
    ],
)
async def test_serving_constraints(
    provider: dict[str, object], status: int, kind: str | None
) -> None:
    async with running() as bench:
        inner = await bench.peer.ask(document=chat(provider=provider))
        assert inner.status == status
        if kind is not None:
            assert inner.error["type"] == kind
            assert not bench.engine.requests
        else:
            assert b"aci_" not in bench.engine.requests[0].body
