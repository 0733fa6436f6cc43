"""Verifies a machine's measured boot: a quote of its TPM, and the firmware's event log.

As `cloister.verifier.platforms.tpm`, with two differences. The attestation key may also be
certified by an enrolment CA that the caller pinned; that CA's word is all that says a TPM is
hardware, so such a machine is a development platform. And the event log has to be there.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Final

from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.errors import MalformedError
from cloister.evidence.eventlog import EventType, is_crypto_agile, parse_event_log
from cloister.verifier.expected import Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms import tpm
from cloister.verifier.platforms.tpm import TpmEvidence
from cloister.verifier.policy import AppraisalPolicy

ENROLLED: Final = (
    "An enrolment CA vouches for the TPM. With a software TPM, whoever runs it can make up every"
    " register."
)
ACPI_NOT_MEASURED: Final = (
    "The firmware measured no ACPI tables: a table that the host added or changed, and that the"
    " kernel runs code from, does not show."
)

MACHINE_REGISTER: Final = 1
_ACPI_TYPES: Final = frozenset(
    {
        EventType.EV_PLATFORM_CONFIG_FLAGS,  # EDK2 in QEMU: one for each table, "ACPI DATA"
        EventType.EV_EFI_HANDOFF_TABLES,
        EventType.EV_EFI_HANDOFF_TABLES2,
    }
)


def verify_measured_boot(
    evidence: TpmEvidence,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    """Verify `evidence` at time `at`; whatever is wrong with it is a claim in `ledger`.

    Raises:
        ConfigurationError: `expected` names a field that no quote has.
    """
    outcome = tpm.verify_tpm(
        evidence,
        policy=policy,
        roots=_with_enrolment(roots),
        at=at,
        expected=expected,
        ledger=ledger,
    )
    return dataclasses.replace(
        outcome,
        not_proven=(
            *outcome.not_proven,
            *((ENROLLED,) if outcome.development else ()),
            *(() if measures_acpi(evidence.event_log) else (ACPI_NOT_MEASURED,)),
        ),
    )


def measures_acpi(event_log: bytes | None) -> bool:
    """Whether a log tells of ACPI tables in PCR 1. Says what the log says, no more."""
    if event_log is None or not is_crypto_agile(event_log):
        return False
    try:
        events = parse_event_log(event_log).events
    except MalformedError:
        return False
    return any(event.pcr == MACHINE_REGISTER and event.type in _ACPI_TYPES for event in events)


def _with_enrolment(roots: Roots) -> Roots:
    """`roots` with every pinned enrolment CA as a development root for attestation keys."""
    enrolled = tuple(
        Anchor(vendor=Vendor.TPM_MANUFACTURER, certificate=certificate, development=True)
        for certificate in roots.enrolment_cas
    )
    return dataclasses.replace(roots, anchors=(*roots.anchors, *enrolled))
