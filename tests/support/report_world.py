"""A world in which a report of a software TPM is right, to change one thing in.

A test affirms the report unaltered, changes one thing and expects one code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509

from cloister.endorsements.roots import Roots
from cloister.errors import AppraisalError
from cloister.evidence.eventlog import Event, encode_event_log, parse_event_log
from cloister.evidence.report import (
    ITEM_EVENT_LOG,
    ITEM_QUOTE,
    ITEM_SIGNATURE,
    AttestationReport,
    EvidenceItem,
)
from cloister.testing.simulated_tpm import SimulatedAttester, endorse
from cloister.verifier import policy as policies
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult, Finding

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
NONCE = bytes(range(32))


@dataclass(kw_only=True)
class World:
    """An attester, and everything its relying party holds."""

    attester: SimulatedAttester
    report: AttestationReport
    roots: Roots
    reference_values: ReferenceValues
    policy: AppraisalPolicy = field(default_factory=policies.development)
    nonce: bytes = NONCE
    at: datetime = NOW
    raw: bytes | None = None

    def verify(self) -> AttestationResult:
        return verify_report(
            self.report.encode() if self.raw is None else self.raw,
            nonce=self.nonce,
            policy=self.policy,
            reference_values=self.reference_values,
            roots=self.roots,
            at=self.at,
        )

    def replace_item(self, name: str, item: EvidenceItem | None) -> None:
        evidence = dict(self.report.evidence)
        if item is None:
            del evidence[name]
        else:
            evidence[name] = item
        self.report = dataclasses.replace(self.report, evidence=evidence)

    def replace_data(self, name: str, data: bytes) -> None:
        self.replace_item(name, dataclasses.replace(self.report.evidence[name], data=data))

    def endorsed_by(self, *chain: x509.Certificate) -> None:
        quote = self.report.evidence[ITEM_QUOTE]
        self.replace_item(ITEM_QUOTE, dataclasses.replace(quote, endorsements=endorse(chain)))

    def requote(self, data: bytes) -> None:
        """Sign `data` with the attester's own key, as a broken TPM would."""
        self.replace_data(ITEM_QUOTE, data)
        self.replace_data(ITEM_SIGNATURE, self.attester.tpm.sign(data))

    def relog(self, change: Callable[[list[Event]], list[Event]]) -> None:
        """Change the log, not the registers."""
        log = parse_event_log(self.report.evidence[ITEM_EVENT_LOG].data)
        self.replace_data(ITEM_EVENT_LOG, encode_event_log(change(list(log.events))))


def world(**make: Any) -> World:
    attester = SimulatedAttester.make(now=NOW, **make)
    return World(
        attester=attester,
        report=attester.attestation_report(NONCE),
        roots=attester.roots,
        reference_values=attester.reference_values,
    )


def affirm(good: World) -> None:
    good.verify().require_affirming()


def refuse(bad: World, code: str, claim: str) -> AttestationResult:
    result = bad.verify()
    by_name = {each.name: each for each in result.claims}
    assert by_name[claim].code == code
    assert by_name[claim].finding is Finding.CONTRAINDICATED
    assert result.attester is None
    with pytest.raises(AppraisalError) as raised:
        result.require_affirming()
    assert raised.value.code == code, [each.code for each in result.failures]
    assert raised.value.result is result
    assert str(raised.value).endswith((".", ")"))
    return result


Change = Callable[[World], None]


class Cases(dict[str, tuple[Change, str, str]]):
    """Changes by name, each with the one code that it leads to and the claim that has it."""

    def case(self, code: str, claim: str) -> Callable[[Change], Change]:
        def register(change: Change) -> Change:
            self[change.__name__] = (change, code, claim)
            return change

        return register

    def refuse_one(self, name: str) -> None:
        """A world affirms; with the change `name` alone it is refused for that."""
        change, code, claim = self[name]
        bad = world()
        affirm(bad)
        change(bad)
        refuse(bad, code, claim)
