"""A build as a list of operations that can be described before they run, and resumed after.

An operation names what it reads, what else decides its result, and what it writes. From that comes
its key: the digest of all of it. What an operation wrote lies in a folder of its own under that
key, so an operation whose key is known has nothing to do, in this build or in another one that
shares the work directory; whatever changed leads to another folder. A folder counts only with its
record, which is written last and holds the digests of the results: a build that was interrupted
begins again with the operation that it was interrupted in, and a result that somebody changed is
made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.errors import BuildError
from cloister.image.downloads import file_digest
from cloister.image.tree import remove, tree_digest
from cloister.strictjson import JsonObject, canonical

RECORD: Final = "record.json"
LOCK: Final = ".lock"
UNFINISHED: Final = ".new-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A result of an operation, or a file from outside, to be read by another operation."""

    operation: str
    """Whose result; empty for a path from outside."""
    name: str
    """Of the result, or the path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step of a build."""

    name: str
    title: str
    """What it does, for people."""
    reads: Mapping[str, Made] = field(default_factory=dict)
    parameters: JsonObject = field(default_factory=dict)
    """What else decides the result."""
    writes: tuple[str, ...]
    """Names of files or directories."""
    execute: Callable[[Mapping[str, Path], Path], None] = field(repr=False)
    """Called with the paths of what it reads and an empty folder for what it writes."""

    def made(self, name: str) -> Made:
        """One of its results, as something to read."""
        if name not in self.writes:
            raise RuntimeError(f"{self.name} writes no {name}")
        return Made(operation=self.name, name=name)


def outside(path: Path) -> Made:
    """A file or directory that no operation makes."""
    return Made(operation="", name=str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is to be told about one operation."""

    operation: Operation
    key: str | None
    """None where it depends on a result that is not there yet."""
    done: bool


class Build:
    """Operations in order, and the directory in which their results lie."""

    def __init__(self, operations: Sequence[Operation], work: Path) -> None:
        self._operations = {operation.name: operation for operation in operations}
        if len(self._operations) < len(operations):
            raise RuntimeError("two operations have the same name")
        self._work = work
        self._keys: dict[str, str] = {}

    def describe(self) -> Iterator[Step]:
        """What a run would do, in order. Nothing is written."""
        for operation in self._operations.values():
            key = self._key(operation)
            done = key is not None and self._stands(operation, key)
            if key is not None and done:
                self._keys[operation.name] = key
            yield Step(operation=operation, key=key, done=done)

    def run(
        self,
        progress: Callable[[Step], None] = lambda _: None,
        *,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """Execute what does not stand yet, one build at a time in a work directory.

        `waiting` is called once where another build has to end first. Raises BuildError, FetchError
        or ConfigurationError.
        """
        self._work.mkdir(parents=True, exist_ok=True)
        with self._alone(waiting):
            for left in self._work.glob(f"{UNFINISHED}*"):
                remove(left)  # by a build that was killed
            for operation in self._operations.values():
                key = self._key(operation)
                if key is None:
                    raise RuntimeError(f"{operation.name} reads what nothing before it writes")
                done = self._stands(operation, key)
                progress(Step(operation=operation, key=key, done=done))
                if not done:
                    self._execute(operation, key)
                self._keys[operation.name] = key

    def path(self, made: Made) -> Path:
        """Where a result lies, after `run`."""
        if not made.operation:
            return Path(made.name)
        operation = self._operations[made.operation]
        return self._folder(operation, self._keys[made.operation]) / made.name

    @contextlib.contextmanager
    def _alone(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the work directory: another build would remove a folder that this one still fills,
        or put its own in the same place."""
        lock = os.open(self._work / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)  # which also lets go of it

    def _key(self, operation: Operation) -> str | None:
        read: dict[str, str] = {}
        for name, made in operation.reads.items():
            if made.operation and made.operation not in self._keys:
                return None
            read[name] = self._digest(made)
        described = {
            "operation": operation.name,
            "reads": read,
            "parameters": operation.parameters,
            "writes": list(operation.writes),
        }
        return hashlib.sha256(canonical(described)).hexdigest()

    def _digest(self, made: Made) -> str:
        if not made.operation:
            return digest_of(Path(made.name))
        operation = self._operations[made.operation]
        record = self._record(operation, self._keys[made.operation])
        return record[made.name]

    def _folder(self, operation: Operation, key: str) -> Path:
        return self._work / f"{operation.name}-{key[:24]}"

    def _record(self, operation: Operation, key: str) -> dict[str, str]:
        """Digests of the results by name; empty where there is no record that can be read."""
        try:
            record = json.loads((self._folder(operation, key) / RECORD).read_text())
            if record["key"] != key:
                return {}
            return {name: str(record["results"][name]) for name in operation.writes}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _stands(self, operation: Operation, key: str) -> bool:
        record = self._record(operation, key)
        folder = self._folder(operation, key)
        return bool(record) and all(
            (folder / name).exists() and digest_of(folder / name) == digest
            for name, digest in record.items()
        )

    def _execute(self, operation: Operation, key: str) -> None:
        target = self._folder(operation, key)
        remove(target)
        new = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{operation.name}-", dir=self._work))
        try:
            operation.execute({n: self.path(made) for n, made in operation.reads.items()}, new)
            missing = [name for name in operation.writes if not (new / name).exists()]
            if missing:
                raise BuildError(
                    f"the step {operation.name} did not write {missing[0]}", code="image.step"
                )
            results = {name: digest_of(new / name) for name in operation.writes}
            (new / RECORD).write_text(json.dumps({"key": key, "results": results}))
            os.replace(new, target)  # noqa: PTH105 - of a directory
        finally:
            remove(new)


def digest_of(path: Path) -> str:
    """Of a file or of a tree."""
    try:
        return tree_digest(path) if path.is_dir() else file_digest(path)
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror}", code="image.file") from None
