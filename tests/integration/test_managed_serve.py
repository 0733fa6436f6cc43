"""Managed engines behind a whole worker: measured, started, verified by a client, asked."""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.launcher import LaunchedWorker, LaunchPlan, launch
from cloister.attester.measure import reference_values
from cloister.cli.managed_options import ManagedOptions
from cloister.cli.measure import EngineOptions
from cloister.cli.model_options import ModelOptions
from cloister.cli.serve import sandboxed_plan
from cloister.cli.upstream_options import to_accept
from cloister.client.connect import TrustOptions, connect
from cloister.engine.command_lines import ManagedKind
from cloister.errors import AppraisalError, ConfigurationError, EngineError
from cloister.evidence.component import ComponentKind
from cloister.verifier.policy import AppraisalPolicy, development
from cloister.worker.operation import Operation
from support.stand_ins import VERSION, folder, install

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.sandbox,
    pytest.mark.skipif(
        not (shutil.which("swtpm") and shutil.which("bwrap")), reason="needs swtpm and bwrap"
    ),
    pytest.mark.timeout(240),
]
CHAT = "/v1/chat/completions"


def accepting() -> AppraisalPolicy:
    """The development preset, with the other sandbox accepted by its name."""
    return dataclasses.replace(development(), isolation=("sandbox-managed",))


@dataclasses.dataclass(slots=True)
class Served:
    worker: LaunchedWorker
    plan: LaunchPlan
    url: str
    output: Path
    state: Path

    def believing(self, policy: AppraisalPolicy) -> TrustOptions:
        kit = self.worker.client_kit(policy)
        return {"policy": policy, "reference_values": kit.reference_values, "roots": kit.roots}

    @property
    def configuration(self) -> dict[str, Any]:
        found: Any = self.plan.subject.configuration
        return dict(found)


def planned(state: Path, kind: ManagedKind, model: str, **options: Any) -> LaunchPlan:
    installation = install(kind, installed(state, kind))
    return sandboxed_plan(
        state,
        Operation(),
        models=ModelOptions(models=[model]),
        options=EngineOptions(
            parallel=2,
            managed=ManagedOptions(engine=kind.value, program=installation.program, **options),
        ),
    )


def installed(state: Path, kind: ManagedKind) -> Path:
    return state / "installed" / kind.value


def serving(state: Path, plan: LaunchPlan) -> Iterator[Served]:
    output = state / f"{secrets.token_hex(4)}.log"
    with (
        output.open("wb") as log,
        launch(dataclasses.replace(plan, output=log.fileno())) as worker,
    ):
        ready = worker.wait_ready(120)
        yield Served(worker, plan, f"http://{ready['host']}:{ready['port']}", output, state)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers here: its TPM is made, and the installation compiled, once."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def vllm(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = folder(tmp_path_factory.mktemp("models") / "tiny-model")
    yield from serving(state, planned(state, ManagedKind.VLLM, f"stand-in={model}"))


@pytest.fixture(scope="module")
def llama(state: Path) -> Iterator[Served]:
    yield from serving(state, planned(state, ManagedKind.LLAMA_SERVER, "demo"))


def asked(client: Any, text: str, **fields: Any) -> Any:
    body = {"model": "stand-in", "messages": [{"role": "user", "content": text}], **fields}
    return client.http.post(CHAT, json=body)


def test_it_is_verified_and_answers(vllm: Served) -> None:
    marker = "canary" + secrets.token_hex(6)
    with connect(vllm.url, trust_env=False, **vllm.believing(accepting())) as client:
        answer = asked(client, marker)
        told = json.loads(answer.json()["choices"][0]["message"]["content"])
        assert told["words"] == vllm.configuration["engines"][0]["arguments"]
        assert answer.extensions["cloister"].receipt_verified
        streamed = asked(client, marker, stream=True, max_tokens=3)
        assert streamed.text.count("word") == 3
    searched = [path.read_bytes() for path in vllm.state.rglob("*") if path.is_file()]
    assert all(marker.encode() not in content for content in searched)
    assert b"MARKER" not in vllm.output.read_bytes()  # what the engine printed


def test_nobody_meets_a_prefix_that_somebody_else_sent(vllm: Served) -> None:
    text = "words that two people happen to send " + secrets.token_hex(4)

    def cached(client: Any) -> int:
        answer = asked(client, text).json()["choices"][0]["message"]["content"]
        return int(json.loads(answer)["cached"])

    with connect(vllm.url, trust_env=False, **vllm.believing(accepting())) as one:
        assert cached(one) == 0
        assert cached(one) > len(text)  # so there is a cache, and one client has its own of it
    with connect(vllm.url, trust_env=False, **vllm.believing(accepting())) as other:
        assert cached(other) == 0


