"""Event logs of measured launches, to records, to register values, and back.

Source: TCG "PC Client Platform Firmware Profile Specification", family 2.0, version 1.06,
section 10.2 (crypto-agile log: a header event in the old format, then ``TCG_PCR_EVENT2``).
All integers are little-endian. A log is a story; it counts only where the registers it replays
to are the ones that a TPM signed, and an event's data only where its digest covers them.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.reader import ByteReader
from cloister.evidence.tpm import HASH_NAMES, Alg

MAX_LOG_BYTES: Final = 4 * 1024 * 1024
"""Longest log accepted; firmware logs have tens of kilobytes, ours a few hundred."""

MAX_EVENTS: Final = 16384

MAX_EVENT_BYTES: Final = 1024 * 1024
"""Longest data of one event; the largest seen in practice are Secure Boot databases."""

PCR_COUNT: Final = 24

SPEC_ID_SIGNATURE: Final = b"Spec ID Event03\0"

STARTUP_LOCALITY: Final = b"StartupLocality\0"

SEPARATOR_DATA: Final = bytes(4)
"""Data of an ``EV_SEPARATOR`` that ends a phase without an error."""


class EventType(enum.IntEnum):
    """Event types (PC Client PFP section 10.4.1); logs may hold others."""

    EV_POST_CODE = 0x00000001
    EV_NO_ACTION = 0x00000003
    EV_SEPARATOR = 0x00000004
    EV_ACTION = 0x00000005
    EV_EVENT_TAG = 0x00000006
    EV_S_CRTM_CONTENTS = 0x00000007
    EV_S_CRTM_VERSION = 0x00000008
    EV_CPU_MICROCODE = 0x00000009
    EV_PLATFORM_CONFIG_FLAGS = 0x0000000A
    EV_TABLE_OF_DEVICES = 0x0000000B
    EV_COMPACT_HASH = 0x0000000C
    EV_IPL = 0x0000000D
    EV_IPL_PARTITION_DATA = 0x0000000E
    EV_NONHOST_CODE = 0x0000000F
    EV_NONHOST_CONFIG = 0x00000010
    EV_NONHOST_INFO = 0x00000011
    EV_OMIT_BOOT_DEVICE_EVENTS = 0x00000012
    EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
    EV_EFI_VARIABLE_BOOT = 0x80000002
    EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
    EV_EFI_BOOT_SERVICES_DRIVER = 0x80000004
    EV_EFI_RUNTIME_SERVICES_DRIVER = 0x80000005
    EV_EFI_GPT_EVENT = 0x80000006
    EV_EFI_ACTION = 0x80000007
    EV_EFI_PLATFORM_FIRMWARE_BLOB = 0x80000008
    EV_EFI_HANDOFF_TABLES = 0x80000009
    EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000000A
    EV_EFI_HANDOFF_TABLES2 = 0x8000000B
    EV_EFI_VARIABLE_BOOT2 = 0x8000000C
    EV_EFI_GPT_EVENT2 = 0x8000000D
    EV_EFI_HCRTM_EVENT = 0x80000010
    EV_EFI_VARIABLE_AUTHORITY = 0x800000E0
    EV_EFI_SPDM_FIRMWARE_BLOB = 0x800000E1
    EV_EFI_SPDM_FIRMWARE_CONFIG = 0x800000E2
    EV_EFI_SPDM_DEVICE_POLICY = 0x800000E3
    EV_EFI_SPDM_DEVICE_AUTHORITY = 0x800000E4


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One ``TCG_PCR_EVENT2``, or one ``TCG_PCR_EVENT`` of a log with SHA-1 alone."""

    pcr: int
    type: int
    digests: Mapping[int, bytes]
    """By ``TPM_ALG_ID``: one digest for every bank that the log's header names."""
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """A whole log: the banks that its header names, and its events in order."""

    raw: bytes
    banks: Mapping[int, int]
    """Digest size in bytes by ``TPM_ALG_ID``."""
    events: tuple[Event, ...]
    """All but the header of a crypto-agile log."""
    legacy: bool = False
    """Whether this is a log in the old format, of SHA-1 digests."""


