"""A plan: what will happen, as data, before any of it does.

Commands are lists of arguments and never lines for a shell. What one command prints and another
needs (a snapshot's id, say) is a `Captured` with a pattern that it has to match whole, so that
nothing unexpected travels from a tool's output into the next command.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from cloister.strictjson import Json, JsonObject, canonical

FORMAT: Final = "cloister/deployment-plan/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """What an earlier command printed, by the name under which it was kept."""

    name: str


Argument: TypeAlias = "str | Captured | tuple[str | Captured, ...]"
"""One argument, or the whole text of a file; a tuple is joined without anything between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """Keep what a command prints (without white space around it) as `name`."""

    name: str
    pattern: str
    """Has to match it whole; anything else means that the command failed. Written so that Python
    and ``grep -E`` read it alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """What a command has to print, or the plan ends there."""

    says: str
    """In words, for people who run the commands by hand."""
    member: tuple[str | int | tuple[str, str], ...] = ()
    """Where in the JSON that it prints: a member's name, a number in a list, or a pair that the one
    object of a list has. Empty: `equals` is a pattern that the text contains."""
    equals: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How to find what a command had made before it was cut off."""

    argv: tuple[Argument, ...]
    """Prints it, or nothing (or ``None``, or ``null``) if there is nothing; its failure counts as
    one, never as nothing."""
    finds: str = ""
    """Where the command captures nothing: a pattern that the whole text matches if it is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One command of a tool."""

    id: str
    says: str
    argv: tuple[Argument, ...]
    capture: Capture | None = None
    expects: tuple[Expect, ...] = ()
    look: Look | None = None
    """None: the command may simply be run again."""
    undo: tuple[Argument, ...] = ()
    tries: int = 1
    """How often, `pause_s` apart, before it counts as failed: for what takes its time."""
    pause_s: int = 0
    undo_tries: int = 1
    """The same for `undo`: what uses a thing may take its time to go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """A file to write, readable by its owner alone; an older one is replaced whole."""

    id: str
    says: str
    path: Path
    content: Argument


@dataclass(frozen=True, slots=True, kw_only=True)
class Convert:
    """A disk image in another format, made by Cloister itself (`cloister.deploy.formats`)."""

    id: str
    says: str
    kind: str
    sources: tuple[Path, ...]
    target: Path


Step: TypeAlias = Run | Write | Convert


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program that the plan needs, and the oldest version that knows the words used here."""

    name: str
    version: tuple[str, ...] = ()
    """Arguments that make it print its version; empty: it only has to be there."""
    minimum: tuple[int, ...] = ()
    get: str = ""
    """Where it comes from, for people who lack it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A file that the plan uses, as it was when the plan was made."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that starts one deployment, in order."""

    target: str
    name: str
    folder: Path
    """Where files are written and progress is kept."""
    tools: tuple[Tool, ...]
    inputs: tuple[Input, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    """What whoever reads the plan has to know; what was never tried, among it."""

    def __post_init__(self) -> None:
        """Refuse a plan that uses what nobody captured, or names two steps alike."""
        known: set[str] = set()
        seen: set[str] = set()
        for step in self.steps:
            if step.id in seen:
                raise ValueError(f"two steps are called {step.id}")
            seen.add(step.id)
            missing = {one.name for one in _captured(step, undo=False)} - known
            if isinstance(step, Run) and step.capture is not None:
                known.add(step.capture.name)
                re.compile(step.capture.pattern)
            missing |= {one.name for one in _captured(step, undo=True)} - known
            if missing:
                raise ValueError(f"step {step.id} uses {', '.join(sorted(missing))} too early")

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal: what a kept progress belongs to."""
        return hashlib.sha256(canonical(self.to_json())).hexdigest()

    def to_json(self) -> JsonObject:
        """The plan as a document."""
        return {
            "format": FORMAT,
            "target": self.target,
            "name": self.name,
            "folder": str(self.folder),
            "tools": [_tool_json(tool) for tool in self.tools],
            "inputs": [
                {"path": str(one.path), "size": one.size, "sha256": one.sha256}
                for one in self.inputs
            ],
            "steps": [_step_json(step) for step in self.steps],
            "notes": list(self.notes),
        }


def parts(argument: Argument) -> tuple[str | Captured, ...]:
    """The pieces of an argument, in order."""
    return argument if isinstance(argument, tuple) else (argument,)


def _captured(step: Step, *, undo: bool) -> Iterator[Captured]:
    """Captured values that a step needs before it runs, or (`undo`) to be undone."""
    arguments: tuple[Argument, ...] = ()
    match step:
        case Run():
            look = step.look.argv if step.look is not None else ()
            arguments = step.undo if undo else (*step.argv, *look)
        case Write():
            arguments = () if undo else (step.content,)
        case Convert():
            pass
    for argument in arguments:
        yield from (one for one in parts(argument) if isinstance(one, Captured))


def _tool_json(tool: Tool) -> JsonObject:
    return {
        "name": tool.name,
        "version": list(tool.version),
        "minimum": list(tool.minimum),
        "get": tool.get,
    }


def _step_json(step: Step) -> JsonObject:
    match step:
        case Run():
            return _run_json(step)
        case Write():
            return {
                "id": step.id,
                "says": step.says,
                "write": str(step.path),
                "content": _argument_json(step.content),
            }
        case Convert():
            return {
                "id": step.id,
                "says": step.says,
                "convert": step.kind,
                "sources": [str(path) for path in step.sources],
                "target": str(step.target),
            }


def _run_json(step: Run) -> JsonObject:
    document: JsonObject = {"id": step.id, "says": step.says, "run": _argv_json(step.argv)}
    if step.capture is not None:
        document["capture"] = {"name": step.capture.name, "pattern": step.capture.pattern}
    if step.expects:
        document["expects"] = [
            {"says": one.says, "member": _member_json(one), "equals": one.equals}
            for one in step.expects
        ]
    if step.look is not None:
        document["look"] = {"run": _argv_json(step.look.argv), "finds": step.look.finds}
    if step.undo:
        document["undo"] = _argv_json(step.undo)
    if step.tries > 1:
        document["tries"] = step.tries
        document["pause_s"] = step.pause_s
    if step.undo_tries > 1:
        document["undo_tries"] = step.undo_tries
        document["pause_s"] = step.pause_s
    return document


def _member_json(expect: Expect) -> Json:
    return [list(part) if isinstance(part, tuple) else part for part in expect.member]


def _argv_json(argv: tuple[Argument, ...]) -> Json:
    return [_argument_json(argument) for argument in argv]


def _argument_json(argument: Argument) -> Json:
    """A string, or a list of strings and ``{"captured": NAME}``."""
    if isinstance(argument, str):
        return argument
    return [one if isinstance(one, str) else {"captured": one.name} for one in parts(argument)]
