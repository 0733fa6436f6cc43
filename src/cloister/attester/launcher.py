"""Measures a worker, then starts it.

Steps, in order:

1. Hash everything that the worker will consist of (`measure`).
2. Start the TPM: its registers are zero. Make the attestation key and have the enrolment CA
   certify it.
3. Extend one event per component, then a separator into each register used, and keep the log.
4. Only then start the worker, with flags under which nothing else is read (`bytecode`), an
   environment made here, and the connection to the TPM. The launcher stays its parent, renews
   the key's certificate, passes signals on, and removes everything at the end.

The worker gets what it needs over an inherited socket: nothing in arguments or environment.

What this cannot show, because the launcher is as trusted as the platform it runs on: on a
development platform a launcher that lies, and files changed between steps 1 and 4, go
undetected. The window is what hashing takes: about half a second.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attester import link
from cloister.attester.bytecode import bytecode_directory, interpreter_flags
from cloister.attester.enrolment import AK_LIFETIME, EnrolmentCa
from cloister.attester.kit import ClientKit
from cloister.attester.measure import Measured, ModelFiles, Subject, measure
from cloister.attester.memory import WorkerMemory
from cloister.attester.quote import enrol
from cloister.attester.swtpm import Manufactured, SoftwareTpm, manufacture
from cloister.endorsements.roots import Roots
from cloister.errors import BuildError, ConfigurationError, EngineError
from cloister.evidence.component import Component, ComponentKind, launch_events
from cloister.evidence.eventlog import encode_event_log
from cloister.evidence.tpm import Alg
from cloister.strictjson import JsonObject
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues

STOP_GRACE_S: Final = 40.0
"""For streams in flight, after which the worker is ended."""

READY_WITHIN_S: Final = 900.0
"""For models of hundreds of gigabytes from a slow disk."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_ENVIRONMENT: Final = {
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """What to start, and where things are kept."""

    state_dir: Path
    """Of the operator alone: the TPM's manufacture, the enrolment CA, compiled bytecode."""
    subject: Subject
    """What is measured: interpreter, configuration, model, native files."""
    entry: str
    """``package.module:function``, called with the `Handover`."""
    operator: JsonObject = field(default_factory=dict, repr=False)
    """Handed to the worker unmeasured: where it listens, never what it does."""
    compiled: tuple[str, ...] = ()
    """Modules compiled ahead beside the entry's: those it imports late."""
    output: int | None = None
    """Descriptor for the worker's standard output and error; None leaves the launcher's."""
    memory: WorkerMemory | None = None
    """What weights are opened into that lie sealed; None where none do."""


class LaunchedWorker:
    """A running worker and all that must end with it. A context manager; leaving ends it."""

    def __init__(
        self,
        *,
        process: subprocess.Popen[bytes],
        measured: Measured,
        event_log: bytes,
        ca: EnrolmentCa,
        ak_certificate: x509.Certificate,
        connection: socket.socket,
        cleanup: contextlib.ExitStack,
        now: Callable[[], datetime],
    ) -> None:
        self.process = process
        self.measured = measured
        self.event_log = event_log
        self.enrolment_ca = ca.certificate
        self.ak_chain: tuple[x509.Certificate, ...] = (ak_certificate, ca.certificate)
        self._ca = ca
        self._connection = connection
        self._cleanup = cleanup
        self._now = now
        self._closed = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="renewal", daemon=True)
        self._renewal.start()

    @property
    def components(self) -> tuple[Component, ...]:
        """What was measured, in the order of the log."""
        return self.measured.components

    def client_kit(self, policy: AppraisalPolicy) -> ClientKit:
        """What a client on this machine may pin to check this very worker."""
        return ClientKit(
            roots=Roots(enrolment_cas=(self.enrolment_ca,)),
            reference_values=ReferenceValues.from_components(self.components),
            policy=policy,
        )

    def wait_ready(self, timeout: float) -> dict[str, Any]:
        """Wait until the worker says that it is ready, and return what it says.

        Raises:
            EngineError: it ended or said nothing in `timeout` seconds (codes
                ``worker.ended``, ``worker.not_ready``).
        """
        self._connection.settimeout(timeout)
        try:
            message = link.receive(self._connection)
        except TimeoutError:
            raise EngineError(
                f"the worker was not ready within {timeout:g} seconds", code="worker.not_ready"
            ) from None
        finally:
            self._connection.settimeout(None)
        if message is None:
            raise EngineError(
                "the worker ended before it was ready; its output says why", code="worker.ended"
            )
        ready: dict[str, Any] = message["ready"]
        return ready

    def terminate(self) -> None:
        """Ask the worker to finish what it answers and end."""
        if self.process.poll() is None:
            self.process.terminate()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the worker's end; `subprocess.TimeoutExpired` if it goes on."""
        return self.process.wait(timeout)

    def close(self, *, grace: float = STOP_GRACE_S) -> int:
        """End the worker, the TPM and every trace in the file system; safe to call twice."""
        self._closed.set()
        self.terminate()
        with self._cleanup, contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        return self.process.wait()

    def __enter__(self) -> LaunchedWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def renew_certificate(self) -> None:
        """Have the attestation key certified anew and tell the worker; done by itself in time."""
        renewed = self._ca.renew(self.ak_chain[0], at=self._now())
        self.ak_chain = (renewed, self._ca.certificate)
        with contextlib.suppress(OSError):
            link.send(self._connection, {"ak_chain": _encoded(self.ak_chain)})

    def _renew(self) -> None:
        while not self._closed.wait(AK_LIFETIME.total_seconds() / 2):
            self.renew_certificate()


