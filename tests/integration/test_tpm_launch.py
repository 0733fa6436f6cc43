"""The launcher with a real software TPM and a real worker process."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.launcher import LaunchedWorker, LaunchPlan, launch
from cloister.attester.measure import Subject, reference_values
from cloister.errors import BuildError, ConfigurationError, EngineError
from cloister.evidence.eventlog import parse_event_log, replay
from cloister.evidence.tpm import Alg, parse_quote, pcr_digest
from cloister.verifier import policy
from support.installation import make_worker_environment
from support.software_tpm import HAVE_SWTPM

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
]

WORKER = """
import os, signal, sys, threading

def tell(handover):
    evidence = handover.attester.quote(bytes(32))
    handover.ready({
        "quote": evidence["tpm.quote"].data.hex(),
        "certificates": len(evidence["tpm.quote"].endorsements),
        "environment": dict(os.environ),
        "arguments": sys.argv,
        "configuration": handover.configuration,
        "operator": handover.operator,
        "model": [str(handover.model.path), handover.model.sha256],
        "directory": str(handover.directory),
        "inheritable": [n for n in os.listdir("/proc/self/fd")
                        if int(n) > 2 and os.path.exists("/proc/self/fd/" + n)
                        and os.get_inheritable(int(n))],
        "pid": os.getpid(),
    })
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    return 7

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
                model=model,
                model_name="tiny",
            ),
            entry=f"stand_in_worker:{function}",
            operator={"secret_path": "/operator/only"},
            output=subprocess.DEVNULL,
        )

    return make


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().split(")")[1].split()[0] == "Z"


def wait_until(condition: Callable[[], bool], timeout: float = 10.0) -> bool:
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
        ready = worker.wait_ready(30)
        assert quoted_digest(ready) == expected_digest(worker, ready)
        assert ready["configuration"] == {"debug": False}
        assert ready["operator"] == {"secret_path": "/operator/only"}
        assert ready["model"][1] == hashlib.sha256(b"weights").hexdigest()
        assert ready["certificates"] == 2
        kit = worker.client_kit(policy.development())
        # What was computed ahead of time is what was measured.
        assert kit.reference_values == reference_values(made.subject)
        directory = Path(ready["directory"])
        assert directory.stat().st_mode & 0o777 == 0o700
        worker.terminate()
        assert worker.wait(10) == 7
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
        ready = worker.wait_ready(30)
        assert set(ready["environment"]) <= {"LANG", "PATH", "TMPDIR", "LC_CTYPE"}
        assert len(ready["arguments"]) == 2
        assert ready["inheritable"] == []


def test_another_configuration_quotes_differently_under_the_same_key(
    plan: Callable[..., LaunchPlan],
) -> None:
    with launch(plan()) as first, launch(plan(isolation="none")) as second:
        digests = [quoted_digest(worker.wait_ready(30)) for worker in (first, second)]
        assert digests[0] != digests[1]
        assert first.enrolment_ca == second.enrolment_ca
        keys = [worker.ak_chain[0].public_key() for worker in (first, second)]
        assert keys[0] == keys[1]


def test_worker_that_ends_early_is_reported(plan: Callable[..., LaunchPlan]) -> None:
    with launch(plan("broken")) as worker, pytest.raises(EngineError) as caught:
        worker.wait_ready(30)
    assert caught.value.code == "worker.ended"
    assert worker.wait() == 3


def test_worker_that_does_not_listen_is_ended(plan: Callable[..., LaunchPlan]) -> None:
    worker = launch(plan("stubborn"))
    worker.wait_ready(30)
    with pytest.raises(EngineError, match="not ready within"):
        worker.wait_ready(0.05)
    assert worker.close(grace=0.2) == -signal.SIGKILL
    assert worker.close() == -signal.SIGKILL


def test_certificate_is_renewed_without_a_restart(plan: Callable[..., LaunchPlan]) -> None:
    with launch(plan()) as worker:
        worker.wait_ready(30)
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


def test_nothing_is_left_when_measuring_fails(
    plan: Callable[..., LaunchPlan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    made = plan()
    launch(made).close(grace=5)
    assert made.subject.model is not None
    made.subject.model.unlink()
    with pytest.raises(BuildError):
        launch(made)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_killed_launcher_leaves_no_process_and_no_directory(
    plan: Callable[..., LaunchPlan], tmp_path: Path
) -> None:
    made = plan()
    script = tmp_path / "launcher.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, sys, time
        from pathlib import Path
        from cloister.attester.launcher import LaunchPlan, launch
        from cloister.attester.measure import Subject
        subject = Subject(python=Path({str(made.subject.python)!r}),
                          configuration={{"debug": False}},
                          model=Path({str(made.subject.model)!r}), model_name="tiny")
        worker = launch(LaunchPlan(state_dir=Path({str(made.state_dir)!r}), subject=subject,
                                   entry={made.entry!r}))
        ready = worker.wait_ready(30)
        tpm = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()
               and ready["directory"].encode() in (p / "cmdline").read_bytes()]
        print(json.dumps([ready["pid"], ready["directory"], *tpm]), flush=True)
        time.sleep(60)
        """)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        pid, directory, *others = __import__("json").loads(process.stdout.readline())
        assert len(others) == 1
        assert not any(gone(number) for number in (pid, *others))
        process.kill()
        process.wait()
    assert wait_until(lambda: all(gone(number) for number in (pid, *others)))
    assert wait_until(lambda: not Path(directory).exists())


def test_certificates_are_current(plan: Callable[..., LaunchPlan]) -> None:
    with launch(plan()) as worker:
        at = datetime.now(UTC)
        for certificate in worker.ak_chain:
            assert certificate.not_valid_before_utc < at < certificate.not_valid_after_utc
