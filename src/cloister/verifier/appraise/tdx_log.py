"""Compares event logs with the registers that a TDX module signed.

A log is a story told by whoever sends it. It counts only where its digests extend to the quoted
RTMRs, and the data of its events only where those digests cover them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.ccel import RTMR_COUNT, CcelLog, parse_ccel, replay_rtmrs
from cloister.evidence.eventlog import Event
from cloister.evidence.tpm import Alg
from cloister.verifier.authenticate.tpm_payload import measured_bytes, payload_fault
from cloister.verifier.ledger import Ledger
from cloister.verifier.result import Source

EVENT_LOG: Final = "tdx.eventlog"
PAYLOADS: Final = "tdx.eventlog_payloads"

LOG_CLAIMS: Final = (EVENT_LOG, PAYLOADS)
"""Claims of `judge_ccel`, in order: the log as a whole, then the data of its events.

`EVENT_LOG` alone says whether the log may be believed: it is refused as well where digests
replay to the registers and data do not match their digests."""


def judge_ccel(
    data: bytes, rtmrs: tuple[bytes, ...], *, authenticated: bool, ledger: Ledger
) -> CcelLog | None:
    """Decide the `LOG_CLAIMS` about the CCEL log in `data` against RTMR0 to RTMR3 of a quote.

    Where the quote was not `authenticated`, what would be affirmed is recorded as not decided.
    The caller has promised the claims to `ledger` (`Ledger.expect`). Returns the log where it
    decodes, believed or not.
    """
    ledger = ledger if authenticated else ledger.stated()
    try:
        log = parse_ccel(data)
    except MalformedError as error:
        ledger.refuse(EVENT_LOG, error.code, f"The event log does not decode: {error}.")
        return None
    faults, covered = payload_faults(log.events)
    record_log(EVENT_LOG, unlike=unlike_registers(log.events, rtmrs), faults=faults, ledger=ledger)
    record_payloads(PAYLOADS, faults=faults, covered=covered, events=len(log.events), ledger=ledger)
    return log


def unlike_registers(events: Sequence[Event], rtmrs: tuple[bytes, ...]) -> tuple[int, ...]:
    """Numbers of the RTMRs, of the four in `rtmrs`, to which `events` do not replay.

    Raises:
        ValueError: there are not four.
    """
    if len(rtmrs) != RTMR_COUNT:
        raise ValueError(f"a quote has {RTMR_COUNT} runtime registers")
    replayed = replay_rtmrs(events)
    return tuple(number for number in range(RTMR_COUNT) if replayed[number] != rtmrs[number])


def payload_faults(events: Iterable[Event]) -> tuple[list[str], int]:
    """What is wrong with the data of events, and of how many the digest covers the data.

    Raises:
        KeyError: an event has no SHA-384 digest.
    """
    faults: list[str] = []
    covered = 0
    for number, event in enumerate(events, start=1):
        if measured_bytes(event, Alg.SHA384) is not None:
            covered += 1
        elif (fault := payload_fault(event, Alg.SHA384)) is not None:
            faults.append(f"event {number}: {fault}")
    return faults, covered


def record_log(name: str, *, unlike: Sequence[int], faults: Sequence[str], ledger: Ledger) -> None:
    """Record whether a log may be believed: it replays, and no event's data are made up."""
    if unlike:
        numbers = ", ".join(f"RTMR{number}" for number in unlike)
        ledger.refuse(
            name, "eventlog_mismatch", f"The event log does not lead to the quoted {numbers}."
        )
    elif faults:
        ledger.refuse(
            name,
            "eventlog_payload_mismatch",
            "The event log's digests lead to the quoted registers, but the log tells another story"
            " than they do.",
        )
    else:
        ledger.affirm(
            name,
            "The event log leads to the quoted registers, RTMR0 to RTMR3.",
            source=Source.HARDWARE_PROVEN,
        )


def record_payloads(
    name: str, *, faults: Sequence[str], covered: int, events: int, ledger: Ledger
) -> None:
    """Record whether the data of events are what their digests cover, where they should be."""
    ledger.check(
        name,
        holds=not faults,
        affirmed=(
            f"The data of {covered} of {events} events are what was measured; the others' data"
            " only describe it."
        ),
        code="eventlog_payload_mismatch",
        refused=f"The event log's data are not what was measured: {'; '.join(faults[:3])}.",
    )
