"""Reads the metadata of a GGUF model file: what it is called, and what kind of model it is.

GGUF versions 2 and 3 (ggml repository, ``docs/gguf.md``): magic ``GGUF``, version (u32), tensor
count (u64), pair count (u64), then the pairs: a key (u64 length, UTF-8), a type (u32), a value.
Little-endian. The file may be hostile, so everything is bounded; only the pairs named here are
kept, the rest is skipped; tensors are not looked at.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from cloister.errors import MalformedError

MAX_PAIRS: Final = 4_096
MAX_KEY: Final = 65_535  # the format's own bound
MAX_STRING: Final = 4 << 20  # chat templates run to some 20 KiB
MAX_ARRAY: Final = 4 << 20  # vocabularies run to some 300,000 entries
MAX_METADATA: Final = 256 << 20  # bytes of all pairs together
_MAX_TEXT: Final = 256  # characters kept of a name

_STRING: Final = 8
_ARRAY: Final = 9
_SCALARS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip

#: ``general.file_type`` (enum llama_ftype of llama.cpp), the ones in use.
FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


TEMPLATE_WORDS: Final = ("think", "reasoning_effort", "tools")
"""A template without one of these cannot heed what a request says of it. The first is part of
the marks of reasoning (``<think>``) and of the switch for it (``enable_thinking``)."""
#: What the size of a cache follows from; some models give one of them per layer, as an array.
_SHAPE: Final = (
    ".block_count",
    ".embedding_length",
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.key_length",
    ".attention.value_length",
)
_MAX_SHAPE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufMetadata:
    """What the file says about itself; nothing of it is proven. 0 and "" where it says nothing.

    `cache_bytes` is what one token takes in a cache of 16-bit keys and values, at most.
    """

    version: int
    name: str
    architecture: str
    context_length: int
    quantisation: str
    has_chat_template: bool
    template_words: frozenset[str]
    """Of `TEMPLATE_WORDS`, those that stand in its chat template."""
    cache_bytes: int = 0


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MAX_METADATA

    def take(self, size: int) -> bytes:
        self._spend(size)
        data = self._file.read(size)
        if len(data) != size:
            raise MalformedError("the GGUF file ends inside its metadata")
        return data

    def skip(self, size: int) -> None:
        while size:
            size -= len(self.take(min(size, 1 << 20)))

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise MalformedError("the GGUF file has too much metadata")

    def number(self, form: str) -> int | float:
        value: int | float = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def count(self, form: str, limit: int, what: str) -> int:
        value = self.number(form)
        if not isinstance(value, int) or value > limit:
            raise MalformedError(f"the GGUF file has {what} out of bounds")
        return value

    def string(self) -> bytes:
        return self.take(self.count("<Q", MAX_STRING, "a string length"))

    def skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self.skip(self.count("<Q", MAX_STRING, "a string length"))
        elif kind == _ARRAY:
            inner = self.count("<I", 12, "an array type")
            size = self.count("<Q", MAX_ARRAY, "an array length")
            if inner == _ARRAY:
                raise MalformedError("the GGUF file nests arrays")
            if inner == _STRING:
                for _ in range(size):
                    self.skip(self.count("<Q", MAX_STRING, "a string length"))
            else:
                self.skip(size * struct.calcsize(self.scalar(inner)))
        else:
            self.skip(struct.calcsize(self.scalar(kind)))

    @staticmethod
    def scalar(kind: int) -> str:
        if kind not in _SCALARS:
            raise MalformedError("the GGUF file has a value of unknown type")
        return _SCALARS[kind]


def parse_gguf(file: BinaryIO) -> GgufMetadata:
    """Decode the metadata at the start of `file`, which is left anywhere.

    Raises MalformedError, and nothing else but the file's own OSError.
    """
    reader = _Reader(file)
    if reader.take(4) != b"GGUF":
        raise MalformedError("the file is not GGUF")
    version = reader.number("<I")
    if version not in (2, 3):
        raise MalformedError("the GGUF version is neither 2 nor 3")
    reader.number("<Q")
    kept: dict[str, bytes | int | float] = {}
    for _ in range(reader.count("<Q", MAX_PAIRS, "a pair count")):
        key = _text(reader.take(reader.count("<Q", MAX_KEY, "a key length")))
        kind = reader.count("<I", 12, "a value type")
        if not _wanted(key) or (kind == _ARRAY and key.endswith(_SHAPE)):
            reader.skip_value(kind)
            continue
        if key in kept:
            raise MalformedError("the GGUF file repeats a key")
        kept[key] = reader.string() if kind == _STRING else reader.number(reader.scalar(kind))
    return _metadata(int(version), kept)


def _wanted(key: str) -> bool:
    return key.endswith((".context_length", *_SHAPE)) or key in (
        "general.architecture",
        "general.file_type",
        "general.name",
        "tokenizer.chat_template",
    )


def _metadata(version: int, kept: dict[str, bytes | int | float]) -> GgufMetadata:
    architecture = _kept_text(kept, "general.architecture")
    length = kept.get(f"{architecture}.context_length", 0)
    file_type = kept.get("general.file_type", -1)
    return GgufMetadata(
        version=version,
        name=_kept_text(kept, "general.name"),
        architecture=architecture,
        context_length=length if isinstance(length, int) and 0 <= length < 1 << 32 else 0,
        quantisation=FILE_TYPES.get(file_type, "") if isinstance(file_type, int) else "",
        has_chat_template="tokenizer.chat_template" in kept,
        template_words=_template_words(kept.get("tokenizer.chat_template", b"")),
        cache_bytes=_cache_bytes({name: kept.get(architecture + name, 0) for name in _SHAPE}),
    )


def _cache_bytes(shape: dict[str, bytes | int | float]) -> int:
    """Keys and values of all layers, two bytes each; 0 where the file does not say enough."""
    layers, width, heads, kept, key, value = (
        found if isinstance(found, int) and 0 <= found <= _MAX_SHAPE else 0
        for found in shape.values()
    )
    if heads and kept:  # fewer keys than queries
        own = width // heads
        return 2 * layers * kept * ((key or own) + (value or own))
    return 2 * layers * 2 * width


def _template_words(template: bytes | int | float) -> frozenset[str]:
    if not isinstance(template, bytes):
        raise MalformedError("the GGUF file has a chat template that is not text")
    return frozenset(word for word in TEMPLATE_WORDS if word.encode() in template)


def _kept_text(kept: dict[str, bytes | int | float], key: str) -> str:
    value = kept.get(key, b"")
    if not isinstance(value, bytes):
        raise MalformedError("the GGUF file has a name that is not text")
    text = _text(value)[:_MAX_TEXT]
    return "".join(character for character in text if character.isprintable())


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedError("the GGUF file has text that is not UTF-8") from None
