"""Verifies a whole attestation report: parse, authenticate, appraise, and say so claim by claim.

Steps (`aci/1` section 9.1, with what the platform adds):

1.  ``report.format``: strict JSON within bounds, of version ``aci/1``.
2.  ``report.platform``: a platform this verifier knows. ``tee_type`` selects the steps; it proves
    nothing.
3.  ``keyset.format``: the keyset is well-formed. Its digest is recomputed, and the statement is
    built from it and the caller's own nonce; neither is read from the report.
4.  The platform's authentication (`cloister.verifier.authenticate.tpm`).
5.  ``report.data``: the report's ``report_data`` is that statement's digest.
6.  The platform's appraisal (`cloister.verifier.appraise.tpm`).
7.  ``claims.bound``: the claims document is the one that the keyset's subject names.
8.  ``claims.consistent``: it says what was measured: models, configuration, isolation.
9.  ``keyset.expiry``: not expired, and not implausibly far from it.
10. ``keyset.request_key`` and ``keyset.receipt_key``: something to seal to, something to check
    receipts with.
11. ``memory.confidentiality`` and ``platform.development``: what the policy accepts of these.

What the caller still owes: to talk to the worker only through the returned keyset, and to stop
at ``expires_at``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cloister.channel.claims import ClaimsDocument, parse_claims
from cloister.channel.keyset import RECEIPT_ALGORITHM, Keyset, parse_keyset
from cloister.channel.ohttp_keys import KeyConfig
from cloister.channel.statement import NONCE_SIZE, statement_digest
from cloister.endorsements.roots import Roots
from cloister.errors import MalformedError, UnsupportedError
from cloister.evidence.component import ComponentKind, isolation_mode
from cloister.evidence.report import (
    API_VERSION,
    ITEM_CLAIMS,
    TEE_TYPE_TPM,
    AttestationReport,
    parse_attestation_report,
)
from cloister.verifier.appraise import tpm as appraise
from cloister.verifier.authenticate import tpm as authenticate
from cloister.verifier.authenticate.tpm import StatementDigests, TpmLaunch
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, Unchecked
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.result import AffirmedAttester, AttestationResult, Source

DEVELOPMENT_PLATFORM: Final = "development (software TPM)"
UNKNOWN_PLATFORM: Final = "unknown"
NO_MEMORY_PROTECTION: Final = "none"

FORMAT: Final = "report.format"
PLATFORM: Final = "report.platform"
KEYSET_FORMAT: Final = "keyset.format"
REPORT_DATA: Final = "report.data"
CLAIMS_BOUND: Final = "claims.bound"
CLAIMS_CONSISTENT: Final = "claims.consistent"
EXPIRY: Final = "keyset.expiry"
REQUEST_KEY: Final = "keyset.request_key"
RECEIPT_KEY: Final = "keyset.receipt_key"
MEMORY: Final = "memory.confidentiality"
DEVELOPMENT: Final = "platform.development"

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


@dataclass(slots=True)
class _Findings:
    """What the steps found on the way, as far as they came."""

    report: AttestationReport | None = None
    keyset: Keyset | None = None
    keyset_digest: str = ""
    launch: Authenticated[TpmLaunch] | None = None
    claims_document: ClaimsDocument | None = None
    claims_bytes: bytes = b""


def verify_report(
    report: bytes,
    *,
    nonce: bytes,
    policy: AppraisalPolicy,
    reference_values: ReferenceValues,
    roots: Roots,
    at: datetime,
) -> AttestationResult:
    """Check `report` against the 32-byte `nonce` that was sent for it, at time `at` (aware).

    Never raises on account of the report: whatever is wrong with it is a claim in the result,
    and steps that could not be taken are listed as such.

    Raises:
        ValueError: `nonce` does not have 32 bytes, or `at` has no time zone.
    """
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce has {NONCE_SIZE} bytes")
    if at.tzinfo is None:
        raise ValueError("the time of verification needs a time zone")
    ledger = Ledger()
    found = _Findings()
    _read(report, found, ledger)
    if found.report is not None and ledger.holds(FORMAT, PLATFORM):
        _authenticate(found, nonce=nonce, roots=roots, at=at, ledger=ledger)
        _appraise(found, policy=policy, reference_values=reference_values, ledger=ledger)
        _platform(policy, ledger)
    if found.keyset is not None:
        _keyset(found.keyset, policy=policy, at=at, ledger=ledger)
    return _result(found, policy=policy, at=at, ledger=ledger)


def claim_names(policy: AppraisalPolicy) -> tuple[str, ...]:
    """Names of all claims that a result under `policy` lists, in order."""
    names = [FORMAT, PLATFORM, KEYSET_FORMAT, *authenticate.CLAIMS, REPORT_DATA]
    names += [*appraise.claims(policy), CLAIMS_BOUND, CLAIMS_CONSISTENT, EXPIRY]
    names += [REQUEST_KEY, RECEIPT_KEY]
    if not isinstance(policy.memory_confidentiality, Unchecked):
        names.append(MEMORY)
    return (*names, DEVELOPMENT)


def _read(data: bytes, found: _Findings, ledger: Ledger) -> None:
    """Steps 1 to 3."""
    try:
        report = parse_attestation_report(data)
    except MalformedError as error:
        ledger.refuse(FORMAT, error.code, f"The report does not decode: {error}.")
        return
    found.report = report
    ledger.check(
        FORMAT,
        holds=report.api_version == API_VERSION,
        affirmed=f"The report is a well-formed report of {API_VERSION}.",
        code="report_version",
        refused=f"The report is not one of {API_VERSION}.",
    )
    if report.tee_type == TEE_TYPE_TPM:
        ledger.affirm(PLATFORM, f"The platform is {DEVELOPMENT_PLATFORM}.")
    else:
        ledger.undecided(
            PLATFORM,
            "platform_unsupported",
            "The report is from a platform that this verifier cannot check.",
        )
    try:
        found.keyset = parse_keyset(report.keyset)
        found.keyset_digest = found.keyset.digest
    except MalformedError as error:
        ledger.refuse(KEYSET_FORMAT, "keyset_malformed", f"The keyset does not decode: {error}.")
        return
    ledger.affirm(KEYSET_FORMAT, f"The worker's keyset is well-formed: {found.keyset_digest}.")


def _authenticate(
    found: _Findings, *, nonce: bytes, roots: Roots, at: datetime, ledger: Ledger
) -> None:
    """Steps 4 and 5. The statement is built here, from our nonce and our own digest."""
    report = found.report
    if report is None or found.keyset is None:
        return
    expected = statement_digest(found.keyset_digest, nonce)
    found.launch = authenticate.authenticate_tpm(
        report.evidence,
        statements=StatementDigests(
            expected=expected,
            named=statement_digest(report.keyset_digest, nonce),
            unchallenged=statement_digest(found.keyset_digest, None),
        ),
        roots=roots,
        at=at,
        ledger=ledger,
    )
    ledger.check(
        REPORT_DATA,
        holds=report.report_data == expected,
        affirmed="The report names the digest of your challenge and its keys.",
        code="report_data_mismatch",
        refused="The report names another digest than that of your challenge and its keys.",
    )


def _appraise(
    found: _Findings,
    *,
    policy: AppraisalPolicy,
    reference_values: ReferenceValues,
    ledger: Ledger,
) -> None:
    """Steps 6 to 8."""
    if found.launch is not None:
        appraise.appraise_tpm(
            found.launch,
            reference_values=reference_values,
            policy=policy,
            keyset_digest=found.keyset_digest,
            ledger=ledger,
        )
    if found.report is None or found.keyset is None:
        return
    _claims_document(found, found.report, found.keyset, ledger)
    if found.launch is not None and found.claims_document is not None:
        _consistent(found.claims_document, found.launch.value, ledger)


def _claims_document(
    found: _Findings, report: AttestationReport, keyset: Keyset, ledger: Ledger
) -> None:
    """Step 7: the document's own bytes are hashed, whatever they say about themselves."""
    item = report.evidence.get(ITEM_CLAIMS)
    try:
        if item is None or hashlib.sha256(item.data).digest() != keyset.claims_digest:
            ledger.refuse(
                CLAIMS_BOUND,
                "claims_unbound",
                "The claims document is missing, or not the one that the keyset names.",
            )
            return
        found.claims_document = parse_claims(item.data)
        found.claims_bytes = item.data
    except MalformedError as error:
        ledger.refuse(CLAIMS_BOUND, "claims_unbound", f"The claims document is refused: {error}.")
        return
    ledger.affirm(CLAIMS_BOUND, "The claims document is the one that the keyset names.")


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
            and same_configuration
            and document.isolation == isolation_mode(document.configuration)
        ),
        affirmed="The claims document says what was measured: model, configuration, isolation.",
        code="claims_mismatch",
        refused="The claims document says something else than what was measured.",
        source=Source.HARDWARE_PROVEN,
    )


