"""Appraises a worker whose whole image a hardware platform measured.

The registers name the image; what that image says of itself in the claims document is worth
what the image is worth, and is compared only once the registers are known. Steps, in order;
each makes one claim unless the policy leaves it unchecked:

1. ``software.registers``: the registers are, all together, in one accepted state; before it one
   claim for each group of registers of a measured boot (`cloister.verifier.appraise.boot`), and
   ``image.debug`` where that state is of an image that was built.
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
from collections.abc import Iterable, Mapping, Set
from typing import Final

from cloister.channel.claims import ClaimsDocument
from cloister.evidence.component import CONFIGURATION_DEBUG, isolation_mode
from cloister.verifier.appraise import boot, serving
from cloister.verifier.appraise import manifest as manifests
from cloister.verifier.ledger import Ledger
from cloister.verifier.platform_references import PlatformReference
from cloister.verifier.policy import AppraisalPolicy, Unchecked
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.result import Source

REGISTERS: Final = "software.registers"
MODEL: Final = "software.model"
IMAGE_DEBUG: Final = "image.debug"
DEBUG: Final = "configuration.debug"
ISOLATION: Final = "configuration.isolation"
MANIFEST: Final = manifests.BOUND
DENIED: Final = "denied"

MANIFEST_REGISTER: Final[Mapping[str, str]] = {
    "snp": "host_data",
    "tdx": "mr_config_id",
    "sgx": "config_id",
    "nitro": "pcr16",
    "azure-snp": "pcr13",
    "azure-tdx": "pcr13",
    "gcp-snp": "pcr13",
    "gcp-tdx": "pcr13",
    "gcp-vtpm": "pcr13",
    "tpm": "pcr13",
    "nitro-tpm": "pcr13",
}
"""Where each platform carries the manifest's SHA-256 (docs/design.md section 5): as it is,
zero-padded, except for Nitro's PCR16 and a TPM's PCR 13, which were extended with it. A TPM's bank
takes digests of its own size alone: the one of SHA-384 was extended with the SHA-384 of those 32
bytes. The host chooses HOST_DATA and MRCONFIGID; the measured image halts unless they name the
manifest that it read. Customers of Azure and Google cannot choose them: there the image measures
the manifest into the virtual TPM."""

_EXTENDED: Final[Mapping[str, tuple[str, int]]] = {
    "nitro": ("sha384", 48),
    "nitro-tpm": ("sha384", 48),
    **dict.fromkeys(
        ("azure-snp", "azure-tdx", "gcp-snp", "gcp-tdx", "gcp-vtpm", "tpm"), ("sha256", 32)
    ),
}
"""Hash and size of the register where it is extended with the manifest's digest."""

_HASHED_AGAIN: Final = frozenset({"nitro-tpm"})
_LISTED: Final = _EXTENDED.keys() - {"nitro"}
"""Platforms whose reference values list that register, or may."""


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


def register_claims(platform: str) -> tuple[str, ...]:
    """Names of the claims about groups of registers, which come before all others."""
    return boot.group_claims(platform)


def before_manifest(
    platform: str, registers: Mapping[str, bytes], digest: str | None
) -> Mapping[str, bytes]:
    """`registers` as they were before the one for the manifest was extended with `digest`.

    A manifest lists reference values, so no value that follows from its digest can be among them.
    Unless the register holds exactly what follows from `digest`, nothing is taken out of it. Only
    for TPMs: other platforms' reference values need not list their register.
    """
    register = MANIFEST_REGISTER.get(platform, "")
    if platform not in _LISTED or digest is None:
        return registers
    if registers.get(register) != manifest_register(platform, bytes.fromhex(digest)):
        return registers
    return {**registers, register: bytes(_EXTENDED[platform][1])}


def started_for(
    platform: str, registers: Mapping[str, bytes], denied: Iterable[str]
) -> tuple[str, ...]:
    """The manifest's SHA-256 as the platform alone names it, in hexadecimal.

    A register that was extended with it does not say it: there, whichever of `denied` it holds.
    """
    value = registers.get(MANIFEST_REGISTER.get(platform, ""), b"")
    if platform not in _EXTENDED:
        return (value[:32].hex(),)
    digests = [one.removeprefix("sha256:") for one in denied if one.startswith("sha256:")]
    return tuple(one for one in digests if manifest_register(platform, bytes.fromhex(one)) == value)


def manifest_register(platform: str, digest: bytes) -> bytes:
    """The register of a platform that extends it with the manifest's SHA-256, nothing else.

    Raises:
        KeyError: the platform carries the digest as it is.
    """
    name, size = _EXTENDED[platform]
    extended = hashlib.new(name, digest).digest() if platform in _HASHED_AGAIN else digest
    return hashlib.new(name, bytes(size) + extended).digest()


def appraise_registers(
    platform: str,
    registers: Mapping[str, bytes],
    *,
    reference_values: ReferenceValues,
    policy: AppraisalPolicy,
    ledger: Ledger,
    asserted: Set[str] = frozenset(),
) -> None:
    """Step 1. `platform` is a key of `cloister.verifier.platform_references.IDENTITY`.

    `asserted` are registers of a TPM that the hardware does not name: with one of them, all
    together are no more than the provider's word.
    """
    candidates = [entry for entry in reference_values.platforms if entry.platform == platform]
    if not candidates:
        (ledger.asserted() if asserted else ledger).refuse(
            REGISTERS,
            "measurement_mismatch",
            f"Your reference values accept no software on {platform}.",
            source=Source.HARDWARE_PROVEN,
        )
        return
    matching = [entry for entry in candidates if entry.matches(registers)]
    # Where one and the same state is listed as a debug image and as none, the worse is believed.
    match = max(matching, key=_is_debug, default=None)
    closest = match or min(candidates, key=lambda entry: len(entry.differing(registers)))
    words = [name for name in closest.registers if name in asserted]
    said = ledger.asserted() if words else ledger
    boot.appraise_groups(closest, registers, ledger, asserted=asserted)
    if match is not None:
        _appraise_image(match, policy, said)
        said.affirm(
            REGISTERS,
            f"The platform measured {match.name}: {', '.join(match.registers)} are as expected."
            + (f" Of these, {', '.join(words)} are the provider's word." if words else ""),
            source=Source.HARDWARE_PROVEN,
        )
        return
    differing = ", ".join(closest.differing(registers))
    said.refuse(
        REGISTERS,
        "measurement_mismatch",
        f"The platform measured other software than you accept: {differing} differ.",
        source=Source.HARDWARE_PROVEN,
    )


def _is_debug(entry: PlatformReference) -> bool:
    return entry.image is not None and entry.image.debug


def _appraise_image(match: PlatformReference, policy: AppraisalPolicy, ledger: Ledger) -> None:
    image = match.image
    if image is None or policy.accept_debug:
        return
    ledger.expect(IMAGE_DEBUG)
    ledger.check(
        IMAGE_DEBUG,
        holds=not image.debug,
        affirmed=f"The image {image.name} {image.version} is none for debugging.",
        code="image_debug",
        refused=(
            f"The image {image.name} {image.version} is for debugging: whoever runs it can look in."
        ),
        source=Source.HARDWARE_PROVEN,
    )


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
    if platform in _EXTENDED:
        return manifest_register(platform, named)
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
