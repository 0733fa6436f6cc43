"""A software TPM of one's own: ``swtpm`` as a private process, for development.

It is a whole TPM 2.0 with a certified endorsement key, and proves nothing to anyone else:
whoever runs it can read its keys. Its certificates come from a CA that is made for the one
TPM and loses its keys once it has signed.

The process serves exactly one connection, which it inherits: no file leads to it, so nobody
else can take it and no path can be too long for a socket. ``--terminate`` ends it with that
connection: when every process that holds the connection is gone, so is the TPM, however they
ended.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509

from cloister.attester.tpm import Tpm
from cloister.attester.tpm_errors import TpmError
from cloister.attester.transport import SocketTransport
from cloister.errors import UnsupportedError

PROGRAMS: Final = ("swtpm", "swtpm_setup", "swtpm_localca")
SETUP_TIMEOUT_S: Final = 60.0
START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 5.0

_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_ENVIRONMENT: Final = {"PATH": _PATH, "LANG": "C.UTF-8"}
_TPM: Final = "tpm"
_MANUFACTURER: Final = "manufacturer"
_ROOT: Final = "swtpm-localca-rootca-cert.pem"
_ISSUER: Final = "issuercert.pem"
_CA_KEYS: Final = ("signkey.pem", "swtpm-localca-rootca-privkey.pem")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manufactured:
    """A software TPM at rest: where its state lies, and the CA that certified its EK."""

    state: Path
    root: x509.Certificate
    """What an enrolment CA pins."""
    issuer: x509.Certificate
    """The intermediate that signed the EK certificate."""


def manufacture(directory: Path) -> Manufactured:
    """Make a TPM in `directory` with EK certificates of a CA of its own, or find it there.

    Takes half a second the first time. `directory` is made with mode 0700 if need be; a TPM
    that was half made is not seen.

    Raises:
        UnsupportedError: swtpm is not installed (code ``tpm.swtpm_missing``).
        TpmError: it cannot make a TPM (code ``tpm.swtpm``).
    """
    made = directory / "software-tpm"
    if not made.is_dir():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".tpm-", dir=directory))
        try:
            _manufacture_in(work)
            work.rename(made)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    try:
        return Manufactured(
            state=made / _TPM,
            root=_certificate(made / _MANUFACTURER / _ROOT),
            issuer=_certificate(made / _MANUFACTURER / _ISSUER),
        )
    except (OSError, ValueError):
        raise TpmError(
            f"{made} does not hold a whole software TPM; remove it to make a new one",
            code="tpm.swtpm",
        ) from None


class SoftwareTpm:
    """A running software TPM and the only connection to it."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self._process = process
        self.tpm = Tpm(SocketTransport(connection))

    @classmethod
    def start(cls, made: Manufactured, *, runtime: Path) -> SoftwareTpm:
        """Start a copy of the TPM `made`, as after a power cycle: registers are zero.

        `runtime` is a private directory (mode 0700) for the copy. A copy, because a TPM that
        was once killed does not vouch for its clock for the next hour, and because several
        workers may be started side by side. They then share keys; what keeps their quotes apart
        is what keeps any two launches apart: registers and statement.

        Raises:
            UnsupportedError: swtpm is not installed.
            TpmError: it does not start.
        """
        state = runtime / _TPM
        shutil.copytree(made.state, state, ignore=shutil.ignore_patterns(".lock"))
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = _run(_command(state, theirs.fileno()), theirs.fileno())
        except BaseException:
            ours.close()
            raise
        started = cls(process, ours)
        try:
            started.tpm.read_pcrs((0,))
        except TpmError:
            started.stop()
            raise TpmError("the software TPM does not start", code="tpm.swtpm") from None
        except BaseException:
            started.stop()
            raise
        return started

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End it. Not orderly: nothing is kept of a copy."""
        self.tpm.close()
        try:
            # Another process may still hold the connection, so its end alone is not enough.
            self._process.terminate()
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class MachineTpm:
    """A running software TPM for an emulated machine, which holds the connection itself.

    It is powered off and on by that machine, and ends with its connection, like `SoftwareTpm`.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def start(cls, made: Manufactured, *, runtime: Path, control: Path) -> MachineTpm:
        """Start a copy of the TPM `made`, which waits for its machine at the socket `control`.

        `runtime` is a private directory (mode 0700) for the copy.

        Raises:
            UnsupportedError: swtpm is not installed.
            TpmError: it does not start.
        """
        state = runtime / _TPM
        shutil.copytree(made.state, state, ignore=shutil.ignore_patterns(".lock"))
        process = _run(
            (
                *(_program("swtpm"), "socket", "--tpm2", "--terminate"),
                *("--tpmstate", f"dir={state},mode=0600"),
                *("--ctrl", f"type=unixio,path={control},mode=0600"),
            )
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not control.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise TpmError("the software TPM does not start", code="tpm.swtpm")
            time.sleep(0.001)
        return cls(process)

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End it, where its machine has not."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _run(command: Sequence[str], *inherited: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - a fixed program, found on a fixed path
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=_ENVIRONMENT,
        pass_fds=inherited,
        # An interrupt from the terminal must not end the TPM before the worker.
        start_new_session=True,
    )


def _command(state: Path, connection: int) -> Sequence[str]:
    return (
        _program("swtpm"),
        *("socket", "--tpm2", "--terminate"),
        *("--tpmstate", f"dir={state},mode=0600"),
        *("--fd", str(connection)),
        *("--flags", "not-need-init,startup-clear"),
    )


def _manufacture_in(work: Path) -> None:
    state, ca = work / _TPM, work / _MANUFACTURER
    state.mkdir(mode=0o700)
    ca.mkdir(mode=0o700)
    config = _write_configuration(work, ca)
    command = (
        _program("swtpm_setup"),
        *("--tpm2", "--tpmstate", str(state), "--config", str(config)),
        *("--create-ek-cert", "--pcr-banks", "sha256", "--logfile", str(work / "setup.log")),
    )
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program, found on a fixed path
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SETUP_TIMEOUT_S,
            env={**_ENVIRONMENT, "TMPDIR": str(work)},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TpmError("swtpm_setup does not come to an end", code="tpm.swtpm") from None
    if done.returncode != 0:
        raise TpmError(f"swtpm_setup failed: {_last_line(work / 'setup.log')}", code="tpm.swtpm")
    for name in _CA_KEYS:
        # Nobody, not even this operator, certifies another EK under this root.
        (ca / name).unlink(missing_ok=True)


def _write_configuration(work: Path, ca: Path) -> Path:
    """Private configuration, so that the machine's own swtpm CA is neither used nor changed."""
    (work / "localca.conf").write_text(
        f"statedir = {ca}\n"
        f"signingkey = {ca / 'signkey.pem'}\n"
        f"issuercert = {ca / _ISSUER}\n"
        f"certserial = {ca / 'certserial'}\n"
    )
    (work / "localca.options").write_text(
        "--platform-manufacturer Cloister\n--platform-version 1\n--platform-model Development\n"
    )
    config = work / "setup.conf"
    config.write_text(
        f"create_certs_tool = {_program('swtpm_localca')}\n"
        f"create_certs_tool_config = {work / 'localca.conf'}\n"
        f"create_certs_tool_options = {work / 'localca.options'}\n"
        "active_pcr_banks = sha256\n"
    )
    return config


def _program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise UnsupportedError(
            f"{name} is not installed; on Debian: apt install swtpm swtpm-tools",
            code="tpm.swtpm_missing",
        )
    return found


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it left no message"
