"""What is mutated: evidence that is affirmed, in named parts, and how it is judged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from cloister.cli.cases.folder import CaseFiles, decode_file, read_case
from cloister.cli.cases.verdict import appraise_case, reader_of
from cloister.endorsements.pinned import pinned_roots
from cloister.endorsements.roots import Roots
from cloister.verifier.policy import as_captured, strict
from cloister.verifier.result import AttestationResult, Finding
from mutation.mutants import Plan
from mutation.spelling import HEX_TEXT

EVIDENCE: Final = Path(__file__).parents[3] / "shared" / "evidence"

Judge: TypeAlias = Callable[[str, bytes], AttestationResult]
"""Verifies the evidence with one part replaced."""

DENSE: Final = re.compile(r"report|quote|signature|document|public|pcr|nsm_|gpu\d+\.evidence")
"""Parts with a fixed structure, by name: every bit is flipped, not one of each byte."""
SPARSE: Final = re.compile(r"endorsements|cert|event")
"""Parts without one, though their names contain the other's."""
PEM: Final = b"-----BEGIN"
TEXTS: Final = (b"{", b"[", b"<", PEM)
UNDECODED: Final = "(decoded)"
"""Suffix of a part that is a text file's content, mutated behind the text encoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a piece of evidence."""

    name: str
    plan: Plan
    encoding: str = "binary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Evidence that is affirmed."""

    name: str
    parts: tuple[Part, ...]
    judge: Judge
    roots: Roots
    """What it is judged with."""
    not_read: tuple[str, ...] = ()
    """Files of a case that no verifier reads."""

    def part(self, name: str) -> Part:
        """The part with `name`."""
        return next(part for part in self.parts if part.name == name)


def affirmed(result: AttestationResult) -> bool:
    """Whether the whole of it passes."""
    return result.verdict is Finding.AFFIRMING


def make_part(subject: str, name: str, data: bytes, encoding: str = "binary") -> Part:
    """A part; how densely it is mutated follows from its name and first bytes."""
    dense = 0
    text = encoding == HEX_TEXT or data.lstrip().startswith(TEXTS)
    if not text and _is_dense(name):
        embedded = data.find(PEM)
        dense = len(data) if embedded < 0 else embedded
    return Part(
        name=name,
        plan=Plan(data=data, dense=dense, seed=f"{subject} {name}"),
        encoding=encoding,
    )


def _is_dense(name: str) -> bool:
    within = name.removeprefix("evidence.")
    return bool(DENSE.search(within)) and not SPARSE.search(within.replace(".evidence", ""))


def recorded(folders: Path = EVIDENCE) -> Iterator[Subject]:
    """Every recorded case that passes; none where there is no evidence."""
    for path in sorted(folders.glob("*/*/case.json")):
        subject = _case(path.parent)
        if subject is not None:
            yield subject


def from_evidence(
    name: str, evidence: object, judge: Callable[[Any], AttestationResult], roots: Roots
) -> Subject:
    """Evidence of any class: each of its members that is bytes is a part."""
    leaves = dict(_leaves(evidence, ()))
    paths = {_written(path): path for path in leaves}

    def judge_part(part: str, data: bytes) -> AttestationResult:
        return judge(_replaced(evidence, paths[part], data))

    return Subject(
        name=name,
        parts=tuple(
            make_part(name, written, leaves[path])
            for written, path in paths.items()
            if leaves[path]
        ),
        judge=judge_part,
        roots=roots,
    )


def _case(folder: Path) -> Subject | None:
    case = read_case(folder)
    policy = as_captured(strict())
    if not affirmed(appraise_case(case, policy=policy, at=case.at)):
        return None
    name = f"{folder.parent.name}/{folder.name}"
    parts, unread = [], []
    for number, file in enumerate(case.files):
        if not _is_read(case, number):
            unread.append(file.name)
            continue
        raw = (folder / file.name).read_bytes()
        parts.append(make_part(name, file.name, raw, file.encoding))
        if raw != file.data:
            parts.append(make_part(name, file.name + UNDECODED, file.data))
    pinned = pinned_roots()
    return Subject(
        name=name,
        parts=tuple(parts),
        judge=partial(_judge_case, case),
        roots=dataclasses.replace(
            pinned, intermediates=(*pinned.intermediates, *case.certificates)
        ),
        not_read=tuple(unread),
    )


def _judge_case(case: CaseFiles, part: str, data: bytes) -> AttestationResult:
    name = part.removesuffix(UNDECODED)
    number = next(number for number, file in enumerate(case.files) if file.name == name)
    file = case.files[number]
    decoded = data if part.endswith(UNDECODED) else decode_file(data, file.encoding)
    changed = _with_file(case, number, decoded)
    return appraise_case(changed, policy=as_captured(strict()), at=case.at)


def _with_file(case: CaseFiles, number: int, data: bytes) -> CaseFiles:
    files = list(case.files)
    files[number] = dataclasses.replace(files[number], data=data)
    return dataclasses.replace(case, files=tuple(files))


def _is_read(case: CaseFiles, number: int) -> bool:
    """Whether the evidence is another one where the file holds something else."""
    reader = reader_of(case)
    changed = _with_file(case, number, b"something else")
    return reader.read(changed).evidence != reader.read(case).evidence


_Path: TypeAlias = tuple[str | int, ...]


def _leaves(value: object, path: _Path) -> Iterator[tuple[_Path, bytes]]:
    """Every member that is bytes, however deep."""
    if isinstance(value, bytes):
        yield path, value
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, (*path, number))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _leaves(getattr(value, field.name), (*path, field.name))


def _replaced(value: Any, path: _Path, data: bytes) -> Any:
    if not path:
        return data
    step, rest = path[0], path[1:]
    if isinstance(value, tuple):
        items = list(value)
        items[int(step)] = _replaced(items[int(step)], rest, data)
        return tuple(items)
    if isinstance(value, Mapping):
        return {**value, step: _replaced(value[step], rest, data)}
    changed = _replaced(getattr(value, str(step)), rest, data)
    return dataclasses.replace(value, **{str(step): changed})


def _written(path: _Path) -> str:
    return ".".join(map(str, path))
