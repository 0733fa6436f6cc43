"""Plans as scripts: what a shell makes of them is what the executor would have called."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.deploy.plan import Capture, Captured, Convert, Expect, Plan, Run, Step, Write
from cloister.deploy.shell import script

HARD = 'it\'s $HOME `id` "x" \\ * ; #\nsecond'


def run(
    steps: tuple[Step, ...], folder: Path, answer: str = ""
) -> subprocess.CompletedProcess[str]:
    plan = Plan(target="t", name="web", folder=folder, tools=(), inputs=(), steps=steps)
    return subprocess.run(
        ["/bin/sh"], input=script(plan) + answer, capture_output=True, text=True, check=False
    )


def test_words_arrive_as_they_are(tmp_path: Path) -> None:
    step = Run(id="a", says="A\nrm -rf /nothing", argv=("printf", "<%s>", HARD, "", "-n"))
    done = run((step,), tmp_path)
    assert done.stdout == f"<{HARD}><><-n>"
    assert done.returncode == 0


def test_captured_values_are_checked_and_travel(tmp_path: Path) -> None:
    value = Captured(name="snap-shot")
    steps = (
        Run(
            id="a",
            says="A.",
            argv=("echo", "snap-01"),
            capture=Capture(name="snap-shot", pattern="snap-[0-9a-f]{2,4}"),
        ),
        Write(id="b", says="B.", path=tmp_path / "a file", content=(HARD, value)),
        Run(id="c", says="C.", argv=("printf", "%s", ("Id=", value, ",x"))),
    )
    assert run(steps, tmp_path / "d").stdout == "Id=snap-01,x"
    assert (tmp_path / "a file").read_text() == HARD + "snap-01"
    assert (tmp_path / "a file").stat().st_mode & 0o777 == 0o600
    other = Run(
        id="a",
        says="A.",
        argv=("echo", "snap-zz"),
        capture=Capture(name="snap-shot", pattern="snap-[0-9a-f]{2,4}"),
    )
    beside = replace(other, argv=("printf", "%s\\n", "snap-01", "--region=elsewhere"))
    for hostile in (other, beside):
        done = run((hostile, *steps[1:]), tmp_path / "d")
        assert done.returncode != 0
        assert done.stdout == ""


@pytest.mark.parametrize(("answer", "after"), [("yes\n", "later"), ("no\n", ""), ("", "")])
def test_it_asks_what_it_cannot_compare(tmp_path: Path, answer: str, after: str) -> None:
    steps = (
        Run(id="a", says="A.", argv=("true",), expects=(Expect(says="it's on", equals="on"),)),
        Run(id="b", says="B.", argv=("printf", "later")),
    )
    plan = Plan(target="t", name="web", folder=tmp_path, tools=(), inputs=(), steps=steps)
    text = tmp_path / "script"
    text.write_text(script(plan))
    done = subprocess.run(
        ["/bin/sh", text], input=answer, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"Is it so that it's on? yes or no: {after}"
    assert (done.returncode == 0) == (answer == "yes\n")


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_script_from_a_pipe_takes_no_line_of_its_own_for_the_answer(
    tmp_path: Path, shell: str
) -> None:
    steps = (
        Run(id="a", says="A.", argv=("true",), expects=(Expect(says="it's on", equals="on"),)),
        Run(id="b", says="B.", argv=("printf", "later")),
    )
    plan = Plan(target="t", name="web", folder=tmp_path, tools=(), inputs=(), steps=steps)
    text = tmp_path / "script"
    text.write_text(script(plan))
    good = subprocess.run([shell, text], input="yes\n", capture_output=True, text=True, check=False)
    assert good.returncode == 0
    assert "later" in good.stdout
    piped = subprocess.run([shell], input=script(plan), capture_output=True, text=True, check=False)
    assert piped.returncode != 0
    assert "later" not in piped.stdout


def test_how_to_undo_stays_a_comment(tmp_path: Path) -> None:
    hostile = f"x\ntouch '{tmp_path}/canary'\n"
    step = Run(id="a", says="A.", argv=("true",), undo=("undo", hostile))
    assert run((step,), tmp_path).returncode == 0
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(("tries", "code"), [(3, 0), (2, 1)])
def test_a_script_tries_as_often_as_the_plan_says(tmp_path: Path, tries: int, code: int) -> None:
    count = f'echo x >>"{tmp_path}/count"; test "$(wc -l <"{tmp_path}/count")" -ge 3'
    step = Run(id="a", says="A.", argv=("sh", "-c", count), tries=tries)
    done = run((step, Run(id="b", says="B.", argv=("printf", "later"))), tmp_path / "d")
    assert (done.returncode, done.stdout) == (code, "" if code else "later")
    assert len((tmp_path / "count").read_text().split()) == tries


def test_waiting_conversions_and_undoing_are_written_down(tmp_path: Path) -> None:
    steps = (
        Run(id="a", says="A.", argv=("true",), tries=5, pause_s=9, undo=("undo", "a b")),
        Convert(id="b", says="B.", kind="vhd", sources=(tmp_path / "x",), target=tmp_path / "y z"),
        Run(id="c", says="C.", argv=("true",), undo=("undo", "c")),
    )
    plan = Plan(target="t", name="web", folder=tmp_path, tools=(), inputs=(), steps=steps)
    text = script(plan)
    assert "until true; do [ $tries -lt 5 ] || exit 1; tries=$((tries + 1)); sleep 9; done" in text
    assert f"cloister deploy convert vhd {tmp_path}/x --out '{tmp_path}/y z'" in text
    assert text.endswith("# To undo it, in this order:\n#   undo c\n#   undo 'a b'\n")
