"""The events of a measured boot of one of our images, register by register, before it happens.

Sources: TCG "PC Client Platform Firmware Profile Specification", version 1.06, section 3.3.4 (what
goes into which register) and 10.4.1; Linux' EFI stub (load options and initrd into PCR 9);
`cloister.image.stub` for PCR 11. Each was compared with boots of OVMF in QEMU; what was not is said
in docs/reference/measurements.md.

Within one register the order decides its value; across registers it is the one that OVMF's logs
show, which only matters where one register of another kind holds several of these
(`cloister.image.rtmrs`). Events of PCR 0 and 1 are the firmware's and the machine's own
(`cloister.image.golden`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cloister.evidence.eventlog import SEPARATOR_DATA, Event, EventType
from cloister.evidence.tpm import HASH_NAMES, Alg
from cloister.image.authenticode import PeFile
from cloister.image.secure_boot import SECURE_BOOT_OFF, SecureBoot
from cloister.image.stub import UnifiedKernel

BANKS: Final = (Alg.SHA256, Alg.SHA384)
"""PCRs are compared in SHA-256; RTMRs of TDX are SHA-384."""

CALLING: Final = b"Calling EFI Application from Boot Option"
EXITING: Final = b"Exit Boot Services Invocation"
EXITED: Final = b"Exit Boot Services Returned with Success"

APPLICATION_REGISTER: Final = 14
MODEL_REGISTER: Final = 15
MANIFEST_REGISTER: Final = 13
"""Zero, or extended once with the manifest's digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedEvent:
    """One event that will be measured."""

    pcr: int
    type: int
    what: str
    """For people."""
    digests: Mapping[int, bytes]
    """By ``TPM_ALG_ID``, of `BANKS`."""
    data: bytes = field(default=b"", repr=False)
    """The event's data where the digest covers them; empty where the log only describes."""

    def event(self) -> Event:
        """The event as a log would hold it."""
        return Event(pcr=self.pcr, type=self.type, digests=self.digests, data=self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootParts:
    """What is booted: everything that decides the registers from 2 to 15."""

    kernel: UnifiedKernel
    partition_table: bytes = field(repr=False)
    """``UEFI_GPT_DATA`` of the disk with the EFI system partition
    (`cloister.image.partition_table`)."""
    secure_boot: SecureBoot = SECURE_BOOT_OFF
    application: bytes | None = None
    """The line that names the application disk and its dm-verity root, byte for byte as the init
    measures it; ``None`` without such a disk."""
    model: bytes | None = None
    """The same for the model disk."""
    manifest: bytes | None = None
    """SHA-256 of the manifest (32 bytes) that the init was given, if any."""


def predicted_events(parts: BootParts) -> tuple[PredictedEvent, ...]:
    """Every event of PCR 2 to 9 and 11 to 15, in the order in which they happen."""
    return (
        *secure_boot_policy(parts.secure_boot),
        measured(4, EventType.EV_EFI_ACTION, "boot attempt", CALLING),
        *(separator(pcr) for pcr in range(2, 7)),
        *_boot_loader(parts),
        *_sections(parts.kernel),
        *_kernel(parts),
        measured(5, EventType.EV_EFI_ACTION, "hand-over begins", EXITING),
        measured(5, EventType.EV_EFI_ACTION, "hand-over done", EXITED),
        *_manifest(parts.manifest),
        *_disk(APPLICATION_REGISTER, "application disk", parts.application),
        *_disk(MODEL_REGISTER, "model disk", parts.model),
    )


def measured(pcr: int, kind: int, what: str, data: bytes) -> PredictedEvent:
    """An event whose digests are those of its `data`."""
    digests = {int(bank): hashlib.new(HASH_NAMES[bank], data).digest() for bank in BANKS}
    return PredictedEvent(pcr=pcr, type=kind, what=what, digests=digests, data=data)


def separator(pcr: int) -> PredictedEvent:
    """What closes a register."""
    return measured(pcr, EventType.EV_SEPARATOR, "separator", SEPARATOR_DATA)


def _program(what: str, file: PeFile) -> PredictedEvent:
    digests = {int(bank): file.digest(HASH_NAMES[bank]) for bank in BANKS}
    kind = EventType.EV_EFI_BOOT_SERVICES_APPLICATION
    return PredictedEvent(pcr=4, type=kind, what=what, digests=digests)


def secure_boot_policy(state: SecureBoot) -> Iterable[PredictedEvent]:
    """PCR 7 up to its separator."""
    for name, data in state.variables():
        yield measured(7, EventType.EV_EFI_VARIABLE_DRIVER_CONFIG, f"variable {name}", data)
    yield separator(7)


def _boot_loader(parts: BootParts) -> Iterable[PredictedEvent]:
    """PCR 7, 5 and 4: who is believed about it, where it lies, and what it is."""
    if parts.secure_boot.enabled:
        kind, data = EventType.EV_EFI_VARIABLE_AUTHORITY, parts.secure_boot.authority_data()
        yield measured(7, kind, "signer of the boot loader", data)
    yield measured(5, EventType.EV_EFI_GPT_EVENT, "partition table", parts.partition_table)
    yield _program("unified kernel image", parts.kernel.file)


def _kernel(parts: BootParts) -> Iterable[PredictedEvent]:
    """PCR 4 and 9. With Secure Boot on the stub starts the kernel without asking the firmware.

    The kernel measures what it was really given: in UTF-16 with its NUL, and the initrd.
    """
    kernel = parts.kernel
    if not parts.secure_boot.enabled:
        yield _program("kernel", kernel.kernel)
    line = kernel.command_line.encode("utf-16-le") + b"\0\0"
    yield measured(9, EventType.EV_EVENT_TAG, "command line", line)
    yield measured(9, EventType.EV_EVENT_TAG, "initrd", kernel.initrd)


def _sections(kernel: UnifiedKernel) -> Iterable[PredictedEvent]:
    """PCR 11."""
    for name, content in kernel.measured_sections():
        yield measured(11, EventType.EV_IPL, f"name of {name}", name.encode() + b"\0")
        yield measured(11, EventType.EV_IPL, f"content of {name}", content)


def _manifest(digest: bytes | None) -> Iterable[PredictedEvent]:
    """PCR 13: the digest itself is extended, for it is one already."""
    if digest is not None:
        if len(digest) != hashlib.sha256().digest_size:
            raise ValueError("a manifest's digest has 32 bytes")
        digests = {int(Alg.SHA256): digest, int(Alg.SHA384): hashlib.sha384(digest).digest()}
        yield PredictedEvent(
            pcr=MANIFEST_REGISTER, type=EventType.EV_IPL, what="manifest", digests=digests
        )


def _disk(pcr: int, what: str, line: bytes | None) -> Iterable[PredictedEvent]:
    """PCR 14 and 15: the disk, where there is one; closed in any case."""
    if line is not None:
        yield measured(pcr, EventType.EV_IPL, what, line)
    yield separator(pcr)
