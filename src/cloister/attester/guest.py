"""The worker's start in a booted image: what the launcher is elsewhere, after the guest's init.

``python -I -B -m cloister.attester.guest``, as the application disk's ``command`` says: the init
starts it as an ordinary user, when the disks are measured and the network's rules in force. What
the worker does stands in ``worker.json`` of the same measured disk; nothing else in the guest
changes it.

One process, for a second interpreter would cost seconds where instructions are emulated. The thread
that answers the operator's port (`cloister.attester.guest_port`) has a TPM connection of its own.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.attester import link
from cloister.attester.device_tpm import (
    AttestationKey,
    DeviceTpmAttester,
    find_attestation_key,
    is_key_of,
    open_tpm,
    read_boot_log,
)
from cloister.attester.guest_port import decoded, encoded, find_port, serve_port
from cloister.attester.handover import Evidence, Handover, MeasuredFile
from cloister.attester.quote import EndorsementKey, find_endorsement_key
from cloister.attester.tpm import Tpm
from cloister.endorsements.certificates import parse_certificate
from cloister.errors import AuthenticationError, ConfigurationError, MalformedError
from cloister.evidence.component import CONFIGURATION_MANIFEST
from cloister.evidence.items import TEE_TYPE_TPM_BOOT
from cloister.evidence.tpm import parse_public
from cloister.model_digest import Role
from cloister.strictjson import (
    Json,
    JsonObject,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)

SETTINGS: Final = Path("/application/worker.json")
BOOT_LOG: Final = Path("/run/cloister/boot-log")
"""The init's copy of the firmware's log, which the kernel shows to root alone."""
DIRECTORY: Final = Path("/run/cloister/worker")
API_KEYS: Final = Path("/run/cloister/api-keys.json")
MANIFEST: Final = Path("/run/cloister/manifest.json")

MANIFEST_REGISTER: Final = 13
"""Nothing else in the guest extends it; zero, or one manifest's digest."""

ENTRY: Final = "cloister.worker.serve:main"
MAX_SETTINGS_BYTES: Final = 1024 * 1024
MAX_CHAIN: Final = 4


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


def main() -> int:
    """Run the worker until it ends; its status is the process's."""
    settings = read_settings(SETTINGS.read_bytes())
    DIRECTORY.mkdir(mode=0o700)
    evidence = _evidence(settings.platform)
    ours, theirs = socket.socketpair()
    state = OperatorState(api_keys=API_KEYS)
    configuration, operator = settings.configuration, {**settings.operator}
    operator["api_keys"] = str(API_KEYS)
    port = find_port()
    if port is not None and isinstance(evidence, DeviceTpmAttester):
        certifiable = Certifiable.open(evidence, open_tpm())
        descriptor = os.open(port, os.O_RDWR | os.O_CLOEXEC)
        _in_background("operator", lambda: serve_port(descriptor, Questions(certifiable, state)))
        bundle = state.wait_for_start()
        if bundle is not None:
            digest = measure_manifest(open_tpm(), bundle)
            configuration = {**configuration, CONFIGURATION_MANIFEST: digest.hex()}
            operator["manifest"] = str(_written(MANIFEST, bundle))
    _in_background("ready", lambda: state.hear(theirs))
    handover = Handover(
        configuration=configuration,
        operator=operator,
        models=settings.models,
        native=settings.native,
        directory=DIRECTORY,
        attester=evidence,
        tee_type=settings.platform,
        _connection=ours,
    )
    module, _, function = ENTRY.partition(":")
    status = getattr(importlib.import_module(module), function)(handover)
    return status if isinstance(status, int) else 0


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
        optional={"native", "platform"},
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
    )


def _file(name: str, value: Json) -> MeasuredFile:
    members = expect_object(value, "a file")
    expect_keys(members, "a file", required={"path", "sha256"})
    return MeasuredFile(
        name=name,
        path=Path(expect_str(members["path"], "a path", limit=4096)),
        sha256=expect_str(members["sha256"], "a digest", limit=64),
    )


def _evidence(platform: str) -> Evidence:
    if platform != TEE_TYPE_TPM_BOOT:
        from cloister.attester.machine import open_attester  # imports every platform's code

        return open_attester(platform)
    tpm = open_tpm()
    key = find_attestation_key(tpm, provided=())
    return DeviceTpmAttester(tpm, key, event_log=read_boot_log(BOOT_LOG))


def measure_manifest(tpm: Tpm, bundle: bytes) -> bytes:
    """Extend the register for manifests with the digest of the one in `bundle`; return the digest.

    The digest itself, not its hash: so a verifier computes the register from the digest that the
    claims document names (`cloister.verifier.appraise.worker`).

    Raises:
        MalformedError: it is no manifest's bundle.
    """
    from cloister.manifest.bundle import load_bundle  # not needed by who has no manifest

    digest = bytes.fromhex(load_bundle(bundle).digest)
    tpm.extend(MANIFEST_REGISTER, digest)
    return digest


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
    """What the operator's port stores and tells, beside certificates."""

    def __init__(self, *, api_keys: Path) -> None:
        self._api_keys = api_keys
        self._started = threading.Event()
        self._manifest: bytes | None = None
        self.ready: JsonObject | None = None

    def start(self, manifest: bytes | None) -> None:
        """Let the worker start, under `manifest` if there is one.

        Raises:
            AuthenticationError: it was started already, and nothing about that can be changed
                (code ``guest.started``).
        """
        if self._started.is_set():
            raise AuthenticationError("the worker was started already", code="guest.started")
        self._manifest = manifest
        self._started.set()

    def wait_for_start(self) -> bytes | None:
        """The manifest's bundle, once the operator has said that the worker may start."""
        self._started.wait()
        return self._manifest

    def hear(self, connection: socket.socket) -> None:
        """Wait until the worker says where it listens."""
        message = link.receive(connection)
        if message is not None:
            self.ready = message["ready"]

    def store_api_keys(self, table: bytes) -> None:
        """Replace the table of API keys; the worker judges whether it is one."""
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

    def __init__(self, key: Certifiable, state: OperatorState) -> None:
        self._key = key
        self._state = state

    def __call__(self, message: JsonObject) -> JsonObject:
        """The answer to one message; raises a CloisterError for any that has none."""
        match message.get("ask"):
            case "start":
                given = message.get("manifest")
                self._state.start(None if given is None else decoded(given))
                return {"started": True}
            case "enrolment":
                return self._key.names
            case "activate":
                credential, secret = (
                    decoded(message.get(name)) for name in ("credential", "secret")
                )
                return {"answer": encoded(self._key.activate(credential, secret))}
            case "certificate":
                listed = expect_list(message.get("chain"), "certificates", limit=MAX_CHAIN)
                self._key.certify([decoded(entry) for entry in listed])
                return {"certified": True}
            case "api_keys":
                self._state.store_api_keys(decoded(message.get("table")))
                return {"stored": True}
            case "boot_log":
                return {"log": encoded(read_boot_log(BOOT_LOG))}
            case "ready":
                return {"ready": self._state.ready}
        raise MalformedError("the operator's port does not know the question")


def _in_background(name: str, run: Callable[[], None]) -> None:
    threading.Thread(target=run, name=name, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
