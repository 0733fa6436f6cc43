"""Attestation results as EAR, the EAT Attestation Result (draft-ietf-rats-ear).

The claims-set, unsigned: whoever passes it on signs it. It follows the profile that verifiers
and key brokers in use read, ``tag:github.com,2023:veraison/ear`` (names with dots, as in revisions
00 to 02 of the draft; later revisions rename the same members with underscores).

Submodules are devices (``cpu0``). Values of the trustworthiness vector are those of
draft-ietf-rats-ar4si section 2.3.4; an aspect that was not decided is left out, which makes no
claim. On a TPM no claim is made about ``runtime-opaque`` (memory), nor about ``hardware`` on a
development platform.
"""

from __future__ import annotations

import base64
from typing import Final

from cloister.strictjson import Json, JsonObject
from cloister.verifier.appraise import tpm as appraise
from cloister.verifier.authenticate import tpm as authenticate
from cloister.verifier.result import AttestationResult, Claim, Finding

EAT_PROFILE: Final = "tag:github.com,2023:veraison/ear"
DEVELOPER: Final = "Cloister"

CLOISTER_CLAIMS: Final = "cloister.claims"
"""Private claim of each submodule: every claim with finding, source, code and explanation."""

_AFFIRMED: Final = 2
_FILES_APPROVED_AT_START: Final = 3
_CONTRAINDICATED: Final = 96
_UNRECOGNISED: Final = 97
_NOT_AUTHENTIC: Final = 99
_UNRECOGNISED_FILES: Final = 33

_AUTHENTICITY: Final = (
    authenticate.QUOTE,
    authenticate.SIGNATURE,
    authenticate.SELECTION,
    authenticate.LOG_DIGESTS,
    authenticate.REGISTERS,
    authenticate.FRESH,
)
"""Where one of these failed, the evidence did not pass cryptographic validation."""

_EXECUTABLES: Final = (
    appraise.MODEL,
    appraise.PACKAGES,
    appraise.RUNTIME,
    appraise.COMPLETE,
    appraise.NOTHING_ELSE,
)
_CONFIGURATION: Final = (appraise.CONFIGURATION, appraise.DEBUG, appraise.ISOLATION)


def to_ear(
    result: AttestationResult, *, build: str, nonce: bytes | None = None, developer: str = DEVELOPER
) -> JsonObject:
    """Express `result` as an EAR claims-set.

    `build` names the verifying software and its version; `nonce` is the one that the report
    answered, if it is to be repeated.
    """
    ear: JsonObject = {
        "eat_profile": EAT_PROFILE,
        "iat": int(result.appraised_at.timestamp()),
        "ear.verifier-id": {"build": build, "developer": developer},
        "submods": {
            device: _submodule(result, device)
            for device in sorted({claim.device for claim in result.claims})
        },
    }
    if nonce is not None:
        ear["eat_nonce"] = base64.urlsafe_b64encode(nonce).rstrip(b"=").decode("ascii")
    return ear


def _submodule(result: AttestationResult, device: str) -> JsonObject:
    claims = {claim.name: claim for claim in result.claims if claim.device == device}
    listed: list[Json] = [_claim(claim) for claim in claims.values()]
    not_proven: list[Json] = list(result.not_proven)
    submodule: JsonObject = {
        # The verdict over everything: never more trust than the worst of the vector below.
        "ear.status": result.verdict.value,
        "ear.appraisal-policy-id": result.policy_id,
        "cloister.platform": result.platform,
        "cloister.development": result.development,
        "cloister.memory-confidentiality": result.memory_confidentiality,
        "cloister.not-proven": not_proven,
        CLOISTER_CLAIMS: listed,
    }
    vector = _vector(claims)
    if vector:
        submodule["ear.trustworthiness-vector"] = vector
    return submodule


def _claim(claim: Claim) -> JsonObject:
    return {
        "name": claim.name,
        "finding": claim.finding.value,
        "source": claim.source.value,
        "code": claim.code,
        "explanation": claim.explanation,
    }


def _vector(claims: dict[str, Claim]) -> JsonObject:
    """The aspects of trustworthiness that the claims decide."""
    vector: JsonObject = {}
    _put(vector, "instance-identity", _identity(claims))
    _put(vector, "configuration", _group(claims, _CONFIGURATION, _AFFIRMED, _CONTRAINDICATED))
    _put(vector, "executables", _executables(claims))
    return vector


def _identity(claims: dict[str, Claim]) -> int | None:
    if _any(claims, _AUTHENTICITY, Finding.CONTRAINDICATED):
        return _NOT_AUTHENTIC
    return _group(claims, (authenticate.CERTIFICATE, authenticate.BOUND), _AFFIRMED, _UNRECOGNISED)


def _executables(claims: dict[str, Claim]) -> int | None:
    if _any(claims, _AUTHENTICITY, Finding.CONTRAINDICATED):
        return _NOT_AUTHENTIC
    known = tuple(name for name in _EXECUTABLES if name != appraise.NOTHING_ELSE)
    if not _any(claims, known, Finding.CONTRAINDICATED) and _any(
        claims, (appraise.NOTHING_ELSE,), Finding.CONTRAINDICATED
    ):
        return _UNRECOGNISED_FILES
    # What runs was checked when it was started, not afterwards.
    return _group(claims, _EXECUTABLES, _FILES_APPROVED_AT_START, _CONTRAINDICATED)


def _group(
    claims: dict[str, Claim], names: tuple[str, ...], affirmed: int, refused: int
) -> int | None:
    """One value for several claims: refused if one is, affirmed if all made are, else none."""
    if _any(claims, names, Finding.CONTRAINDICATED):
        return refused
    made = [claims[name] for name in names if name in claims]
    if made and all(claim.finding is Finding.AFFIRMING for claim in made):
        return affirmed
    return None


def _any(claims: dict[str, Claim], names: tuple[str, ...], finding: Finding) -> bool:
    return any(claims[name].finding is finding for name in names if name in claims)


def _put(vector: JsonObject, name: str, value: int | None) -> None:
    if value is not None:
        vector[name] = value
