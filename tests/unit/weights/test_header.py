"""What a header may say, and how long the file is that follows from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.attester.tree import content_paths, hash_files, list_tree, tree_digest
from cloister.errors import MalformedError
from cloister.strictjson import canonical
from cloister.weights.header import (
    MAGIC,
    MAX_BYTES,
    MAX_FILES,
    MAX_HEADER,
    MIN_CHUNK,
    TAG,
    About,
    FileEntry,
    Header,
    Kind,
    check_header,
    parse_header,
    parse_preamble,
)
from support.sealed_weights import sealed_folder

HEADER = Header(
    kind=Kind.SAFETENSORS,
    files=(
        FileEntry(path="config.json", size=0, sha256="1" * 64),
        FileEntry(path="model.safetensors", size=2 * MIN_CHUNK + 1, sha256="2" * 64),
    ),
    about=About(name="small", context_length=8, template_words=frozenset({"tools", "think"})),
    key_id=bytes(16),
    salt=bytes(32),
    chunk_bytes=MIN_CHUNK,
)


def test_a_header_decodes_to_itself() -> None:
    assert parse_header(HEADER.encoded) == HEADER
    assert HEADER.sha256 == hashlib.sha256(HEADER.encoded).hexdigest()


def test_the_header_fixes_where_everything_lies() -> None:
    start = len(MAGIC) + 4 + len(HEADER.encoded)
    empty, large = HEADER.spans
    assert [(c.number, c.offset, c.size, c.position, c.final) for c in HEADER.chunks(empty)] == [
        (0, 0, 0, start, False)
    ]
    first = start + TAG
    assert [(c.number, c.offset, c.size, c.position, c.final) for c in HEADER.chunks(large)] == [
        (1, 0, MIN_CHUNK, first, False),
        (2, MIN_CHUNK, MIN_CHUNK, first + MIN_CHUNK + TAG, False),
        (3, 2 * MIN_CHUNK, 1, first + 2 * (MIN_CHUNK + TAG), True),
    ]
    assert HEADER.sealed_bytes == first + 2 * (MIN_CHUNK + TAG) + 1 + TAG
    with pytest.raises(IndexError):
        HEADER.chunk(large, 3)
    with pytest.raises(IndexError):
        HEADER.chunk(large, -1)


def altered(**changes: object) -> bytes:
    return canonical({**json.loads(HEADER.encoded), **changes})


def entry(**changes: object) -> dict[str, object]:
    return {"bytes": 1, "path": "a.json", "sha256": "0" * 64, **changes}


def about(**changes: object) -> dict[str, object]:
    return {**json.loads(HEADER.encoded)["about"], **changes}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        HEADER.encoded + b" ",
        HEADER.encoded[:-1] + b',"more":1}',
        json.dumps(json.loads(HEADER.encoded)).encode(),
        altered(format="cloister/sealed-weights/2"),
        altered(kind="pickle"),
        altered(kind="gguf"),
        altered(salt="00"),
        altered(key_id="00"),
        altered(chunk_bytes=MIN_CHUNK - 1),
        altered(chunk_bytes=(1 << 20) + 1),
        altered(files=[]),
        altered(files=[entry(), entry()]),
        altered(files=[entry(path="b"), entry(path="a")]),
        altered(files=[entry(path="a"), entry(path="A")]),
        altered(files=[entry(path="a"), entry(path="a/b")]),
        altered(files=[entry(bytes=-1)]),
        altered(files=[entry(bytes=True)]),
        altered(files=[entry(bytes=MAX_BYTES + 1)]),
        altered(files=[entry(path="a", bytes=MAX_BYTES), entry(path="b")]),
        altered(files=[entry(sha256="0" * 63)]),
        altered(files=[entry(more=1)]),
        altered(files=[entry(path=f"{n:04}") for n in range(MAX_FILES + 1)]),
        altered(about=about(name="a\nb")),
        altered(about=about(template_words=["tools", "think"])),
        altered(about=about(template_words=["think", "think"])),
        altered(about=about(context_length=-1)),
    ],
)
def test_what_no_header_says_is_malformed(data: bytes) -> None:
    assert parse_header(HEADER.encoded) == HEADER
    with pytest.raises(MalformedError):
        parse_header(data)


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "../up", "a/../../up", "a//b", "./a", "a/.", "a/", "a\\b", "C:a", "a\0b",
        "a\nb", "two  spaces", "\u202egnp.exe", "x" * 256, "/".join(["long"] * 103),
    ],
)  # fmt: skip
def test_paths_with_tricks_are_malformed(path: str) -> None:
    good = parse_header(altered(files=[entry(path="folder/file-00001 of 2.json")]))
    assert good.files[0].path == "folder/file-00001 of 2.json"
    with pytest.raises(MalformedError):
        parse_header(altered(files=[entry(path=path)]))


def test_as_many_chunks_as_the_nonce_counts() -> None:
    file = HEADER.files[1]
    most = replace(file, size=MIN_CHUNK << 32)
    check_header(replace(HEADER, files=(most,)))
    with pytest.raises(MalformedError):
        check_header(replace(HEADER, files=(replace(most, size=most.size + 1),)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC,
        MAGIC + bytes(4),
        MAGIC + (MAX_HEADER + 1).to_bytes(4, "big"),
        b"X" + MAGIC[1:] + (1).to_bytes(4, "big"),
        MAGIC + (1).to_bytes(4, "big") + b"{",
    ],
)
def test_other_preambles_are_malformed(data: bytes) -> None:
    assert parse_preamble(MAGIC + MAX_HEADER.to_bytes(4, "big")) == MAX_HEADER
    with pytest.raises(MalformedError):
        parse_preamble(data)


def test_a_folders_digest_is_that_of_the_same_files_unsealed(tmp_path: Path) -> None:
    sealed = sealed_folder(tmp_path, {"config.json": 3, "b/x.json": 5, "b.json": 7})
    entries = list_tree(str(tmp_path / "one-source"))
    digests = hash_files(content_paths(entries), threads=1)
    assert tree_digest(entries, digests) == "sha256:" + sealed.header.model_sha256


def test_one_files_digest_is_its_own(tmp_path: Path) -> None:
    files = (HEADER.files[1],)
    assert replace(HEADER, kind=Kind.GGUF, files=files).model_sha256 == "2" * 64
