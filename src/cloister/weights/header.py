"""The header of sealed weights: what the file holds, and where each piece of it lies.

::

    "cloister-weights"   16 bytes
    length of header      4 bytes, big-endian
    header               canonical JSON (RFC 8785), at most 1 MiB
    chunks               of the first file, of the second, …: ciphertext, then a tag of 16 bytes

Files are cut into chunks of `chunk_bytes`; the last one of each file is shorter, and an empty file
has one empty chunk. Chunks are numbered through all files, from 0. The header says the size of
every file, so it fixes the place of every chunk and the length of the whole: nothing in the file
is a pointer, and there is no other index.

The header is not secret: names, sizes and digests of the files can be read without the key, so
that a manifest can name them and a signature over them can be checked. It is authenticated by the
chunks, whose key is derived from its digest (`cloister.weights.cipher`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Final

from cloister.errors import MalformedError
from cloister.strictjson import (
    Json,
    JsonObject,
    canonical,
    expect_hex,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)
from cloister.weights.paths import check_path, check_paths

FORMAT: Final = "cloister/sealed-weights/1"
MAGIC: Final = b"cloister-weights"
PREAMBLE: Final = len(MAGIC) + 4
TAG: Final = 16
KEY_ID: Final = 16
SALT: Final = 32

DEFAULT_CHUNK: Final = 256 << 10
"""Ciphertext and plaintext of one chunk together stay within a core's second-level cache."""
MIN_CHUNK: Final = 256
MAX_CHUNK: Final = 1 << 20
MAX_HEADER: Final = 1 << 20
MAX_FILES: Final = 1_000
"""As many as a model's folder may hold (`cloister.engine.model_folder`)."""
MAX_BYTES: Final = 1 << 42
"""Plaintext under one key: 2^38 blocks of AES, far below where GCM's bounds begin to matter."""
MAX_CHUNKS: Final = 1 << 32
"""What the nonce can count."""
_MAX_WORDS: Final = 16