def parse_event_log(data: bytes) -> EventLog:
    """Decode a crypto-agile event log; no trailing bytes, at most `MAX_EVENTS` events.

    Raises MalformedError (code ``eventlog_malformed``), and nothing else.
    """
    reader = _reader(data)
    banks = _header(reader)
    return EventLog(raw=data, banks=banks, events=_events(reader, banks, _event))


def parse_legacy_event_log(data: bytes) -> EventLog:
    """Decode a log of ``TCG_PCR_EVENT`` alone: SHA-1 digests, no header (PFP section 10.2.1).

    Firmware and kernels without the crypto-agile format hand these out. SHA-1 digests can be
    forged to fit other data, so that such a log proves little; whoever parses it says so. At least
    one event, no trailing bytes, at most `MAX_EVENTS` events.

    Raises MalformedError (code ``eventlog_malformed``), and nothing else.
    """
    reader = _reader(data)
    banks = {int(Alg.SHA1): 20}
    events = _events(reader, banks, _legacy_event)
    if not events:
        raise reader.fail("is empty")
    return EventLog(raw=data, banks=banks, events=events, legacy=True)


def is_crypto_agile(data: bytes) -> bool:
    """Whether `data` begins with the header of a crypto-agile log; says nothing of the rest."""
    return data[_SIGNATURE_OFFSET : _SIGNATURE_OFFSET + 16] == SPEC_ID_SIGNATURE


def encode_event_log(events: Iterable[Event], *, banks: Iterable[int] = (Alg.SHA256,)) -> bytes:
    """Encode a crypto-agile log; with a SHA-256 bank alone, the form of our own launches."""
    return _encode_header(banks) + b"".join(encode_event(event) for event in events)


def encode_event(event: Event) -> bytes:
    """Encode one ``TCG_PCR_EVENT2``, digests in ascending order of their algorithm."""
    digests = b"".join(
        algorithm.to_bytes(2, "little") + digest
        for algorithm, digest in sorted(event.digests.items())
    )
    return b"".join(
        (
            event.pcr.to_bytes(4, "little"),
            event.type.to_bytes(4, "little"),
            len(event.digests).to_bytes(4, "little"),
            digests,
            len(event.data).to_bytes(4, "little"),
            event.data,
        )
    )


def measured_event(pcr: int, event_type: int, data: bytes) -> Event:
    """An event whose SHA-256 digest is that of its data."""
    return Event(
        pcr=pcr,
        type=event_type,
        digests={int(Alg.SHA256): hashlib.sha256(data).digest()},
        data=data,
    )


def replay(log: EventLog, *, bank: int = Alg.SHA256) -> dict[int, bytes]:
    """Compute every register of `bank` from the log's digests (PFP section 3.3.1).

    ``EV_NO_ACTION`` events are not extended; the one named ``StartupLocality`` sets where
    register 0 starts (PFP section 10.4.5.3). Registers 17 to 22 start at all ones.

    Raises:
        MalformedError: the log has no such bank, or a hash this module cannot compute.
    """
    size = log.banks.get(bank)
    name = HASH_NAMES.get(bank)
    if size is None or name is None:
        raise MalformedError(
            f"the event log has no bank 0x{bank:04x} that can be replayed", code="eventlog_bank"
        )
    compute = getattr(hashlib, name)  # looked up once, not for every event
    registers = {pcr: (b"\xff" if 17 <= pcr <= 22 else b"\0") * size for pcr in range(PCR_COUNT)}
    for event in log.events:
        if event.type != EventType.EV_NO_ACTION:
            value = registers[event.pcr] + event.digests[bank]
            registers[event.pcr] = compute(value).digest()
        elif event.data.startswith(STARTUP_LOCALITY) and len(event.data) == 17:
            registers[0] = bytes(size - 1) + event.data[16:]
    return registers


def _reader(data: bytes) -> ByteReader:
    if len(data) > MAX_LOG_BYTES:
        raise MalformedError(
            f"the event log has {len(data)} bytes; at most {MAX_LOG_BYTES} are accepted",
            code="eventlog_malformed",
        )
    return ByteReader(data, what="the event log", code="eventlog_malformed", byteorder="little")


