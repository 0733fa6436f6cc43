"""Headers of sealed weights from anyone: they decode to what they say, or are malformed."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedError
from cloister.strictjson import canonical
from cloister.weights.header import (
    MIN_CHUNK,
    TAG,
    About,
    FileEntry,
    Header,
    Kind,
    parse_header,
    parse_preamble,
)

GOOD = Header(
    kind=Kind.GGUF,
    files=(FileEntry(path="model.gguf", size=5, sha256="0" * 64),),
    about=About(name="x"),
    key_id=bytes(16),
    salt=bytes(32),
).encoded

LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
JSON = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(max_size=8), LEAVES)


def decode(data: bytes) -> None:
    """What decodes is spelled in one way, and its places follow one another without a gap."""
    with contextlib.suppress(MalformedError):
        header = parse_header(data)
        assert header.encoded == data
        position = header.spans[0].position
        for span in header.spans:
            last = header.chunk(span, span.count - 1)
            assert span.position == position
            assert last.offset + last.size == span.entry.size
            position = last.position + last.size + TAG
        assert position == header.sealed_bytes
        assert header.chunk_bytes >= MIN_CHUNK


def test_the_example_is_good() -> None:
    assert parse_header(GOOD).encoded == GOOD


@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    decode(data)
    with contextlib.suppress(MalformedError):
        parse_preamble(data)


@given(member=st.sampled_from(sorted(json.loads(GOOD))), value=JSON)
def test_any_value_in_any_place(member: str, value: object) -> None:
    with contextlib.suppress(MalformedError):
        decode(canonical({**json.loads(GOOD), member: value}))


@given(
    files=st.dictionaries(
        st.text(max_size=12) | st.sampled_from(["a", "a/b", "../x", "/x"]),
        st.integers(0, 1 << 43),
        max_size=5,
    ),
    chunk=st.integers(0, 1 << 21),
)
def test_any_files(files: dict[str, int], chunk: int) -> None:
    listed = [{"bytes": n, "path": p, "sha256": "0" * 64} for p, n in sorted(files.items())]
    kind = {"kind": "safetensors", "chunk_bytes": chunk}
    with contextlib.suppress(MalformedError):
        decode(canonical({**json.loads(GOOD), **kind, "files": listed}))
