"""The canary once more: the real program, a real TPM, and the real engine in its sandbox.

``cloister serve`` with an API key; a client asks, is refused, goes away, and the engine is killed
in the middle of an answer. Then everything that the processes wrote or hold open is searched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cloister.client import Connection, connect
from cloister.worker.api_keys import ApiKeyFile
from support.canary import Search, everything_logged, new_marker
from support.program import Program, new_home, program, until
from support.scene import CHAT
from support.software_tpm import HAVE_SWTPM

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.sandbox,
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]


@pytest.fixture
def served() -> Iterator[tuple[Program, str]]:
    """The program, and the one API key that it accepts."""
    home = new_home()
    key = ApiKeyFile(home / "keys.json").add("canary", at=0)[1]
    with program("--api-keys", str(home / "keys.json"), "--parallel", "2", home=home) as running:
        yield running, key


def changed_since(began: float, root: Path) -> list[Path]:
    """Entries of a directory that somebody touched since then."""
    found = []
    for path in root.iterdir():
        with contextlib.suppress(OSError):
            if path.lstat().st_ctime >= began - 1:
                found.append(path)
    return found


def test_the_whole_program_leaves_nothing(served: tuple[Program, str]) -> None:
    running, key = served
    marker, began = new_marker(), time.time()
    search = Search(secrets=(marker, key))
    headers = {"authorization": f"Bearer {key}"}

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
        connect(running.url, kit=running.kit, development=True) as client,
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
        rest = b""
        for _ in range(5):  # where this process gets no turn for long, an answer may be whole
            with streamed(client) as response:
                pieces = response.iter_bytes()
                rest = next(pieces)
                for pid in running.engines():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                rest += b"".join(pieces)
            search.add("bodies of errors", rest)
            until(lambda: client.http.post(CHAT, json=question(), headers=headers).is_success)
            if b"engine_failed" in rest:
                break
        assert b"engine_failed" in rest
        hasty = httpx2.Timeout(60, read=0.01)  # connecting may take its time
        long = question(max_tokens=1500, ignore_eos=True)
        with pytest.raises(httpx2.ReadTimeout) as caught:
            client.http.post(CHAT, json=long, headers=headers, timeout=hasty)
        search.add_error("exceptions", caught.value)

        search.add("metrics", running.exposition())
        pids = running.pids()
        assert len(pids) >= 4  # launcher, worker, TPM, sandbox and engine
        search.add_processes("processes", pids)
        search.add_tree("files while it runs", running.home)
    search.add("logs of the client", logged.getvalue())
    assert running.stop() == 0
    search.add("output", running.output)
    search.add_tree("files after it ended", running.home)
    for path in changed_since(began, Path(tempfile.gettempdir())):
        if path != running.home and path.name.startswith(("cloister", "tmp", "clst", "core")):
            search.add_tree("temporary files of the machine", path)
    assert '"event": "worker.ready"' in running.output
    assert '"event": "engine.answer_failed"' in running.output
    assert b"cloister_" in search.places["metrics"]
    assert not list((running.home / "tmp").iterdir())
    assert search.hits() == []
