"""An engine that lies in HTTP: what of it reaches a client, and what it costs the worker."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from cloister.worker.settings import Limits, WorkerSettings
from support.lying_peer import (
    DONE,
    EVENT,
    WHOLE,
    LyingBench,
    chunk,
    head,
    lying,
    saying,
    sized,
    streamed,
)
from support.sealed import chat, until

CANARY = "canary-6f1d"
HONEST = saying(streamed(EVENT % b"fine", DONE))
HONEST_WHOLE = saying(sized(WHOLE % b"fine"))
STREAM = head(b"text/event-stream", b"Transfer-Encoding: chunked")
MIB = 1 << 20
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
ECHO = b'{"error":{"message":"cannot do %b"}}' % CANARY.encode()
OWN_HEADERS = {
    "content-type",
    "cache-control",
    "x-aci-version",
    "x-aci-keyset-digest",
    "x-cloister-nonce",
    "date",
    "x-receipt-id",
}


def limits(**values: int | float) -> WorkerSettings:
    return WorkerSettings(limits=dataclasses.replace(Limits(), **values))  # type: ignore[arg-type]  # ints where ints are due


async def honest(bench: LyingBench, *, stream: bool) -> None:
    """The same worker, the same connections: an answer that is one arrives."""
    bench.engine.handler = HONEST if stream else HONEST_WHOLE
    inner = await bench.peer.ask(document=chat(stream=stream))
    assert inner.status == 200
    said = inner.text if stream else inner.json["choices"][0]["message"]["content"]
    assert said == "fine"


NOT_HTTP = {
    "not-http": b"SSH-2.0-OpenSSH\r\n\r\n",
    "http-1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "informational-flood": b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" * 2_000,
    "switching-protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    "endless-headers": b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 5_000,
    "many-headers": head(b"text/plain", *(b"X-%d: y" % n for n in range(70))),
    "folded-header": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "split-response": b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\n{}",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length-and-chunks": head(b"text/plain", b"Content-Length: 2", b"Transfer-Encoding: chunked"),
    "other-coding": head(b"text/plain", b"Transfer-Encoding: gzip, chunked"),
    "no-length": head(b"application/json") + b"{}",
    "negative-length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
    "bad-chunk-size": STREAM + b"zz\r\n",
    "negative-chunk": STREAM + b"-1\r\n",
    "huge-chunk": STREAM + b"FFFFFFFF\r\n",
    "long-chunk-line": STREAM + b"1;" + b"x" * 1_000,
    "chunk-without-end": STREAM + b"1\r\nabc\r\n",
    "endless-trailers": STREAM + b"0\r\n" + b"X: y\r\n" * 5_000,
    "compressed": sized(b"\x1f\x8b\x08\x00", b"Content-Encoding: gzip"),
    "answer-twice": sized(WHOLE % b"a") * 2,
    "closed-in-head": b"HTTP/1.1 200 OK\r\nContent-",
    "closed-in-body": head(b"application/json", b"Content-Length: 100") + b'{"a":',
    "nothing": b"",
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", NOT_HTTP)
async def test_what_is_not_http_is_an_error_of_ours(
    tmp_path: Path, name: str, *, stream: bool
) -> None:
    async with lying(tmp_path, HONEST) as bench:
        await honest(bench, stream=stream)
        bench.engine.handler = saying(NOT_HTTP[name], close=True)
        inner = await bench.peer.ask(document=chat(CANARY, stream=stream))
        assert (inner.status, inner.error["code"]) == (502, "engine_failed")
        assert inner.receipt is not None
        await honest(bench, stream=stream)
        assert CANARY not in bench.log.getvalue()


NO_ANSWER = {
    "not-json": sized(b"<html>"),
    "array": sized(b"[]"),
    "error-as-success": sized(ECHO),
    "nan": sized(b'{"a":NaN}'),
    "deep": sized(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "huge-number": sized(b'{"a":' + b"9" * 5_000 + b"}"),
    "not-utf-8": sized(b'{"a":"\xff"}'),
    "utf-16": sized('{"a":1}'.encode("utf-16")),
    "empty": sized(b""),
    "stream-instead": streamed(EVENT % b"x", DONE),
    "redirect": sized(b"{}", b"Location: http://evil.test/", status=b"307 Temporary Redirect"),
    "no-content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not-modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "too-long": sized(b'{"a":"' + b"x" * MIB + b'"}'),
    "gigabytes": head(b"application/json", b"Content-Length: 5000000000") + b"x" * (2 * MIB),
}


@pytest.mark.parametrize("name", NO_ANSWER)
async def test_a_whole_answer_that_is_none_is_an_error_of_ours(tmp_path: Path, name: str) -> None:
    async with lying(tmp_path, HONEST_WHOLE, limits(max_answer_bytes=MIB)) as bench:
        await honest(bench, stream=False)
        bench.engine.handler = saying(NO_ANSWER[name], close=True)
        inner = await bench.peer.ask(document=chat(CANARY))
        assert (inner.status, inner.error["code"]) == (502, "engine_failed")
        assert CANARY.encode() not in inner.body
        assert "location" not in inner.headers
        await honest(bench, stream=False)
        assert CANARY not in bench.log.getvalue()


@pytest.mark.parametrize("kind", [b"application/json", b"text/html", b"", b"text/event-streamer"])
async def test_a_stream_of_another_type_is_an_error_of_ours(tmp_path: Path, kind: bytes) -> None:
    wrong = head(kind, b"Transfer-Encoding: chunked") + chunk(EVENT % b"x") + b"0\r\n\r\n"
    async with lying(tmp_path, HONEST) as bench:
        await honest(bench, stream=True)
        bench.engine.handler = saying(wrong)
        inner = await bench.peer.ask(document=chat(stream=True))
        assert (inner.status, inner.error["code"]) == (502, "engine_failed")


@pytest.mark.parametrize("status", [b"400 Bad", b"404 No", b"429 Wait", b"500 Oh", b"503 Busy"])
@pytest.mark.parametrize("stream", [True, False])
async def test_error_bodies_that_repeat_the_prompt_go_nowhere(
    tmp_path: Path, status: bytes, *, stream: bool
) -> None:
    async with lying(tmp_path, HONEST) as bench:
        bench.engine.handler = saying(sized(ECHO, status=status))
        inner = await bench.peer.ask(document=chat(CANARY, stream=stream))
        assert inner.status >= 400
        assert set(inner.error) == {"message", "type", "param", "code"}
        assert CANARY.encode() not in inner.body
        assert CANARY not in bench.log.getvalue()


@pytest.mark.parametrize("stream", [True, False])
async def test_no_header_of_the_engine_reaches_a_client(tmp_path: Path, *, stream: bool) -> None:
    hostile = (
        b"Set-Cookie: a=b",
        b"X-Receipt-Id: rcpt-forged",
        b"X-ACI-Version: aci/9",
        b"X-ACI-Keyset-Digest: sha256:forged",
        b"X-ACI-Receipt: forged",
        b"X-Cloister-Nonce: forged",
        b"Location: http://evil.test/",
        b"Refresh: 0; url=http://evil.test/",
        b"Date: Thu, 01 Jan 1970 00:00:00 GMT",
        b"X-Should-Retry: true",
        b"Retry-After: 1",
        b"Strict-Transport-Security: max-age=0",
        b"Access-Control-Allow-Origin: *",
        b"Trailer: X-ACI-Receipt",
        b"Server: evil",
    )
    event = streamed(EVENT % b"fine", DONE, fields=hostile)
    trailer = event[:-2] + b"X-ACI-Receipt: forged\r\n\r\n"
    async with lying(tmp_path, HONEST) as bench:
        bench.engine.handler = saying(trailer if stream else sized(WHOLE % b"fine", *hostile))
        inner = await bench.peer.ask(document=chat(stream=stream))  # checks the receipt
        assert inner.status == 200
        assert set(inner.headers) == OWN_HEADERS | (set() if stream else {"content-length"})
        everything = repr((inner.headers, inner.trailers))
        for word in ("forged", "evil", "1970", "aci/9", "a=b"):
            assert word not in everything
        assert set(inner.trailers) == {b"x-aci-receipt"}


async def events_of(bench: LyingBench, *pieces: bytes) -> tuple[bytes, list[object]]:
    bench.engine.handler = saying(STREAM, *map(chunk, pieces), b"0\r\n\r\n")
    inner = await bench.peer.ask(document=chat(CANARY, stream=True))
    lines = inner.body.splitlines(keepends=True)
    assert CANARY not in bench.log.getvalue()
    return b"".join(line for line in lines if not line.startswith(b":")), inner.events


async def test_of_a_stream_only_data_goes_on_and_nothing_after_its_end(tmp_path: Path) -> None:
    good = EVENT % b"fine"
    noise = b": comment\nid: 7\nretry: 1\nevent: message\nX-Receipt-Id: forged\n"
    async with lying(tmp_path, HONEST) as bench:
        assert (await events_of(bench, good, DONE))[0] == good + DONE
        assert (await events_of(bench, noise + good, noise, DONE))[0] == good + DONE
        assert (await events_of(bench, good, DONE, good, ECHO + b"\n"))[0] == good + DONE
        assert (await events_of(bench, good, DONE + good + DONE))[0] == good + DONE


@pytest.mark.parametrize(
    "bad",
    [
        b"data: \x00\n\n",
        b"data: \x1b]52;c;AAAA\x07\n\n",
        b'data: {"a":"\xff\xfe"}\n\n',
        b"data: \xed\xa0\x80\n\n",
        b"data: " + ECHO + b"\n\n",
        b"event: error\ndata: x\n\n",
        b"data: " + b"x" * (2 * MIB) + b"\n\n",
        b"x" * (2 * MIB),
    ],
    ids=["nul", "terminal", "not-utf-8", "surrogate", "error", "named-error", "long", "endless"],
)
async def test_what_is_no_event_ends_the_stream_with_an_error_of_ours(
    tmp_path: Path, bad: bytes
) -> None:
    good = EVENT % b"fine"
    async with lying(tmp_path, HONEST, limits(max_line_bytes=MIB)) as bench:
        await honest(bench, stream=True)
        body, events = await events_of(bench, good, bad, good, DONE)
        assert body.startswith(good)
        assert events[-1]["error"]["code"] == "engine_failed"  # type: ignore[index]
        assert len(events) == 2
        assert CANARY.encode() not in body
        await honest(bench, stream=True)


async def test_a_stream_without_end_is_cut_at_the_limit(tmp_path: Path) -> None:
    sent = 0

    async def endless(_: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(STREAM)
        while not writer.is_closing():
            writer.write(chunk(EVENT % (b"x" * 1_000)))
            await writer.drain()
            sent += 1_000

    async with lying(tmp_path, HONEST, limits(max_answer_bytes=MIB)) as bench:
        await honest(bench, stream=True)
        bench.engine.handler = endless
        inner = await bench.peer.ask(document=chat(stream=True))
        assert inner.events[-1]["error"]["code"] == "engine_failed"
        assert len(inner.body) < 2 * MIB
        assert sent < 4 * MIB
        await honest(bench, stream=True)


@pytest.mark.parametrize("stream", [True, False])
async def test_all_answers_together_have_one_bound(tmp_path: Path, *, stream: bool) -> None:
    """Each may be a megabyte, four of them two: of those at once some fail, later ones do not."""
    text = b"x" * (900 << 10)
    arrived = 0
    released = asyncio.Event()

    async def slow(_: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        answer = (
            streamed(*[EVENT % text[: 9 << 10]] * 100, END, DONE) if stream else sized(WHOLE % text)
        )
        writer.write(answer[:-1])
        await writer.drain()
        arrived += 1
        await released.wait()
        writer.write(answer[-1:])

    both = limits(max_answer_bytes=MIB, max_buffered_bytes=2 * MIB)
    path, asked = (
        ("/v1/responses", {"model": "fake", "input": "hello", "stream": True})
        if stream  # answers of this format are kept until their end
        else ("/v1/chat/completions", chat())
    )
    async with lying(tmp_path, slow, both) as bench:
        asking = [asyncio.create_task(bench.peer.ask(path, asked)) for _ in range(4)]
        await until(lambda: arrived == 4)
        released.set()
        answers = await asyncio.gather(*asking)
        failed = [answer for answer in answers if b"engine_failed" in answer.body]
        assert 1 <= len(failed) <= 2
        for _ in range(3):  # what was held is given back
            assert b"engine_failed" not in (await bench.peer.ask(path, asked)).body
        assert bench.worker.context.answers.held == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nX", STREAM, STREAM + chunk(EVENT % b"a") + b"5\r\nab"]
)
async def test_silence_is_ended_by_the_time_limit(
    tmp_path: Path, said: bytes, *, stream: bool
) -> None:
    if not stream and said.startswith(STREAM):
        said = head(b"application/json", b"Content-Length: 9") + b"{"
    async with lying(tmp_path, HONEST, limits(generation_s=1)) as bench:
        bench.engine.handler = saying(said)
        inner = await bench.peer.ask(document=chat(stream=stream))
        error = inner.events[-1]["error"] if inner.status == 200 else inner.error
        assert error["code"] == "timeout"
        await until(lambda: bench.engine.gone > 0)  # and the engine is told to stop


async def test_a_byte_at_a_time_is_ended_by_the_time_limit(tmp_path: Path) -> None:
    async def drip(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not writer.is_closing():
            writer.write(b"y")
            await asyncio.sleep(0.01)

    async with lying(tmp_path, drip, limits(generation_s=0.3)) as bench:
        inner = await bench.peer.ask(document=chat())
        assert (inner.status, inner.error["code"]) == (504, "timeout")


@pytest.mark.parametrize("when", ["glued", "later"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_second_answer_is_not_the_next_clients(
    tmp_path: Path, when: str, *, stream: bool
) -> None:
    """A pooled connection must not carry what was said before its request."""
    mine, other = (
        streamed(EVENT % said, DONE) if stream else sized(WHOLE % said)
        for said in (b"A", b"stolen")
    )

    taken, sent = asyncio.Event(), asyncio.Event()

    async def twice(_: bytes, writer: asyncio.StreamWriter) -> None:
        if when == "glued":
            writer.write(mine + other)
        else:
            writer.write(mine)
            await taken.wait()
            writer.write(other)
            sent.set()

    async with lying(tmp_path, HONEST) as bench:
        await honest(bench, stream=stream)
        before = bench.engine.connections
        await honest(bench, stream=stream)
        assert bench.engine.connections == before  # so there is a pool to be poisoned
        bench.engine.handler = twice
        first = await bench.peer.ask(document=chat(stream=stream))
        assert b"stolen" not in first.body
        assert (first.status == 200) == (when == "later" or (stream and b"A" in first.body))
        if when == "later":
            taken.set()
            await sent.wait()
            await asyncio.sleep(0.05)
        bench.engine.handler = HONEST if stream else HONEST_WHOLE
        for _index in range(3):
            second = await bench.peer.ask(document=chat(stream=stream))
            assert b"stolen" not in second.body
            assert b"fine" in second.body


async def test_an_answer_before_the_question_reaches_nobody_else(tmp_path: Path) -> None:
    async with lying(tmp_path, HONEST_WHOLE, max_idle=0) as bench:
        await honest(bench, stream=False)
        bench.engine.on_accept = sized(WHOLE % b"early")
        early = await bench.peer.ask(document=chat())
        assert early.status == 502
        bench.engine.on_accept = b""
        await honest(bench, stream=False)


async def test_labels_in_an_answer_are_the_engines_and_the_receipt_is_ours(tmp_path: Path) -> None:
    said = WHOLE.replace(b'"fake"', b'"gpt-9"') % b"x"
    said = said[:-1] + b',"usage":{"prompt_tokens":-5,"completion_tokens":1e30}}'
    async with lying(tmp_path, saying(sized(said))) as bench:
        inner = await bench.peer.ask(document=chat())
        assert inner.json["model"] == "gpt-9"  # word for word
        assert b"gpt-9" not in inner.trailers[b"x-aci-receipt"]
        # Where an answer is made anew, numbers that count nothing are refused.
        asked = await bench.peer.ask("/v1/responses", {"model": "fake", "input": "hello"})
        assert (asked.status, asked.error["code"]) == (502, "engine_failed")
