"""Verifies a whole attestation report: parse, authenticate, appraise, and say so claim by claim.

Steps (`aci/1` section 9.1, with what the platform adds):

1.  ``report.format``: strict JSON within bounds, of version ``aci/1``.
2.  ``report.platform``: a platform this verifier knows. ``tee_type`` selects the steps; it proves
    nothing.
3.  ``keyset.format``: the keyset is well-formed. Its digest is recomputed, and the statement is
    built from it and the caller's own nonce; neither is read from the report.
4.  The platform's authentication (`cloister.verifier.authenticate.tpm`, or for hardware
    `cloister.verifier.platforms`).
5.  ``report.data``: the report's ``report_data`` is that statement's digest.
6.  The platform's appraisal (`cloister.verifier.appraise.tpm`, or for hardware
    `cloister.verifier.appraise.worker`).
7.  ``claims.bound``: the claims document is the one that the keyset's subject names.
8.  ``claims.consistent``: it says what was measured: models, configuration, isolation.
9.  ``keyset.expiry``: not expired, and not implausibly far from it.
10. ``keyset.request_key`` and ``keyset.receipt_key``: something to seal to, something to check
    receipts with.
11. Each GPU, and that its evidence was made for this worker (`cloister.verifier.report_gpus`);
    ``worker.devices``: the same once more as a claim about ``cpu0``, for who reads only those.
12. ``memory.confidentiality`` and ``platform.development``: what the policy accepts of these.

What the caller still owes: to talk to the worker only through the returned keyset, and to stop
at ``expires_at``.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Final

from cloister.channel.statement import NONCE_SIZE, StatementDigest, statement_digest
from cloister.endorsements.roots import Roots
from cloister.verifier import report_hardware, report_tpm
from cloister.verifier.appraise import keyset as appraise_keys
from cloister.verifier.appraise import manifest as appraise_manifests
from cloister.verifier.appraise import serving
from cloister.verifier.authenticate.tpm import StatementDigests
from cloister.verifier.expected_manifest import ExpectedManifest
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, Unchecked
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report_findings import (
    DEVELOPMENT_PLATFORM,
    FORMAT,
    KEYSET_FORMAT,
    PLATFORM,
    Findings,
    read_report,
    statements_of,
)
from cloister.verifier.report_gpus import has_gpus, verify_gpus
from cloister.verifier.report_items import HARDWARE, HardwarePlatform
from cloister.verifier.result import AffirmedAttester, AttestationResult, Finding

UNKNOWN_PLATFORM: Final = "unknown"
NO_MEMORY_PROTECTION: Final = "none"

NO_MANIFEST: Final = (
    "The worker names no manifest: which models and settings it was given is known from the"
    " measured software alone, and nobody signed for them."
)

DEVICES: Final = "worker.devices"
MEMORY: Final = "memory.confidentiality"
DEVELOPMENT: Final = "platform.development"


def verify_report(
    report: bytes,
    *,
    nonce: bytes,
    policy: AppraisalPolicy,
    reference_values: ReferenceValues,
    roots: Roots,
    at: datetime,
    manifest: ExpectedManifest | None = None,
    statement: StatementDigest = statement_digest,
    serves: bool = True,
) -> AttestationResult:
    """Check `report` against the 32-byte `nonce` that was sent for it, at time `at` (aware).

    Where a `manifest` was accepted, the worker has to run under it, and `policy` and
    `reference_values` are what it left of the caller's own and what it lists.

    `statement` says what the evidence is for: a public report, or a key release
    (`cloister.channel.key_release`); evidence for one purpose is refused for any other. Without
    `serves` no key is asked for that requests could be sealed to: a broker has none.

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
    found = Findings()
    read_report(report, found, ledger, hardware=HARDWARE)
    hardware = _hardware(found)
    if hardware is not None:
        ledger.expect(FORMAT, PLATFORM, KEYSET_FORMAT)
        report_hardware.authenticate_worker(
            found,
            hardware,
            statements=_statements(found, nonce, statement),
            policy=policy,
            roots=roots,
            at=at,
            ledger=ledger,
        )
        report_hardware.appraise_worker(
            found,
            hardware,
            policy=policy,
            reference_values=reference_values,
            manifest=manifest,
            ledger=ledger,
        )
    else:
        ledger.expect(*claim_names(policy, serves=serves))
        if found.report is not None and ledger.holds(FORMAT, PLATFORM):
            report_tpm.authenticate_worker(
                found,
                statements=_statements(found, nonce, statement),
                roots=roots,
                at=at,
                ledger=ledger,
            )
            report_tpm.appraise_worker(
                found,
                policy=policy,
                reference_values=reference_values,
                manifest=manifest,
                ledger=ledger,
            )
    ledger.expect(*appraise_keys.claims(serves=serves))
    if found.keyset is not None:
        appraise_keys.appraise_keyset(
            found.keyset, policy=policy, at=at, ledger=ledger, serves=serves
        )
    _gpus(found, policy=policy, roots=roots, at=at, ledger=ledger)
    _platform(found, policy, ledger)
    return _result(found, policy=policy, manifest=manifest, at=at, ledger=ledger)


