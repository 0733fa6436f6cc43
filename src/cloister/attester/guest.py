"""The worker's start in a booted image: what the launcher is elsewhere, after the guest's init.

``python -I -B -m cloister.attester.guest``, as the application disk's ``command`` says: the init
starts it as an ordinary user, when the disks are measured and the network's rules in force. What
the worker does stands in ``worker.json`` of the same measured disk; nothing else in the guest
changes it.

In an enclave the operator's port is a vsock port, and the manifest's digest goes into a register of
the security module. At AWS outside of one, the NitroTPM makes the evidence, which needs nobody's
certificate.

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

import hashlib
import importlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.attester.device_tpm import (
    GOOGLE_KEYS,
    DeviceTpmAttester,
    find_attestation_key,
    open_tpm,
    read_boot_log,
)
from cloister.attester.guest_operator import (
    PATIENCE_S,
    RUN,
    Certifiable,
    OperatorState,
    Questions,
    written,
)
from cloister.attester.guest_port import (
    Answer,
    find_port,
    listen_vsock,
    serve_connections,
    serve_port,
)
from cloister.attester.guest_settings import read_settings
from cloister.attester.handover import Evidence, Handover
from cloister.attester.memory import FOLDER, WorkerMemory, make_memory
from cloister.attester.start_disk import BLOCK, MAX_DOCUMENT_BYTES, Start, parse_start
from cloister.attester.tpm import Tpm
from cloister.errors import (
    CloisterError,
    ConfigurationError,
    UnsupportedError,
)
from cloister.evidence.component import CONFIGURATION_MANIFEST
from cloister.evidence.items import (
    ITEM_AZURE_QUOTE,
    TEE_TYPE_AZURE_SNP,
    TEE_TYPE_AZURE_TDX,
    TEE_TYPE_GCP_SNP,
    TEE_TYPE_GCP_TDX,
    TEE_TYPE_GCP_VTPM,
    TEE_TYPE_NITRO,
    TEE_TYPE_NITRO_TPM,
    TEE_TYPE_SEV_SNP,
    TEE_TYPE_TDX,
    TEE_TYPE_TPM_BOOT,
)
from cloister.evidence.tpm import Alg

if TYPE_CHECKING:
    from cloister.attester.metadata import MetadataService
    from cloister.attester.nsm import Nsm

SETTINGS: Final = Path("/application/worker.json")

MANIFEST_REGISTER: Final = 13
"""Nothing else in the guest extends it; zero, or one manifest's digest."""

BESIDE_GOOGLES_TPM: Final[Mapping[str, str | None]] = {
    TEE_TYPE_GCP_SNP: TEE_TYPE_SEV_SNP,
    TEE_TYPE_GCP_TDX: TEE_TYPE_TDX,
    TEE_TYPE_GCP_VTPM: None,
}
"""At Google: what makes evidence of the processor, beside the TPM."""
AT_AZURE: Final = frozenset({TEE_TYPE_AZURE_SNP, TEE_TYPE_AZURE_TDX})
MEASURED_MANIFEST: Final = frozenset({TEE_TYPE_TPM_BOOT, *BESIDE_GOOGLES_TPM, *AT_AZURE})
"""Where the guest measures its manifest: nobody could name it in HOST_DATA or MRCONFIGID."""

ENTRY: Final = "cloister.worker.serve:main"
MIB: Final = 1024 * 1024


def _open_port() -> int | None:
    port = find_port()
    return None if port is None else os.open(port, os.O_RDWR | os.O_CLOEXEC)


def _open_machine(platform: str) -> Evidence:
    from cloister.attester.machine import open_attester  # imports every platform's code

    return open_attester(platform)


def _open_nitro_tpm() -> Tpm:
    from cloister.attester.nitro_tpm import DEVICE

    return open_tpm(DEVICE)


def _open_nsm() -> Nsm:
    from cloister.attester.nsm import Nsm  # no other guest needs CBOR

    return Nsm()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Where a guest's worker finds what its machine and its init give it."""

    settings: Path = SETTINGS
    run: Path = RUN
    open_tpm: Callable[[], Tpm] = open_tpm
    open_nitro_tpm: Callable[[], Tpm] = _open_nitro_tpm
    """Past the kernel's resource manager."""
    open_port: Callable[[], int | None] = _open_port
    """The operator's port; None on a machine that has none."""
    open_listener: Callable[[], socket.socket] = listen_vsock
    """Where an enclave's parent connects to instead."""
    open_nsm: Callable[[], Nsm] = _open_nsm
    """An enclave's security module."""
    open_machine: Callable[[str], Evidence] = _open_machine
    """What makes evidence on a platform other than a measured boot."""
    metadata: MetadataService | None = None
    """Azure's metadata service, by default at its address."""
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
        if settings.platform == TEE_TYPE_TPM_BOOT and isinstance(evidence, DeviceTpmAttester):
            certifiable = Certifiable.open(evidence, around.open_tpm())
        questions = Questions(certifiable, state, boot_log=around.boot_log)
        _in_background("operator", lambda: serve(questions))
    bundle = state.wait_for_start(around.patience_s)
    if settings.platform == TEE_TYPE_NITRO:
        fix_enclaves_manifest(around.open_nsm(), bundle)
    elif settings.platform == TEE_TYPE_NITRO_TPM:
        if bundle is not None:
            measure_manifest(around.open_tpm(), bundle, sha384=True)
    elif settings.platform not in MEASURED_MANIFEST:
        require_manifest(evidence, bundle)
    elif bundle is not None:
        measure_manifest(around.open_tpm(), bundle)
    if bundle is not None:
        configuration = {**configuration, CONFIGURATION_MANIFEST: digest_of(bundle)}
        operator["manifest"] = str(written(around.manifest, bundle))
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
    """Return only if evidence of a TPM has a certificate, where nobody can bring one.

    Raises:
        ConfigurationError: it has none, so that nobody would accept it (``guest.no_certificate``).
    """
    if isinstance(evidence, DeviceTpmAttester) and not evidence.certified:
        raise ConfigurationError(
            "this machine's TPM brings no certificate for an attestation key, and none can follow"
            " that a client would accept: evidence at Google takes Google's own, and without an"
            " operator's port nobody can send another",
            code="guest.no_certificate",
        )


