"""The worker's start in a booted image: what the launcher is elsewhere, after the guest's init.

``python -I -B -m cloister.attester.guest``, as the application disk's ``command`` says: the init
starts it as an ordinary user, when the disks are measured and the network's rules in force. What
the worker does stands in ``worker.json`` of the same measured disk; nothing else in the guest
changes it.

In an enclave the operator's port is a vsock port, and the manifest's digest goes into a register of
the security module.

Weights that lie sealed on the model disk are opened into a folder in memory, which is made before
the process has a second thread. Their key comes from the broker that ``worker.json`` names, to
evidence with the certificate of this machine's key: so where there is a broker, the worker waits
for the certificate.

Who is served, and under which manifest, comes through the operator's port or stands on a start disk
(`cloister.attester.start_disk`); a guest that has neither ends. Where there is no port, nobody can
certify a TPM's key, so its provider has to have done so.

One process, for a second interpreter would cost seconds where instructions are emulated. The thread
that answers the operator's port (`cloister.attester.guest_port`) has a TPM connection of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.attester import link
from cloister.attester.device_tpm import (
    GOOGLE_KEYS,
    AttestationKey,
    DeviceTpmAttester,
    find_attestation_key,
    is_key_of,
    open_tpm,
    read_boot_log,
)
from cloister.attester.guest_port import (
    Answer,
    decoded,
    encoded,
    find_port,
    listen_vsock,
    serve_connections,
    serve_port,
)
from cloister.attester.handover import Evidence, Handover, MeasuredFile
from cloister.attester.memory import FOLDER, WorkerMemory, make_memory
from cloister.attester.quote import EndorsementKey, find_endorsement_key
from cloister.attester.start_disk import BLOCK, MAX_DOCUMENT_BYTES, Start, parse_start
from cloister.attester.tpm import Tpm
from cloister.endorsements.certificates import parse_certificate
from cloister.errors import (
    AuthenticationError,
    CloisterError,
    ConfigurationError,
    MalformedError,
    UnsupportedError,
)
from cloister.evidence.component import CONFIGURATION_BROKER, CONFIGURATION_MANIFEST
from cloister.evidence.items import TEE_TYPE_NITRO, TEE_TYPE_TPM_BOOT
from cloister.evidence.tpm import parse_public
from cloister.model_digest import Role
from cloister.strictjson import (
    Json,
    JsonObject,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)

if TYPE_CHECKING:
    from cloister.attester.nsm import Nsm

SETTINGS: Final = Path("/application/worker.json")
RUN: Final = Path("/run/cloister")
"""The worker's own folder, in memory."""

MANIFEST_REGISTER: Final = 13
"""Nothing else in the guest extends it; zero, or one manifest's digest."""

ENTRY: Final = "cloister.worker.serve:main"
MAX_SETTINGS_BYTES: Final = 1024 * 1024
MAX_CHAIN: Final = 4
MAX_MEMORY_BYTES: Final = 1 << 50
MAX_MEMORY_FILES: Final = 1 << 20
MIB: Final = 1024 * 1024
PATIENCE_S: Final = 3600.0
"""How long a guest waits for its operator. One that nobody starts holds its machine for nothing."""


def _open_port() -> int | None:
    port = find_port()
    return None if port is None else os.open(port, os.O_RDWR | os.O_CLOEXEC)


def _open_machine(platform: str) -> Evidence:
    from cloister.attester.machine import open_attester  # imports every platform's code

    return open_attester(platform)


