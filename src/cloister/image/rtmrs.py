"""Predicts the runtime registers (RTMR1 to RTMR3) of a TDX guest that boots one of our images.

Sources: UEFI specification 2.10, section 38.4.1 (PCR 1 and 7 go to RTMR0, 2 to 6 to RTMR1, 8 to 15
to RTMR2); the event logs of real guests for what the firmware does with it: it measures one
separator into each register, where a TPM has one for each PCR.

RTMR0 holds what the host decides (memory map, ACPI tables, boot entries) besides Secure Boot's
variables: it is recorded from a boot that one trusts. RTMR1 follows from the image, RTMR2 as far as
stub and kernel measure without a TPM. RTMR3 stays zero: the image pins its disks on its command
line (`cloister.image.direct_boot`).

RTMR1 was compared with real guests that booted other images. Unproven: our own images on TDX, and
that systemd-stub from 254 on measures there what it measures with a TPM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.ccel import parse_ccel, replay_rtmrs
from cloister.evidence.eventlog import SEPARATOR_DATA, EventType
from cloister.evidence.tpm import Alg
from cloister.image.boot_events import (
    CALLING,
    EXITED,
    EXITING,
    BootParts,
    PredictedEvent,
    measured,
    predicted_events,
)
from cloister.image.pcrs import extend

RTMR_BYTES: Final = 48
CC_STUB_SINCE: Final = 254
"""The first release of systemd-stub that measures without a TPM."""


def predicted_rtmrs(parts: BootParts) -> dict[str, tuple[bytes, ...]]:
    """RTMR1 to RTMR3 of a guest whose command line names every disk: accepted values of each.

    RTMR2 has two: some kernels measure command line and initrd without a TPM, others nothing. Each
    kernel does the one or the other, and RTMR1 holds which kernel it is.
    """
    events = predicted_events(parts)
    programs = [
        event.digests[Alg.SHA384]
        for event in events
        if event.pcr == 4 and event.type == EventType.EV_EFI_BOOT_SERVICES_APPLICATION
    ]
    stub = parts.kernel.stub_release
    sections = [event for event in events if event.pcr == 11 and stub >= CC_STUB_SINCE]
    inputs = [event for event in events if event.pcr == 9]
    return {
        "rtmr1": (boot_path_register(programs, parts.partition_table),),
        "rtmr2": tuple(
            extend(_sha384(chosen), bank=Alg.SHA384) for chosen in (sections, sections + inputs)
        ),
        "rtmr3": (bytes(RTMR_BYTES),),
    }


def boot_path_register(programs: Sequence[bytes], partition_table: bytes | None) -> bytes:
    """RTMR1 after `programs` (Authenticode digests with SHA-384) were started, in order.

    Without a partition table the firmware was handed a kernel (QEMU's ``-kernel``), which it
    measures before it says that it starts something.
    """
    before = (
        measured(4, EventType.EV_EFI_ACTION, "boot attempt", CALLING),
        measured(4, EventType.EV_SEPARATOR, "separator", SEPARATOR_DATA),
    )
    after = (
        measured(5, EventType.EV_EFI_ACTION, "hand-over begins", EXITING),
        measured(5, EventType.EV_EFI_ACTION, "hand-over done", EXITED),
    )
    if partition_table is None:
        return extend((*programs, *_sha384(before + after)), bank=Alg.SHA384)
    table = measured(5, EventType.EV_EFI_GPT_EVENT, "partition table", partition_table)
    return extend((*_sha384((*before, table)), *programs, *_sha384(after)), bank=Alg.SHA384)


def recorded_rtmr0(ccel: bytes) -> bytes:
    """RTMR0 as the CCEL log of a boot leads to it. Nothing is authenticated.

    Raises:
        MalformedError: no such log, or one that measures no firmware configuration.
    """
    events = parse_ccel(ccel).events
    if not any(event.pcr == 0 and event.type != EventType.EV_NO_ACTION for event in events):
        raise MalformedError("the CCEL event log measures nothing into RTMR0", code="image.golden")
    return replay_rtmrs(events)[0]


def _sha384(events: Iterable[PredictedEvent]) -> list[bytes]:
    return [event.digests[Alg.SHA384] for event in events]
