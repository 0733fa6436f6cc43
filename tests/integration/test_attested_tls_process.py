"""Attested TLS of a whole worker: measured, hardened, with the real engine, asked by curl."""

from __future__ import annotations

import dataclasses
import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.launcher import LaunchedWorker, launch
from cloister.cli.main import main
from cloister.cli.measure import EngineOptions
from cloister.cli.model_options import ModelOptions
from cloister.cli.serve import embedded_plan
from cloister.verifier import policy as policies
from cloister.worker.operation import Operation

pytestmark = [pytest.mark.tpm, pytest.mark.sandbox, pytest.mark.curl]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    launched: LaunchedWorker
    ready: dict[str, Any]
    output: Path
    state: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    state = tmp_path_factory.mktemp("state")
    output = state / "output.log"
    with output.open("wb") as log:
        plan = embedded_plan(
            state,
            Operation(tls_port=0),
            models=ModelOptions(),
            options=EngineOptions(parallel=2, attested_tls=True),
            output=log.fileno(),
        )
        with launch(plan) as launched:
            ready = launched.wait_ready(60)
            launched.client_kit(policies.development()).write(state / "kit")
            yield Served(launched=launched, ready=ready, output=output, state=state)


@pytest.mark.timeout(240)
def test_it_is_verified_pinned_and_asked(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    ready, pin = served.ready, tmp_path / "pin.pem"
    tls = f"127.0.0.1:{ready['tls_port']}"
    with pytest.raises(SystemExit) as leaving:
        main(
            [
                *("verify", f"http://127.0.0.1:{ready['port']}", "--development"),
                *("--kit", str(served.state / "kit"), "--write-cert", str(pin), "--tls", tls),
            ]
        )
    assert leaving.value.code == 0
    marker = "canary" + secrets.token_hex(6)
    messages = [{"role": "user", "content": f"What is a TEE? {marker}"}]
    asked = {"model": ready["models"][0], "messages": messages, "max_tokens": 20}
    for document in (asked, {**asked, "stream": True}):
        done = subprocess.run(
            [
                *("curl", "--silent", "--noproxy", "*", "--cacert", str(pin), "--max-time", "60"),
                *("--data", json.dumps(document), f"https://{tls}/v1/chat/completions"),
            ],
            capture_output=True,
            check=True,
        )
        assert b'"choices"' in done.stdout
    files = [path for path in served.state.rglob("*") if path.is_file()]
    assert served.output in files
    for file in files:
        assert marker.encode() not in file.read_bytes()
