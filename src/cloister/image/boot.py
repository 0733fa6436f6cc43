"""Boots an image beside a software TPM, has the guest's key certified, and waits for its worker.

This is what an operator's machine does for a development guest; a production guest gets its TPM
from its cloud or its hardware. Everything lies in a private folder that goes with the guest.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attester.enrolment import EnrolmentCa
from cloister.attester.swtpm import MachineTpm, Manufactured
from cloister.attester.tpm_errors import TpmError
from cloister.errors import EngineError
from cloister.image.machine import SYSTEM_PATH, Machine, Sockets, find_qemu, qemu_command
from cloister.image.operator_link import OperatorLink, bytes_of
from cloister.image.tpm_relay import TpmRelay
from cloister.strictjson import JsonObject

READY_WITHIN_S: Final = 300.0
"""An emulated boot takes about a minute on a quiet machine, minutes on a busy one."""
STOP_WITHIN_S: Final = 5.0
MACHINE_ENDS_WITHIN_S: Final = 10.0
"""After its TPM, where it was the machine that ended."""
WATCH_S: Final = 1.0
"""How often somebody looks whether machine and TPM still run."""
_SHOWN_LINES: Final = 12
_MAX_CONSOLE_BYTES: Final = 1024 * 1024
_TAIL_BYTES: Final = 64 * 1024

MARKS: Final = (
    ("firmware", "BdsDxe: starting", "the firmware has started the image"),
    ("kernel", "init: [", "the kernel has started the init"),
    ("modules", "modules, and no more", "modules loaded"),
    ("disks", "] network: ", "disks measured and mounted, network rules in force"),
    ("hardened", "worker.hardened", "the worker runs"),
    ("ready", "worker.ready", "the engine has loaded the model"),
)
"""Steps of a boot, what the console says when each is done, and what that means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootPlan:
    """What to start, and who vouches for its TPM."""

    machine: Machine
    tpm: Manufactured
    ca: EnrolmentCa
    api_keys: bytes | None = field(default=None, repr=False)
    """The table that `cloister keys` writes; without one, and without a start disk, the worker
    serves nobody."""
    manifest: bytes | None = None
    """The bundle of the manifest that the worker is to run under; the guest measures its digest."""


