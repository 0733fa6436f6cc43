"""One case's verdict as one JSON object, in the words that case folders use."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol

from cloister.cli.cases.folder import CaseFiles, CaseInput, Inputs, read_case
from cloister.endorsements.pinned import pinned_roots
from cloister.endorsements.roots import Roots
from cloister.errors import ConfigurationError
from cloister.strictjson import Json, JsonObject
from cloister.verifier.evidence import Verify, run
from cloister.verifier.policy import AppraisalPolicy, as_captured, strict
from cloister.verifier.result import AttestationResult, Claim, Finding

RESULTS: Final = {
    Finding.AFFIRMING: "pass",
    Finding.WARNING: "fail",
    Finding.CONTRAINDICATED: "fail",
    Finding.NONE: "undecided",
}

TCB_STATUS: Final = "tcb_status"

READERS: Final = {
    "az-vtpm": "azure",
    "dstack": "dstack",
    "gcp-vtpm": "gcp",
    "nitro": "nitro",
    "nitro-tpm": "nitro_tpm",
    "nvidia-gpu": "nvgpu",
    "sgx": "sgx",
    "snp": "snp",
    "tdx": "tdx",
    "tpm": "tpm",
}
"""The module of this package that reads each platform's cases."""


class Reader(Protocol):
    """What each of those modules offers."""

    VERIFY: Verify
    LAYERS: dict[tuple[str, str], str]
    """The case folders' name of the layer that a claim (device, name) decides."""

    def read(self, case: CaseFiles) -> CaseInput:
        """The evidence in a case."""


def verdict(
    folder: Path, *, policy: AppraisalPolicy | None = None, at: datetime | None = None
) -> JsonObject:
    """Verify the case in `folder`, by default under the strict policy, on what it contains.

    `at` is used instead of the case's own time.

    Raises:
        ConfigurationError: the folder cannot be read, or is of no known platform.
    """
    case = read_case(folder)
    if case.platform not in READERS:
        return _answer(case.name, "undecided", "platform_unsupported", {}, {})
    reader = reader_of(case)
    result = appraise_case(
        case,
        policy=as_captured(strict()) if policy is None else policy,
        at=case.at if at is None else at,
    )
    return _answer(
        case.name,
        RESULTS[result.verdict],
        reason(result),
        layers(result, reader.LAYERS) | _listed(result, getattr(reader, "FACT_LAYERS", ())),
        result.facts,
    )


def reader_of(case: CaseFiles) -> Reader:
    """The module that reads cases of this platform, which is one of `READERS`."""
    reader: Reader = import_module(f"cloister.cli.cases.{READERS[case.platform]}")
    return reader


def appraise_case(case: CaseFiles, *, policy: AppraisalPolicy, at: datetime) -> AttestationResult:
    """Verify a case whose files are at hand; its platform is one of `READERS`.

    Raises:
        ConfigurationError: it lacks a file, or expects what nobody understands.
    """
    reader = reader_of(case)
    inputs = Inputs(case.inputs)
    made = reader.read(dataclasses.replace(case, inputs=inputs))
    if inputs.unread:
        raise ConfigurationError(
            f"nothing here compares the inputs {', '.join(inputs.unread)} of {case.name}",
            code="case.malformed",
        )
    pinned = pinned_roots()
    return run(
        reader.VERIFY,
        made.evidence,
        policy=made.narrow(policy),
        roots=dataclasses.replace(
            pinned, intermediates=(*pinned.intermediates, *case.certificates)
        ),
        at=at,
        expected=made.expected,
    )


def reason(result: AttestationResult) -> str | None:
    """The code of the first claim with the worst finding; for a TCB state, with that state."""
    worst = next((claim for claim in result.failures if claim.finding is result.verdict), None)
    if worst is None:
        return None
    return f"{worst.code}:{worst.value}" if worst.code == TCB_STATUS else worst.code


def layers(result: AttestationResult, names: dict[tuple[str, str], str]) -> JsonObject:
    """What was found in each layer, whether or not it is worth anything."""
    return {
        names[claim.device, claim.name]: _found(claim)
        for claim in result.claims
        if (claim.device, claim.name) in names and claim.value is not None
    }


def _listed(result: AttestationResult, names: tuple[str, ...]) -> JsonObject:
    """Layers that are lists, and so facts rather than claims."""
    return {name: result.facts[name] for name in names if name in result.facts}


def _found(claim: Claim) -> Json:
    return claim.value


def _answer(
    name: str, result: str, why: str | None, found: JsonObject, facts: JsonObject
) -> JsonObject:
    return {"case": name, "result": result, "reason": why, "layers": found, "facts": facts}


__all__ = [
    "READERS",
    "Reader",
    "Roots",
    "appraise_case",
    "layers",
    "reader_of",
    "reason",
    "verdict",
]
