"""An application in a worker that the launcher measured and started: ``cloister serve --asgi``."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.attester.launcher import LaunchedWorker, launch
from cloister.cli.serve import upstream_plan
from cloister.cli.upstream_options import Upstream
from cloister.client.connect import TrustOptions, connect
from cloister.errors import AppraisalError, EngineError
from cloister.verifier import policy as policies
from cloister.verifier.policy import AppraisalPolicy
from cloister.worker.operation import Operation
from support.in_engine import accepting

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.skipif(not shutil.which("swtpm"), reason="needs swtpm"),
    pytest.mark.timeout(180),
]
CHAT = "/v1/chat/completions"
APPLICATION = "cloister.testing.fake_application:app"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@dataclasses.dataclass(slots=True)
class Served:
    worker: LaunchedWorker
    url: str
    output: Path

    def believing(self, policy: AppraisalPolicy) -> TrustOptions:
        kit = self.worker.client_kit(policy)
        return {"policy": policy, "reference_values": kit.reference_values, "roots": kit.roots}


@pytest.fixture(scope="module")
def served(state: Path) -> Iterator[Served]:
    output = state / "output.log"
    upstream = Upstream(address="", application=APPLICATION, name="fake", cache_salt=False)
    plan = upstream_plan(state, Operation(), upstream)
    with (
        output.open("wb") as log,
        launch(dataclasses.replace(plan, output=log.fileno())) as worker,
    ):
        ready = worker.wait_ready(90)
        yield Served(worker, f"http://{ready['host']}:{ready['port']}", output)


def test_it_is_verified_and_answers(served: Served, state: Path) -> None:
    marker = "canary" + secrets.token_hex(6)
    body = {"model": "fake", "messages": [{"role": "user", "content": f"{marker} and more"}]}
    with connect(served.url, trust_env=False, **served.believing(accepting())) as client:
        whole = client.http.post(CHAT, json=body)
        assert whole.json()["choices"][0]["message"]["content"] == f"{marker} and more"
        streamed = client.http.post(CHAT, json={**body, "stream": True})
        assert streamed.text.count("data: ") == 5
        assert streamed.extensions["cloister"].receipt_verified
        failed = client.http.post(CHAT, json={**body, "messages": marker})
        assert failed.status_code == 502
        assert marker not in failed.text
    kept = [path.read_bytes() for path in state.rglob("*") if path.is_file()]
    assert all(marker.encode() not in content for content in kept)


def test_the_presets_refuse_it(served: Served) -> None:
    with connect(served.url, trust_env=False, **served.believing(accepting())):
        pass
    strict = policies.strict()
    for policy, code in (
        (accepting(termination=strict.termination), "termination_refused"),
        (accepting(require_managed=True), "engine_unmanaged"),
        (accepting(require_model=True), "model_unmeasured"),
        (accepting(isolation=strict.isolation), "sandbox_unsafe"),
    ):
        with pytest.raises(AppraisalError) as refused:
            connect(served.url, trust_env=False, **served.believing(policy))
        assert refused.value.code == code


def test_its_code_is_measured(served: Served) -> None:
    names = {component.name for component in served.worker.components}
    assert "cloister" in names
    (configuration,) = [
        component.configuration
        for component in served.worker.components
        if component.configuration is not None
    ]
    assert APPLICATION in str(configuration["engines"])


@pytest.mark.parametrize(
    "named", ["nowhere.to.be:found", "cloister.testing.fake_application:MODEL", "os:system()"]
)
def test_what_is_no_application_is_not_started(state: Path, named: str) -> None:
    upstream = Upstream(address="", application=named, name="fake", cache_salt=False)
    output = state / "refused.log"
    plan = upstream_plan(state, Operation(), upstream)
    with (
        output.open("wb") as log,
        launch(dataclasses.replace(plan, output=log.fileno())) as worker,
    ):
        with pytest.raises(EngineError):
            worker.wait_ready(90)
        assert worker.wait(60) == 1
    assert b"configuration.application" in output.read_bytes()
