"""Judges what a dstack guest tells about itself against the registers of its TDX quote.

Steps:

1. ``dstack.eventlog`` and ``dstack.eventlog_payloads``: the log leads to RTMR0 to RTMR3, and its
   data are what was measured (`cloister.verifier.appraise.tdx_log`).
2. ``dstack.events``: RTMR3 holds runtime events only, and those of the boot in an order that
   leaves no doubt which of them dstack made and which the application.
3. ``dstack.compose``: the application's document is the one that was measured.
4. ``dstack.mr_config_id``: MRCONFIGID, where it names an application's document, names the same.

What the caller still owes: to compare MRTD and RTMR0 to RTMR2 with reference values. All of this
is the word of dstack's own image, and worth nothing where another image ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloister.evidence.dstack import (
    RUNTIME_REGISTER,
    DstackEvent,
    DstackLog,
    compose_hash,
    config_id,
)
from cloister.verifier.appraise.tdx_log import (
    payload_faults,
    record_log,
    record_payloads,
    unlike_registers,
)
from cloister.verifier.ledger import Ledger
from cloister.verifier.result import Source

EVENT_LOG: Final = "dstack.eventlog"
PAYLOADS: Final = "dstack.eventlog_payloads"
EVENTS: Final = "dstack.events"
COMPOSE: Final = "dstack.compose"
CONFIG_ID: Final = "dstack.mr_config_id"

BOOT_DONE: Final = "boot-mr-done"
READY: Final = "system-ready"
COMPOSE_HASH: Final = "compose-hash"

IDENTITY: Final = ("app-id", COMPOSE_HASH, "instance-id")
"""Events that say what runs; each is there once, before `BOOT_DONE`."""

RESERVED: Final = frozenset(
    {
        "system-preparing",
        "rootfs-hash",
        *IDENTITY,
        BOOT_DONE,
        "mr-kms",
        "os-image-hash",
        "key-provider",
        "storage-fs",
        READY,
    }
)
"""Events that dstack makes itself, each at most once and none after `READY`: from then on the
application may extend RTMR3 by events of any name."""


def judge_log(log: DstackLog, rtmrs: tuple[bytes, ...], *, ledger: Ledger) -> None:
    """Steps 1 and 2. `rtmrs` are RTMR0 to RTMR3 of the quote."""
    faults, covered = _payload_faults(log.events)
    unlike = unlike_registers([event.as_event() for event in log.events], rtmrs)
    record_log(EVENT_LOG, unlike=unlike, faults=faults, ledger=ledger)
    record_payloads(PAYLOADS, faults=faults, covered=covered, events=len(log.events), ledger=ledger)
    fault = order_fault(log.events)
    ledger.check(
        EVENTS,
        holds=fault is None,
        affirmed=(
            "dstack's events of the boot stand in order, each once;"
            f" {_after_boot(log)} events of the application follow."
        ),
        code="dstack_events",
        refused=f"dstack's events leave in doubt what was booted: {fault}.",
    )


def judge_compose(document: bytes, measured: bytes | None, *, ledger: Ledger) -> None:
    """Step 3: `measured` is the hash that log or MRCONFIGID gives, if either does."""
    ledger.check(
        COMPOSE,
        holds=measured is not None and compose_hash(document) == measured,
        affirmed="The application's document is the one that was measured.",
        code="compose_mismatch",
        refused=(
            "Nothing that was measured names the application's document."
            if measured is None
            else "The application's document is another one than was measured."
        ),
        source=Source.HARDWARE_PROVEN,
    )


def judge_config_id(mr_config_id: bytes, compose: bytes, *, ledger: Ledger) -> None:
    """Step 4, for an MRCONFIGID that `names_compose`."""
    ledger.check(
        CONFIG_ID,
        holds=mr_config_id == config_id(compose),
        affirmed="MRCONFIGID names the same application's document.",
        code="mr_config_id_mismatch",
        refused="MRCONFIGID names another application's document.",
        source=Source.HARDWARE_PROVEN,
    )


def names_compose(mr_config_id: bytes) -> bool:
    """Whether it is of version 1, which carries the document's hash as it is."""
    return mr_config_id[:1] == b"\x01"


def boot_events(log: DstackLog) -> dict[str, bytes]:
    """Payloads of dstack's own events, by name; to be believed only where `EVENTS` holds."""
    found: dict[str, bytes] = {}
    for event in log.runtime:
        if event.name in RESERVED:
            found.setdefault(event.name, event.payload)
        if event.name == READY:
            break
    return found


def order_fault(events: Sequence[DstackEvent]) -> str | None:
    """What is wrong with the kinds and the order of events, if anything.

    An opaque event in RTMR3 could be any of dstack's own, hidden; one of dstack's names that
    comes twice, or late, could be the application's; and of version 1 digests, in which a colon
    ends the name, a name with a colon could be another event, cut elsewhere.
    """
    if any(event.is_runtime != (event.rtmr == RUNTIME_REGISTER) for event in events):
        return "RTMR3 holds events of another kind, or another register runtime events"
    names = [event.name for event in events if event.is_runtime]
    if any(":" in name and name.partition(":")[0] in RESERVED for name in names):
        return "an event's name can be cut to one of dstack's own"
    for name in RESERVED:
        if names.count(name) > 1:
            return f"{name} comes twice"
    if BOOT_DONE not in names or any(
        name not in names[: names.index(BOOT_DONE)] for name in IDENTITY
    ):
        return f"not all of {', '.join(IDENTITY)} come before {BOOT_DONE}"
    if READY in names and RESERVED.intersection(names[names.index(READY) + 1 :]):
        return f"one of dstack's own comes after {READY}"
    return None


def _payload_faults(events: Sequence[DstackEvent]) -> tuple[list[str], int]:
    """As `payload_faults`; firmware's data that were left out to save space are no fault."""
    runtime = [event for event in events if event.is_runtime]
    faults = [
        f"the payload of {event.name[:64]!r} is not what its digest covers"
        for event in runtime
        if event.digest != event.computed
    ]
    firmware, covered = payload_faults(
        event.as_event() for event in events if not event.is_runtime and event.payload
    )
    return [*faults, *firmware], covered + len(runtime) - len(faults)


def _after_boot(log: DstackLog) -> int:
    return sum(event.name not in RESERVED for event in log.runtime)
