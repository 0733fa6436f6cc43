"""Appraises a worker against the manifest that the relying party accepted.

The manifest was authenticated before. Steps, in order; each makes one claim:

1. ``manifest.signed``: who stands behind the manifest.
2. ``manifest.named``: the worker says that it runs under this manifest, and no other.
3. ``manifest.bound``: so does what measured it: on hardware `cloister.verifier.appraise.worker`
   compares the register that names the manifest, elsewhere the measured configuration says so.
4. ``manifest.models``: it serves no model that the manifest does not list.
5. ``manifest.engines``: nor with another engine, unless the manifest leaves that unchecked.
6. ``manifest.serving``: receipts, padding and ways out are within the manifest's bounds.

The policy that the manifest narrows is the caller's business (`cloister.manifest.terms`).
"""

from __future__ import annotations

from typing import Final

from cloister.channel.claims import ClaimsDocument
from cloister.evidence.component import (
    CONFIGURATION_EGRESS,
    CONFIGURATION_ENGINES,
    CONFIGURATION_WORKER,
    is_managed,
    isolation_mode,
    manifest_of,
)
from cloister.strictjson import Json, JsonObject
from cloister.verifier.expected_manifest import ExpectedManifest
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import SANDBOXES, Unchecked
from cloister.verifier.result import Source

SIGNED: Final = "manifest.signed"
NAMED: Final = "manifest.named"
BOUND: Final = "manifest.bound"
MODELS: Final = "manifest.models"
ENGINES: Final = "manifest.engines"
SERVING: Final = "manifest.serving"
CLAIMS: Final = (SIGNED, NAMED, BOUND, MODELS, ENGINES, SERVING)
"""Names of the claims, in order."""

NOT_PROVEN_UNSIGNED: Final = (
    "Nobody signed for the manifest, as far as you asked: whoever could write it decided which"
    " models, engines and images are accepted."
)
NOT_PROVEN_UNREAD: Final = (
    "The worker names a manifest, but you pinned nobody who signs manifests: who stands behind it,"
    " and what it says, was not looked at."
)


def appraise_standing(expected: ExpectedManifest, ledger: Ledger) -> None:
    """Step 1, which holds before any worker is asked."""
    ledger.affirm(SIGNED, expected.standing)


def appraise_terms(document: ClaimsDocument, expected: ExpectedManifest, ledger: Ledger) -> None:
    """Steps 2 and 4 to 6, on a claims document that evidence binds."""
    ledger.check(
        NAMED,
        holds=document.manifest_sha256 == expected.sha256,
        affirmed="The worker runs under this manifest.",
        code="manifest_other",
        refused=(
            "The worker runs under no manifest."
            if document.manifest_sha256 is None
            else f"The worker runs under another manifest (sha256:{document.manifest_sha256}) than"
            f" the one you accept (sha256:{expected.sha256})."
        ),
    )
    _models(document, expected, ledger)
    _engines(document.configuration, expected, ledger)
    _serving(document.configuration, expected, ledger)


def appraise_measured(
    configuration: JsonObject, expected: ExpectedManifest, ledger: Ledger
) -> None:
    """Step 3, where a TPM measured the effective configuration before the worker started."""
    ledger.check(
        BOUND,
        holds=manifest_of(configuration) == expected.sha256,
        affirmed="The measured configuration names this manifest.",
        code="manifest_mismatch",
        refused="The measured configuration names another manifest, or none.",
        source=Source.HARDWARE_PROVEN,
    )


def _models(document: ClaimsDocument, expected: ExpectedManifest, ledger: Ledger) -> None:
    unlisted = [
        model.name
        for model in document.models
        if model.sha256 is None or expected.models.get(model.name) != model.sha256
    ]
    served = ", ".join(
        f"{model.name} (sha256:{(model.sha256 or '')[:16]}…)" for model in document.models
    )
    ledger.check(
        MODELS,
        holds=bool(document.models) and not unlisted,
        affirmed=f"The manifest lists what the worker serves: {served}.",
        code="model_unlisted",
        refused=(
            f"The manifest does not list {', '.join(unlisted)}, or with another digest."
            if unlisted
            else "The worker names no model, so none of it is one that the manifest lists."
        ),
    )