def _statements(
    found: Findings, nonce: bytes, statement: StatementDigest
) -> StatementDigests | None:
    """What evidence may carry; None where no keyset could be read."""
    if found.report is None or found.keyset is None:
        return None
    return statements_of(found.report, found.keyset_digest, nonce, statement)


def _hardware(found: Findings) -> HardwarePlatform | None:
    return None if found.report is None else HARDWARE.get(found.report.tee_type)


def _gpus(
    found: Findings, *, policy: AppraisalPolicy, roots: Roots, at: datetime, ledger: Ledger
) -> None:
    """Step 11."""
    if found.report is None or not has_gpus(found.report.evidence, found.claims_document, policy):
        return
    found.gpus = verify_gpus(
        found.report.evidence,
        keyset=found.keyset,
        document=found.claims_document,
        policy=policy,
        roots=roots,
        at=at,
        ledger=ledger,
    )
    ledger.expect(DEVICES)
    if ledger.others_hold():
        ledger.affirm(DEVICES, "Every claim about the worker's other devices holds.")


def claim_names(policy: AppraisalPolicy, *, serves: bool = True) -> tuple[str, ...]:
    """Names of the claims about a worker on a software TPM under `policy`, in order.

    Those about hardware platforms depend on the evidence that a report brings.
    """
    names = (FORMAT, PLATFORM, KEYSET_FORMAT, *report_tpm.claims(policy))
    return (*names, *appraise_keys.claims(serves=serves), *_platform_claims(policy))


def _platform_claims(policy: AppraisalPolicy) -> tuple[str, ...]:
    memory = () if isinstance(policy.memory_confidentiality, Unchecked) else (MEMORY,)
    return (*memory, DEVELOPMENT)


def _platform(found: Findings, policy: AppraisalPolicy, ledger: Ledger) -> None:
    """Step 12."""
    ledger.expect(*_platform_claims(policy))
    if not ledger.holds(FORMAT, PLATFORM) or not _is_authenticated(found):
        return
    if not isinstance(policy.memory_confidentiality, Unchecked):
        _memory(_memory_confidentiality(found), policy.memory_confidentiality, ledger)
    name, development = _platform_name(found), _is_development(found)
    ledger.check(
        DEVELOPMENT,
        holds=policy.accept_development or not development,
        affirmed=(
            f"The platform is {name}, which the policy accepts by name."
            if development
            else f"The platform is {name}, and no simulated one."
        ),
        code="development_refused",
        refused=(
            f"The platform is {name}, which proves nothing to anyone but its owner; only a policy"
            " that names development accepts it."
        ),
    )


def _memory(protection: str, accepted: tuple[str, ...], ledger: Ledger) -> None:
    none = protection == NO_MEMORY_PROTECTION
    ledger.check(
        MEMORY,
        holds=protection in accepted,
        affirmed=(
            "Memory is not encrypted, which the policy accepts."
            if none
            else f"Memory is protected by {protection}, which the policy accepts."
        ),
        code="memory_unencrypted" if none else "memory_refused",
        refused=(
            "Memory is not encrypted: whoever runs the machine can read it."
            if none
            else f"Memory is protected by {protection}, which the policy does not accept."
        ),
    )


def _platform_name(found: Findings) -> str:
    if _hardware(found) is None:
        return DEVELOPMENT_PLATFORM
    name = UNKNOWN_PLATFORM if found.outcome is None else found.outcome.platform
    return f"development ({name})" if _is_development(found) else name


def _is_development(found: Findings) -> bool:
    """A single simulated part makes the whole a development platform."""
    if _hardware(found) is None:
        return True
    return any(
        outcome is not None and outcome.development for outcome in (found.outcome, found.gpus)
    )


