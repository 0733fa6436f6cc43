"""What `cloister image boot` started goes with it, however it ends."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloister.image import boot
from cloister.image.boot import ending_with_us

STARTER = """
import subprocess, sys
from cloister.image.boot import ending_with_us
command = ["sleep", "1000"]
command = ending_with_us(command) if sys.argv[1] == "bound" else command
print(subprocess.Popen(command).pid, flush=True)
sys.stdin.read()
"""
WAIT_S = 60.0


def lives(pid: int) -> bool:
    """Whether it runs: a process that nobody has asked after is gone too."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def left_by(how: str) -> int:
    """A process whose starter was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        until = time.monotonic() + WAIT_S
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":  # still setpriv
            assert time.monotonic() < until
            time.sleep(0.01)
        assert lives(pid)
        starter.send_signal(signal.SIGKILL)
    return pid


def test_a_killed_starter_takes_what_it_started_along() -> None:
    stays = left_by("unbound")
    try:
        assert lives(stays)
        goes = left_by("bound")
        until = time.monotonic() + WAIT_S
        while lives(goes):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert lives(stays)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stays, signal.SIGKILL)


def test_another_thread_or_a_system_without_the_tool_gets_the_command_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ending_with_us(["true"])[1:] == ("--pdeathsig", "KILL", "--", "true")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert pool.submit(ending_with_us, ["true"]).result() == ["true"]
    monkeypatch.setattr(boot, "SYSTEM_PATH", "/nowhere")
    assert ending_with_us(["true"]) == ["true"]
