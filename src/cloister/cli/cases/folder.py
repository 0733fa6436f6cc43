"""Reads one case folder: the evidence and what the caller expects of it, and nothing else.

``case.json`` also tells the expected verdict and facts; those members are never looked at.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from cloister.endorsements.certificates import parse_certificates
from cloister.errors import ConfigurationError, MalformedError
from cloister.strictjson import (
    decode_base64,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.policy import AppraisalPolicy

MAX_CASE_BYTES: Final = 1024 * 1024
MAX_FILE_BYTES: Final = 8 * 1024 * 1024
_IGNORED: Final = ("expected", "facts", "how_known")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFile:
    """One file of a case, its text encodings (hexadecimal, base64) undone."""

    role: str
    name: str
    encoding: str
    data: bytes


class Inputs(Mapping[str, object]):
    """The inputs of a case, and which of them nobody looked at: no verdict may rest on those."""

    def __init__(self, inputs: Mapping[str, object]) -> None:
        self._inputs = inputs
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> object:
        self._read.add(name)
        return self._inputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)

    @property
    def unread(self) -> tuple[str, ...]:
        """Names of inputs, other than ``null``, that were not asked for."""
        return tuple(
            name
            for name, value in self._inputs.items()
            if value is not None and name not in self._read
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFiles:
    """A case as given to a platform's reader."""

    name: str
    platform: str
    variant: str | None
    files: tuple[CaseFile, ...]
    inputs: Mapping[str, object]
    certificates: tuple[x509.Certificate, ...]
    """What the case names as roots: used to complete chains, never as something to trust."""
    at: datetime

    def one(self, role: str) -> bytes:
        """The bytes of the one file with `role`.

        Raises:
            ConfigurationError: there is none.
        """
        data = self.optional(role)
        if data is None:
            raise ConfigurationError(f"the case {self.name} has no {role}", code="case.malformed")
        return data

    def optional(self, role: str) -> bytes | None:
        """The bytes of the first file with `role`, if there is one."""
        return next((file.data for file in self.files if file.role == role), None)

    def all(self, prefix: str) -> tuple[CaseFile, ...]:
        """Every file whose role begins with `prefix`, in order."""
        return tuple(file for file in self.files if file.role.startswith(prefix))


def unchanged(policy: AppraisalPolicy) -> AppraisalPolicy:
    """The policy as it is."""
    return policy


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseInput:
    """What a platform's reader makes of a case."""

    evidence: object
    """The platform's own class (`cloister.verifier.platforms`)."""
    expected: Expected = field(default=NOTHING_EXPECTED)
    narrow: Callable[[AppraisalPolicy], AppraisalPolicy] = unchanged
    """Adds to the policy what the caller requires (a minimum TCB)."""


def read_case(folder: Path) -> CaseFiles:
    """Read the case in `folder`.

    Raises:
        ConfigurationError: the folder holds no readable case (code ``case.malformed``).
    """
    try:
        members = parse_json_object(
            _read(folder / "case.json", MAX_CASE_BYTES), limit=MAX_CASE_BYTES, what="case.json"
        )
        return _case(folder, {name: members[name] for name in members if name not in _IGNORED})
    except MalformedError as error:
        raise _malformed(f"{folder}: {error}") from None


def input_bytes(case: CaseFiles, name: str) -> bytes | None:
    """The hexadecimal input `name`, decoded; ``None`` where the case expects nothing of it."""
    value = case.inputs.get(name)
    if value is None:
        return None
    try:
        return bytes.fromhex(expect_str(value, name, limit=1 << 16))
    except (ValueError, MalformedError):
        raise _malformed(f"the input {name} of {case.name} is not hexadecimal") from None


def _case(folder: Path, members: Mapping[str, object]) -> CaseFiles:
    variant = members.get("variant")
    entries = expect_list(members.get("files", []), "files", limit=64)
    roots = expect_list(members.get("roots", []), "roots", limit=16)
    return CaseFiles(
        name=expect_str(members.get("case"), "case", limit=256),
        platform=expect_str(members.get("platform"), "platform", limit=64),
        variant=None if variant is None else expect_str(variant, "variant", limit=64),
        files=tuple(_file(folder, expect_object(entry, "a file")) for entry in entries),
        inputs=expect_object(members.get("inputs", {}), "inputs"),
        certificates=tuple(
            certificate
            for root in roots
            if (certificate := _root(folder, expect_str(root, "a root", limit=256))) is not None
        ),
        at=_time(expect_str(members.get("verification_time"), "verification_time", limit=64)),
    )


def _file(folder: Path, members: Mapping[str, object]) -> CaseFile:
    name = expect_str(members.get("file"), "file", limit=256)
    encoding = expect_str(members.get("encoding"), "encoding", limit=64)
    if Path(name).name != name or "\0" in name:
        raise MalformedError("a file of the case lies outside its folder")
    data = _read(folder / name, MAX_FILE_BYTES)
    return CaseFile(
        role=expect_str(members.get("role"), "role", limit=64),
        name=name,
        encoding=encoding,
        data=decode_file(data, encoding),
    )


def decode_file(data: bytes, encoding: str) -> bytes:
    """Undo a file's text encoding. What does not decode stays as it is: the parser will say so."""
    text = b"".join(data.split())
    try:
        if encoding == "hex-text":
            return binascii.unhexlify(text.removeprefix(b"0x"))
        if encoding == "base64-text":
            return decode_base64(text.decode("ascii"), limit=MAX_FILE_BYTES, what="a file")
    except (ValueError, MalformedError):
        return data
    return data


def _root(folder: Path, name: str) -> x509.Certificate | None:
    """A certificate under ``roots/`` beside the platforms' folders.

    ``None`` where the case was moved away from it: nothing is trusted for being there, so at worst
    a chain stays incomplete.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise MalformedError("a root of the case lies outside roots/")
    beside = folder.resolve().parent.parent / "roots" / path
    if not beside.is_file():
        return None
    return parse_certificates(_read(beside, MAX_FILE_BYTES))[0]


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise MalformedError("verification_time is no time") from None
    if at.tzinfo is None:
        raise MalformedError("verification_time has no time zone")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise MalformedError("verification_time is beyond the calendar") from None


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise _malformed(f"{path}: {error.strerror}") from None
    if len(data) > limit:
        raise _malformed(f"{path} has more than {limit} bytes")
    return data


def _malformed(why: str) -> ConfigurationError:
    return ConfigurationError(why, code="case.malformed")
