"""Authenticates the event log of a boot against register values that a TPM signed.

Steps, each with one claim:

1. ``eventlog.format``: the log decodes.
2. ``eventlog.replay``: its digests replay to the signed registers, in every bank that both have;
   the log tells a boot from its beginning to the hand-over to an operating system.
3. ``eventlog.payloads``: the data of every event is what was measured, where the firmware profile
   says that the digest covers it (`payload_fault`, for logs of CCEL as well).

Registers that the log tells of but that were not signed are not compared, and nothing is read
from their events. Those of firmware and boot loaders (0 to 9) that were signed must be told of. A
register into which the operating system measures after the log was taken (11 and 15 with systemd)
does not replay: leave it out of the quote, or judge it by its value.

Source: TCG "PC Client Platform Firmware Profile Specification", version 1.06, sections 3.3 and 10.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.efi import GLOBAL_VARIABLE, VARIABLE_HEAD
from cloister.evidence.eventlog import (
    STARTUP_LOCALITY,
    Event,
    EventLog,
    EventType,
    is_crypto_agile,
    parse_event_log,
    parse_legacy_event_log,
    replay,
)
from cloister.evidence.pcrs import PcrValues
from cloister.evidence.tpm import HASH_NAMES
from cloister.strictjson import Json, JsonObject
from cloister.verifier.authenticate.tpm_payload import (
    GRUB_PREFIXES,
    measured_bytes,
    payload_fault,
)
from cloister.verifier.ledger import Ledger

FORMAT: Final = "eventlog.format"
REPLAY: Final = "eventlog.replay"
PAYLOADS: Final = "eventlog.payloads"

CLAIMS: Final = (FORMAT, REPLAY, PAYLOADS)

NOT_TRUSTWORTHY: Final = "not_trustworthy"

FIRMWARE_REGISTERS: Final = range(8)
"""Registers that the firmware measures into, and closes with a separator (PFP section 3.3.4)."""

BOOT_REGISTERS: Final = range(10)
"""The firmware's, and those that boot loaders measure into (8 and 9) through the firmware, which
logs it: where these were signed with anything in them, the log has to tell of it."""

SECURE_BOOT_REGISTER: Final = 7
COMMAND_REGISTERS: Final = (8, 12)
"""Where GRUB (8) and systemd (12, formerly 8) measure the kernel's command line."""

MAX_COMMAND_LINES: Final = 8

_SEPARATORS: Final = frozenset(
    hashlib.new(name, data).digest()
    for name in HASH_NAMES.values()
    for data in (bytes(4), b"\xff\xff\xff\xff", b"\1\0\0\0")
)
"""Digests of what firmware measures to close a register, after an error too (PFP section 10.4.1),
in every bank."""

_EXIT_BOOT_SERVICES: Final = b"Exit Boot Services Returned with Success"
_KERNEL_PREFIXES: Final = (b"kernel_cmdline: ", b"grub_kernel_cmdline ")

