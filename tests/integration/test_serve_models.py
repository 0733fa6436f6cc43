"""The whole program with several models: measured, launched, verified, asked, and its receipts.

One model is the demonstration model, with itself as its draft; one a random one; one an adapter
on the first.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.launcher import LaunchedWorker, launch
from cloister.attester.measure import reference_values
from cloister.cli.measure import EngineOptions
from cloister.cli.model_options import ModelOptions
from cloister.cli.serve import embedded_plan
from cloister.client import Connection, connect
from cloister.errors import AppraisalError
from cloister.evidence.component import ComponentKind
from cloister.verifier.policy import development
from cloister.worker.operation import Operation
from support.scene import CHAT
from support.software_tpm import HAVE_SWTPM
from support.tiny_gguf import write_tiny
from support.tiny_parts import write_adapter

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.sandbox,
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    pytest.mark.timeout(240),
]

NAMES = ["demo", "tiny", "polite"]


class Served:
    """A running worker and what clients on this machine pin."""

    def __init__(self, worker: LaunchedWorker, ready: dict[str, Any], kit: Path) -> None:
        self.worker, self.ready, self.kit = worker, ready, kit
        self.url = f"http://{ready['host']}:{ready['port']}"

    def connect(self, **options: Any) -> Connection:
        return connect(self.url, **{"kit": self.kit, "development": True, **options})

    def operator(self, path: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.ready["operator_socket"])
            client.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    tiny = write_tiny(folder / "tiny.gguf")
    adapter = write_adapter(folder / "adapter.gguf")
    models = ModelOptions(
        models=["demo=demo", f"tiny={tiny}"],
        drafts=["demo=demo"],
        adapters=[f"polite@demo={adapter}"],
    )
    with (folder / "output").open("wb") as log:
        plan = embedded_plan(
            folder / "state",
            Operation(),
            models=models,
            options=EngineOptions(parallel=1, context=256),
            output=log.fileno(),
        )
        with launch(plan) as worker:
            ready = worker.wait_ready(120)
            # What was computed ahead of time is what was measured.
            kit = worker.client_kit(development())
            assert kit.reference_values == reference_values(plan.subject)
            kit.write(folder / "kit")
            yield Served(worker, ready, folder / "kit")


def test_every_model_is_measured_and_each_of_its_files(served: Served) -> None:
    found = [
        (one.kind, one.name)
        for one in served.worker.components
        if one.kind in (ComponentKind.MODEL, ComponentKind.MODEL_FILE)
    ]
    assert found == [
        (ComponentKind.MODEL, "demo"),
        (ComponentKind.MODEL_FILE, "demo/draft"),
        (ComponentKind.MODEL_FILE, "demo/model"),
        (ComponentKind.MODEL, "tiny"),
        (ComponentKind.MODEL, "polite"),
        (ComponentKind.MODEL_FILE, "polite/adapter"),
        (ComponentKind.MODEL_FILE, "polite/draft"),
        (ComponentKind.MODEL_FILE, "polite/model"),
    ]


def test_each_model_answers_for_itself_and_its_receipt_says_so(served: Served) -> None:
    measured = {
        one.name: one.digest.removeprefix("sha256:")
        for one in served.worker.components
        if one.kind is ComponentKind.MODEL
    }
    assert served.ready["models"] == NAMES
    answers = set()
    with served.connect() as client:
        listed = client.http.get("/v1/models").json()["data"]
        assert [entry["id"] for entry in listed] == NAMES
        for entry in listed:
            assert entry["cloister"]["digest"] == f"sha256:{measured[entry['id']]}"
            assert entry["cloister"]["context_length"] == 256
        assert [sorted(entry["cloister"]["files"]) for entry in listed] == [
            ["draft", "model"],
            [],
            ["adapter", "draft", "model"],
        ]
        for name in NAMES:
            message = {"role": "user", "content": "What is a TEE?"}
            asked = {"model": name, "messages": [message], "max_tokens": 16, "temperature": 0}
            answer = client.http.post(CHAT, json=asked)
            assert answer.status_code == 200, answer.text
            exchange = answer.extensions["cloister"]
            assert exchange.receipt_verified
            assert exchange.model == (name, measured[name])
            answers.add(answer.json()["choices"][0]["message"]["content"])
    assert len(answers) == len(NAMES)


def test_readiness_is_told_for_each_model(served: Served) -> None:
    whole = served.operator("/readyz")
    assert b" 200 " in whole
    assert whole.endswith(b"demo: ready\ntiny: ready\npolite: ready\n")
    assert b" 200 " in served.operator("/readyz/tiny")
    assert b" 404 " in served.operator("/readyz/other")
    metrics = served.operator("/metrics")
    assert all(f'cloister_engine_ready{{model="{name}"}}'.encode() in metrics for name in NAMES)


def test_a_client_that_expects_other_models_refuses(served: Served) -> None:
    with served.connect():
        pass
    kit = served.worker.client_kit(development())
    values = kit.reference_values
    for kind in (ComponentKind.MODEL, ComponentKind.MODEL_FILE):
        fewer = type(values)(
            components=tuple(
                one
                for one in values.components
                if not (one.kind is kind and one.name.startswith("polite"))
            )
        )
        assert fewer != values
        with pytest.raises(AppraisalError) as caught:
            served.connect(reference_values=fewer)
        assert caught.value.code == "model_mismatch"