def _engines(configuration: JsonObject, expected: ExpectedManifest, ledger: Ledger) -> None:
    if isinstance(expected.engines, Unchecked):
        ledger.affirm(ENGINES, "The manifest accepts any engine that its images hold.")
        return
    listed = configuration.get(CONFIGURATION_ENGINES)
    found = [_engine(one) for one in listed] if isinstance(listed, list) else []
    other = [
        f"{name} {version}" for name, version in found if (name, version) not in expected.engines
    ]
    ledger.check(
        ENGINES,
        holds=bool(found) and not other,
        affirmed="The manifest lists the engine: "
        + ", ".join(sorted({f"{name} {version}" for name, version in found}))
        + ".",
        code="engine_unlisted",
        refused=(
            f"The manifest does not list the engine {', '.join(sorted(set(other)))}."
            if other
            else "The worker's configuration does not say which engine computes the answers."
        ),
    )


def _engine(described: Json) -> tuple[str, str]:
    """Name and version as an engine's description gives them; words in their place if not."""
    members = described if isinstance(described, dict) else {}
    name = members.get("engine")
    for holder in ("library", "installation"):
        inner = members.get(holder)
        version = inner.get("version") if isinstance(inner, dict) else None
        if isinstance(name, str) and isinstance(version, str):
            return name, version
    return (name if isinstance(name, str) else "of no name"), "of no version"


def _serving(configuration: JsonObject, expected: ExpectedManifest, ledger: Ledger) -> None:
    worker = configuration.get(CONFIGURATION_WORKER)
    sections = worker if isinstance(worker, dict) else {}
    faults = [
        fault
        for fault in (
            _egress_fault(configuration, expected),
            _fault(sections, "receipts", "keep_s", most=expected.receipts_keep_s),
            _fault(sections, "padding", "stream_bucket", least=expected.stream_bucket),
            _fault(sections, "padding", "body_bucket", least=expected.body_bucket),
        )
        if fault
    ]
    ledger.check(
        SERVING,
        holds=not faults,
        affirmed="Receipts, padding and ways out are as the manifest says.",
        code="serving_refused",
        refused=f"The manifest does not accept the worker's configuration: {'; '.join(faults)}.",
    )


def _egress_fault(configuration: JsonObject, expected: ExpectedManifest) -> str:
    if isinstance(expected.egress, Unchecked):
        return ""
    # Only an engine that the worker itself holds in a sandbox is known to connect to nothing.
    mode = isolation_mode(configuration)
    if not is_managed(configuration) or mode is None or not _is_sandbox(mode):
        return "the engine is not held in a sandbox, so nothing shows where it connects to"
    named = configuration.get(CONFIGURATION_EGRESS, [])
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        return "it does not say where the worker may connect to"
    beyond = sorted(str(one) for one in named if one not in expected.egress)
    return f"the worker may connect to {', '.join(beyond)}" if beyond else ""


def _is_sandbox(mode: str) -> bool:
    return any(mode == sandbox or mode.startswith(f"{sandbox}-") for sandbox in SANDBOXES)


def _fault(
    sections: JsonObject,
    section: str,
    name: str,
    *,
    least: int | Unchecked = Unchecked.UNCHECKED,
    most: int | Unchecked = Unchecked.UNCHECKED,
) -> str:
    """What is wrong with one whole number of the worker's settings; empty where nothing is."""
    if isinstance(least, Unchecked) and isinstance(most, Unchecked):
        return ""
    members = sections.get(section)
    value = members.get(name) if isinstance(members, dict) else None
    if isinstance(value, bool) or not isinstance(value, int):
        return f"it does not give {section}.{name}"
    if not isinstance(least, Unchecked) and value < least:
        return f"{section}.{name} is {value}, below {least}"
    if not isinstance(most, Unchecked) and value > most:
        return f"{section}.{name} is {value}, above {most}"
    return ""