class Kind(StrEnum):
    """What is sealed."""

    GGUF = "gguf"
    """One file."""
    SAFETENSORS = "safetensors"
    """A folder: weights, configuration, tokeniser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file: relative path, plaintext bytes, lower-case hex SHA-256 of the plaintext."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What an engine's settings follow from, so that a worker can be measured before it has the
    key. Compared with the model itself once that is open.

    `context_length` in tokens and `cache_bytes` per token, 0 where unknown.
    """

    name: str
    context_length: int = 0
    quantisation: str = ""
    cache_bytes: int = 0
    template_words: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a file: `offset` and `size` of its plaintext there, `position` of its
    ciphertext in the sealed file. `final` is the last chunk of the last file."""

    number: int
    offset: int
    size: int
    position: int
    final: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Where the chunks of one file lie: the first one's number and position, and how many."""

    entry: FileEntry
    first: int
    position: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """A header. `encode` is the only spelling of it, so its digest names all that it says."""

    kind: Kind
    files: tuple[FileEntry, ...]
    """Ordered by the bytes of their paths."""
    about: About
    key_id: bytes
    salt: bytes
    chunk_bytes: int = DEFAULT_CHUNK

    @cached_property
    def encoded(self) -> bytes:
        """The canonical JSON."""
        files: list[Json] = [
            {"bytes": file.size, "path": file.path, "sha256": file.sha256} for file in self.files
        ]
        words: list[Json] = [*sorted(self.about.template_words)]
        document: JsonObject = {
            "about": {
                "cache_bytes": self.about.cache_bytes,
                "context_length": self.about.context_length,
                "name": self.about.name,
                "quantisation": self.about.quantisation,
                "template_words": words,
            },
            "chunk_bytes": self.chunk_bytes,
            "files": files,
            "format": FORMAT,
            "key_id": self.key_id.hex(),
            "kind": self.kind.value,
            "salt": self.salt.hex(),
        }
        return canonical(document)

    @cached_property
    def sha256(self) -> str:
        """What a manifest names: lower-case hex."""
        return hashlib.sha256(self.encoded).hexdigest()

    @property
    def model_sha256(self) -> str:
        """The digest of the model, as of the same files when they are not sealed.

        Of a folder it is the one that `cloister.engine.model_folder` computes.
        """
        if self.kind is Kind.GGUF:
            return self.files[0].sha256
        lines = [f"{file.sha256}  {file.path}\n".encode() for file in self.files]
        return hashlib.sha256(b"".join(lines)).hexdigest()

    @property
    def plaintext_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size for file in self.files)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Where each file lies, in order."""
        number, position = 0, PREAMBLE + len(self.encoded)
        found = []
        for file in self.files:
            count = max(1, -(-file.size // self.chunk_bytes))
            found.append(Span(file, number, position, count))
            number += count
            position += file.size + count * TAG
        return tuple(found)

    @property
    def sealed_bytes(self) -> int:
        """The length of the whole sealed file."""
        last = self.spans[-1]
        return last.position + last.entry.size + last.count * TAG

    def chunk(self, span: Span, index: int) -> Chunk:
        """The chunk `index` of a file, from 0; IndexError beyond its last."""
        if not 0 <= index < span.count:
            raise IndexError(index)
        offset = index * self.chunk_bytes
        return Chunk(
            number=span.first + index,
            offset=offset,
            size=min(self.chunk_bytes, span.entry.size - offset),
            position=span.position + index * (self.chunk_bytes + TAG),
            final=span is self.spans[-1] and index == span.count - 1,
        )

    def chunks(self, span: Span) -> Iterator[Chunk]:
        """All chunks of a file."""
        return (self.chunk(span, index) for index in range(span.count))


def parse_preamble(data: bytes) -> int:
    """How long the header is, from the first `PREAMBLE` bytes of a sealed file.

    Raises MalformedError, and nothing else.
    """
    if len(data) != PREAMBLE or not data.startswith(MAGIC):
        raise MalformedError("this is not a file of sealed weights", code="weights.format")
    length = int.from_bytes(data[len(MAGIC) :], "big")
    if not 0 < length <= MAX_HEADER:
        raise MalformedError("the header of sealed weights is out of bounds", code="weights.format")
    return length


def parse_header(data: bytes) -> Header:
    """Decode a header; `data` must be its canonical form. Nothing is authenticated here.

    Raises MalformedError, and nothing else.
    """
    what = "the header of sealed weights"
    members = parse_json_object(data, limit=MAX_HEADER, what=what, code="weights.format")
    if members.get("format") != FORMAT:
        raise MalformedError(f"{what} is not of the format {FORMAT}", code="weights.format")
    expect_keys(
        members,
        what,
        required={"about", "chunk_bytes", "files", "format", "key_id", "kind", "salt"},
    )
    listed = expect_list(members["files"], "the files", limit=MAX_FILES)
    header = Header(
        kind=_kind(members["kind"]),
        files=tuple(_file(entry) for entry in listed),
        about=_about(members["about"]),
        key_id=expect_hex(members["key_id"], "the key id", size=KEY_ID),
        salt=expect_hex(members["salt"], "the salt", size=SALT),
        chunk_bytes=expect_int(
            members["chunk_bytes"], "the size of chunks", low=MIN_CHUNK, high=MAX_CHUNK
        ),
    )
    check_header(header)
    if header.encoded != data:
        raise MalformedError(f"{what} is not in canonical form", code="weights.format")
    return header


def check_header(header: Header) -> None:
    """MalformedError for what no header says: no files, paths that lead elsewhere, too much."""
    paths = [file.path for file in header.files]
    check_paths(paths)
    if not paths or paths != sorted(paths, key=str.encode):
        raise MalformedError("the files of sealed weights are none, or out of order")
    if header.kind is Kind.GGUF and len(paths) != 1:
        raise MalformedError("sealed GGUF weights are one file")
    if header.plaintext_bytes > MAX_BYTES:
        raise MalformedError(f"sealed weights hold at most {MAX_BYTES} bytes")
    if not MIN_CHUNK <= header.chunk_bytes <= MAX_CHUNK:
        raise MalformedError(f"chunks have {MIN_CHUNK} to {MAX_CHUNK} bytes")
    if sum(span.count for span in header.spans) > MAX_CHUNKS:
        raise MalformedError("the chunks of sealed weights are too small for so many bytes")


def _kind(value: Json) -> Kind:
    try:
        return Kind(expect_str(value, "the kind of weights", limit=32))
    except ValueError:
        raise MalformedError("the sealed weights are of an unknown kind") from None


def _file(value: Json) -> FileEntry:
    members = expect_object(value, "a file of sealed weights")
    expect_keys(members, "a file of sealed weights", required={"bytes", "path", "sha256"})
    return FileEntry(
        path=check_path(expect_str(members["path"], "a path", limit=512)),
        size=expect_int(members["bytes"], "a file's size", high=MAX_BYTES),
        sha256=expect_hex(members["sha256"], "a file's digest", size=32).hex(),
    )


def _about(value: Json) -> About:
    what = "what sealed weights say of the model"
    members = expect_object(value, what)
    names = {"cache_bytes", "context_length", "name", "quantisation", "template_words"}
    expect_keys(members, what, required=names)
    words = expect_list(members["template_words"], "the template's words", limit=_MAX_WORDS)
    return About(
        name=_text(members["name"]),
        context_length=expect_int(members["context_length"], "the context", high=(1 << 32) - 1),
        quantisation=_text(members["quantisation"]),
        cache_bytes=expect_int(members["cache_bytes"], "the cache", high=1 << 48),
        template_words=frozenset(_text(word) for word in words),
    )


def _text(value: Json) -> str:
    text = expect_str(value, "a word about the model", limit=256)
    if not text.isprintable():
        raise MalformedError("a word about the model cannot be printed")
    return text
