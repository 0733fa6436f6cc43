"""Whatever an engine says, reading it raises ValueError or nothing."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from cloister.worker.events import LineAssembler
from cloister.worker.formats.chat import parse_event, parse_whole
from cloister.worker.formats.messages_answer import MessagesTelling
from cloister.worker.formats.responses_answer import ResponsesTelling
from cloister.worker.formats.translation import ChatTranslation, Telling

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FUNCTION = st.fixed_dictionaries({}, optional={"name": st.text(), "arguments": st.text() | JSON})
CALL = st.fixed_dictionaries(
    {},
    optional={"index": st.integers(-1, 3) | JSON, "id": st.text() | JSON, "function": FUNCTION},
)
SAID = st.fixed_dictionaries(
    {},
    optional={
        "content": st.text() | JSON,
        "reasoning_content": st.text() | JSON,
        "tool_calls": st.lists(CALL, max_size=3) | JSON,
    },
)
FINISH = st.sampled_from([None, "stop", "length", "tool_calls", "other"]) | JSON
CHOICE = st.fixed_dictionaries(
    {}, optional={"delta": SAID, "message": SAID, "finish_reason": FINISH, "logprobs": JSON}
)
DOCUMENT = st.fixed_dictionaries(
    {"choices": st.lists(CHOICE, max_size=2) | JSON}, optional={"usage": JSON}
)
EVENTS = st.lists(DOCUMENT | JSON, max_size=6)


def translations() -> list[ChatTranslation]:
    tellings: list[Telling] = [
        ResponsesTelling({}, model="m", new_id=lambda prefix: prefix, created_at=0),
        MessagesTelling(model="m", stop_sequences=(), new_id=lambda prefix: prefix),
    ]
    return [ChatTranslation(request={}, telling=one, max_answer=1 << 20) for one in tellings]


@given(st.binary())
def test_bytes(data: bytes) -> None:
    for parse in (parse_event, parse_whole):
        with contextlib.suppress(ValueError):
            parse(data)


@given(DOCUMENT)
def test_whole_answers(document: object) -> None:
    for translation in translations():
        with contextlib.suppress(ValueError):
            assert isinstance(json.loads(translation.whole(json.dumps(document).encode())), dict)


@given(EVENTS, st.booleans())
def test_streams(documents: list[object], done: bool) -> None:
    """Every event is whole, and the last one comes only where the engine ended its stream."""
    data = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in documents)
    data += b"data: [DONE]\n\n" if done else b""
    for translation in translations():
        lines = translation.lines(LineAssembler(1 << 20))
        said = lines.feed(data) + lines.rest()
        kinds = []
        for block in said.decode().split("\n\n")[:-1]:
            name, value = block.split("\n")
            kinds.append(json.loads(value.removeprefix("data: "))["type"])
            assert name == f"event: {kinds[-1]}"
        ends = {"response.completed", "response.incomplete", "message_stop"} & set(kinds)
        assert bool(ends) == (not lines.failed)
        assert done or lines.failed
