"""``cloister serve`` as people run it, for tests of the whole program: real TPM, real engine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cloister.verifier import policy as policies
from cloister.verifier.policy import AppraisalPolicy
from support.processes import processes

START_S: Final = 90.0
CLOISTER: Final = (str(Path(sys.executable).with_name("cloister")),)
SHORT_HOURS: Final = (sys.executable, "-m", "support.short_hours")
"""The same program with keys, receipts and stalled readers that live seconds."""
EXTERNAL: Final = "external (not proven)"


@dataclass(kw_only=True)
class Program:
    """The program while it runs."""

    process: subprocess.Popen[bytes]
    home: Path
    """State, temporary directory, sockets and output of the program."""
    url: str

    @property
    def kit(self) -> Path:
        """What clients pin."""
        return self.home / "state" / "kit"

    @property
    def output(self) -> str:
        """All that it wrote so far."""
        return (self.home / "output").read_text()

    def pids(self) -> dict[int, str]:
        """Its processes, with their commands."""
        return processes(self.process.pid)

    def engines(self) -> list[int]:
        """The processes that hold the model, and those that keep them."""
        return [pid for pid, name in self.pids().items() if name == "bwrap" or _is_model(pid)]

    def models(self) -> list[int]:
        """The processes that hold the model."""
        return [pid for pid in self.pids() if _is_model(pid)]

    def exposition(self) -> bytes:
        """The operator's metrics, as they are served."""
        with socket.socket(socket.AF_UNIX) as operator:
            operator.settimeout(30)
            operator.connect(str(self.home / "operator.sock"))
            operator.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            return b"".join(iter(lambda: operator.recv(65536), b""))

    def metrics(self) -> dict[str, float]:
        """The same, read: the sum over all labels of each name."""
        found: dict[str, float] = {}
        for line in self.exposition().partition(b"\r\n\r\n")[2].decode().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                bare = name.partition("{")[0]
                found[bare] = found.get(bare, 0.0) + float(value)
        return found

    def stop(self) -> int:
        """Ask it to end, and wait until it has; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def program(
    *options: str, home: Path | None = None, command: Sequence[str] = CLOISTER
) -> Iterator[Program]:
    """Start ``cloister serve`` with `options`; end it, and remove what it left, at the end.

    Everything it writes by itself lies below its home.
    """
    made = home or new_home()
    (made / "tmp").mkdir()
    whole = [
        *(*command, "serve", "--port", "0", "--state", str(made / "state")),
        *("--operator-socket", str(made / "operator.sock"), "--threads", "1", *options),
    ]
    here = str(Path(__file__).parents[1])
    environment = {**os.environ, "TMPDIR": str(made / "tmp"), "PYTHONPATH": here}
    if command is CLOISTER:
        del environment["PYTHONPATH"]
    with (made / "output").open("wb") as output:
        process = subprocess.Popen(
            whole, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment
        )
    try:
        until(
            lambda: "pins" in (made / "output").read_text() or process.poll() is not None, START_S
        )
        said = (made / "output").read_text()
        assert process.poll() is None, said
        url = next(word for word in said.split() if word.startswith("http://"))
        yield Program(process=process, home=made, url=url)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()
        shutil.rmtree(made, ignore_errors=True)


def new_home() -> Path:
    """A directory for a program; its name is short, since paths of sockets have 108 bytes."""
    return Path(tempfile.mkdtemp(prefix="clst-"))


def upstream_policy() -> AppraisalPolicy:
    """What a client must accept of a worker in front of an engine that somebody else runs."""
    return replace(
        policies.development(),
        isolation=(EXTERNAL,),
        require_managed=False,
        require_model=False,
    )


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until `condition` holds; TimeoutError if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not happen")
        time.sleep(0.05)


def _is_model(pid: int) -> bool:
    try:
        command = (Path("/proc") / str(pid) / "cmdline").read_bytes()
        name = (Path("/proc") / str(pid) / "comm").read_text().strip()
    except OSError:
        return False
    return b"llama_child" in command and name != "bwrap"