def launch(plan: LaunchPlan, *, now: Callable[[], datetime] = _now) -> LaunchedWorker:
    """Measure `plan`'s worker and start it. Call `close`, or use as a context manager.

    Raises:
        BuildError: something cannot be measured.
        ConfigurationError: the state directory is not the operator's alone, or none.
        UnsupportedError, TpmError: there is no software TPM.
        AuthenticationError: the enrolment CA does not certify the key.
    """
    _check_private(plan.state_dir)
    with contextlib.ExitStack() as cleanup, ThreadPoolExecutor(max_workers=1) as pool:
        measuring = pool.submit(_measure_and_compile, plan)
        made, ca = _operator_state(plan.state_dir, now())
        directory = Path(tempfile.mkdtemp(prefix="cloister-"))
        cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        tpm = SoftwareTpm.start(made, runtime=directory)
        cleanup.callback(tpm.stop)
        ak, certificate = enrol(tpm.tpm, ca, intermediates=(made.issuer,), at=now())
        measured, prefix = measuring.result()
        event_log = _extend(tpm, measured.components)
        process, connection = _start(plan, measured, tpm, directory, prefix)
        cleanup.callback(connection.close)
        cleanup.callback(_kill_session, process)
        worker = LaunchedWorker(
            process=process,
            measured=measured,
            event_log=event_log,
            ca=ca,
            ak_certificate=certificate,
            connection=connection,
            cleanup=cleanup.pop_all(),
            now=now,
        )
        # A worker that ended at once shows in `wait_ready`, with its output.
        with contextlib.suppress(OSError):
            link.send(
                connection,
                _handover(
                    plan,
                    worker,
                    descriptor=tpm.tpm.transport.fileno(),
                    ak_handle=ak.handle,
                    directory=directory,
                ),
            )
        return worker


def prepare(plan: LaunchPlan, *, now: Callable[[], datetime] = _now) -> None:
    """Do ahead what the first launch would: make the TPM and the CA, compile the sources.

    Raises:
        BuildError, ConfigurationError, UnsupportedError, TpmError: as `launch`.
    """
    _check_private(plan.state_dir)
    _operator_state(plan.state_dir, now())
    _measure_and_compile(plan)


def run(plan: LaunchPlan, *, on_ready: Callable[[LaunchedWorker, dict[str, Any]], None]) -> int:
    """Launch, call `on_ready`, pass SIGTERM and SIGINT on, and return the worker's status.

    For the main thread of a program that does nothing else.
    """
    told_to_stop: list[int] = []
    worker: LaunchedWorker | None = None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        told_to_stop.append(number)
        if worker is None:
            raise SystemExit(128 + number)  # unwinds the launch, which leaves nothing behind
        worker.terminate()

    previous = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        with launch(plan) as worker:
            try:
                on_ready(worker, worker.wait_ready(timeout=READY_WITHIN_S))
            except EngineError:
                if not told_to_stop:
                    raise
            return worker.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _check_private(state_dir: Path) -> None:
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = state_dir.stat()
    except OSError as error:
        raise ConfigurationError(
            f"{state_dir} cannot be made or used: {error.strerror}", code="launcher.state_dir"
        ) from None
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigurationError(
            f"{state_dir} must belong to you, and nobody else may write to it (mode 0700)",
            code="launcher.state_dir",
        )


