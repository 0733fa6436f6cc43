"""Says which bytes of an event its digest covers, for logs of TPMs and of TDX (CCEL) alike.

Source: TCG "PC Client Platform Firmware Profile Specification", family 2.0, version 1.06, section
10.4.1 (what each event type's digest covers), with what firmware, shim, GRUB and systemd really
write. The data of an event is a comment by whoever wrote the log unless a digest that was
extended covers it: only then may anything be read from it.

`payload_fault` is for checking a whole log; `measured_bytes` for reading one event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from cloister.evidence.efi import VARIABLE_HEAD
from cloister.evidence.eventlog import Event, EventType
from cloister.evidence.tpm import HASH_NAMES

GRUB_PREFIXES: Final = (
    b"grub_cmd: ",
    b"kernel_cmdline: ",
    b"module_cmdline: ",
    # Red Hat's GRUB before 2.04; its digest covers the terminating NUL of some of these.
    b"grub_cmd ",
    b"grub_kernel_cmdline ",
)
"""What GRUB writes before the text that it measured, which the digest leaves out."""

GCE_NONHOST_INFO: Final = b"GCE NonHostInfo\0"

_HASHES: Final = {bank: getattr(hashlib, name) for bank, name in HASH_NAMES.items()}

COVERED: Final = frozenset(
    {
        EventType.EV_SEPARATOR,
        EventType.EV_ACTION,
        EventType.EV_S_CRTM_VERSION,
        EventType.EV_OMIT_BOOT_DEVICE_EVENTS,
        EventType.EV_EFI_VARIABLE_DRIVER_CONFIG,
        EventType.EV_EFI_VARIABLE_BOOT,
        EventType.EV_EFI_VARIABLE_BOOT2,
        EventType.EV_EFI_VARIABLE_AUTHORITY,
        EventType.EV_EFI_GPT_EVENT,
        EventType.EV_EFI_ACTION,
        EventType.EV_EFI_SPDM_DEVICE_POLICY,
        EventType.EV_EFI_SPDM_DEVICE_AUTHORITY,
    }
)
"""Types whose digest must be that of the event's own data, in one of its usual forms."""

NOT_COVERED: Final = frozenset(
    {
        EventType.EV_POST_CODE,  # firmware, or ACPI tables; the data says where they were
        EventType.EV_NO_ACTION,  # never extended
        EventType.EV_EVENT_TAG,  # Linux: load options and initrd, by name
        EventType.EV_S_CRTM_CONTENTS,
        EventType.EV_CPU_MICROCODE,
        EventType.EV_PLATFORM_CONFIG_FLAGS,  # ACPI tables of virtual machines
        EventType.EV_TABLE_OF_DEVICES,  # the manufacturer's choice
        EventType.EV_COMPACT_HASH,
        EventType.EV_IPL,  # but for what GRUB ran: files by name, MokList, systemd's texts
        EventType.EV_IPL_PARTITION_DATA,
        EventType.EV_NONHOST_CODE,
        EventType.EV_NONHOST_CONFIG,
        EventType.EV_NONHOST_INFO,  # but for Google's
        EventType.EV_EFI_BOOT_SERVICES_APPLICATION,  # Authenticode digest of an image
        EventType.EV_EFI_BOOT_SERVICES_DRIVER,
        EventType.EV_EFI_RUNTIME_SERVICES_DRIVER,
        EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB,
        EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB2,
        EventType.EV_EFI_HANDOFF_TABLES,
        EventType.EV_EFI_HANDOFF_TABLES2,
        EventType.EV_EFI_GPT_EVENT2,  # the table with its GUIDs blanked
        EventType.EV_EFI_HCRTM_EVENT,
        EventType.EV_EFI_SPDM_FIRMWARE_BLOB,
        EventType.EV_EFI_SPDM_FIRMWARE_CONFIG,
    }
)
"""Types whose data only describes what was measured: an image, a blob, a file."""


def payload_fault(event: Event, bank: int) -> str | None:
    """Say what is wrong with the data of `event`, by its digest in `bank` (a ``TPM_ALG_ID``).

    ``None`` where the digest covers the data as it should, and where the data of such an event
    is not covered at all (`must_be_covered`). Nothing is read from the data otherwise.

    Raises:
        KeyError: the event has no digest in `bank`, or `bank` is one that cannot be computed.
    """
    if not must_be_covered(event) or measured_bytes(event, bank) is not None:
        return None
    return f"its data ({_named(event)}) is not what its {HASH_NAMES[bank]} digest covers"


def must_be_covered(event: Event) -> bool:
    """Whether the digest of an event of this kind has to be that of its own data."""
    if event.type == EventType.EV_IPL:
        return event.data.startswith(GRUB_PREFIXES)
    if event.type == EventType.EV_NONHOST_INFO:
        return event.data.startswith(GCE_NONHOST_INFO)
    return event.type in COVERED


def measured_bytes(event: Event, bank: int) -> bytes | None:
    """The bytes of the event's data whose hash is its digest in `bank`; ``None`` if none are.

    That is the whole data, or the form of it that this type of event is known to be measured in.
    An event that is never extended (``EV_NO_ACTION``) measures nothing.

    Raises:
        KeyError: as `payload_fault`.
    """
    digest, compute = event.digests[bank], _HASHES[bank]
    if event.type == EventType.EV_NO_ACTION:
        return None
    for form in _forms(event):
        if compute(form).digest() == digest:
            return form
    return None


def _forms(event: Event) -> Iterable[bytes]:
    """The forms of its data that an event of its type may be measured in."""
    data = event.data
    if event.type == EventType.EV_IPL:
        yield from _loader_texts(data)
    yield data
    match event.type:
        case EventType.EV_EFI_VARIABLE_BOOT:
            yield from _variable_contents(data)
        case EventType.EV_EFI_VARIABLE_AUTHORITY:
            # shim before version 15 counted one byte too many.
            yield data[:-1]


def _variable_contents(data: bytes) -> Iterable[bytes]:
    """What EDK2 measures of a boot variable: its value without GUID and name."""
    if len(data) < VARIABLE_HEAD.size:
        return
    _guid, name_length, size = VARIABLE_HEAD.unpack_from(data)
    if VARIABLE_HEAD.size + 2 * name_length + size == len(data):
        yield data[VARIABLE_HEAD.size + 2 * name_length :]


def _loader_texts(data: bytes) -> Iterable[bytes]:
    """GRUB: the text without its prefix and NUL. systemd: UTF-16, with one byte too many."""
    for prefix in GRUB_PREFIXES:
        if data.startswith(prefix):
            text = data.removeprefix(prefix)
            yield text.removesuffix(b"\0")
            yield text
            return
    if len(data) % 2 and data.endswith(b"\0\0\0"):
        yield data[:-1]


def _named(event: Event) -> str:
    try:
        return EventType(event.type).name
    except ValueError:
        return f"type 0x{event.type:08x}"
