"""Whether a worker's evidence is good enough for one secret.

Steps:

1. What the worker says it binds is this broker, this secret and the wrapping key that it sent.
   Nothing is believed of it: it only tells apart who mixed something up.
2. The manifest it brings is signed by the owners whom the policy names, in force, not older than
   what was accepted before, and not revoked (`cloister.broker.manifests`).
3. The verifier affirms the report against the statement that the broker builds for itself, under
   the policy, narrowed by the manifest, and with everything revoked among what is denied.
4. The worker serves a model that the policy names.
5. Its processor was not revoked.

What the caller still owes: that the challenge was its own, current, and answered once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cloister.broker.denial import Denied
from cloister.broker.manifests import Terms, terms_of
from cloister.broker.policy import ResourcePolicy
from cloister.broker.store import Revoked
from cloister.channel.key_release import ReleaseRequest
from cloister.channel.rcar import WorkerEvidence
from cloister.channel.statement import statement_digest
from cloister.endorsements.roots import Roots
from cloister.errors import AppraisalError, MalformedError, UnsupportedError
from cloister.evidence.report import parse_attestation_report
from cloister.manifest.pin import Remembered
from cloister.manifest.signatures import IdentityVerifier
from cloister.strictjson import JsonObject
from cloister.verifier.policy import Unchecked
from cloister.verifier.report import verify_report
from cloister.verifier.result import AffirmedAttester, AttestationResult, Finding

CHIP_FACTS: Final = ("chip_id", "ppid")
"""Facts of evidence that name a processor."""

Revocations = Mapping[tuple[Revoked, str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraised:
    """A worker whose evidence was affirmed for one secret."""

    attester: AffirmedAttester
    terms: Terms
    facts: JsonObject
    """What the audit log keeps of it."""


def appraise_worker(
    evidence: WorkerEvidence,
    *,
    request: ReleaseRequest,
    nonce: bytes,
    policy: ResourcePolicy,
    revocations: Revocations,
    remembered: Remembered | None,
    roots: Roots,
    identities: IdentityVerifier | None,
    at: datetime,
) -> Appraised:
    """Take the steps above. Raises Denied."""
    _check_stated(evidence, request)
    terms = terms_of(policy, evidence.manifest, remembered=remembered, identities=identities, at=at)
    _check_revoked(revocations, Revoked.MANIFEST, terms.digests)
    result = _verified(evidence.report, terms, request, nonce, revocations, roots=roots, at=at)
    attester = _affirmed(result, evidence.report, nonce, revocations)
    models = _models(attester)
    if not isinstance(policy.models, Unchecked) and not models & set(policy.models):
        raise Denied("model", "the worker serves no model that this secret is released for")
    _check_revoked(revocations, Revoked.PLATFORM, _chips(result.facts))
    facts: JsonObject = {
        "platform": attester.platform,
        "development": attester.development,
        "keyset": attester.keyset_digest,
        "manifest": None if terms.accepted is None else f"sha256:{terms.accepted.digest}",
        "models": [f"sha256:{digest}" for digest in sorted(models)],
        "appraisal": terms.appraisal.policy_id,
    }
    return Appraised(attester=attester, terms=terms, facts=facts)


def _check_stated(evidence: WorkerEvidence, request: ReleaseRequest) -> None:
    """Step 1."""
    stated = evidence.stated
    if stated.broker != str(request.broker):
        raise Denied("broker", "the worker's evidence was made for another broker")
    if stated.resource != str(request.resource):
        raise Denied("other", "the worker's evidence was made for another secret")
    wrapping = "sha256:" + hashlib.sha256(request.wrapping_key).hexdigest()
    if stated.wrapping_key != wrapping:
        raise Denied("wrapping", "the worker's evidence binds another wrapping key than it sent")


def _check_revoked(revocations: Revocations, kind: Revoked, values: Collection[str]) -> None:
    for value in sorted(values):
        if (kind, value) in revocations:
            raise Denied(
                "revoked", f"the {kind.value} was revoked", because=f"{kind.value}.revoked"
            )


def _verified(
    report: bytes,
    terms: Terms,
    request: ReleaseRequest,
    nonce: bytes,
    revocations: Revocations,
    *,
    roots: Roots,
    at: datetime,
) -> AttestationResult:
    """Step 3, for each set of reference values until one matches."""
    denied = [value for _, value in revocations if value.startswith("sha256:")]
    listed = terms.appraisal.denied
    known = () if isinstance(listed, Unchecked) else listed
    policy = terms.appraisal
    if denied:
        policy = dataclasses.replace(policy, denied=(*known, *denied))
    results = []
    for values in terms.alternatives:
        result = verify_report(
            report,
            nonce=nonce,
            policy=policy,
            reference_values=values,
            roots=roots,
            at=at,
            manifest=terms.manifest,
            statement=request.digest,
        )
        if result.verdict is Finding.AFFIRMING:
            return result
        results.append(result)
    return min(results, key=lambda one: len(one.failures))


def _affirmed(
    result: AttestationResult, report: bytes, nonce: bytes, revocations: Revocations
) -> AffirmedAttester:
    try:
        return result.require_affirming()
    except (AppraisalError, UnsupportedError) as error:
        if error.code == "denied":
            raise Denied(
                "revoked", "something of the worker was revoked", because=_which(error, revocations)
            ) from None
        if _is_public(report, nonce):
            raise Denied(
                "purpose",
                "the worker's evidence was made for something else than a key release: it is a"
                " public report",
                because=error.code,
            ) from None
        raise Denied("evidence", str(error), because=error.code) from None


def _which(error: Exception, revocations: Revocations) -> str:
    """Which kind of revocation it was that the verifier met; its sentence names the digests."""
    text = str(error)
    kinds = sorted({kind.value for kind, value in revocations if value in text})
    return f"{kinds[0]}.revoked" if kinds else "denied"


def _is_public(report: bytes, nonce: bytes) -> bool:
    """Whether a refused report says itself that it answers `nonce` as a public one."""
    try:
        parsed = parse_attestation_report(report)
        return parsed.report_data == statement_digest(parsed.keyset_digest, nonce)
    except (MalformedError, ValueError):
        return False


def _models(attester: AffirmedAttester) -> set[str]:
    listed = attester.claims_document.get("models")
    entries = listed if isinstance(listed, list) else []
    return {str(entry["sha256"]) for entry in entries if entry["sha256"] is not None}


def _chips(facts: object) -> set[str]:
    """Ids of processors anywhere in the facts: evidence may be nested in other evidence."""
    if isinstance(facts, list):
        return {chip for entry in facts for chip in _chips(entry)}
    if not isinstance(facts, Mapping):
        return set()
    found = {str(facts[name]) for name in CHIP_FACTS if isinstance(facts.get(name), str)}
    return found | {chip for value in facts.values() for chip in _chips(value)}


def utc(at: float) -> datetime:
    """Unix time as the verifier wants it."""
    return datetime.fromtimestamp(at, UTC)