def _platform(policy: AppraisalPolicy, ledger: Ledger) -> None:
    """Step 11, for the one platform there is so far."""
    if not isinstance(policy.memory_confidentiality, Unchecked):
        ledger.check(
            MEMORY,
            holds=NO_MEMORY_PROTECTION in policy.memory_confidentiality,
            affirmed="Memory is not encrypted, which the policy accepts.",
            code="memory_unencrypted",
            refused="Memory is not encrypted: whoever runs the machine can read it.",
        )
    ledger.check(
        DEVELOPMENT,
        holds=policy.accept_development,
        affirmed=f"The platform is {DEVELOPMENT_PLATFORM}, which the policy accepts by name.",
        code="development_refused",
        refused=(
            f"The platform is {DEVELOPMENT_PLATFORM}, which proves nothing to anyone but its"
            " owner; only a policy that names development accepts it."
        ),
    )


def _keyset(keyset: Keyset, *, policy: AppraisalPolicy, at: datetime, ledger: Ledger) -> None:
    """Steps 9 and 10."""
    now = at.timestamp()
    limit = policy.max_keyset_lifetime_s
    if keyset.not_after <= now:
        ledger.refuse(EXPIRY, "keyset_expired", "The worker's keys have expired.")
    elif not isinstance(limit, Unchecked) and keyset.not_after > now + limit:
        ledger.refuse(
            EXPIRY,
            "keyset_lifetime",
            f"The worker's keys would live longer than the {limit} seconds that the policy"
            " accepts.",
        )
    elif _date(keyset) is None:
        ledger.refuse(EXPIRY, "keyset_lifetime", "The worker's keys expire in no known year.")
    else:
        ledger.affirm(EXPIRY, "The worker's keys are not expired, and will be soon enough.")
    ledger.check(
        REQUEST_KEY,
        holds=_has_request_key(keyset),
        affirmed="The keyset lists a key to seal requests to.",
        code="request_key_missing",
        refused="The keyset lists no key that requests can be sealed to, or a malformed one.",
    )
    ledger.check(
        RECEIPT_KEY,
        holds=_has_receipt_key(keyset),
        affirmed="The keyset lists a key to check receipts with.",
        code="receipt_key_missing",
        refused="The keyset lists no key that receipts can be checked with, or a malformed one.",
    )


