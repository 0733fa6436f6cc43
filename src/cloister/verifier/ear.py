"""Attestation results as EAR, the EAT Attestation Result (draft-ietf-rats-ear).

The claims-set, unsigned: whoever passes it on signs it. It follows the profile that verifiers
and key brokers in use read, ``tag:github.com,2023:veraison/ear`` (names with dots, as in revisions
00 to 02 of the draft; later revisions rename the same members with underscores).

Submodules are devices: ``cpu0``, ``vtpm0``, ``gpu0``, …; claims about a worker as a whole are
``cpu0``'s. Each has the worst finding of its own claims as its status, so whoever reads one must
want every submodule affirming. Values of the trustworthiness vector are those of
draft-ietf-rats-ar4si section 2.3.4; an aspect that was not decided is left out, which makes no
claim. On a TPM no claim is made about ``runtime-opaque`` (memory), nor about ``hardware`` on a
development platform.
"""

from __future__ import annotations

import base64
from typing import Final

from cloister.strictjson import Json, JsonObject
from cloister.verifier.appraise import serving
from cloister.verifier.appraise import tpm as appraise
from cloister.verifier.authenticate import tpm as authenticate
from cloister.verifier.ledger import CPU
from cloister.verifier.result import AttestationResult, Claim, Finding, worst

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

_MEMORY: Final = {"sev_snp": 2, "tdx": 2, "sgx": 2}
"""Memory that is encrypted. A Nitro enclave's is isolated, which is less, and claims nothing."""

_AUTHENTICITY: Final = (
    authenticate.QUOTE,
    authenticate.SIGNATURE,
    authenticate.SELECTION,
    authenticate.LOG_DIGESTS,
    authenticate.REGISTERS,
    authenticate.FRESH,
)
"""Where one of these failed, the evidence did not pass cryptographic validation."""

_SIGNATURES: Final = frozenset(
    {
        "signature",
        "quote_signature",
        "ak_binding",
        "qe_report_signature",
        "cose_signature",
        "pcr_digest",
        "replay",
        "eventlog",
        "payloads",
        "eventlog_payloads",
        "runtime_data",
        "td_quote",
        "same_challenge",
    }
)
"""Last parts of names of claims about hardware evidence: where one failed, it is not authentic."""
_IDENTITIES: Final = frozenset(
    {"chain", "pck_chain", "leaf", "certificate", "chip_id", "purpose", "matches", "distinct"}
)
_HARDWARE: Final = frozenset(
    {
        "platform_tcb",
        "qe_tcb",
        "tdx_module_tcb",
        "tcb_status",
        "tcb_advisories",
        "minimum_tcb",
        "certificate_tcb",
        "driver_rim_measurements",
        "vbios_rim_measurements",
        "rim_measurements",
    }
)
_MODES: Final = frozenset({"debug", "migration", "vmpl", "mode", "initialised"})
_SOFTWARE: Final = frozenset({"registers", "compose"})
"""Last parts of names, by the aspect of trustworthiness that the claims decide."""

_EXECUTABLES: Final = (
    appraise.MODEL,
    appraise.PACKAGES,
    appraise.RUNTIME,
    appraise.COMPLETE,
    appraise.NOTHING_ELSE,
)
_CONFIGURATION: Final = (
    appraise.CONFIGURATION,
    appraise.DEBUG,
    serving.TERMINATION,
    serving.MANAGED,
    appraise.ISOLATION,
    serving.SEPARATION,
)


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
    made = tuple(claim for claim in result.claims if claim.device == device)
    claims = {claim.name: claim for claim in made}
    listed: list[Json] = [_claim(claim) for claim in made]
    not_proven: list[Json] = list(result.not_proven)
    submodule: JsonObject = {
        # Never more trust than the worst of the vector below.
        "ear.status": worst(made).value,
        "ear.appraisal-policy-id": result.policy_id,
        "cloister.platform": result.platform,
        "cloister.development": result.development,
        "cloister.memory-confidentiality": result.memory_confidentiality,
        "cloister.not-proven": not_proven,
        CLOISTER_CLAIMS: listed,
    }
    vector = _vector(claims)
    if device == CPU and result.verdict is Finding.AFFIRMING:
        _put(vector, "runtime-opaque", _MEMORY.get(result.memory_confidentiality))
    if vector:
        submodule["ear.trustworthiness-vector"] = vector
    return submodule


def _claim(claim: Claim) -> JsonObject:
    return {
        "name": claim.name,
        "finding": claim.finding.value,
        "source": claim.source.value,
        "value": claim.value,
        "code": claim.code,
        "explanation": claim.explanation,
    }


def _vector(claims: dict[str, Claim]) -> JsonObject:
    """The aspects of trustworthiness that the claims decide."""
    vector: JsonObject = {}
    modes = (*_CONFIGURATION, *_named(claims, _MODES))
    hardware = _named(claims, _HARDWARE)
    _put(vector, "instance-identity", _identity(claims))
    _put(vector, "configuration", _group(claims, modes, _AFFIRMED, _CONTRAINDICATED))
    _put(vector, "executables", _executables(claims))
    _put(vector, "hardware", _group(claims, hardware, _AFFIRMED, _CONTRAINDICATED))
    return vector


def _named(claims: dict[str, Claim], parts: frozenset[str]) -> tuple[str, ...]:
    """The claims whose name ends with one of `parts`."""
    return tuple(name for name in claims if name.rpartition(".")[2] in parts)


def _identity(claims: dict[str, Claim]) -> int | None:
    if _is_forged(claims):
        return _NOT_AUTHENTIC
    names = (authenticate.CERTIFICATE, authenticate.BOUND, *_named(claims, _IDENTITIES))
    return _group(claims, names, _AFFIRMED, _UNRECOGNISED)


def _is_forged(claims: dict[str, Claim]) -> bool:
    names = (*_AUTHENTICITY, *_named(claims, _SIGNATURES))
    return _any(claims, names, Finding.CONTRAINDICATED)


def _executables(claims: dict[str, Claim]) -> int | None:
    if _is_forged(claims):
        return _NOT_AUTHENTIC
    known = tuple(name for name in _EXECUTABLES if name != appraise.NOTHING_ELSE)
    if not _any(claims, known, Finding.CONTRAINDICATED) and _any(
        claims, (appraise.NOTHING_ELSE,), Finding.CONTRAINDICATED
    ):
        return _UNRECOGNISED_FILES
    # What runs was checked when it was started, not afterwards.
    names = (*_EXECUTABLES, *_named(claims, _SOFTWARE))
    return _group(claims, names, _FILES_APPROVED_AT_START, _CONTRAINDICATED)


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
