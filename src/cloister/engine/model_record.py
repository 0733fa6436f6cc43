"""``model.json``: what lies beside a model, where it came from, and what made it.

One JSON object: ``format`` (``cloister.model/1``), ``operation``, ``inputs`` and ``outputs``
(each a list of ``{"path", "bytes", "sha256"}``, ordered by path), ``tools`` (name → version),
``options`` (name → text). Paths of outputs are relative to the record; those of inputs are names
only. There is no date and no place of this machine in it: the same inputs, tools and options give
the same bytes.

A record proves nothing by itself. It is for comparing: what is served is measured again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from cloister.engine.models import sha256_file
from cloister.errors import ConfigurationError, MalformedError
from cloister.strictjson import Json, JsonObject, parse_json

FORMAT: Final = "cloister.model/1"
NAME: Final = "model.json"
MAX_BYTES: Final = 4 << 20
MAX_FILES: Final = 10_000
_MEMBERS: Final = {"format", "operation", "inputs", "outputs", "tools", "options"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file: `path` with forward slashes, size in bytes, SHA-256 in lower-case hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """What was done to which files, with which tools, and what came of it."""

    operation: str
    inputs: tuple[FileRecord, ...]
    outputs: tuple[FileRecord, ...]
    tools: Mapping[str, str]
    options: Mapping[str, str]

    def encode(self) -> bytes:
        """Return the JSON document, always the same bytes for the same record."""
        document = {
            "format": FORMAT,
            "operation": self.operation,
            "inputs": _encode_files(self.inputs),
            "tools": dict(self.tools),
            "options": dict(self.options),
            "outputs": _encode_files(self.outputs),
        }
        return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode("ascii")

    @classmethod
    def parse(cls, data: bytes) -> ModelRecord:
        """Decode a record; MalformedError for anything else."""
        document = parse_json(data, limit=MAX_BYTES, what="the model record")
        if not isinstance(document, dict) or document.keys() != _MEMBERS:
            raise MalformedError("the model record has other members than it should")
        if document["format"] != FORMAT:
            raise MalformedError("the model record is of another format")
        return cls(
            operation=_text(document["operation"]),
            inputs=_parse_files(document["inputs"]),
            outputs=_parse_files(document["outputs"]),
            tools=_parse_texts(document["tools"]),
            options=_parse_texts(document["options"]),
        )

    def write(self, folder: Path) -> Path:
        """Put the record into `folder`, whole or not at all.

        ConfigurationError when there is one that tells of other inputs or another operation: it
        would be lost, and with it where those files came from.
        """
        target = folder / NAME
        check_room(folder, operation=self.operation, inputs=self.inputs)
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".record-")
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.encode())
            partial.chmod(0o644)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target


def read_record(path: Path) -> ModelRecord:
    """Read a record from `path`, a file or the folder that holds one.

    Raises ConfigurationError if it cannot be read, MalformedError if it is none.
    """
    path = path / NAME if path.is_dir() else path
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"the model record {path} cannot be read (errno {error.errno})", code="model.record"
        ) from None
    return ModelRecord.parse(data)


def check_room(folder: Path, *, operation: str, inputs: Iterable[FileRecord]) -> None:
    """Refuse a folder whose record tells of something else; before any work is done."""
    if not (folder / NAME).exists():
        return
    old = read_record(folder / NAME)
    digests = {file.sha256 for file in inputs}
    if old.operation != operation or {file.sha256 for file in old.inputs} != digests:
        raise ConfigurationError(
            f"{folder} holds {NAME} of another model or another step: choose another --out",
            code="model.out_taken",
        )


def describe_file(path: Path, name: str) -> FileRecord:
    """Hash a file and say what it is, under `name`; ConfigurationError if it cannot be read."""
    try:
        return FileRecord(path=name, bytes=path.stat().st_size, sha256=sha256_file(path))
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read (errno {error.errno})", code="configuration.model"
        ) from None


def _encode_files(files: Iterable[FileRecord]) -> list[dict[str, object]]:
    ordered = sorted(files, key=lambda file: file.path)
    return [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in ordered]


def _parse_files(value: Json) -> tuple[FileRecord, ...]:
    if not isinstance(value, list) or len(value) > MAX_FILES:
        raise MalformedError("the model record has no proper list of files")
    files = tuple(_parse_file(entry) for entry in value)
    if len({file.path for file in files}) != len(files):
        raise MalformedError("the model record names a file twice")
    return files


def _parse_file(value: Json) -> FileRecord:
    if not isinstance(value, dict) or value.keys() != {"path", "bytes", "sha256"}:
        raise MalformedError("the model record has an improper file")
    path, size, digest = _text(value["path"]), value["bytes"], _text(value["sha256"])
    pure = PurePosixPath(path)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or str(pure) != path:
        raise MalformedError("the model record names a path that leads elsewhere")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise MalformedError("the model record has a size that is none")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise MalformedError("the model record has a digest that is none")
    return FileRecord(path=path, bytes=size, sha256=digest)


def _parse_texts(value: Json) -> dict[str, str]:
    if not isinstance(value, dict):
        raise MalformedError("the model record has an improper table")
    table: JsonObject = value
    return {name: _text(text) for name, text in table.items()}


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise MalformedError("the model record has a text that is none")
    return value
