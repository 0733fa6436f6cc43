"""Whatever is asked, a translation refuses it or makes JSON of it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloister.engine.protocol import ModelInfo
from cloister.worker.formats import lists, messages, responses
from cloister.worker.formats.content import check_addresses
from cloister.worker.problems import RefusedError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
WORDS = st.sampled_from(
    """
    user assistant system developer message function_call function_call_output reasoning tool_use
    tool_result text image input_text output_text input_image base64 image/png thinking enabled
    adaptive auto tool function json_schema none
    """.split()  # noqa: SIM905 - a table is easier to read without quotation marks
)
NAMES = st.sampled_from(
    """
    type role content text name id call_id arguments output input tool_use_id source media_type
    data image_url format schema effort thinking budget_tokens input_schema parameters is_error
    """.split()  # noqa: SIM905 - as above
)
LIKELY = st.recursive(
    WORDS | JSON,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)
MODEL = ModelInfo(name="m", sha256=None, path=None, context_length=0, quantisation="")


def bodies(known: frozenset[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(sorted(known)), LIKELY, max_size=6).map(
        lambda body: {**body, "model": "m"}
    )


@given(bodies(responses.READ))
def test_responses(body: dict[str, Any]) -> None:
    with contextlib.suppress(RefusedError):
        asked = responses.read_request(body)
        json.dumps([dict(asked.chat), dict(asked.repeated)])


@given(bodies(messages.READ))
def test_messages(body: dict[str, Any]) -> None:
    with contextlib.suppress(RefusedError):
        json.dumps(dict(messages.read_request(body, known={messages.THINKING_BUDGET}).chat))


@given(
    st.sampled_from(sorted(lists.ROUTES)),
    st.dictionaries(
        st.sampled_from(["input", "query", "documents", "prompt", "top_n", "encoding_format"]),
        LIKELY,
    ),
)
def test_lists(path: str, body: dict[str, Any]) -> None:
    with contextlib.suppress(RefusedError):
        json.loads(lists.translate(path, body, MODEL).body())


@given(LIKELY)
def test_addresses(value: object) -> None:
    with contextlib.suppress(RefusedError):
        check_addresses(value)