def _operator_state(state_dir: Path, at: datetime) -> tuple[Manufactured, EnrolmentCa]:
    with _locked(state_dir / ".lock"):
        made = manufacture(state_dir)
        ca = EnrolmentCa.open(state_dir / "enrolment", manufacturers=(made.root,), at=at)
    return made, ca


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _measure_and_compile(plan: LaunchPlan) -> tuple[Measured, Path]:
    measured = measure(plan.subject)
    # What takes over is imported before the entry, by the worker's first code.
    modules = ("cloister.attester.takeover", plan.entry.partition(":")[0], *plan.compiled)
    prefix = bytecode_directory(
        plan.state_dir / "bytecode", measured.installation, measured.components, modules=modules
    )
    return measured, prefix


def _extend(tpm: SoftwareTpm, components: tuple[Component, ...]) -> bytes:
    events = launch_events(components)
    for event in events:
        tpm.tpm.extend(event.pcr, event.digests[Alg.SHA256])
    return encode_event_log(events)


def _start(
    plan: LaunchPlan, measured: Measured, tpm: SoftwareTpm, directory: Path, prefix: Path
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    temporary = directory / "tmp"
    temporary.mkdir(mode=0o700)
    with theirs:
        command = (
            measured.installation.interpreter.python,
            *interpreter_flags(prefix),
            _first_code(measured),
            str(theirs.fileno()),
        )
        process = subprocess.Popen(  # noqa: S603 - the measured interpreter on measured code
            command,
            stdin=subprocess.DEVNULL,
            stdout=plan.output,
            stderr=plan.output,
            cwd="/",
            env={**_ENVIRONMENT, "TMPDIR": str(temporary)},
            pass_fds=(theirs.fileno(), tpm.tpm.transport.fileno()),
            umask=0o077,
            # Signals of the terminal reach the launcher alone, which passes them on in order.
            start_new_session=True,
        )
    return process, ours


def _first_code(measured: Measured) -> str:
    for root in measured.installation.import_path:
        found = Path(root) / "cloister" / "attester" / "_start.py"
        if found.is_file():
            return str(found)
    raise BuildError("the installation to start holds no Cloister", code="measure.python")


def _handover(
    plan: LaunchPlan, worker: LaunchedWorker, *, descriptor: int, ak_handle: int, directory: Path
) -> dict[str, Any]:
    digests = {
        (component.kind, component.name): component.digest for component in worker.components
    }

    def file(
        kind: ComponentKind, name: str, path: Path, *, sealed: bool = False
    ) -> dict[str, object]:
        sha256 = digests[kind, name].removeprefix("sha256:")
        return {"name": name, "path": str(path.resolve()), "sha256": sha256, "sealed": sealed}

    def of_model(model: ModelFiles) -> dict[str, dict[str, object]]:
        single = len(model.files) == 1
        kind = ComponentKind.MODEL if single else ComponentKind.MODEL_FILE
        return {
            role: file(
                kind,
                model.name if single else f"{model.name}/{role}",
                path,
                sealed=role in model.sealed,
            )
            for role, path in model.files.items()
        }

    subject = plan.subject
    return {
        "import_path": list(worker.measured.installation.import_path),
        "entry": plan.entry,
        "tpm": {"kind": "socket", "fd": descriptor, "ak_handle": ak_handle},
        "ak_chain": _encoded(worker.ak_chain),
        "event_log": base64.b64encode(worker.event_log).decode(),
        "configuration": subject.configuration,
        "operator": plan.operator,
        "models": [{"name": model.name, "files": of_model(model)} for model in subject.models],
        "native": {
            name: file(ComponentKind.NATIVE, name, path) for name, path in subject.native.items()
        },
        "directory": str(directory),
        "memory": None if plan.memory is None else plan.memory.to_json(directory),
    }


def _encoded(chain: tuple[x509.Certificate, ...]) -> list[str]:
    return [base64.b64encode(entry.public_bytes(Encoding.DER)).decode() for entry in chain]


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """End a worker that is still there, with what it started."""
    if process.poll() is None:  # so that its number cannot belong to anything else yet
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