_FACT_NAMES: Final = frozenset(
    {
        EventType.EV_POST_CODE,
        EventType.EV_NO_ACTION,
        EventType.EV_SEPARATOR,
        EventType.EV_EVENT_TAG,
        EventType.EV_S_CRTM_VERSION,
        EventType.EV_IPL,
        EventType.EV_EFI_VARIABLE_DRIVER_CONFIG,
        EventType.EV_EFI_VARIABLE_BOOT,
        EventType.EV_EFI_BOOT_SERVICES_APPLICATION,
        EventType.EV_EFI_GPT_EVENT,
        EventType.EV_EFI_ACTION,
        EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB,
        EventType.EV_EFI_VARIABLE_AUTHORITY,
    }
)
"""Types that facts call by name; others by number, as recorded cases do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFindings:
    """What a log says, as far as it decodes. Worth what the claims are."""

    log: EventLog | None
    registers: Mapping[int, Mapping[int, bytes]]
    """Replayed values of the registers that the log extends, by bank."""
    mismatched: tuple[tuple[int, int], ...] = ()
    """Bank and number of registers that were signed with another value."""
    unsigned: tuple[int, ...] = ()
    """Registers that the log tells of and no signature covers."""

    @property
    def banks(self) -> tuple[int, ...]:
        """Banks that were replayed."""
        return tuple(self.registers)

    def replays(self, bank: int) -> bool:
        """Whether the log has `bank`, and replays to every register of it that was signed."""
        return bank in self.registers and all(wrong != bank for wrong, _pcr in self.mismatched)


def authenticate_log(data: bytes, signed: PcrValues | None, ledger: Ledger) -> LogFindings:
    """Run every step, adding `CLAIMS` to `ledger`.

    `signed` are the register values of a quote; whether its signature held is for the caller to
    say, by giving a ledger of stated claims. ``None``: there is no quote, and the log is only
    checked against itself.
    """
    try:
        log = parse_event_log(data) if is_crypto_agile(data) else parse_legacy_event_log(data)
        replayed = {bank: replay(log, bank=bank) for bank in log.banks if bank in HASH_NAMES}
        if not replayed:
            raise MalformedError("the event log has no bank that can be replayed")
    except MalformedError as error:
        ledger.refuse(FORMAT, "malformed", f"The event log is refused: {error}.")
        return LogFindings(log=None, registers={})
    ledger.affirm(FORMAT, f"The event log decodes: {len(log.events)} events.")
    told = {event.pcr for event in log.events if event.type != EventType.EV_NO_ACTION}
    findings = LogFindings(
        log=log,
        registers={
            bank: {pcr: values[pcr] for pcr in sorted(told)} for bank, values in replayed.items()
        },
        mismatched=tuple(_mismatched(replayed, told, signed)),
        unsigned=() if signed is None else tuple(sorted(told - _covered(replayed, signed))),
    )
    _replay(findings, signed, ledger)
    _payloads(log, findings.banks, ledger)
    return findings


def log_facts(findings: LogFindings) -> JsonObject:
    """What a log says, under the names of recorded cases; unauthenticated where claims fail.

    ``secure_boot`` and ``kernel_command_lines`` are read only from data that digests cover, in
    registers that were signed (all, where nothing was).
    """
    log = findings.log
    if log is None:
        return {}
    replayed: JsonObject = {"sha1": {}}  # always listed, and empty where the log has no such bank
    for bank, values in findings.registers.items():
        replayed[HASH_NAMES[bank]] = {str(pcr): value.hex() for pcr, value in values.items()}
    types = Counter(_fact_name(event.type) for event in log.events)
    if not log.legacy:
        types["EV_NO_ACTION"] += 1  # the header
    events: JsonObject = {name: types[name] for name in types}
    lines: list[Json] = list(kernel_command_lines(findings))
    return {
        "format": "SHA-1 only (TCG 1.2 style)" if log.legacy else "crypto-agile (TCG2)",
        "events": len(log.events) + (not log.legacy),
        "event_types": events,
        "replayed_pcrs": replayed,
        "secure_boot": secure_boot(findings),
        "kernel_command_lines": lines,
    }


def secure_boot(findings: LogFindings) -> bool | None:
    """Whether the firmware measured Secure Boot as on; ``None`` where it did not say.

    Only the variable ``SecureBoot`` itself counts, measured whole (GUID, name and value) into
    register 7 before that register was closed: anyone may extend it later. Of two values the
    worse one is believed. What closed the register is told by digest as well, for no digest covers
    an event's type: whoever hands out the log may call the separator something else.
    """
    states: list[bool] = []
    for event in _until_closed(findings, SECURE_BOOT_REGISTER):
        if event.type == EventType.EV_EFI_VARIABLE_DRIVER_CONFIG:
            value = _variable(_read(findings, event), GLOBAL_VARIABLE, "SecureBoot")
            states += [] if value is None else [value == b"\x01"]
    return all(states) if states else None


def kernel_command_lines(findings: LogFindings) -> tuple[str, ...]:
    """Command lines of kernels as GRUB or systemd measured them, in order; at most a few.

    Shows what was measured, not that it was by them, nor that it is all: nothing closes these
    registers, and no digest covers an event's type or GRUB's prefix. A started system may call its
    own line a command and measure another. Only the registers' values, compared, rule that out.
    """
    lines = []
    for event in _events_of(findings, COMMAND_REGISTERS):
        text = _command_line(findings, event) if event.type == EventType.EV_IPL else None
        if text is not None:
            lines.append(text)
    return tuple(lines[:MAX_COMMAND_LINES])


def _command_line(findings: LogFindings, event: Event) -> str | None:
    of_grub = event.data.startswith(GRUB_PREFIXES)
    if of_grub and not event.data.startswith(_KERNEL_PREFIXES):
        return None  # a command of GRUB's own
    measured = _read(findings, event)
    if measured is None:
        return None
    if of_grub:
        return measured.decode("utf-8", "replace")
    if len(measured) % 2 or measured[1:2] != b"\0":
        return None
    return measured.decode("utf-16-le", "replace").removesuffix("\0")


def _covered(registers: PcrValues, signed: PcrValues) -> set[int]:
    """Numbers of registers that were signed in a bank of the log."""
    return {pcr for bank in registers for pcr in signed.get(bank, {})}


def _mismatched(
    replayed: PcrValues, told: set[int], signed: PcrValues | None
) -> Iterable[tuple[int, int]]:
    """Signed registers that the log should tell of, and tells otherwise or not at all."""
    for bank, values in (signed or {}).items():
        for pcr, value in values.items() if bank in replayed else ():
            if (pcr in told or pcr in BOOT_REGISTERS) and replayed[bank][pcr] != value:
                yield bank, pcr


def _replay(findings: LogFindings, signed: PcrValues | None, ledger: Ledger) -> None:
    """Step 2."""
    log = findings.log
    if log is None:
        return
    fault = _disagreement(findings, signed) or _locality_fault(log)
    gap = _gap(log)
    if fault is not None:
        ledger.refuse(REPLAY, "eventlog_mismatch", f"The event log is refused: {fault}.")
    elif gap is not None:
        ledger.refuse(
            REPLAY, "missing_event", f"The event log is not whole: {gap}.", value=NOT_TRUSTWORTHY
        )
    elif signed is None:
        ledger.affirm(REPLAY, "The event log tells a whole boot; no signature covers it.")
    else:
        ledger.affirm(REPLAY, "The event log replays to the register values that were signed.")


def _disagreement(findings: LogFindings, signed: PcrValues | None) -> str | None:
    if findings.mismatched:
        bank, pcr = findings.mismatched[0]
        return f"it does not replay to the signed value of register {pcr} ({HASH_NAMES[bank]})"
    told = {pcr for values in findings.registers.values() for pcr in values}
    if signed is not None and told == set(findings.unsigned):
        return "no register that it tells of was signed"
    return None


def _locality_fault(log: EventLog) -> str | None:
    """Where register 0 starts is said once, before anything is measured into it.

    A second start would drop what the log told before it from the replay, and yet leave it to be
    read.
    """
    begun = False
    for event in log.events:
        if event.type != EventType.EV_NO_ACTION:
            begun = begun or event.pcr == 0
        elif event.data.startswith(STARTUP_LOCALITY):
            if begun:
                return "it starts register 0 after it was measured into"
            begun = True
    return None


def _gap(log: EventLog) -> str | None:
    """What is missing for the log to be that of a whole boot.

    Firmware closes each of its registers. The end of boot services is measured after kernels
    before 5.3 took their copy of the log; then something must show that the boot loader had
    started an operating system: another image after the first, or what a loader measures.
    """
    closed = {event.pcr for event in log.events if event.type == EventType.EV_SEPARATOR}
    missing = [str(pcr) for pcr in FIRMWARE_REGISTERS if pcr not in closed]
    if missing:
        return f"the firmware never closed register {', '.join(missing)}"
    if any(
        event.type == EventType.EV_EFI_ACTION and event.data == _EXIT_BOOT_SERVICES
        for event in log.events
    ):
        return None
    images = [
        event for event in log.events if event.type == EventType.EV_EFI_BOOT_SERVICES_APPLICATION
    ]
    if len(images) < 2 and not any(event.type == EventType.EV_IPL for event in log.events):
        return "it ends before the firmware handed over to an operating system"
    return None


def _payloads(log: EventLog, banks: Iterable[int], ledger: Ledger) -> None:
    """Step 3."""
    faults = (
        f"event {number} of register {event.pcr}: {fault}"
        for number, event in enumerate(log.events, start=1)
        for bank in banks
        if (fault := payload_fault(event, bank)) is not None
    )
    first = next(faults, None)
    ledger.check(
        PAYLOADS,
        holds=first is None,
        affirmed="Every event says what was measured, where its digest covers what it says.",
        code="eventlog_payload_mismatch",
        refused=f"The event log says something else than was measured: {first}.",
    )


def _events_of(findings: LogFindings, registers: Iterable[int]) -> Iterable[Event]:
    """Events of those of `registers` whose replayed value nothing contradicts."""
    wrong = {pcr for _bank, pcr in findings.mismatched} | set(findings.unsigned)
    chosen = set(registers) - wrong
    events = () if findings.log is None else findings.log.events
    return (event for event in events if event.pcr in chosen)


def _until_closed(findings: LogFindings, register: int) -> Iterable[Event]:
    for event in _events_of(findings, (register,)):
        if event.type == EventType.EV_SEPARATOR or not _SEPARATORS.isdisjoint(
            event.digests.values()
        ):
            return
        yield event


def _read(findings: LogFindings, event: Event) -> bytes | None:
    """What of the event's data every bank's digest covers: which bank was signed may differ."""
    read = {measured_bytes(event, bank) for bank in findings.banks}
    return read.pop() if len(read) == 1 else None


def _variable(data: bytes | None, guid: uuid.UUID, name: str) -> bytes | None:
    """The value of the UEFI variable `name`, if `data` is a whole ``UEFI_VARIABLE_DATA`` of it."""
    if data is None or len(data) < VARIABLE_HEAD.size:
        return None
    vendor, length, size = VARIABLE_HEAD.unpack_from(data)
    named = data[VARIABLE_HEAD.size : VARIABLE_HEAD.size + 2 * length]
    value = data[VARIABLE_HEAD.size + 2 * length :]
    if vendor != guid.bytes_le or named != name.encode("utf-16-le") or len(value) != size:
        return None
    return value


def _fact_name(kind: int) -> str:
    return EventType(kind).name if kind in _FACT_NAMES else hex(kind)
