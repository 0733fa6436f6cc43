"""How far a plan got: one line of JSON for every step begun and done, on the disk before it counts.

A step is done only when its command ended well, printed what was expected and the line saying so
is on the disk. One that was begun and not done may have happened, or not, or half.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from cloister.errors import ConfigurationError, MalformedError
from cloister.strictjson import Json, JsonObject, canonical, expect_str, parse_json_object

FILE: Final = "progress.jsonl"
MAX_BYTES: Final = 4 * 1024 * 1024
CODE: Final = "deploy.progress"


class Journal:
    """The progress of one plan in one folder; held by one process at a time.

    Raises:
        ConfigurationError: it belongs to another plan, is held by somebody else, or cannot be
            read (code ``deploy.progress``).
    """

    def __init__(self, folder: Path, plan_digest: str) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = folder / FILE
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, 0o600)
        try:
            self._hold()
            self.done: dict[str, dict[str, str]] = {}
            """Steps that are done, with what each captured."""
            self.begun: set[str] = set()
            """Steps that were begun at some time and are not done."""
            if not self._load(plan_digest):
                self._append({"plan": plan_digest})
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        """Hold it until the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of it."""
        os.close(self._file)

    def begin(self, step: str) -> None:
        """Say that a step begins."""
        self._append({"begun": step})
        self.begun.add(step)

    def finish(self, step: str, captured: Mapping[str, str]) -> None:
        """Say that a step is done, and what it captured."""
        kept: dict[str, Json] = dict(captured)
        self._append({"done": step, "captured": kept})
        self._note(step, dict(captured))

    def undo(self, step: str) -> None:
        """Say that a step was taken back."""
        self._append({"undone": step})
        self.done.pop(step, None)
        self.begun.discard(step)

    def clear(self) -> None:
        """Forget the plan, of which nothing is left: the folder belongs to nobody."""
        if self.done or self.begun:
            raise ValueError("something of the plan is left")
        os.ftruncate(self._file, 0)
        os.fsync(self._file)

    @property
    def values(self) -> dict[str, str]:
        """Everything captured by steps that are done."""
        return {name: value for kept in self.done.values() for name, value in kept.items()}

    def _note(self, step: str, captured: dict[str, str]) -> None:
        self.done[step] = captured
        self.begun.discard(step)

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                f"somebody is carrying out the plan in {self._path.parent} already", code=CODE
            ) from None

    def _load(self, plan_digest: str) -> bool:
        """Read what is there; false where nothing is."""
        data = os.pread(self._file, MAX_BYTES + 1, 0)
        if len(data) > MAX_BYTES:  # cut off here, it would look like a line that was torn
            raise ConfigurationError(f"{self._path} is too long for a progress", code=CODE)
        whole, _, cut_off = data.rpartition(b"\n")
        if cut_off:
            # The machine stopped while it was written, so the step it speaks of is not done.
            os.ftruncate(self._file, len(data) - len(cut_off))
        if not whole:
            return False
        try:
            first, *rest = [
                parse_json_object(line, limit=MAX_BYTES, what="a line of the progress")
                for line in whole.split(b"\n")
            ]
            if first != {"plan": plan_digest}:
                raise ConfigurationError(
                    f"the progress in {self._path.parent} belongs to another plan: undo that one "
                    "first (the same command and options, with --undo), or deploy into another"
                    " --folder",
                    code=CODE,
                )
            for line in rest:
                self._read(line)
        except MalformedError as error:
            raise ConfigurationError(f"{self._path}: {error}", code=CODE) from None
        return True

    def _read(self, line: JsonObject) -> None:
        match line:
            case {"begun": str(step)}:
                self.begun.add(step)
            case {"done": str(step), "captured": dict(captured)}:
                values = {name: expect_str(value, "a value") for name, value in captured.items()}
                self._note(step, values)
            case {"undone": str(step)}:
                self.done.pop(step, None)
                self.begun.discard(step)
            case _:
                raise MalformedError("a line of the progress says nothing that is known")

    def _append(self, line: JsonObject) -> None:
        os.write(self._file, canonical(line) + b"\n")
        os.fsync(self._file)
