"""Scripts of every target, run by a shell against stand-ins: what the executor does, they do."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cloister.deploy import formats
from cloister.deploy.apply import Effects, apply
from cloister.deploy.plan import Argument, Captured, Convert, Plan, Run, Write, parts
from cloister.deploy.shell import converting, script
from cloister.deploy.tools import Finished
from support.cloud_plans import TARGETS, answers, by_query, plan_of
from support.deployments import Recorder

AWKWARD = "a b~#=!(x){y}@^é:+-"
"""Signs that a path may hold, and to which a shell that is given them bare gives a meaning."""
NEEDED = ("cat", "grep", "ls", "mkdir", "tr", "wc")
"""What scripts and stand-ins take from the system; everything else is a stand-in."""
STAND_IN = """#!/bin/sh
n=$('{ls}' '{heard}' | '{wc}' -l)
n=$((n))
printf '%s\\0' "${{0##*/}}" "$@" >"{heard}/$n"
'{cat}' "{says}/$n"
"""


@pytest.fixture(autouse=True)
def small_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's disks are whole gibibytes, which take seconds to compress."""
    monkeypatch.setattr(formats, "GIBIBYTE", 1 << 20)


def words(argv: Sequence[Argument], values: Mapping[str, str]) -> list[str]:
    return [
        "".join(values[one.name] if isinstance(one, Captured) else one for one in parts(argument))
        for argument in argv
    ]


def carried_out(plan: Plan) -> Mapping[str, str]:
    """What was captured when the executor carried the plan out."""
    tools = Recorder(answers(plan))

    def answer(argv: Sequence[str], /) -> Finished:
        return by_query(argv) or tools(argv)

    effects = Effects(run=answer, sleep=lambda _: None, which=lambda name: name)
    return apply(plan, effects, tell=lambda *_: None)


def stand_ins(folder: Path, names: set[str], said: list[str]) -> dict[str, str]:
    """Programs that write down what they hear, and say what was said at that place."""
    for name in ("bin", "heard", "says"):
        (folder / name).mkdir()
    found = {name: shutil.which(name) for name in NEEDED}
    text = STAND_IN.format(heard=folder / "heard", says=folder / "says", **found)
    for name in names:
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    for name, path in found.items():
        if name not in names:
            assert path is not None
            (folder / "bin" / name).symlink_to(path)
    for number, answer in enumerate(said):
        (folder / "says" / str(number)).write_text(answer)
    return {**os.environ, "PATH": str(folder / "bin")}


@pytest.mark.parametrize("target", TARGETS)
def test_a_shell_calls_what_the_executor_calls_and_writes_what_it_writes(
    target: str, tmp_path: Path
) -> None:
    plan = plan_of(target, tmp_path / AWKWARD)
    values = carried_out(plan)
    files = {step.path: step.path.read_bytes() for step in plan.steps if isinstance(step, Write)}
    for path in files:
        path.unlink()
    tools = Recorder(answers(plan))
    expected: list[list[str]] = []
    said: list[str] = []
    for step in plan.steps:
        if isinstance(step, Convert):
            expected.append(list(converting(step)))
            said.append("")
        elif isinstance(step, Run):
            expected.append(words(step.argv, values))
            said.append((by_query(expected[-1]) or tools(expected[-1])).out)
    text = tmp_path / "script"
    text.write_text(script(plan), encoding="utf-8")
    done = subprocess.run(
        ["/bin/sh", text],
        input="yes\n" * len(said),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=stand_ins(tmp_path, {one[0] for one in expected}, said),
    )
    assert done.returncode == 0, done.stderr
    heard = sorted((tmp_path / "heard").iterdir(), key=lambda path: int(path.name))
    assert [path.read_text(encoding="utf-8").split("\0")[:-1] for path in heard] == expected
    assert {path: path.read_bytes() for path in files} == files
