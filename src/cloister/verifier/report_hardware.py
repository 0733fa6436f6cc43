"""Reports of workers whose whole image a hardware platform measured.

Steps 4 to 8 of `cloister.verifier.report` for these platforms.
"""

from __future__ import annotations

from collections.abc import Set
from datetime import datetime
from typing import Final

from cloister.channel.claims import ClaimsDocument
from cloister.channel.statement import REPORT_DATA_SIZE
from cloister.endorsements.roots import Roots
from cloister.errors import MalformedError
from cloister.evidence.component import isolation_mode, manifest_of
from cloister.verifier.appraise import manifest as appraise_manifests
from cloister.verifier.appraise import worker as appraise
from cloister.verifier.authenticate.tpm import BOUND, FRESH, StatementDigests
from cloister.verifier.expected import NOTHING_EXPECTED
from cloister.verifier.expected_manifest import ExpectedManifest
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.policy import AppraisalPolicy, Unchecked
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report_findings import (
    CLAIMS_BOUND,
    CLAIMS_CONSISTENT,
    FORMAT,
    REPORT_DATA,
    Findings,
    check_report_data,
    read_claims_document,
)
from cloister.verifier.report_items import HardwarePlatform, Items
from cloister.verifier.result import Source

ITEMS: Final = "report.items"


def authenticate_worker(
    found: Findings,
    platform: HardwarePlatform,
    *,
    statements: StatementDigests | None,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    ledger: Ledger,
) -> None:
    """Steps 4 and 5, for a hardware platform."""
    report = found.report
    if report is None or statements is None or not ledger.holds(FORMAT):
        return
    found.outcome = _authenticate(
        platform,
        report.evidence,
        policy=policy,
        statements=statements,
        roots=roots,
        at=at,
        ledger=ledger,
    )
    ledger.expect(REPORT_DATA)
    check_report_data(report, statements, ledger)


def appraise_worker(
    found: Findings,
    platform: HardwarePlatform,
    *,
    policy: AppraisalPolicy,
    reference_values: ReferenceValues,
    manifest: ExpectedManifest | None,
    ledger: Ledger,
) -> None:
    """Steps 6 to 8, for a hardware platform: the registers first, then its software's own word."""
    if manifest is not None:
        ledger.expect(*appraise_manifests.CLAIMS)
        appraise_manifests.appraise_standing(manifest, ledger)
    ledger.expect(
        *appraise.register_claims(platform.reference),
        *appraise.claims(policy),
        CLAIMS_BOUND,
        CLAIMS_CONSISTENT,
    )
    registers = {} if found.outcome is None else found.outcome.registers
    asserted: Set[str] = frozenset() if found.outcome is None else found.outcome.asserted
    if found.report is not None and found.keyset is not None:
        read_claims_document(found, found.report, found.keyset, ledger)
    document = found.claims_document
    if registers:
        named = None if document is None else document.manifest_sha256
        appraise.appraise_registers(
            platform.reference,
            appraise.before_manifest(platform.reference, registers, named),
            reference_values=reference_values,
            policy=policy,
            ledger=ledger,
            asserted=asserted,
        )
    if document is None:
        return
    ledger.check(
        CLAIMS_CONSISTENT,
        holds=(
            document.isolation == isolation_mode(document.configuration)
            and document.manifest_sha256 == manifest_of(document.configuration)
        ),
        affirmed="The claims document agrees with the configuration in it.",
        code="claims_mismatch",
        refused="The claims document names another isolation, or another manifest, than the"
        " configuration in it.",
    )
    # Written by measured software, or else by anybody.
    said = ledger if ledger.holds(appraise.REGISTERS, BOUND) else ledger.stated()
    appraise.appraise_claims(document, policy=policy, ledger=said)
    wanted = document.manifest_sha256
    if manifest is not None:
        appraise_manifests.appraise_terms(document, manifest, said)
        wanted = manifest.sha256
    if wanted is not None:
        ledger.expect(appraise.MANIFEST)
        if registers:
            word = appraise.MANIFEST_REGISTER.get(platform.reference) in asserted
            appraise.appraise_manifest(
                platform.reference, registers, wanted, ledger.asserted() if word else ledger
            )
    if not isinstance(policy.denied, Unchecked):
        digests = _digests(found, document, platform, policy.denied)
        if manifest is not None:
            digests.update(manifest.signer_ids)
        appraise.appraise_denied(digests, denied=policy.denied, ledger=ledger)


def _digests(
    found: Findings,
    document: ClaimsDocument,
    platform: HardwarePlatform,
    denied: tuple[str, ...],
) -> set[str]:
    """What may be denied; the manifest also where only the platform names it."""
    registers = {} if found.outcome is None else found.outcome.registers
    named = (
        document.manifest_sha256,
        *appraise.started_for(platform.reference, registers, denied),
        *(digest for model in document.models for digest in model.digests),
    )
    return {found.keyset_digest, *(f"sha256:{digest}" for digest in named if digest)}


def _authenticate(
    platform: HardwarePlatform,
    evidence: Items,
    *,
    policy: AppraisalPolicy,
    statements: StatementDigests,
    roots: Roots,
    at: datetime,
    ledger: Ledger,
) -> Outcome | None:
    """Run the platform's verifier on the report's items; then see what its evidence binds.

    Returns ``None`` where the items are not those of the platform.
    """
    ledger.expect(ITEMS)
    try:
        verify, record = platform.assemble(evidence)
    except MalformedError as error:
        ledger.refuse(ITEMS, "evidence_missing", f"The report's evidence is refused: {error}.")
        return None
    ledger.affirm(ITEMS, "The report brings the evidence that its platform gives.")
    outcome = verify(
        record, policy=policy, roots=roots, at=at, expected=NOTHING_EXPECTED, ledger=ledger
    )
    ledger.expect(FRESH, BOUND)
    if outcome.bound is not None:
        _binding(outcome.bound, statements, ledger)
    return outcome


def _binding(bound: bytes, statements: StatementDigests, ledger: Ledger) -> None:
    """One value proves freshness and keys; who gets it wrong decides which is blamed."""
    expected, named, unchallenged = (
        _slot(digest, bound)
        for digest in (statements.expected, statements.named, statements.unchallenged)
    )
    ledger.check(
        FRESH,
        holds=bound in {expected, named},
        affirmed="The evidence was made after, and for, the challenge you sent.",
        code="quote_nonce",
        refused=(
            "The evidence answers no challenge at all: it may have been made long ago."
            if bound == unchallenged
            else "The hardware did not sign your challenge for these keys: the evidence is older,"
            " or somebody else's, or the keys were replaced."
        ),
        source=Source.HARDWARE_PROVEN,
    )
    ledger.check(
        BOUND,
        holds=bound == expected == named,
        affirmed="The hardware signed for exactly the keys that the report lists.",
        code="keyset_unbound",
        refused="The keys that the report lists are not the ones that the hardware signed for.",
        source=Source.HARDWARE_PROVEN,
    )


def _slot(digest: bytes, bound: bytes) -> bytes:
    """The digest as the platform carries it: alone, or zero-padded to a report-data slot."""
    return digest.ljust(REPORT_DATA_SIZE, b"\0") if len(bound) == REPORT_DATA_SIZE else digest
