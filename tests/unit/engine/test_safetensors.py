"""Which files a safetensors reader accepts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from cloister.engine.safetensors import check_safetensors
from cloister.errors import MalformedError

A = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}
B = {"dtype": "F32", "shape": [], "data_offsets": [12, 16]}


def write(path: Path, header: Any, data: int = 16, length: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(encoded) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + encoded + bytes(data))
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    good = {"__metadata__": {"format": "pt"}, "b": B, "a": A}
    assert check_safetensors(write(tmp_path / "m", good)) == 2
    assert check_safetensors(write(tmp_path / "m", {}, 0)) == 0


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({"a": A}, 16, None),
        ({"a": A, "b": B}, 15, None),
        ({"a": A, "b": {**B, "data_offsets": [11, 15]}}, 15, None),
        ({"a": A, "b": {**B, "data_offsets": [13, 17]}}, 17, None),
        ({"a": {**A, "shape": [2, 2]}, "b": B}, 16, None),
        ({"a": {**A, "shape": [-2, -3]}, "b": B}, 16, None),
        ({"a": {**A, "dtype": "PICKLE"}, "b": B}, 16, None),
        ({"a": {**A, "data_offsets": [12, 0]}, "b": B}, 16, None),
        ({"a": {**A, "more": 1}, "b": B}, 16, None),
        ({"a": 1}, 0, None),
        ([], 0, None),
        (b'{"a": 1, "a": 1}', 0, None),
        (b"{", 0, None),
        ({}, 0, 1 << 40),
        ({}, 0, 3),
    ],
)
def test_what_is_refused(header: Any, data: int, length: int | None, tmp_path: Path) -> None:
    check_safetensors(write(tmp_path / "good", {"a": A, "b": B}))
    with pytest.raises(MalformedError):
        check_safetensors(write(tmp_path / "bad", header, data, length))


def test_a_file_shorter_than_its_first_number(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"1234567")
    with pytest.raises(MalformedError):
        check_safetensors(tmp_path / "m")
