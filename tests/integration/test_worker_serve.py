"""A whole worker: measured and started by the launcher, with the real engine in its sandbox."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.launcher import LaunchedWorker, LaunchPlan, launch
from cloister.attester.measure import ModelFiles, Subject
from cloister.channel.keyset import Keyset, parse_keyset
from cloister.channel.ohttp import KeyConfig
from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.models import resolve_model
from cloister.engine.sandbox import Sandbox
from cloister.errors import EngineError
from cloister.strictjson import parse_json_object
from cloister.worker.configuration import effective_configuration
from cloister.worker.operation import Operation
from cloister.worker.serve import ENTRY
from cloister.worker.settings import WorkerSettings
from support.asgi import Outer
from support.sealed import Inner, check_receipt, inner_headers, seal

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.sandbox,
    pytest.mark.skipif(
        not (shutil.which("swtpm") and shutil.which("bwrap")), reason="needs swtpm and bwrap"
    ),
]
PATH = "/v1/chat/completions"


@dataclasses.dataclass(slots=True)
class Served:
    launched: LaunchedWorker
    ready: dict[str, Any]
    directory: Path
    output: Path

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.ready["host"], self.ready["port"], timeout=30)

    def get(self, path: str) -> tuple[int, bytes]:
        connection = self.connect()
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, body

    def keyset(self) -> Keyset:
        _, body = self.get("/v1/aci/attestation")
        report: Any = parse_json_object(body, limit=1 << 24, what="the report")
        return parse_keyset(report["attestation"]["workload_keyset"])

    def ask(self, document: dict[str, Any]) -> Inner:
        keyset = self.keyset()
        config = KeyConfig.parse(keyset.ohttp_key_configs()[0])
        sealed = seal(
            config, path=PATH, body=json.dumps(document).encode(), headers=inner_headers()
        )
        connection = self.connect()
        connection.request(
            "POST", "/ohttp", sealed.body, {"content-type": "message/ohttp-chunked-req"}
        )
        response = connection.getresponse()
        headers = {name.lower().encode(): value.encode() for name, value in response.getheaders()}
        outer = Outer(status=response.status, headers=headers, pieces=[response.read()])
        connection.close()
        inner = sealed.opened(outer)
        check_receipt(sealed, inner, keyset)
        return inner

    def operator(self, path: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.ready["operator_socket"])
            client.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            answer = b""
            while data := client.recv(65536):
                answer += data
        return answer


def plan(state: Path, output: int | None, **changes: Any) -> LaunchPlan:
    model = resolve_model("demo")
    assert model.path is not None
    engine = LlamaEngine(model, isolation=Sandbox(), settings=LlamaSettings(parallel=2))
    configuration = effective_configuration([engine], WorkerSettings())
    return LaunchPlan(
        state_dir=state,
        subject=Subject(
            python=Path(sys.executable),
            configuration={**configuration, **changes},
            models=(ModelFiles.of_file(model.name, model.path),),
        ),
        entry=ENTRY,
        operator=Operation().to_json(),
        output=output,
    )


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def served(state: Path) -> Iterator[Served]:
    output = state / "output.log"
    with output.open("wb") as log, launch(plan(state, log.fileno())) as launched:
        ready = launched.wait_ready(60)
        yield Served(launched, ready, Path(ready["operator_socket"]).parent, output)


@pytest.mark.timeout(180)
def test_it_answers_and_nothing_of_it_stays_outside(served: Served, state: Path) -> None:
    marker = "canary" + secrets.token_hex(6)
    messages = [{"role": "user", "content": f"What is a TEE? {marker}"}]
    asked = {"model": served.ready["models"][0], "messages": messages, "max_tokens": 20}
    streamed = served.ask({**asked, "stream": True})
    whole = served.ask(asked)
    refused = served.ask({**asked, "max_tokens": marker})
    too_long = served.ask({**asked, "messages": [{"role": "user", "content": f"{marker} " * 900}]})
    assert streamed.status == whole.status == 200
    assert streamed.events[-1] == "[DONE]"
    assert streamed.text
    assert refused.status in (400, 502)
    assert (too_long.status, too_long.error["code"]) == (400, "context_length_exceeded")
    metrics = served.operator("/metrics")
    assert b'route="chat"' in metrics
    assert b" 200 " in served.operator("/readyz")
    searched = [served.output.read_bytes(), metrics, refused.body, too_long.body]
    for folder in (served.directory, state):
        searched += [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert all(marker.encode() not in place for place in searched)


@pytest.mark.timeout(180)
def test_an_engine_that_is_killed_comes_back(served: Served) -> None:
    pids = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"llama_child.py" in _read(path) and _descends(path.parent, served.launched.process.pid)
    ]
    assert pids
    import os
    import signal

    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # the first one may take the others along
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    restarted = False
    while time.monotonic() < deadline and not restarted:
        time.sleep(0.1)
        restarted = b"engine.restarted" in served.output.read_bytes()
    assert restarted
    asked = {"model": served.ready["models"][0], "messages": [{"role": "user", "content": "hello"}]}
    assert served.ask({**asked, "max_tokens": 5}).status == 200


@pytest.mark.timeout(180)
def test_a_configuration_that_the_machine_does_not_fit_is_refused(state: Path) -> None:
    output = state / "refused.log"
    isolation = {"mode": "sandbox", "layers": ["namespaces"]}
    with output.open("wb") as log, launch(plan(state, log.fileno(), isolation=isolation)) as other:
        with pytest.raises(EngineError):
            other.wait_ready(60)
        assert other.wait(60) == 1
    assert b"configuration.engine_mismatch" in output.read_bytes()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _descends(process: Path, ancestor: int) -> bool:
    while True:
        status = _read(process / "status").decode()
        parent = next(
            (int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:")), 0
        )
        if parent == ancestor:
            return True
        if parent <= 1:
            return False
        process = Path("/proc") / str(parent)
