"""Reports of workers that a TPM measured piece by piece: today the software TPM of development.

Steps 4 to 8 of `cloister.verifier.report` for this platform.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Final

from cloister.channel.claims import ClaimsDocument
from cloister.endorsements.roots import Roots
from cloister.evidence.component import ComponentKind, isolation_mode, manifest_of
from cloister.verifier.appraise import manifest as manifests
from cloister.verifier.appraise import tpm as appraise
from cloister.verifier.authenticate import tpm as authenticate
from cloister.verifier.authenticate.tpm import StatementDigests, TpmLaunch
from cloister.verifier.expected_manifest import ExpectedManifest
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report_findings import (
    CLAIMS_BOUND,
    CLAIMS_CONSISTENT,
    REPORT_DATA,
    Findings,
    check_report_data,
    read_claims_document,
)
from cloister.verifier.result import Source

NOT_PROVEN_TPM: Final = (
    "A software TPM is a program under the control of whoever runs the machine: its quotes"
    " prove nothing to anyone else.",
    "On a development platform a launcher that lies about what it starts goes undetected.",
    "Memory is not encrypted: a TPM measures software, and whoever runs the machine can read"
    " the conversation.",
    "Firmware, boot loader, kernel and the rest of the operating system are not measured.",
    "The enrolment CA is trusted to certify only keys that live in a TPM.",
    "Where the code comes from (the report's source provenance) is not bound by evidence; what"
    " it is, file by file, is.",
)


def claims(policy: AppraisalPolicy) -> tuple[str, ...]:
    """Names of the claims of these steps, in order."""
    return (
        *authenticate.CLAIMS,
        REPORT_DATA,
        *appraise.claims(policy),
        CLAIMS_BOUND,
        CLAIMS_CONSISTENT,
    )


def authenticate_worker(
    found: Findings,
    *,
    statements: StatementDigests | None,
    roots: Roots,
    at: datetime,
    ledger: Ledger,
) -> None:
    """Steps 4 and 5. The statements are built from our nonce and our own digest."""
    report = found.report
    if report is None or statements is None:
        return
    found.launch = authenticate.authenticate_tpm(
        report.evidence, statements=statements, roots=roots, at=at, ledger=ledger
    )
    check_report_data(report, statements, ledger)


def appraise_worker(
    found: Findings,
    *,
    policy: AppraisalPolicy,
    reference_values: ReferenceValues,
    manifest: ExpectedManifest | None,
    ledger: Ledger,
) -> None:
    """Steps 6 to 8."""
    if manifest is not None:
        ledger.expect(*manifests.CLAIMS)
        manifests.appraise_standing(manifest, ledger)
    if found.launch is not None:
        appraise.appraise_tpm(
            found.launch,
            reference_values=reference_values,
            policy=policy,
            keyset_digest=found.keyset_digest,
            manifest=manifest,
            ledger=ledger,
        )
    if found.report is None or found.keyset is None:
        return
    read_claims_document(found, found.report, found.keyset, ledger)
    if found.launch is not None and found.claims_document is not None:
        _consistent(found.claims_document, found.launch.value, ledger)
        if manifest is not None:
            manifests.appraise_terms(found.claims_document, manifest, ledger)


def _consistent(document: ClaimsDocument, launch: TpmLaunch, ledger: Ledger) -> None:
    """Step 8: the worker's own words against what was measured before it could speak."""
    models = sorted(
        (component.name, component.digest)
        for component in launch.components
        if component.kind is ComponentKind.MODEL
    )
    # Where a model was measured, one without a digest is one too many.
    claimed = sorted(
        (model.name, f"sha256:{model.sha256}")
        for model in document.models
        if models or model.sha256 is not None
    )
    files = sorted(
        (component.name, component.digest)
        for component in launch.components
        if component.kind is ComponentKind.MODEL_FILE
    )
    claimed_files = sorted(
        (f"{model.name}/{role}", f"sha256:{digest}")
        for model in document.models
        for role, digest in model.files.items()
    )
    configurations = [
        component.configuration
        for component in launch.components
        if component.configuration is not None
    ]
    # Compared as text: to Python, true equals 1.
    same_configuration = [_text(document.configuration)] == list(map(_text, configurations))
    ledger.check(
        CLAIMS_CONSISTENT,
        holds=(
            models == claimed
            and files == claimed_files
            and same_configuration
            and document.isolation == isolation_mode(document.configuration)
            and document.manifest_sha256 == manifest_of(document.configuration)
        ),
        affirmed="The claims document says what was measured: model, configuration, isolation.",
        code="claims_mismatch",
        refused="The claims document says something else than what was measured.",
        source=Source.HARDWARE_PROVEN,
    )


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)