def _open_nsm() -> Nsm:
    from cloister.attester.nsm import Nsm  # no other guest needs CBOR

    return Nsm()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Where a guest's worker finds what its machine and its init give it."""

    settings: Path = SETTINGS
    run: Path = RUN
    open_tpm: Callable[[], Tpm] = open_tpm
    open_port: Callable[[], int | None] = _open_port
    """The operator's port; None on a machine that has none."""
    open_listener: Callable[[], socket.socket] = listen_vsock
    """Where an enclave's parent connects to instead."""
    open_nsm: Callable[[], Nsm] = _open_nsm
    """An enclave's security module."""
    open_machine: Callable[[str], Evidence] = _open_machine
    """What makes evidence on a platform other than a measured boot."""
    meminfo: Path = Path("/proc/meminfo")
    patience_s: float = PATIENCE_S

    @property
    def boot_log(self) -> Path:
        """The init's copy of the firmware's log, which the kernel shows to root alone."""
        return self.run / "boot-log"

    @property
    def start_disk(self) -> Path:
        """The init's copy of the start disk; not there where the machine has none."""
        return self.run / "start"

    @property
    def directory(self) -> Path:
        """The worker's private directory."""
        return self.run / "worker"

    @property
    def api_keys(self) -> Path:
        """The table of API keys, as the operator's port brought it."""
        return self.run / "api-keys.json"

    @property
    def manifest(self) -> Path:
        """The bundle that the worker was started with."""
        return self.run / "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSettings:
    """What ``worker.json`` says."""

    configuration: JsonObject
    """The worker's effective configuration."""
    operator: JsonObject
    """Where it listens. In a guest this is measured with the rest."""
    models: Mapping[str, Mapping[Role, MeasuredFile]]
    native: Mapping[str, MeasuredFile] = field(default_factory=dict)
    platform: str = TEE_TYPE_TPM_BOOT
    """What makes the evidence: the machine's measured boot, or one of
    `cloister.attester.machine.PLATFORMS`."""
    memory: WorkerMemory | None = None
    """What weights are opened into that lie sealed; None where none do."""

    @property
    def takes_keys(self) -> bool:
        """Whether a broker releases keys to this worker."""
        return self.configuration.get(CONFIGURATION_BROKER) is not None


def main(around: Surroundings | None = None) -> int:
    """Run the worker until it ends; its status is the process's."""
    try:
        return _run(Surroundings() if around is None else around)
    except CloisterError as error:
        # Its sentence is for the operator: no request has arrived, and no key.
        said = {"event": "guest.failed", "code": error.code, "reason": str(error)}
        sys.stderr.write(json.dumps(said) + "\n")
        return 1


def _run(around: Surroundings) -> int:
    settings = read_settings(around.settings.read_bytes())
    given = read_start(around.start_disk)
    serve = _operators_port(settings.platform, around)
    if given is None and serve is None:
        raise ConfigurationError(
            "nobody says who is served: this machine has neither an operator's port"
            " (cloister.operator) nor a start disk (cloister image start-disk)",
            code="guest.no_start",
        )
    around.directory.mkdir(mode=0o700)
    memory = None if settings.memory is None else _memory(settings.memory, around)
    evidence = _evidence(settings.platform, around, () if serve is not None else GOOGLE_KEYS)
    if serve is None:
        require_certificate(evidence)
    ours, theirs = socket.socketpair()
    state = OperatorState(api_keys=around.api_keys, given=given)
    configuration, operator = settings.configuration, {**settings.operator}
    operator["api_keys"] = str(around.api_keys)
    module, _, function = ENTRY.partition(":")
    if serve is not None:
        certifiable = None
        if isinstance(evidence, DeviceTpmAttester):
            certifiable = Certifiable.open(evidence, around.open_tpm())
        questions = Questions(certifiable, state, boot_log=around.boot_log)
        _in_background("operator", lambda: serve(questions))
    bundle = state.wait_for_start(around.patience_s)
    if settings.platform == TEE_TYPE_NITRO:
        fix_enclaves_manifest(around.open_nsm(), bundle)
    elif not isinstance(evidence, DeviceTpmAttester):
        require_manifest(evidence, bundle)
    elif bundle is not None:
        measure_manifest(around.open_tpm(), bundle)
    if bundle is not None:
        configuration = {**configuration, CONFIGURATION_MANIFEST: digest_of(bundle)}
        operator["manifest"] = str(_written(around.manifest, bundle))
    importlib.import_module(module)  # takes seconds, in which the key is certified
    if serve is not None and settings.takes_keys and isinstance(evidence, DeviceTpmAttester):
        evidence.wait_for_chain(around.patience_s)
    _in_background("ready", lambda: state.hear(theirs))
    handover = Handover(
        configuration=configuration,
        operator=operator,
        models=settings.models,
        native=settings.native,
        directory=around.directory,
        memory=memory,
        attester=evidence,
        tee_type=settings.platform,
        measured_root=True,
        _connection=ours,
    )
    status = getattr(importlib.import_module(module), function)(handover)
    return status if isinstance(status, int) else 0


