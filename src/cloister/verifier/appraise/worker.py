"""Appraises a worker whose whole image a hardware platform measured.

The registers name the image; what that image says of itself in the claims document is worth
what the image is worth, and is compared only once the registers are known. Steps, in order;
each makes one claim unless the policy leaves it unchecked:

1. ``software.registers``: the registers are, all together, in one accepted state.
2. ``software.model``: the measured software names the digest of the model it serves.
3. ``configuration.debug``, those of `cloister.verifier.appraise.serving`, and
   ``configuration.isolation``: no debugging, an accepted way of serving, an accepted sandbox.
4. ``manifest.bound``: the manifest that the worker names, or that the relying party expects, is the
   one that the platform was started with. Only where there is one.
5. ``denied``: nothing that the policy denies by digest.

Only compares: whatever is compared here was authenticated before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from cloister.channel.claims import ClaimsDocument
from cloister.evidence.component import CONFIGURATION_DEBUG, isolation_mode
from cloister.verifier.appraise import manifest as manifests
from cloister.verifier.appraise import serving
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, Unchecked
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.result import Source

REGISTERS: Final = "software.registers"
MODEL: Final = "software.model"
DEBUG: Final = "configuration.debug"
ISOLATION: Final = "configuration.isolation"
MANIFEST: Final = manifests.BOUND
DENIED: Final = "denied"

MANIFEST_REGISTER: Final[Mapping[str, str]] = {
    "snp": "host_data",
    "tdx": "mr_config_id",
    "sgx": "config_id",
    "nitro": "pcr16",
    "azure-snp": "host_data",
    "azure-tdx": "mr_config_id",
    "gcp-snp": "host_data",
    "gcp-tdx": "mr_config_id",
}
"""Where each platform carries the manifest's SHA-256 (docs/design.md section 5): as it is,
zero-padded, except for Nitro's PCR16, which was extended with it. The host chooses HOST_DATA and
MRCONFIGID; the measured image halts unless they name the manifest that it read."""


def claims(policy: AppraisalPolicy) -> tuple[str, ...]:
    """Names of the claims made under `policy`, in order, without ``manifest.bound``."""
    names = [REGISTERS, MODEL]
    if not policy.accept_debug:
        names.append(DEBUG)
    names += serving.claims(policy)
    if not isinstance(policy.isolation, Unchecked):
        names.append(ISOLATION)
    if not isinstance(policy.denied, Unchecked):
        names.append(DENIED)
    return tuple(names)


def appraise_registers(
    platform: str,
    registers: Mapping[str, bytes],
    *,
    reference_values: ReferenceValues,
    ledger: Ledger,
) -> None:
    """Step 1. `platform` is a key of `cloister.verifier.platform_references.IDENTITY`."""
    candidates = [entry for entry in reference_values.platforms if entry.platform == platform]
    match = next((entry for entry in candidates if entry.matches(registers)), None)
    if match is not None:
        ledger.affirm(
            REGISTERS,
            f"The platform measured {match.name}: {', '.join(match.registers)} are as expected.",
            source=Source.HARDWARE_PROVEN,
        )
        return
    if not candidates:
        why = f"Your reference values accept no software on {platform}."
    else:
        closest = min(candidates, key=lambda entry: len(entry.differing(registers)))
        differing = ", ".join(closest.differing(registers))
        why = f"The platform measured other software than you accept: {differing} differ."
    ledger.refuse(REGISTERS, "measurement_mismatch", why, source=Source.HARDWARE_PROVEN)


def appraise_claims(document: ClaimsDocument, *, policy: AppraisalPolicy, ledger: Ledger) -> None:
    """Steps 2 and 3, on a document that evidence binds, written by software that was measured."""
    named = [model for model in document.models if model.sha256 is not None]
    models = ", ".join(f"{model.name} (sha256:{(model.sha256 or '')[:16]}…)" for model in named)
    whole = bool(named) and len(named) == len(document.models)
    shown = serving.shows_model(document.configuration)
    ledger.check(
        MODEL,
        holds=not policy.require_model or (whole and shown),
        affirmed=(
            f"The worker serves {models}{'' if whole else ', and others without a digest'}."
            if named and shown
            else "Nothing shows which model answers, which the policy accepts."
        ),
        code="model_unmeasured",
        refused=(
            "The worker names no digest of the model it serves, so nothing shows which one answers."
            if not whole
            else serving.UNPROVEN_MODEL
        ),
    )
    if not policy.accept_debug:
        ledger.check(
            DEBUG,
            holds=document.configuration.get(CONFIGURATION_DEBUG) is False,
            affirmed="Debugging is off in the worker's configuration.",
            code="configuration_debug",
            refused="The worker's configuration has debugging on, or does not say that it is off.",
        )
    serving.appraise_serving(
        document.configuration, policy=policy, source=Source.VERIFIER_DERIVED, ledger=ledger
    )
    if not isinstance(policy.isolation, Unchecked):
        mode = isolation_mode(document.configuration)
        ledger.check(
            ISOLATION,
            holds=mode in policy.isolation and mode == document.isolation,
            affirmed=f"The engine is held as your policy accepts: {mode}.",
            code="sandbox_unsafe",
            refused="The engine is not held in a sandbox that the policy accepts.",
        )


def appraise_manifest(
    platform: str, registers: Mapping[str, bytes], digest: str, ledger: Ledger
) -> None:
    """Step 4, for a worker that names the manifest with SHA-256 `digest` (hexadecimal)."""
    register = MANIFEST_REGISTER.get(platform, "")
    found = registers.get(register)
    ledger.check(
        MANIFEST,
        holds=found is not None and found == manifest_value(platform, digest, len(found)),
        affirmed=f"The platform was started for this manifest ({register}).",
        code="manifest_mismatch",
        refused=(
            "The platform was not started for this manifest"
            f" ({register or 'it has no register for one'})."
        ),
        source=Source.HARDWARE_PROVEN,
    )


def manifest_value(platform: str, digest: str, size: int) -> bytes:
    """What the register of `platform`, of `size` bytes, holds for a manifest's `digest`."""
    named = bytes.fromhex(digest)
    if platform == "nitro":
        return hashlib.sha384(bytes(48) + named).digest()
    return named.ljust(size, b"\0")


def appraise_denied(digests: set[str], *, denied: tuple[str, ...], ledger: Ledger) -> None:
    """Step 5. `digests` are the keyset's, the manifest's and the models'."""
    found = sorted(digests.intersection(denied))
    ledger.check(
        DENIED,
        holds=not found,
        affirmed="Nothing of it is on your list of denied digests.",
        code="denied",
        refused=f"Your policy denies {', '.join(found)}.",
    )
