"""The launcher with a real software TPM and a real worker process."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.launcher import LaunchedWorker, LaunchPlan, launch, prepare
from cloister.attester.measure import ModelFiles, Subject, reference_values
from cloister.errors import BuildError, ConfigurationError, EngineError
from cloister.evidence.eventlog import parse_event_log, replay
from cloister.evidence.tpm import Alg, parse_quote, pcr_digest
from cloister.model_digest import Role
from cloister.verifier import policy
from support.installation import make_worker_environment
from support.processes import mentioning
from support.software_tpm import HAVE_SWTPM

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
]

WORKER = """
import os, signal, sys, threading

def tell(handover):
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    report(handover)
    stopped.wait()
    return 7

def early(handover):
    report(handover)  # and goes on without a handler for signals
    threading.Event().wait()

def report(handover):
    evidence = handover.attester.quote(bytes(32))
    handover.ready({
        "quote": evidence["tpm.quote"].data.hex(),
        "certificates": len(evidence["tpm.quote"].endorsements),
        "environment": dict(os.environ),
        "arguments": sys.argv,
        "configuration": handover.configuration,
        "operator": handover.operator,
        "models": {name: {role: [str(file.path), file.sha256] for role, file in files.items()}
                   for name, files in handover.models.items()},
        "directory": str(handover.directory),
        "inheritable": [n for n in os.listdir("/proc/self/fd")
                        if int(n) > 2 and os.path.exists("/proc/self/fd/" + n)
                        and os.get_inheritable(int(n))],
        "pid": os.getpid(),
    })

def stubborn(handover):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    handover.ready()
    threading.Event().wait()

def broken(handover):
    raise SystemExit(3)
"""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator") / "state"


@pytest.fixture
def plan(tmp_path: Path, state: Path) -> Callable[..., LaunchPlan]:
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "stand_in_worker.py").write_text(WORKER)
    python = make_worker_environment(tmp_path / "venv", sources)
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")

    def make(function: str = "tell", **configuration: str) -> LaunchPlan:
        return LaunchPlan(
            state_dir=state,
            subject=Subject(
                python=python,
                configuration={"debug": False, **configuration},
                models=(ModelFiles.of_file("tiny", model),),
            ),
            entry=f"stand_in_worker:{function}",
            operator={"secret_path": "/operator/only"},
            output=subprocess.DEVNULL,
        )

    return make


def gone(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # also of one that ends while it is read
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"


def wait_until(condition: Callable[[], bool], timeout: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def quoted_digest(ready: dict[str, Any]) -> bytes:
    return parse_quote(bytes.fromhex(ready["quote"])).pcr_digest


def expected_digest(worker: LaunchedWorker, ready: dict[str, Any]) -> bytes:
    registers = replay(parse_event_log(worker.event_log))
    values = {(int(Alg.SHA256), pcr): value for pcr, value in registers.items()}
    return pcr_digest(parse_quote(bytes.fromhex(ready["quote"])).selections, values)


def test_worker_quotes_what_was_measured_before_it_started(
    plan: Callable[..., LaunchPlan], state: Path
) -> None:
    made = plan()
    with launch(made) as worker:
        ready = worker.wait_ready(60)
        assert quoted_digest(ready) == expected_digest(worker, ready)
        assert ready["configuration"] == {"debug": False}
        assert ready["operator"] == {"secret_path": "/operator/only"}
        path, digest = ready["models"]["tiny"]["model"]
        assert Path(path).read_bytes() == b"weights"
        assert digest == hashlib.sha256(b"weights").hexdigest()
        assert ready["certificates"] == 2
        kit = worker.client_kit(policy.development())
        # What was computed ahead of time is what was measured.
        assert kit.reference_values == reference_values(made.subject)
        directory = Path(ready["directory"])
        assert directory.stat().st_mode & 0o777 == 0o700
        worker.terminate()
        assert worker.wait(60) == 7
    assert not directory.exists()
    assert {path.name for path in state.iterdir()} == {
        ".lock",
        "bytecode",
        "enrolment",
        "software-tpm",
    }


def test_nothing_is_handed_over_where_others_can_read_it(
    plan: Callable[..., LaunchPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/evil")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/evil")
    with launch(plan()) as worker:
        ready = worker.wait_ready(60)
        assert set(ready["environment"]) <= {"LANG", "PATH", "TMPDIR", "LC_CTYPE"}
        assert len(ready["arguments"]) == 2
        assert ready["inheritable"] == []


def test_another_configuration_quotes_differently_under_the_same_key(
    plan: Callable[..., LaunchPlan],
) -> None:
    with launch(plan()) as first, launch(plan(isolation="none")) as second:
        digests = [quoted_digest(worker.wait_ready(60)) for worker in (first, second)]
        assert digests[0] != digests[1]
        assert first.enrolment_ca == second.enrolment_ca
        keys = [worker.ak_chain[0].public_key() for worker in (first, second)]
        assert keys[0] == keys[1]


def test_worker_that_ends_early_is_reported(plan: Callable[..., LaunchPlan]) -> None:
    with launch(plan("broken")) as worker, pytest.raises(EngineError) as caught:
        worker.wait_ready(60)
    assert caught.value.code == "worker.ended"
    assert worker.wait() == 3


def test_worker_that_does_not_listen_is_ended(plan: Callable[..., LaunchPlan]) -> None:
    worker = launch(plan("stubborn"))
    worker.wait_ready(60)
    with pytest.raises(EngineError, match="not ready within"):
        worker.wait_ready(0.05)
    assert worker.close(grace=0.2) == -signal.SIGKILL
    assert worker.close() == -signal.SIGKILL


def test_certificate_is_renewed_without_a_restart(plan: Callable[..., LaunchPlan]) -> None:
    with launch(plan()) as worker:
        worker.wait_ready(60)
        before = worker.ak_chain[0]
        worker.renew_certificate()
        after = worker.ak_chain[0]
        assert after != before
        assert after.public_key() == before.public_key()
        assert after.not_valid_after_utc >= before.not_valid_after_utc


def test_state_directory_that_others_can_write_is_refused(
    plan: Callable[..., LaunchPlan], state: Path
) -> None:
    launch(plan()).close(grace=5)
    state.chmod(0o770)
    try:
        with pytest.raises(ConfigurationError) as caught:
            launch(plan())
        assert caught.value.code == "launcher.state_dir"
    finally:
        state.chmod(0o700)


def test_state_directory_that_cannot_be_made_is_refused(
    plan: Callable[..., LaunchPlan], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="Not a directory") as caught:
        launch(replace(plan(), state_dir=tmp_path / "file" / "state"))
    assert caught.value.code == "launcher.state_dir"


def test_nothing_is_left_when_measuring_fails(
    plan: Callable[..., LaunchPlan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    made = plan()
    launch(made).close(grace=5)
    made.subject.models[0].files[Role.MODEL].unlink()
    with pytest.raises(BuildError):
        launch(made)
    assert list((tmp_path / "temporary").iterdir()) == []


PROGRAM = """
import json, sys, time
from pathlib import Path
from cloister.attester.launcher import LaunchPlan, run
from cloister.attester.measure import ModelFiles, Subject

