"""Checks that a file is what a safetensors reader will accept, without reading its weights.

The format (huggingface/safetensors, ``README.md``, "Format"): the header's length in bytes (u64,
little-endian), a JSON object, then the data. Each entry but ``__metadata__`` has ``dtype``,
``shape`` and ``data_offsets`` [begin, end) into the data; together they cover the data without
holes or overlaps. Unlike pickles the file can hold no code.

Not checked: that shapes and types fit the model, or what the weights are.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Final

from cloister.errors import MalformedError
from cloister.strictjson import Json, parse_json

MAX_HEADER: Final = 100_000_000  # the reference reader's limit
_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64,
}  # fmt: skip


def check_safetensors(path: Path) -> int:
    """Return how many tensors the file holds; MalformedError if it is not safetensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) != 8:
            raise MalformedError("a safetensors file ends inside its header")
        (length,) = struct.unpack("<Q", head)
        if length > min(MAX_HEADER, size - 8):
            raise MalformedError("a safetensors header is longer than its file, or than allowed")
        header = parse_json(file.read(length), limit=MAX_HEADER, what="a safetensors header")
    if not isinstance(header, dict):
        raise MalformedError("a safetensors header is not an object")
    header.pop("__metadata__", None)
    spans = sorted(_span(entry) for entry in header.values())
    end = 0
    for begin, after in spans:
        if begin != end:
            raise MalformedError("the tensors of a safetensors file overlap or leave holes")
        end = after
    if end != size - 8 - length:
        raise MalformedError("the data of a safetensors file is shorter or longer than it says")
    return len(spans)


def _span(entry: Json) -> tuple[int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise MalformedError("a safetensors entry has other members than it should")
    dtype, shape, offsets = entry["dtype"], _numbers(entry["shape"]), entry["data_offsets"]
    span = _numbers(offsets)
    if not isinstance(dtype, str) or dtype not in _BITS or len(span) != 2 or span[0] > span[1]:
        raise MalformedError("a safetensors entry has a type or offsets that are none")
    if math.prod(shape) * _BITS[dtype] != 8 * (span[1] - span[0]):
        raise MalformedError("a safetensors entry's size is not that of its shape")
    return span[0], span[1]


def _numbers(value: Json) -> list[int]:
    if not isinstance(value, list) or len(value) > 32:
        raise MalformedError("a safetensors entry has a list that is none")
    found = []
    for number in value:
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise MalformedError("a safetensors entry has a number that is none")
        found.append(number)
    return found