def _operators_port(platform: str, around: Surroundings) -> Callable[[Answer], None] | None:
    """What answers the operator's questions for ever; None on a machine without a way to ask."""
    if platform == TEE_TYPE_NITRO:
        listener = around.open_listener()
        return lambda answer: serve_connections(listener, answer)
    port = around.open_port()
    return None if port is None else lambda answer: serve_port(port, answer)


def _memory(needed: WorkerMemory, around: Surroundings) -> Path:
    """Make the folder that weights are opened into; it is this process's, and what it starts.

    Raises:
        ConfigurationError: the machine has less memory left than the weights take, so that the
            kernel would end the worker while it opens them (code ``guest.memory``); or as
            `make_memory`.
    """
    left = available_memory(around.meminfo)
    if needed.size > left:
        raise ConfigurationError(
            f"the sealed weights take {_mib(needed.size)} MiB of memory once they are open, and "
            f"this machine has {_mib(left)} MiB left: give it more (cloister image boot --memory)",
            code="guest.memory",
        )
    folder = around.directory / FOLDER
    make_memory(folder, size=needed.size, files=needed.files)
    return folder


def available_memory(meminfo: Path) -> int:
    """Bytes that could be had without swap (Linux ``proc(5)``, MemAvailable); 0 if none says so."""
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f}"


def read_settings(data: bytes) -> GuestSettings:
    """Decode ``worker.json``.

    Raises:
        ConfigurationError: it is none (code ``configuration.guest``).
    """
    try:
        return _settings(parse_json_object(data, limit=MAX_SETTINGS_BYTES, what="worker.json"))
    except (MalformedError, ValueError) as error:
        raise ConfigurationError(
            f"the guest's settings do not decode: {error}", code="configuration.guest"
        ) from None


def _settings(members: JsonObject) -> GuestSettings:
    expect_keys(
        members,
        "worker.json",
        required={"configuration", "operator", "models"},
        optional={"native", "platform", "memory"},
    )
    models = expect_object(members["models"], "models")
    native = expect_object(members.get("native", {}), "native files")
    return GuestSettings(
        configuration=expect_object(members["configuration"], "the configuration"),
        operator=expect_object(members["operator"], "the operator's settings"),
        models={
            name: {
                Role(role): _file(name, entry)
                for role, entry in expect_object(files, "a model").items()
            }
            for name, files in models.items()
        },
        native={name: _file(name, entry) for name, entry in native.items()},
        platform=expect_str(members.get("platform", TEE_TYPE_TPM_BOOT), "a platform", limit=32),
        memory=_worker_memory(members["memory"]) if "memory" in members else None,
    )


def _worker_memory(value: Json) -> WorkerMemory:
    members = expect_object(value, "the memory")
    expect_keys(members, "the memory", required={"size", "files"})
    return WorkerMemory(
        size=expect_int(members["size"], "a size", low=1, high=MAX_MEMORY_BYTES),
        files=expect_int(members["files"], "a number of files", low=1, high=MAX_MEMORY_FILES),
    )


def _file(name: str, value: Json) -> MeasuredFile:
    members = expect_object(value, "a file")
    expect_keys(members, "a file", required={"path", "sha256"}, optional={"sealed"})
    if members.get("sealed", True) is not True:
        raise MalformedError("a file that does not lie sealed has no member `sealed`")
    return MeasuredFile(
        name=name,
        path=Path(expect_str(members["path"], "a path", limit=4096)),
        sha256=expect_str(members["sha256"], "a digest", limit=64),
        sealed=members.get("sealed") is True,
    )


def read_start(path: Path) -> Start | None:
    """What the start disk says, from the init's copy; None where there is none.

    Raises:
        MalformedError: it is no start disk (code ``guest.start_disk``).
    """
    try:
        with path.open("rb") as copied:
            return parse_start(copied.read(BLOCK + MAX_DOCUMENT_BYTES + 1))
    except FileNotFoundError:
        return None