class BootedGuest:
    """A running guest and all that must end with it. A context manager; leaving ends it."""

    def __init__(
        self,
        plan: BootPlan,
        *,
        progress: Callable[[str], None] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start `plan`'s machine; `progress` hears a line for every step of the boot.

        Raises:
            UnsupportedError: QEMU or swtpm is not installed.
            TpmError: the software TPM does not start.
        """
        self._plan = plan
        self._progress, self._now, self._steady = progress, now, steady
        self.time_line: dict[str, float] = {}
        """Seconds from the machine's start until each of `MARKS` was seen."""
        with contextlib.ExitStack() as cleanup:
            folder = Path(tempfile.mkdtemp(prefix="cloister-vm-"))
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            self.sockets = Sockets(folder=folder)
            shutil.copyfile(plan.machine.firmware.variables, self.sockets.variables)
            tpm = MachineTpm.start(plan.tpm, runtime=folder, control=self.sockets.tpm_itself)
            cleanup.callback(tpm.stop)
            self.tpm = tpm
            relay = TpmRelay(listen=self.sockets.tpm, control=self.sockets.tpm_itself)
            cleanup.callback(relay.stop)
            self._messages = folder / "qemu.log"
            self._began = steady()
            with self._messages.open("wb") as messages:
                self.process = subprocess.Popen(  # noqa: S603 - found on a fixed path
                    ending_with_us(qemu_command(plan.machine, self.sockets, program=find_qemu())),
                    stdin=subprocess.DEVNULL,
                    stdout=messages,
                    stderr=messages,
                    # A terminal's interrupt ends the guest through us, in order.
                    start_new_session=True,
                )
            cleanup.callback(self._stop)
            self._cleanup = cleanup.pop_all()

    def wait_ready(self, timeout: float = READY_WITHIN_S) -> JsonObject:
        """Enrol the guest's key, hand over the API keys, and wait until the worker listens.

        Returns what the worker says of itself.

        Raises:
            EngineError: the guest stopped, or is not ready `timeout` seconds after its start
                (codes ``guest.ended``, ``guest.not_ready``); the console's last lines are in it.
            AuthenticationError: the CA does not certify the guest's key.
            FetchError: the guest answers otherwise than it should.
        """

        def waiting() -> None:
            self.look()
            if self.process.poll() is not None:
                raise self._stopped()
            self._require_tpm()
            if self._steady() - self._began > timeout:
                raise EngineError(
                    f"the guest is not ready after {timeout:g} seconds; it said last:\n"
                    f"{self._last_lines()}",
                    code="guest.not_ready",
                )

        link = OperatorLink.connect(self.sockets.operator, waiting=waiting)
        with contextlib.closing(link):
            manifest = self._plan.manifest
            if self._plan.machine.start_disk is None:
                link.ask("start", **({} if manifest is None else {"manifest": _text(manifest)}))
            enrol_guest(link, self._plan.ca, issuer=self._plan.tpm.issuer, at=self._now())
            self.note("certified", "the guest's attestation key is certified")
            self.boot_log = bytes_of(link.ask("boot_log"), "log")
            if self._plan.api_keys is not None:
                link.ask("api_keys", table=_text(self._plan.api_keys))
            while True:
                ready = link.ask("ready").get("ready")
                waiting()
                if isinstance(ready, dict):
                    self.note("listening", "the worker listens")
                    return ready
                time.sleep(0.1)

    def look(self) -> None:
        """See which marks the console has reached."""
        text = self.console()
        for name, mark, meaning in MARKS:
            if name not in self.time_line and mark in text:
                self.note(name, meaning)

    def note(self, name: str, meaning: str) -> None:
        """Add a step to the time line, and tell of it."""
        self.time_line[name] = round(self._steady() - self._began, 1)
        self._progress(f"{self.time_line[name]:6.1f} s  {meaning}")

    def console(self) -> str:
        """What the guest wrote: its firmware, its init, and the worker's log, which has no content
        of anybody's requests."""
        try:
            with self.sockets.console.open("rb") as file:
                return file.read(_MAX_CONSOLE_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""

    def wait(self) -> NoReturn:
        """Wait until the machine ends, which a guest that serves does not do by itself.

        Raises:
            EngineError: it has ended (code ``guest.ended``); the console's last lines are in it.
            TpmError: its TPM has, without which it proves nothing (code ``tpm.swtpm``).
        """
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(WATCH_S)
                raise self._stopped()
            self._require_tpm()

    def close(self) -> None:
        """End the machine, its TPM and its folder; safe to call twice."""
        self._cleanup.close()

    def __enter__(self) -> BootedGuest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _stopped(self) -> EngineError:
        return EngineError(
            f"the guest stopped; it said last:\n{self._last_lines()}", code="guest.ended"
        )

    def _require_tpm(self) -> None:
        if self.tpm.poll() is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A machine that ends takes its TPM with it, whose end may be seen first.
            self.process.wait(MACHINE_ENDS_WITHIN_S)
            raise self._stopped()
        raise TpmError(
            "the guest's software TPM (swtpm) has stopped, and a guest without it proves"
            " nothing: boot it again",
            code="tpm.swtpm",
        )

    def _last_lines(self) -> str:
        """Of the console, and of QEMU itself; printable, whatever a guest writes."""
        lines = [
            *_tail(self.sockets.console)[-_SHOWN_LINES:],
            *_tail(self._messages)[-2:],
        ]
        return "\n".join("  " + "".join(filter(str.isprintable, line)) for line in lines)

    def _stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _tail(path: Path) -> list[str]:
    """The last lines of a file, which grows for as long as a guest serves."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def ending_with_us(command: Sequence[str]) -> Sequence[str]:
    """`command`, so that the kernel kills it when this process is gone, however it went.

    By util-linux' ``setpriv --pdeathsig`` (``PR_SET_PDEATHSIG``); a system without it gets the
    command as it is. So does a thread other than the first: the kernel goes by the thread that
    started the process, and such a thread may end before its guest is to.
    """
    setpriv = shutil.which("setpriv", path=SYSTEM_PATH)
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return command
    return (setpriv, "--pdeathsig", "KILL", "--", *command)


def enrol_guest(
    link: OperatorLink, ca: EnrolmentCa, *, issuer: x509.Certificate, at: datetime
) -> x509.Certificate:
    """Have `ca` certify the guest's key, by the steps of `cloister.attester.enrolment`.

    `issuer` is the intermediate that signed the certificate of the TPM's endorsement key.

    Raises:
        AuthenticationError: the CA refuses.
        FetchError, EngineError: the guest does not answer as it should, or not at all.
    """
    names = link.ask("enrolment")
    challenge = ca.challenge(
        ek_certificate=bytes_of(names, "ek_certificate"),
        intermediates=(issuer,),
        ak_public=bytes_of(names, "ak_public"),
        at=at,
    )
    answer = link.ask(
        "activate",
        credential=_text(challenge.sealed.credential),
        secret=_text(challenge.sealed.secret),
    )
    certificate = ca.certify(challenge.id, bytes_of(answer, "answer"), at=at)
    chain = (certificate, ca.certificate)
    link.ask("certificate", chain=[_text(one.public_bytes(Encoding.DER)) for one in chain])
    return certificate


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