def test_the_presets_refuse_it_until_it_is_accepted_by_name(vllm: Served) -> None:
    with connect(vllm.url, trust_env=False, **vllm.believing(accepting())):
        pass
    with pytest.raises(AppraisalError) as refused:
        connect(vllm.url, trust_env=False, **vllm.believing(development()))
    assert refused.value.code == "sandbox_unsafe"
    assert to_accept(vllm.plan.subject.configuration) == ('isolation = ["sandbox-managed"]',)


def test_model_and_installation_are_measured(vllm: Served) -> None:
    components = {(one.kind, one.name) for one in vllm.worker.components}
    assert (ComponentKind.MODEL, "stand-in") in components
    assert (ComponentKind.NATIVE, "vllm/0") in components
    (model,) = [one for one in vllm.worker.components if one.kind is ComponentKind.MODEL]
    (engine,) = vllm.configuration["engines"]
    assert model.digest == "sha256:" + engine["model"]["sha256"]
    assert engine["installation"]["version"] == VERSION
    assert engine["prefix_cache"] == "salted"
    assert vllm.configuration["managed"] is True
    assert vllm.configuration["isolation"]["mode"] == "sandbox-managed"
    # What was computed ahead of time is what was measured.
    kit = vllm.worker.client_kit(accepting())
    assert kit.reference_values == reference_values(vllm.plan.subject)


def test_another_file_in_the_installation_is_another_measurement(vllm: Served) -> None:
    before = vllm.worker.client_kit(accepting()).reference_values
    added = installed(vllm.state, ManagedKind.VLLM) / "bin" / "sitecustomize.py"
    added.write_text("print('ran')")
    try:
        after = reference_values(vllm.plan.subject)
    finally:
        added.unlink()
    (changed,) = set(after.components) - set(before.components)
    assert (changed.kind, changed.name) == (ComponentKind.NATIVE, "vllm/0")


def test_a_real_engine_answers_behind_llama_servers_own_words(llama: Served) -> None:
    marker = "canary" + secrets.token_hex(6)
    with connect(llama.url, trust_env=False, **llama.believing(accepting())) as client:
        name = llama.configuration["engines"][0]["model"]["name"]
        body = {
            "model": name,
            "messages": [{"role": "user", "content": f"What is a TEE? {marker}"}],
            "max_tokens": 16,
            "temperature": 0,
        }
        whole = client.http.post(CHAT, json=body).json()
        assert whole["choices"][0]["message"]["content"]
        assert whole["timings"]["cache_n"] == 0
        again = client.http.post(CHAT, json=body).json()
        assert again["choices"] == whole["choices"]
        assert again["timings"]["cache_n"] == 0
        refused = client.http.post(CHAT, json={**body, "id_slot": 0})
        assert refused.status_code == 400
    assert marker.encode() not in llama.output.read_bytes()


def test_a_configuration_of_other_words_is_not_served(vllm: Served) -> None:
    configuration = json.loads(json.dumps(vllm.configuration))
    configuration["engines"][0]["arguments"].append("--trust-remote-code")
    subject = dataclasses.replace(vllm.plan.subject, configuration=configuration)
    output = vllm.state / "refused.log"
    with (
        output.open("wb") as log,
        launch(dataclasses.replace(vllm.plan, subject=subject, output=log.fileno())) as worker,
    ):
        with pytest.raises(EngineError):
            worker.wait_ready(90)
        assert worker.wait(60) == 1
    assert b"configuration.engine_mismatch" in output.read_bytes()


def test_what_an_operator_gets_wrong_is_named(tmp_path: Path) -> None:
    model = str(folder(tmp_path / "model"))
    assert planned(tmp_path / "right", ManagedKind.VLLM, model).entry
    for options, words in (
        ({"options": ["trust-remote-code=true"]}, "not among the options"),
        ({"options": ["dtype"]}, "NAME=VALUE"),
        ({"serves": ["audio"]}, "may serve"),
        ({"gpus": "first"}, "numbers"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            planned(tmp_path / secrets.token_hex(4), ManagedKind.VLLM, model, **options)
    with pytest.raises(ConfigurationError, match="no model's folder"):
        planned(tmp_path / "gguf", ManagedKind.VLLM, "demo")
    with pytest.raises(ConfigurationError, match="--engine is"):
        sandboxed_plan(
            tmp_path,
            Operation(),
            models=ModelOptions(models=[model]),
            options=EngineOptions(managed=ManagedOptions(engine="other")),
        )
    with pytest.raises(ConfigurationError, match="that --engine names"):
        ManagedOptions(gpus="0")
    with pytest.raises(ConfigurationError, match="never run without its sandbox"):
        sandboxed_plan(
            tmp_path,
            Operation(),
            models=ModelOptions(models=[model]),
            options=EngineOptions(
                unsafe_without_sandbox=True, managed=ManagedOptions(engine="vllm")
            ),
        )
