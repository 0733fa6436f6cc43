"""Streams of an engine that is not trusted, as events of another protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.worker.compat import cosmian
from cloister.worker.compat.answer import text_of_answer, text_of_event
from cloister.worker.compat.prompt import parse_prompt
from cloister.worker.compat.translation import TranslatedLines, Translation
from cloister.worker.events import LineAssembler

DONE = b"data: [DONE]\n\n"


def translation(**parameters: Any) -> Translation:
    return Translation(
        model="m",
        prompt=parse_prompt("hello"),
        parameters=parameters,
        stream=True,
        document=cosmian.document,
        event=cosmian.event,
        end=cosmian.end,
    )


def said(*texts: str) -> bytes:
    return b"".join(
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode()
        + b"\n\n"
        for text in texts
    )  # fmt: skip


def streamed(*reads: bytes) -> tuple[bytes, bool]:
    lines = TranslatedLines(LineAssembler(4096), translation())
    out = b""
    for read in reads:
        out += lines.feed(read)
        if lines.failed:
            return out, True
    out += lines.rest()
    return out, lines.failed


def expected(*texts: str) -> bytes:
    events = [cosmian.event(number, text) for number, text in enumerate(texts, 1)]
    return b"".join(events) + cosmian.end(len(texts) + 1)


def test_the_body_is_a_chat() -> None:
    assert json.loads(translation(max_tokens=3).body()) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 3,
        "stream": True,
    }


def test_a_stream_cut_anywhere_is_the_same() -> None:
    whole = said("one", " two") + DONE
    for cut in range(len(whole) + 1):
        assert streamed(whole[:cut], whole[cut:]) == (expected("one", " two"), False)


def test_words_about_errors_are_words() -> None:
    assert streamed(said("error", '"error"') + DONE) == (expected("error", '"error"'), False)


def test_only_text_of_the_first_choice_counts() -> None:
    noise = (
        b": comment\n\n"
        b"event: message\n"
        b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n'
        b'data: {"choices":[{"index":1,"delta":{"content":"other"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'
    )
    assert streamed(noise, said("one"), noise, DONE, said("late")) == (expected("one"), False)


def test_an_answer_without_words_ends_all_the_same() -> None:
    assert streamed(DONE) == (cosmian.end(1), False)


def test_a_character_cut_short_by_the_end() -> None:
    cut = said("a\ud83d") + DONE
    assert streamed(cut) == (expected("a", "\ufffd"), False)


@pytest.mark.parametrize(
    "bad",
    [
        b'data: {"error":{"message":"canary"}}\n\n',
        b"data: canary\n\n",
        b'data: "canary"\n\n',
        b'data: ["canary"]\n\n',
        b"data: {}\n\n",
        b'data: {"choices":"canary"}\n\n',
        b'data: {"choices":{"canary":1}}\n\n',
        b'data: {"choices":["canary"]}\n\n',
        b'data: {"choices":[{"delta":"canary"}]}\n\n',
        b'data: {"choices":[{"delta":null}]}\n\n',
        b'data: {"choices":[{"delta":{"content":7}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":["canary"]}}]}\n\n',
        b"data: " + b"[" * 3000 + b"\n\n",
        b'data: {"choices":[{"message":{"content":"canary"}}]}\n\n',
    ],
)
def test_what_is_no_chat_completion_ends_the_stream_without_an_end(bad: bytes) -> None:
    good = said("one")
    assert streamed(good + DONE) == (expected("one"), False)
    out, failed = streamed(good + bad + said("two") + DONE)
    assert (out, failed) == (cosmian.event(1, "one"), True)


def test_a_stream_without_its_end_gets_none_here() -> None:
    assert streamed(said("one")) == (cosmian.event(1, "one"), True)
    assert streamed() == (b"", True)


def test_an_end_without_a_line_end_is_an_end() -> None:
    assert streamed(said("one") + b"data: [DONE]") == (expected("one"), False)


def test_a_line_without_end_is_given_up() -> None:
    with pytest.raises(OverflowError):
        streamed(said("one"), b"data: " + b"x" * 5000)


def test_a_whole_answer() -> None:
    body = b'{"choices":[{"index":0,"message":{"content":"caf\xc3\xa9 \\ud83d\\ude00"}}]}'
    assert translation().whole(body) == '{"response":"café 😀"}'.encode()
    assert translation().whole(b'{"choices":[{"message":{"content":"\xe2\x82"}}]}') == (
        '{"response":"\ufffd"}'.encode()
    )
    assert text_of_answer(b'{"choices":[{"message":{"content":null}}]}') == ""


@given(st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["choices", "delta", "message", "content", "index"]), inner
    ),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_an_engine_answers_is_text_or_a_value_error(data: bytes) -> None:
    for read in (text_of_answer, text_of_event):
        try:
            assert isinstance(read(data), str)
        except ValueError:
            continue
