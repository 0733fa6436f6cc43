"""Event logs of TDX guests' firmware (CCEL), to records and to register values.

Sources: UEFI specification 2.10 section 38.4.1 (the confidential computing protocol and its
measurement registers); Intel, "Guest-Host-Communication Interface for TDX", for the ACPI table
CCEL that says where the log lies; TCG PC Client PFP 1.06 section 10.2 for its layout, that of a
crypto-agile TPM log with one SHA-384 bank. All integers are little-endian.

The log fills an area of memory whose unused rest is 0xFF. As in `cloister.evidence.eventlog`, a
log is a story: nothing here is authenticated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cloister.evidence.eventlog import (
    MAX_EVENT_BYTES,
    MAX_EVENTS,
    MAX_LOG_BYTES,
    SPEC_ID_SIGNATURE,
    Event,
    EventType,
)
from cloister.evidence.reader import ByteReader
from cloister.evidence.tpm import Alg

RTMR_COUNT: Final = 4
RTMR_BYTES: Final = 48

CODE: Final = "eventlog_malformed"

_PADDING: Final = 0xFF
_UNUSED: Final = b"\xff" * 4
"""What stands where another event's register would, after the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CcelLog:
    """The events of a log, in order, without its header."""

    raw: bytes
    """With the padding."""
    events: tuple[Event, ...]
    """`Event.pcr` is the number of the RTMR (0 to 3), not the measurement register's index (1
    to 4, 0 being MRTD); `Event.digests` has SHA-384 alone."""


def parse_ccel(data: bytes) -> CcelLog:
    """Decode a log of at most `MAX_LOG_BYTES`, padded with 0xFF or not at all.

    Events for index 0, MRTD, are refused: only the TDX module extends that, before any software
    runs that could write a log.

    Raises MalformedError (code ``eventlog_malformed``), and nothing else.
    """
    reader = ByteReader(data, what="the CCEL event log", code=CODE, byteorder="little")
    if len(data) > MAX_LOG_BYTES:
        raise reader.fail(f"has {len(data)} bytes; at most {MAX_LOG_BYTES} are accepted")
    _header(reader)
    events: list[Event] = []
    while reader.remaining:
        index = reader.take(4)
        if index == _UNUSED:
            _padding(reader)
            break
        if len(events) == MAX_EVENTS:
            raise reader.fail(f"has more than {MAX_EVENTS} events")
        events.append(_event(int.from_bytes(index, "little"), reader))
    return CcelLog(raw=data, events=tuple(events))


def replay_rtmrs(events: Iterable[Event]) -> tuple[bytes, ...]:
    """Compute RTMR0 to RTMR3 from the SHA-384 digests of `events` (`Event.pcr` from 0 to 3).

    Each starts at zero and is extended as ``SHA-384(register || digest)``; ``EV_NO_ACTION``
    events are not extended.
    """
    registers = [bytes(RTMR_BYTES)] * RTMR_COUNT
    for event in events:
        if event.type != EventType.EV_NO_ACTION:
            value = registers[event.pcr] + event.digests[Alg.SHA384]
            registers[event.pcr] = hashlib.sha384(value).digest()
    return tuple(registers)


def _header(reader: ByteReader) -> None:
    """The header event, in the old format; EDK2 writes register 1 into it, others 0."""
    register, kind, digest = reader.integer(4), reader.integer(4), reader.take(20)
    if register > 1 or kind != EventType.EV_NO_ACTION or digest != bytes(20):
        raise reader.fail("does not begin with the header event of the crypto-agile format")
    header = ByteReader(
        reader.sized(prefix=4, limit=1024),
        what="the CCEL event log's header",
        code=CODE,
        byteorder="little",
    )
    if header.take(16) != SPEC_ID_SIGNATURE:
        raise header.fail("is not in the crypto-agile format")
    header.take(8)  # platform class, specification version and errata, UINTN size: informative
    banks = [(header.integer(2), header.integer(2)) for _ in range(min(header.integer(4), 2))]
    if banks != [(Alg.SHA384, RTMR_BYTES)]:
        raise header.fail("names other banks than the one of SHA-384")
    header.sized(prefix=1)  # vendor information
    header.finish()


def _event(index: int, reader: ByteReader) -> Event:
    if not 1 <= index <= RTMR_COUNT:
        raise reader.fail(f"has an event for measurement register {index}, which takes none")
    kind, count, algorithm = reader.integer(4), reader.integer(4), reader.integer(2)
    if (count, algorithm) != (1, Alg.SHA384):
        raise reader.fail("has an event whose digest is not one of SHA-384")
    digest = reader.take(RTMR_BYTES)
    data = reader.sized(prefix=4, limit=MAX_EVENT_BYTES)
    return Event(pcr=index - 1, type=kind, digests={Alg.SHA384: digest}, data=data)


def _padding(reader: ByteReader) -> None:
    rest = reader.take(reader.remaining)
    if rest.count(_PADDING) != len(rest):
        raise reader.fail("goes on after the padding began")
