"""The canary once more: the real program, a real TPM, and the real engine in its sandbox.

``cloister serve`` with an API key; a client asks, is refused, goes away, and the engine is killed
in the middle of an answer. Then everything that the processes wrote or hold open is searched.
"""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cloister.client import Connection, connect
from cloister.worker.api_keys import ApiKeyFile
from support.canary import Search, everything_logged, new_marker
from support.processes import processes
from support.scene import CHAT
from support.software_tpm import HAVE_SWTPM

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.sandbox,
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

START_S = 90.0


@dataclass(kw_only=True)
class Served:
    """The program while it runs."""

    process: subprocess.Popen[bytes]
    home: Path
    """State, temporary directory, sockets and output of the program."""
    url: str
    key: str

    @property
    def output(self) -> str:
        return (self.home / "output").read_text()

    def pids(self) -> dict[int, str]:
        return processes(self.process.pid)

    def metrics(self) -> bytes:
        with socket.socket(socket.AF_UNIX) as operator:
            operator.connect(str(self.home / "operator.sock"))
            operator.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            return b"".join(iter(lambda: operator.recv(65536), b""))


@pytest.fixture
def served() -> Iterator[Served]:
    home = Path(tempfile.mkdtemp(prefix="clst-"))  # short: paths of sockets have 108 bytes
    key = ApiKeyFile(home / "keys.json").add("canary", at=0)[1]
    (home / "tmp").mkdir()
    command = [
        *(str(Path(sys.executable).with_name("cloister")), "serve", "--port", "0"),
        *("--state", str(home / "state"), "--api-keys", str(home / "keys.json")),
        *("--operator-socket", str(home / "operator.sock"), "--threads", "1", "--parallel", "2"),
    ]
    environment = {**os.environ, "TMPDIR": str(home / "tmp")}
    with (home / "output").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment
        )
    try:
        until(
            lambda: "pins" in (home / "output").read_text() or process.poll() is not None, START_S
        )
        said = (home / "output").read_text()
        assert process.poll() is None, said
        url = next(word for word in said.split() if word.startswith("http://"))
        yield Served(process=process, home=home, url=url, key=key)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not happen")
        time.sleep(0.05)


def changed_since(began: float, root: Path) -> list[Path]:
    """Entries of a directory that somebody touched since then."""
    found = []
    for path in root.iterdir():
        with contextlib.suppress(OSError):
            if path.lstat().st_ctime >= began - 1:
                found.append(path)
    return found


def test_the_whole_program_leaves_nothing(served: Served) -> None:
    marker, began = new_marker(), time.time()
    search = Search(secrets=(marker, served.key))
    headers = {"authorization": f"Bearer {served.key}"}

    def question(**fields: Any) -> dict[str, Any]:
        content = f"Say the word {marker} again and again."
        message = {"role": "user", "content": content}
        return {"model": "cloister-demo", "messages": [message], "max_tokens": 32, **fields}

    def refused(client: Connection, status: int, **request: Any) -> None:
        request = {"json": question(), "headers": headers, **request}
        response = client.http.post(CHAT, **request)
        assert response.status_code == status, response.text
        search.add("bodies of errors", response.content + repr(response.headers).encode())

    def streamed(client: Connection) -> Any:
        body = question(stream=True, max_tokens=1500, ignore_eos=True)
        return client.http.stream("POST", CHAT, json=body, headers=headers)

    with (
        everything_logged() as logged,
        connect(served.url, kit=served.home / "state" / "kit", development=True) as client,
    ):
        answer = client.http.post(CHAT, json=question(), headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.extensions["cloister"].receipt_verified
        prompt_back = client.http.post(
            "/v1/completions",
            json={"model": "cloister-demo", "prompt": marker, "max_tokens": 4},
            headers=headers,
        )
        assert prompt_back.status_code == 200
        # Refused by the worker, and by the engine.
        refused(client, 401, headers={"authorization": f"Bearer {marker}"})
        refused(client, 404, json={**question(), "model": marker})
        refused(client, 400, json=None, content=b'{"model":"' + marker.encode())
        refused(client, 400, json=question(max_tokens=marker))
        refused(client, 400, json=question(grammar=marker))
        refused(client, 400, json=question(messages=[{"role": marker, "content": [marker]}]))
        refused(client, 400, json=question(messages=[{"role": "user", "content": marker * 9000}]))
        # The client goes away in the middle; then the engine is killed in the middle.
        with streamed(client) as response:
            next(response.iter_bytes())
        with streamed(client) as response:
            pieces = response.iter_bytes()
            begun = next(pieces)
            for pid in engine_of(served):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            rest = begun + b"".join(pieces)
        assert b"engine_failed" in rest
        search.add("bodies of errors", rest)
        until(lambda: client.http.post(CHAT, json=question(), headers=headers).is_success)
        with pytest.raises(httpx2.ReadTimeout) as caught:
            client.http.post(CHAT, json=question(max_tokens=400), headers=headers, timeout=0.01)
        search.add_error("exceptions", caught.value)

        search.add("metrics", served.metrics())
        pids = served.pids()
        assert len(pids) >= 4  # launcher, worker, TPM, sandbox and engine
        search.add_processes("processes", pids)
        search.add_tree("files while it runs", served.home)
    search.add("logs of the client", logged.getvalue())
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(30) == 0
    search.add("output", served.output)
    search.add_tree("files after it ended", served.home)
    for path in changed_since(began, Path(tempfile.gettempdir())):
        if path != served.home and path.name.startswith(("cloister", "tmp", "clst", "core")):
            search.add_tree("temporary files of the machine", path)
    assert '"event": "worker.ready"' in served.output
    assert '"event": "engine.answer_failed"' in served.output
    assert b"cloister_" in search.places["metrics"]
    assert not list((served.home / "tmp").iterdir())
    assert search.hits() == []


def engine_of(served: Served) -> list[int]:
    """The process that holds the model, and those that keep it."""
    found = []
    for pid, name in served.pids().items():
        with contextlib.suppress(OSError):
            command = (Path("/proc") / str(pid) / "cmdline").read_bytes()
            if name == "bwrap" or b"llama_child" in command:
                found.append(pid)
    return found
