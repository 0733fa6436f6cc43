"""A plan as commands that a person can read and run: a POSIX shell script.

Every word is quoted by the standard library's `shlex`; captured values are shell variables between
double quotes. What the executor compares the script asks the person who runs it, and stops unless
the answer is yes.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from cloister.deploy.plan import Argument, Captured, Convert, Plan, Run, Step, Write, parts


def script(plan: Plan) -> str:
    """The whole script, with the plan's notes and how to undo it as comments."""
    lines = [
        "#!/bin/sh",
        *_comment(f"{plan.target}: {plan.name}"),
        *(line for note in plan.notes for line in _comment(note)),
        "set -eu",
        "umask 077",
        f"mkdir -p {shlex.quote(str(plan.folder))}",
    ]
    for step in plan.steps:
        lines += ["", *_comment(step.says), *_commands(step)]
    undo = list(undo_lines(plan))
    if undo:
        lines += ["", "# To undo it, in this order:"]
        lines += [line for one in undo for line in _comment(f"  {one}")]
    return "\n".join(lines) + "\n"


def undo_lines(plan: Plan) -> Iterator[str]:
    """Commands that take everything away again, the last first."""
    for step in reversed(plan.steps):
        if isinstance(step, Run) and step.undo:
            yield command_line(step.undo)


def command_line(argv: tuple[Argument, ...]) -> str:
    """One command, quoted for a shell."""
    return " ".join(quoted(argument) for argument in argv)


def quoted(argument: Argument) -> str:
    """One word: literals quoted, captured values as ``"$name"``."""
    return "".join(
        f'"${_variable(one)}"' if isinstance(one, Captured) else shlex.quote(one)
        for one in parts(argument)
    )


def _variable(captured: Captured) -> str:
    return captured.name.replace("-", "_")


def _commands(step: Step) -> Iterator[str]:
    match step:
        case Write():
            yield f"printf %s {quoted(step.content)} >{shlex.quote(str(step.path))}"
        case Convert():
            yield command_line(converting(step))
        case Run():
            yield from _run(step)


def converting(step: Convert) -> tuple[str, ...]:
    """The command that does what a `Convert` step does."""
    sources = tuple(str(path) for path in step.sources)
    return ("cloister", "deploy", "convert", step.kind, *sources, "--out", str(step.target))


def _run(step: Run) -> Iterator[str]:
    line = command_line(step.argv)
    if step.tries > 1:
        yield "tries=1"
        line = (
            f"until {line}; do [ $tries -lt {step.tries} ] || exit 1; tries=$((tries + 1)); "
            f"sleep {step.pause_s}; done"
        )
    if step.capture is None:
        yield line
    else:
        variable = _variable(Captured(name=step.capture.name))
        yield f"{variable}=$({line})"
        # As one line: `grep` would be content with one good line among others.
        pattern = shlex.quote(step.capture.pattern)
        yield f"printf %s \"${variable}\" | tr '\\n' ' ' | grep -Eqx {pattern}"
    for expect in step.expects:
        # A script cannot compare it for them, and must not run on as if it had.
        yield f"printf '%s ' {shlex.quote(f'Is it so that {expect.says}? yes or no:')}"
        # On one line: a shell that is given the script by a pipe would read the next as the answer.
        yield 'read -r answer && [ "$answer" = yes ] || exit 1'


def _comment(text: str) -> Iterator[str]:
    """Comment lines; a line break inside `text` cannot end the comment."""
    for line in text.splitlines() or [""]:
        yield f"# {line}".rstrip()
