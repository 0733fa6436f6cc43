"""Every benchmark runs from one end to the other. How fast is not looked at here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import results
from benchmarks.__main__ import BENCHMARKS, ROOT

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap"),
]


SAMPLE = ("neighbours", "verification")
"""Run every day; all of them take most of a minute."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "names", [SAMPLE, pytest.param(tuple(BENCHMARKS), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_quick_run_measures_everything(tmp_path: Path, names: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path), *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in names:
        outcome = results.read(tmp_path / f"{name}.json")
        assert outcome.quick
        assert outcome.figures
        assert json.loads((tmp_path / f"{name}.json").read_text())["raw"]


def test_a_quick_run_is_never_written_down() -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--write-docs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no numbers worth writing down" in done.stderr


def test_unknown_names_are_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no such benchmark" in done.stderr