def _events(
    reader: ByteReader,
    banks: Mapping[int, int],
    parse: Callable[[ByteReader, Mapping[int, int]], Event],
) -> tuple[Event, ...]:
    events: list[Event] = []
    while reader.remaining:
        if len(events) == MAX_EVENTS:
            raise reader.fail(f"has more than {MAX_EVENTS} events")
        events.append(parse(reader, banks))
    return tuple(events)


def _header(reader: ByteReader) -> dict[int, int]:
    pcr, kind, digest = reader.integer(4), reader.integer(4), reader.take(20)
    if pcr != 0 or kind != EventType.EV_NO_ACTION or digest != bytes(20):
        raise reader.fail("does not begin with the header event of the crypto-agile format")
    header = ByteReader(
        reader.sized(prefix=4, limit=1024),
        what="the event log's header",
        code="eventlog_malformed",
        byteorder="little",
    )
    if header.take(16) != SPEC_ID_SIGNATURE:
        raise reader.fail("is not in the crypto-agile format")
    header.take(8)  # platform class, specification version and errata, UINTN size: informative
    banks = _banks(header)
    header.sized(prefix=1)  # vendor information
    header.finish()
    return banks


def _banks(header: ByteReader) -> dict[int, int]:
    count = header.integer(4)
    if not 1 <= count <= 16:
        raise header.fail(f"names {count} banks")
    banks: dict[int, int] = {}
    for _ in range(count):
        algorithm, size = header.integer(2), header.integer(2)
        name = HASH_NAMES.get(algorithm)
        if algorithm in banks or not 1 <= size <= 64:
            raise header.fail("names a bank twice, or one without a size")
        if name is not None and hashlib.new(name).digest_size != size:
            raise header.fail("gives a bank digests of a wrong size")
        banks[algorithm] = size
    return banks


def _event(reader: ByteReader, banks: Mapping[int, int]) -> Event:
    pcr, kind, count = reader.unpack(_EVENT_HEAD)
    if pcr >= PCR_COUNT:
        raise reader.fail(f"has an event for register {pcr}, which does not exist")
    if count != len(banks):
        raise reader.fail("has an event whose digests are not one for each bank")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        (algorithm,) = reader.unpack(_ALGORITHM)
        size = banks.get(algorithm)
        if size is None or algorithm in digests:
            raise reader.fail("has an event whose digests are not one for each bank")
        digests[algorithm] = reader.take(size)
    data = reader.sized(prefix=4, limit=MAX_EVENT_BYTES)
    return Event(pcr=pcr, type=kind, digests=digests, data=data)


def _legacy_event(reader: ByteReader, banks: Mapping[int, int]) -> Event:
    pcr, kind = reader.integer(4), reader.integer(4)
    if pcr >= PCR_COUNT:
        raise reader.fail(f"has an event for register {pcr}, which does not exist")
    digests = {algorithm: reader.take(size) for algorithm, size in banks.items()}
    data = reader.sized(prefix=4, limit=MAX_EVENT_BYTES)
    return Event(pcr=pcr, type=kind, digests=digests, data=data)


_EVENT_HEAD: Final = Struct("<III")  # register, type, number of digests
_ALGORITHM: Final = Struct("<H")
_SIGNATURE_OFFSET: Final = 32  # register, type, SHA-1 digest, size of the header's data


def _encode_header(banks: Iterable[int]) -> bytes:
    sizes = [(bank, hashlib.new(HASH_NAMES[bank]).digest_size) for bank in banks]
    header = b"".join(
        (
            SPEC_ID_SIGNATURE,
            bytes(4),  # platform class: client
            bytes([0, 2, 106, 2]),  # version 2.00, errata 106 (1.06), UINTN of 64 bits
            len(sizes).to_bytes(4, "little"),
            *(bank.to_bytes(2, "little") + size.to_bytes(2, "little") for bank, size in sizes),
            bytes(1),  # no vendor information
        )
    )
    return b"".join(
        (
            bytes(4),
            EventType.EV_NO_ACTION.to_bytes(4, "little"),
            bytes(20),
            len(header).to_bytes(4, "little"),
            header,
        )
    )
