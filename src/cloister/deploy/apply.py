"""Carry a plan out, step by step, so that it can be cut off anywhere and go on later.

Before the first step: every tool is there and new enough, and every input is, byte for byte, what
it was when the plan was made. After a failure nothing further happens, and what failed is not
recorded as done.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.deploy.deployment import hash_file
from cloister.deploy.formats import convert
from cloister.deploy.journal import Journal
from cloister.deploy.kept import FILE as DESCRIPTION
from cloister.deploy.plan import (
    Argument,
    Capture,
    Captured,
    Convert,
    Expect,
    Plan,
    Run,
    Step,
    Write,
    parts,
)
from cloister.deploy.tools import Finished, Runner, check_tools, plain_words
from cloister.errors import CloisterError, ConfigurationError

NOTHING: Final = {"", "None", "null"}
"""What tools print where they found nothing."""


class DeployError(CloisterError):
    """A step failed; what came before it stands, and the plan can go on from there."""

    default_code = "deploy.step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """What a plan does to the world outside."""

    run: Runner
    sleep: Callable[[float], object]
    which: Callable[[str], str | None]


Tell = Callable[[Step, str], None]
"""Hears of each step: ``already``, ``begin``, ``again`` (one more try), ``found``, ``done``."""


def apply(
    plan: Plan, effects: Effects, *, tell: Tell, description: str | None = None
) -> Mapping[str, str]:
    """Carry out what is not done yet; return everything that was captured.

    `description` (`cloister.deploy.kept`) is kept beside the progress before the first step.

    Raises:
        ConfigurationError: a tool or an input is not as it has to be, or the folder belongs to
            another plan. Nothing was done.
        DeployError: a step failed. It and what follows are not done.
    """
    check_tools(plan.tools, effects.run, which=effects.which)
    for given in plan.inputs:
        if hash_file(given.path) != given:
            raise ConfigurationError(
                f"{given.path} is no longer what the plan was made for; make the plan again",
                code="deploy.changed",
            )
    with Journal(plan.folder, plan.digest) as journal:
        _check_kept(plan, journal)
        if description is not None:
            _write(plan.folder / DESCRIPTION, description)
        for step in plan.steps:
            if step.id in journal.done:
                tell(step, "already")
                continue
            captured = None
            if step.id in journal.begun:
                captured = _found(step, journal.values, effects)
            if captured is not None:
                tell(step, "found")
            else:
                tell(step, "begin")
                journal.begin(step.id)
                captured = _do(step, journal.values, effects, tell)
            journal.finish(step.id, captured)
            tell(step, "done")
        return journal.values


def undo(plan: Plan, effects: Effects, *, tell: Tell) -> tuple[str, ...]:
    """Take back what is done, the last first; return steps that may have left something.

    Where none may have, the folder is free for another plan.

    Raises:
        ConfigurationError: as for `apply`.
        DeployError: a command failed; what came before it is taken back.
    """
    check_tools(plan.tools, effects.run, which=effects.which)
    with Journal(plan.folder, plan.digest) as journal:
        _check_kept(plan, journal)
        for step in reversed(plan.steps):
            if step.id in journal.begun and isinstance(step, Run):
                captured = _found(step, journal.values, effects)
                if captured is not None:
                    journal.finish(step.id, captured)
            if step.id not in journal.done:
                continue
            if isinstance(step, Run) and step.undo:
                tell(step, "begin")
                undoing = _words(step.undo, journal.values)
                _succeed(step, _patiently(step, undoing, step.undo_tries, effects, tell))
            journal.undo(step.id)
            tell(step, "undone")
        unsure = tuple(sorted(journal.begun))
        if not unsure:
            journal.clear()
            (plan.folder / DESCRIPTION).unlink(missing_ok=True)
        return unsure


def _check_kept(plan: Plan, journal: Journal) -> None:
    """Refuse kept values that no step of the plan could have captured: they go into commands."""
    captures = {step.id: step.capture if isinstance(step, Run) else None for step in plan.steps}
    for step, kept in journal.done.items():
        capture = captures.get(step)
        names: set[str] = set() if capture is None else {capture.name}
        if (
            step not in captures
            or kept.keys() != names
            or (capture is not None and not re.fullmatch(capture.pattern, kept[capture.name]))
        ):
            raise ConfigurationError(
                f"the progress in {plan.folder} was altered: it holds what no step of the plan "
                "captures",
                code="deploy.progress",
            )


def _found(step: Step, values: Mapping[str, str], effects: Effects) -> dict[str, str] | None:
    """What a step that was cut off had made after all; None: run it again."""
    if not isinstance(step, Run) or step.look is None:
        return None
    finished = effects.run(_words(step.look.argv, values))
    _succeed(step, finished)
    text = finished.out.strip()
    if step.capture is None:
        return {} if re.fullmatch(step.look.finds, text) else None
    return None if text in NOTHING else _capture(step, step.capture, finished)


def _do(step: Step, values: Mapping[str, str], effects: Effects, tell: Tell) -> dict[str, str]:
    match step:
        case Run():
            return _run(step, values, effects, tell)
        case Write():
            _write(step.path, _text(step.content, values))
        case Convert():
            convert(step.kind, step.sources, step.target)
    return {}


def _run(step: Run, values: Mapping[str, str], effects: Effects, tell: Tell) -> dict[str, str]:
    argv = _words(step.argv, values)
    finished = _patiently(step, argv, step.tries, effects, tell)
    _succeed(step, finished)
    for expect in step.expects:
        if not _holds(expect, finished):
            raise DeployError(
                f"{step.id}: it is not so that {expect.says}", code="deploy.expectation"
            )
    return _capture(step, step.capture, finished)


def _patiently(
    step: Run, argv: Sequence[str], tries: int, effects: Effects, tell: Tell
) -> Finished:
    """Run a command until it ends well, at most `tries` times."""
    finished = effects.run(argv)
    for _ in range(tries - 1):
        if finished.code == 0:
            break
        tell(step, "again")
        effects.sleep(step.pause_s)
        finished = effects.run(argv)
    return finished


def _succeed(step: Step, finished: Finished) -> None:
    if finished.code:
        said = plain_words(finished.err or finished.out)
        raise DeployError(f"{step.id} failed with status {finished.code}: {said}")


def _holds(expect: Expect, finished: Finished) -> bool:
    if not expect.member:
        return re.search(expect.equals, finished.out + finished.err) is not None
    try:
        found = json.loads(finished.out)
        for part in expect.member:
            if isinstance(part, tuple):
                name, value = part
                (found,) = [one for one in found if one[name] == value]
            else:
                found = found[part]
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
    # Numbers and booleans are compared as JSON writes them.
    return (found if isinstance(found, str) else json.dumps(found)) == expect.equals


def _capture(step: Step, capture: Capture | None, finished: Finished) -> dict[str, str]:
    if capture is None:
        return {}
    text = finished.out.strip()
    if re.fullmatch(capture.pattern, text) is None:
        raise DeployError(
            f"{step.id} printed something else than {capture.name}", code="deploy.captured"
        )
    return {capture.name: text}


def _words(argv: Sequence[Argument], values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(_text(argument, values) for argument in argv)


def _text(argument: Argument, values: Mapping[str, str]) -> str:
    return "".join(
        values[one.name] if isinstance(one, Captured) else one for one in parts(argument)
    )


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DeployError(f"{path} cannot be written: {error.strerror}") from None