def _is_authenticated(found: Findings) -> bool:
    """Whether it is known what the platform is: forged evidence may call itself anything."""
    if _hardware(found) is None:
        return True
    return found.outcome is not None and found.outcome.bound is not None


def _memory_confidentiality(found: Findings) -> str:
    if found.outcome is None or not _is_authenticated(found) or _is_development(found):
        return NO_MEMORY_PROTECTION
    return found.outcome.memory_confidentiality


def _result(
    found: Findings,
    *,
    policy: AppraisalPolicy,
    manifest: ExpectedManifest | None,
    at: datetime,
    ledger: Ledger,
) -> AttestationResult:
    known = ledger.holds(PLATFORM)
    development = known and _is_development(found)
    result = AttestationResult(
        platform=_platform_name(found) if known else UNKNOWN_PLATFORM,
        development=development,
        memory_confidentiality=_memory_confidentiality(found),
        claims=ledger.close(development=development, proven=_is_authenticated(found)),
        not_proven=(
            *(_not_proven(found) if known else ()),
            *_unproven_manifest(found, manifest),
            *_unchecked(policy, _hardware(found)),
        ),
        appraised_at=at.astimezone(UTC),
        policy_id=policy.policy_id,
        facts={} if found.outcome is None else found.outcome.facts,
    )
    if result.verdict is not Finding.AFFIRMING:
        return result
    return dataclasses.replace(
        result, attester=_attester(found, policy=policy, manifest=manifest, at=at)
    )


def _not_proven(found: Findings) -> tuple[str, ...]:
    own: tuple[str, ...] = report_tpm.NOT_PROVEN_TPM
    if _hardware(found) is not None:
        own = () if found.outcome is None else found.outcome.not_proven
        if found.claims_document is not None and found.claims_document.manifest_sha256 is None:
            own = (*own, NO_MANIFEST)
    document = found.claims_document
    serves = () if document is None else serving.not_proven(document.configuration)
    return (*own, *serves, *(() if found.gpus is None else found.gpus.not_proven))


def _unproven_manifest(found: Findings, manifest: ExpectedManifest | None) -> tuple[str, ...]:
    if manifest is not None:
        return () if manifest.signed else (appraise_manifests.NOT_PROVEN_UNSIGNED,)
    document = found.claims_document
    named = document is not None and document.manifest_sha256 is not None
    return (appraise_manifests.NOT_PROVEN_UNREAD,) if named else ()


def _attester(
    found: Findings, *, policy: AppraisalPolicy, manifest: ExpectedManifest | None, at: datetime
) -> AffirmedAttester | None:
    keyset, document = found.keyset, found.claims_document
    expires_at = None if keyset is None else appraise_keys.expiry(keyset)
    if keyset is None or document is None or expires_at is None:
        return None
    if not isinstance(policy.max_age_s, Unchecked):
        expires_at = min(expires_at, at.astimezone(UTC) + timedelta(seconds=policy.max_age_s))
    if manifest is not None:
        expires_at = min(expires_at, manifest.expires)
    return AffirmedAttester(
        platform=_platform_name(found),
        development=_is_development(found),
        keyset_digest=found.keyset_digest,
        keyset=keyset,
        # Plain decoding is enough: `parse_claims` found the same bytes canonical.
        claims_document=json.loads(found.claims_bytes),
        expires_at=expires_at,
    )


def _unchecked(policy: AppraisalPolicy, hardware: HardwarePlatform | None) -> tuple[str, ...]:
    return tuple(
        f"Your policy leaves {name} unchecked, so nothing is shown about it."
        for name in policy.unchecked
        if _concerns(name, "" if hardware is None else hardware.reference)
    )


def _concerns(name: str, platform: str) -> bool:
    """Whether a field of the policy could have been compared on `platform` (empty: a TPM)."""
    intel = platform.endswith(("tdx", "sgx"))
    amd = platform.endswith("snp")
    if name == "tcb_grace_s":
        return False  # unchecked it is the strictest: no grace
    if name.startswith("tcb_"):
        return intel
    if name.startswith("snp_"):
        return amd
    if name in {"chip_ids", "max_collateral_age_s"}:
        return intel or amd
    if name == "max_evidence_age_s":
        return platform in {"nitro", "nitro-tpm"}
    return name != "required_gpus" or bool(platform)