def _evidence(platform: str, around: Surroundings, provided: Sequence[tuple[int, int]]) -> Evidence:
    """`provided` names keys of the machine's provider, for who gets no other certificate."""
    if platform == TEE_TYPE_NITRO_TPM:
        from cloister.attester.nitro_tpm import NitroTpmAttester  # no other guest needs CBOR

        return _tried(NitroTpmAttester(around.open_nitro_tpm(), event_log=_boot_log(around)))
    if platform in BESIDE_GOOGLES_TPM:
        return _google(BESIDE_GOOGLES_TPM[platform], around)
    if platform in AT_AZURE:
        return _azure(platform, around)
    if platform != TEE_TYPE_TPM_BOOT:
        return around.open_machine(platform)
    return _tpm(around, provided)


def _tpm(around: Surroundings, provided: Sequence[tuple[int, int]]) -> DeviceTpmAttester:
    tpm = around.open_tpm()
    key = find_attestation_key(tpm, provided=provided)
    return DeviceTpmAttester(tpm, key, event_log=read_boot_log(around.boot_log))


def _google(beside: str | None, around: Surroundings) -> Evidence:
    """The TPM's evidence by the key that Google certified, for verifiers accept no other there."""
    tpm = _tpm(around, GOOGLE_KEYS)
    require_certificate(tpm)
    if beside is None:
        return tpm
    from cloister.attester.machine import Together  # imports every platform's code

    attester = Together((around.open_machine(beside), tpm))
    attester.quote(bytes(32))  # without the processor's word the guest ends, not only its clients
    return attester


def _azure(platform: str, around: Surroundings) -> Evidence:
    """Evidence of the paravisor's TPM and of what is below it, once that is what was built for.

    Raises:
        UnsupportedError: no confidential virtual machine of Azure, or one on the other processor.
        FetchError, TpmError: TPM or metadata service fail.
    """
    from cloister.attester.azure import TEE_TYPES, AzureAttester, read_hcl_report

    tpm = around.open_tpm()
    _, report = read_hcl_report(tpm)
    found = TEE_TYPES[report.hardware_type]
    if found != platform:
        raise UnsupportedError(
            f"the image was built for {platform}, and this machine is one of {found}",
            code="guest.platform",
        )
    attester = AzureAttester(tpm, service=around.metadata, event_log=_boot_log(around))
    made = attester.quote(bytes(32))  # what the service lacks, the console says before anybody asks
    if not made[ITEM_AZURE_QUOTE].endorsements:
        raise ConfigurationError(
            "this machine's TPM brings no certificate of Azure's for its attestation key: no client"
            " would accept its evidence",
            code="guest.no_certificate",
        )
    return attester


def _boot_log(around: Surroundings) -> bytes:
    """The firmware's log, where evidence without one is refused.

    Raises:
        ConfigurationError: it is empty (code ``guest.no_boot_log``).
    """
    log = read_boot_log(around.boot_log)
    if not log:
        raise ConfigurationError(
            "this machine's firmware left no log of what it measured: no client would accept its"
            " evidence; start it from UEFI, with its TPM on",
            code="guest.no_boot_log",
        )
    return log


def _tried(evidence: Evidence) -> Evidence:
    """`evidence`, once it was made a first time: what fails, the console says before anybody asks.

    Raises:
        CloisterError: as `evidence.quote`.
    """
    evidence.quote(bytes(32))
    return evidence


def digest_of(bundle: bytes) -> str:
    """The digest of the manifest in force in `bundle`; MalformedError if it is no bundle."""
    from cloister.manifest.bundle import load_bundle  # not needed by who has no manifest

    return load_bundle(bundle).digest


def measure_manifest(tpm: Tpm, bundle: bytes, *, sha384: bool = False) -> bytes:
    """Extend the register for manifests with the digest of the one in `bundle`; return the digest.

    The digest itself, not its hash: so a verifier computes the register from the digest that the
    claims document names (`cloister.verifier.appraise.worker`). With `sha384` also in that bank,
    which takes 48 bytes: there with the SHA-384 of the digest.

    Raises:
        MalformedError: it is no manifest's bundle.
    """
    digest = bytes.fromhex(digest_of(bundle))
    digests = {int(Alg.SHA256): digest}
    if sha384:
        digests[int(Alg.SHA384)] = hashlib.sha384(digest).digest()
    tpm.extend_banks(MANIFEST_REGISTER, digests)
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


def _in_background(name: str, run: Callable[[], None]) -> None:
    threading.Thread(target=run, name=name, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