def _has_request_key(keyset: Keyset) -> bool:
    """Whether a key of a known kind is listed. One of an unknown kind is for newer clients."""
    usable = 0
    try:
        for config in keyset.ohttp_key_configs():
            with contextlib.suppress(UnsupportedError):
                KeyConfig.parse(config)
                usable += 1
    except MalformedError:
        return False
    return usable > 0


def _has_receipt_key(keyset: Keyset) -> bool:
    try:
        return any(
            keyset.receipt_key(entry.key_id) is not None
            for entry in keyset.receipt_signing_keys
            if entry.algo == RECEIPT_ALGORITHM
        )
    except MalformedError:
        return False


def _result(
    found: _Findings, *, policy: AppraisalPolicy, at: datetime, ledger: Ledger
) -> AttestationResult:
    known = ledger.holds(PLATFORM)
    names = claim_names(policy)
    affirmed = ledger.holds(*names)
    return AttestationResult(
        platform=DEVELOPMENT_PLATFORM if known else UNKNOWN_PLATFORM,
        development=known,
        memory_confidentiality=NO_MEMORY_PROTECTION,
        claims=ledger.close(names, development=known),
        not_proven=(*(NOT_PROVEN_TPM if known else ()), *_unchecked(policy)),
        appraised_at=at.astimezone(UTC),
        policy_id=policy.policy_id,
        attester=_attester(found, policy=policy, at=at) if affirmed else None,
    )


def _attester(
    found: _Findings, *, policy: AppraisalPolicy, at: datetime
) -> AffirmedAttester | None:
    keyset, document = found.keyset, found.claims_document
    expires_at = None if keyset is None else _date(keyset)
    if keyset is None or document is None or expires_at is None:
        return None
    if not isinstance(policy.max_age_s, Unchecked):
        expires_at = min(expires_at, at.astimezone(UTC) + timedelta(seconds=policy.max_age_s))
    return AffirmedAttester(
        platform=DEVELOPMENT_PLATFORM,
        development=True,
        keyset_digest=found.keyset_digest,
        keyset=keyset,
        # Plain decoding is enough: `parse_claims` found the same bytes canonical.
        claims_document=json.loads(found.claims_bytes),
        expires_at=expires_at,
    )


def _date(keyset: Keyset) -> datetime | None:
    try:
        return datetime.fromtimestamp(keyset.not_after, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _unchecked(policy: AppraisalPolicy) -> tuple[str, ...]:
    return tuple(
        f"Your policy leaves {name} unchecked, so nothing is shown about it."
        for name in policy.unchecked
    )


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)