def require_certificate(evidence: Evidence) -> None:
    """Return only if evidence of a TPM has a certificate, where no port can bring one.

    Raises:
        ConfigurationError: it has none, so that nobody would accept it (``guest.no_certificate``).
    """
    if isinstance(evidence, DeviceTpmAttester) and not evidence.certified:
        raise ConfigurationError(
            "this machine's TPM brings no certificate for an attestation key, and without an"
            " operator's port none can follow: no client would accept its evidence",
            code="guest.no_certificate",
        )


def _evidence(platform: str, around: Surroundings, provided: Sequence[tuple[int, int]]) -> Evidence:
    """`provided` names keys of the machine's provider, for who gets no other certificate."""
    if platform != TEE_TYPE_TPM_BOOT:
        return around.open_machine(platform)
    tpm = around.open_tpm()
    key = find_attestation_key(tpm, provided=provided)
    return DeviceTpmAttester(tpm, key, event_log=read_boot_log(around.boot_log))


def digest_of(bundle: bytes) -> str:
    """The digest of the manifest in force in `bundle`; MalformedError if it is no bundle."""
    from cloister.manifest.bundle import load_bundle  # not needed by who has no manifest

    return load_bundle(bundle).digest


def measure_manifest(tpm: Tpm, bundle: bytes) -> bytes:
    """Extend the register for manifests with the digest of the one in `bundle`; return the digest.

    The digest itself, not its hash: so a verifier computes the register from the digest that the
    claims document names (`cloister.verifier.appraise.worker`).

    Raises:
        MalformedError: it is no manifest's bundle.
    """
    digest = bytes.fromhex(digest_of(bundle))
    tpm.extend(MANIFEST_REGISTER, digest)
    return digest


def fix_enclaves_manifest(nsm: Nsm, bundle: bytes | None) -> None:
    """Write the digest of the manifest in `bundle` (None: nothing) where it cannot be changed.

    Raises:
        MalformedError: it is no manifest's bundle.
        AuthenticationError, FetchError: as `cloister.attester.nsm.fix_manifest`.
    """
    from cloister.attester.nsm import fix_manifest

    fix_manifest(nsm, None if bundle is None else bytes.fromhex(digest_of(bundle)))


def require_manifest(evidence: Evidence, bundle: bytes | None) -> None:
    """Return only if this machine was launched for the manifest in `bundle`, or for none.

    Whoever calls this in a guest ends on any error: see `cloister.attester.started_for`.

    Raises:
        MalformedError: it is no manifest's bundle.
        ConfigurationError: the machine was launched for another one, or for one where there is
            none, or for none where there is one.
    """
    from cloister.attester.started_for import require_started_for

    require_started_for(evidence.quote(bytes(32)), None if bundle is None else digest_of(bundle))


def _written(path: Path, content: bytes) -> Path:
    """`path` with `content`, replaced as a whole, for this user alone."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    fresh.replace(path)
    return path


class OperatorState:
    """What the operator's port stores and tells, beside certificates; or the start disk."""

    def __init__(self, *, api_keys: Path, given: Start | None = None) -> None:
        """`given` is what the start disk says: the worker may start, and the port may repeat it."""
        self._api_keys = api_keys
        self._given = given
        self._started = threading.Event()
        self._manifest: bytes | None = None
        self.ready: JsonObject | None = None
        if given is not None:
            _written(api_keys, given.api_keys)
            self._manifest = given.manifest
            self._started.set()

    def start(self, manifest: bytes | None) -> None:
        """Let the worker start, under `manifest` if there is one.

        Raises:
            AuthenticationError: it was started already, and nothing about that can be changed
                (code ``guest.started``).
        """
        if self._given is not None and manifest == self._given.manifest:
            return
        if self._started.is_set():
            raise AuthenticationError("the worker was started already", code="guest.started")
        self._manifest = manifest
        self._started.set()

    def wait_for_start(self, within_s: float = PATIENCE_S) -> bytes | None:
        """The manifest's bundle, once the operator has said that the worker may start.

        Raises:
            ConfigurationError: nobody says so in time (code ``guest.no_start``).
        """
        if not self._started.wait(within_s):
            raise ConfigurationError(
                f"nobody started this guest's worker within {within_s:g} seconds (cloister image"
                " start)",
                code="guest.no_start",
            )
        return self._manifest

    def hear(self, connection: socket.socket) -> None:
        """Wait until the worker says where it listens."""
        message = link.receive(connection)
        if message is not None:
            self.ready = message["ready"]

    def store_api_keys(self, table: bytes) -> None:
        """Replace the table of API keys; the worker judges whether it is one.

        Raises:
            AuthenticationError: a start disk brought another one, and two who say different things
                are not chosen between (code ``guest.started``).
        """
        if self._given is not None:
            if table != self._given.api_keys:
                raise AuthenticationError("a start disk says who is served", code="guest.started")
            return
        _written(self._api_keys, table)


