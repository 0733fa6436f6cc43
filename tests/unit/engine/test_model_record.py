"""``model.json``: the same bytes for the same record, and nothing else is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloister.engine.model_record import FileRecord, ModelRecord, describe_file, read_record
from cloister.errors import ConfigurationError, MalformedError

FILE = FileRecord(path="a/b.gguf", bytes=3, sha256="ab" * 32)
RECORD = ModelRecord(
    operation="prepare",
    inputs=(FILE,),
    outputs=(FILE, FileRecord(path="c.json", bytes=0, sha256="00" * 32)),
    tools={"cloister": "1"},
    options={"kind": "gguf"},
)


def test_it_reads_what_it_writes(tmp_path: Path) -> None:
    path = RECORD.write(tmp_path)
    assert read_record(path) == read_record(tmp_path) == RECORD
    assert path.read_bytes() == RECORD.encode()
    assert path.stat().st_mode & 0o777 == 0o644
    RECORD.write(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.json"]


def test_another_step_does_not_take_its_place(tmp_path: Path) -> None:
    RECORD.write(tmp_path)
    other = ModelRecord(operation="quantize", inputs=(FILE,), outputs=(), tools={}, options={})
    with pytest.raises(ConfigurationError) as caught:
        other.write(tmp_path)
    assert caught.value.code == "model.out_taken"
    assert read_record(tmp_path) == RECORD


def changed(**members: Any) -> bytes:
    return json.dumps({**json.loads(RECORD.encode()), **members}).encode()


def file_with(**members: Any) -> list[dict[str, Any]]:
    return [{"path": "a", "bytes": 1, "sha256": "00" * 32, **members}]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        changed(format="cloister.model/2"),
        changed(more=1),
        changed(tools={"a": 1}),
        changed(options=[]),
        changed(operation=None),
        changed(inputs={}),
        changed(outputs=file_with(path="/etc/passwd")),
        changed(outputs=file_with(path="../a")),
        changed(outputs=file_with(path="a//b")),
        changed(outputs=file_with(path="")),
        changed(outputs=file_with(bytes=-1)),
        changed(outputs=file_with(bytes=True)),
        changed(outputs=file_with(sha256="AB" * 32)),
        changed(outputs=file_with(sha256="ab")),
        changed(outputs=file_with(other=1)),
        changed(outputs=file_with() * 2),
    ],
)
def test_what_is_no_record_is_malformed(data: bytes) -> None:
    assert ModelRecord.parse(changed(outputs=file_with())).outputs[0].path == "a"
    with pytest.raises(MalformedError):
        ModelRecord.parse(data)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for read in (read_record, lambda path: describe_file(path, "x")):
        with pytest.raises(ConfigurationError):
            read(tmp_path / "none")