def on_ready(worker, ready):
    print(json.dumps([ready["directory"], ready["pid"]]), flush=True)

python, model, state, entry = sys.argv[1:]
subject = Subject(python=Path(python), configuration={"debug": False},
                  models=(ModelFiles.of_file("tiny", Path(model)),))
sys.exit(run(LaunchPlan(state_dir=Path(state), subject=subject, entry=entry), on_ready=on_ready))
"""


@contextmanager
def launcher_process(plan: LaunchPlan) -> Iterator[tuple[subprocess.Popen[str], str, list[int]]]:
    """A launcher in a process of its own, with its directory, and its worker's and TPM's ids."""
    words = (
        plan.subject.python,
        plan.subject.models[0].files[Role.MODEL],
        plan.state_dir,
        plan.entry,
    )
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            directory, worker = json.loads(process.stdout.readline())
            others = [worker, *mentioning(directory)]
            assert len(others) == 2
            assert not any(gone(number) for number in others)
            yield process, directory, others
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("function", ["tell", "early"])
def test_killed_launcher_leaves_no_process_and_no_directory(
    plan: Callable[..., LaunchPlan], function: str
) -> None:
    with launcher_process(plan(function)) as (process, directory, others):
        process.kill()
        assert wait_until(lambda: all(gone(number) for number in others))
        assert wait_until(lambda: not Path(directory).exists())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_and_the_status_comes_back(
    plan: Callable[..., LaunchPlan], number: signal.Signals
) -> None:
    with launcher_process(plan()) as (process, directory, others):
        process.send_signal(number)
        assert process.wait(60) == 7
        assert all(gone(other) for other in others)
        assert not Path(directory).exists()


def test_prepared_state_is_what_the_launch_uses(
    plan: Callable[..., LaunchPlan], tmp_path: Path
) -> None:
    made = replace(plan(), state_dir=tmp_path / "fresh")
    prepare(made)
    before = sorted(path for path in made.state_dir.rglob("*") if path.is_file())
    with launch(made) as worker:
        worker.wait_ready(60)
    assert sorted(path for path in made.state_dir.rglob("*") if path.is_file()) == before


def test_certificates_are_current(plan: Callable[..., LaunchPlan]) -> None:
    with launch(plan()) as worker:
        at = datetime.now(UTC)
        for certificate in worker.ak_chain:
            assert certificate.not_valid_before_utc < at < certificate.not_valid_after_utc