class Certifiable:
    """The attestation key as a certifying authority meets it: over a connection of its own."""

    def __init__(
        self,
        attester: DeviceTpmAttester,
        tpm: Tpm,
        key: AttestationKey,
        endorsement: EndorsementKey,
    ) -> None:
        self._attester = attester
        self._tpm = tpm
        self._key = key
        self._endorsement = endorsement

    @classmethod
    def open(cls, attester: DeviceTpmAttester, tpm: Tpm) -> Certifiable:
        """Make the same key once more: a primary key is the same whenever it is made."""
        return cls(
            attester,
            tpm,
            find_attestation_key(tpm, provided=()),
            find_endorsement_key(tpm),
        )

    @property
    def names(self) -> JsonObject:
        """What an authority asks for first."""
        return {
            "ek_certificate": encoded(self._endorsement.certificate),
            "ak_public": encoded(self._key.public),
        }

    def activate(self, credential: bytes, secret: bytes) -> bytes:
        """Open what was sealed to this key; TpmError if it was not."""
        return self._tpm.activate_credential(
            self._key.handle, self._endorsement.key, credential, secret
        )

    def certify(self, chain: Sequence[bytes]) -> None:
        """Put `chain` (DER, the key's own certificate first) into reports from now on.

        Raises:
            AuthenticationError: it is for another key (code ``enrolment.other_key``).
            MalformedError: a certificate does not decode.
        """
        certificates = [parse_certificate(der) for der in chain]
        if not certificates or not is_key_of(parse_public(self._key.public), certificates[0]):
            raise AuthenticationError(
                "the certificate is for another attestation key", code="enrolment.other_key"
            )
        self._attester.replace_chain(tuple(chain))


class Questions:
    """Answers the messages of the operator's port."""

    def __init__(
        self, key: Certifiable | None, state: OperatorState, *, boot_log: Path = RUN / "boot-log"
    ) -> None:
        """`key` is None where hardware certifies its own, and nobody else has to."""
        self._key = key
        self._state = state
        self._boot_log = boot_log

    def __call__(self, message: JsonObject) -> JsonObject:
        """The answer to one message; raises a CloisterError for any that has none."""
        match message.get("ask"):
            case "start":
                given = message.get("manifest")
                self._state.start(None if given is None else decoded(given))
                return {"started": True}
            case "enrolment":
                return self._certifiable().names
            case "activate":
                credential, secret = (
                    decoded(message.get(name)) for name in ("credential", "secret")
                )
                return {"answer": encoded(self._certifiable().activate(credential, secret))}
            case "certificate":
                listed = expect_list(message.get("chain"), "certificates", limit=MAX_CHAIN)
                self._certifiable().certify([decoded(entry) for entry in listed])
                return {"certified": True}
            case "api_keys":
                self._state.store_api_keys(decoded(message.get("table")))
                return {"stored": True}
            case "boot_log":
                return {"log": encoded(read_boot_log(self._boot_log))}
            case "ready":
                return {"ready": self._state.ready}
        raise MalformedError("the operator's port does not know the question")

    def _certifiable(self) -> Certifiable:
        if self._key is None:
            raise UnsupportedError(
                "this machine has no key that waits for a certificate", code="guest.no_key"
            )
        return self._key


def _in_background(name: str, run: Callable[[], None]) -> None:
    threading.Thread(target=run, name=name, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
