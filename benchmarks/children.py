"""Helper processes: started, spoken to in JSON lines, and always ended."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_START_S = 60.0
_END_S = 10.0


class ChildError(Exception):
    """A helper process ended, or did not answer in time."""


class Child:
    """A running helper. `ready` is the first line that it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self._process = process
        self._name = name
        self._buffer = b""
        self.pid = process.pid
        self.ready: Mapping[str, Any] = {}

    def ask(self, timeout: float, **message: Any) -> dict[str, Any]:
        """Send one message and return the answer; ChildError after `timeout` seconds."""
        stdin = self._process.stdin
        if stdin is None:
            raise RuntimeError("helpers are started with a pipe")
        try:
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise ChildError(f"{self._name} has ended") from None
        return self.read(timeout)

    def read(self, timeout: float) -> dict[str, Any]:
        """Return the next line, decoded. ChildError for an end, an error or silence."""
        stdout = self._process.stdout
        if stdout is None:
            raise RuntimeError("helpers are started with a pipe")
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([stdout], [], [], max(0, deadline - time.monotonic()))
            if not readable:
                raise ChildError(f"{self._name} did not answer in {timeout:.0f} s")
            data = stdout.read1(1 << 16)  # type: ignore[attr-defined]  # a BufferedReader
            if not data:
                raise ChildError(f"{self._name} has ended (status {self._process.wait()})")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildError(f"{self._name}: {answer['error']}")
        return answer

    def end(self) -> None:
        """Ask the process to end, and kill it when it does not."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def child(module: str, spec: Mapping[str, Any], *, timeout: float = _START_S) -> Iterator[Child]:
    """Run ``python -m MODULE`` with `spec` as its first line, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    helper = Child(process, module)
    try:
        helper.ready = helper.ask(timeout, **spec)
        yield helper
    finally:
        helper.end()


# -- the other side -------------------------------------------------------------------------


def read_spec() -> dict[str, Any]:
    """In a helper: the first line of standard input."""
    spec: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    return spec


def say(**message: Any) -> None:
    """In a helper: write one line."""
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()
