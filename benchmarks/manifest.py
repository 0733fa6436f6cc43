"""What a client spends on a manifest and a hundred updates of it: CPU time, bytes to trust.

The bundle is read and authenticated from the first version on, as by a client that saw that one
and nothing since: each of the hundred updates is checked against the owners of the version before
it and its own. Manifests are of the size that images have: three platforms with the registers that
each has to list, three models, three owners. “Signatures” checks as many over as many bytes, by the
cryptography package with keys that are loaded already, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from benchmarks.context import Context
from benchmarks.harness import MILLISECONDS, Arm, Figure, Report, Sample, at_most, beside, measure
from cloister.manifest import (
    ImageEntry,
    KeyAlgorithm,
    ModelEntry,
    Remembered,
    SignedManifest,
    SignerPin,
    authenticate_bundle,
    load_bundle,
)
from cloister.manifest.signing import KeySigner
from cloister.testing.signed_manifests import (
    ManifestOwner,
    make_manifest,
    sign_first,
    sign_update,
)
from cloister.verifier.platform_references import IDENTITY, PlatformReference
from cloister.verifier.reference_values import ReferenceValues

UPDATES = 100
TARGET_MS = 30.0
SIGNATURES = "signatures"
VERIFY = "verify"
PLATFORMS = ("snp", "tdx", "gcp-snp")

KINDS = {
    "signed by one owner": (1, KeyAlgorithm.ED25519),
    "signed by two of three": (2, KeyAlgorithm.ED25519),
    "signed by one owner, ML-DSA-65": (1, KeyAlgorithm.ML_DSA_65),
}
"""Threshold and algorithm of the owners."""
HELD_TO_TARGET = "signed by one owner"


def run(context: Context) -> Report:
    """Measure each kind of chain beside its bare signatures."""
    figures: list[Figure] = []
    raw = {}
    remarks = []
    for name, (threshold, algorithm) in KINDS.items():
        owners = [ManifestOwner.generate(f"owner {n}", algorithm) for n in range(3)]
        signed = chain(owners, threshold)
        rounds = measure(arms(signed, owners, threshold, context.count(5, 1)), context.plan(10))
        raw[name] = rounds
        target = at_most(TARGET_MS) if name == HELD_TO_TARGET else None
        title = f"{UPDATES} updates, {name}"
        figures.append(
            beside(title, rounds, VERIFY, SIGNATURES, "cpu", scale=MILLISECONDS, target=target)
        )
        remarks.append(
            f"{title}: {len(signed.encode()) // 1024} KiB of bundle,"
            f" {len(signed.manifest.encode())} bytes of manifest."
        )
    return Report(
        title="Verifying a manifest and its updates",
        method=" ".join(__doc__.partition("\n\n")[2].split()),
        figures=tuple(figures),
        remarks=tuple(remarks),
        failures=(),
        raw=raw,
    )


def chain(owners: list[KeySigner], threshold: int) -> SignedManifest:
    """Version 1 and a hundred updates."""
    signers = owners[:threshold]
    signed = sign_first(
        make_manifest(
            owners=owners,
            threshold=threshold,
            models=[
                ModelEntry(name=f"model {n}", format="gguf", sha256=f"{n}" * 64) for n in range(3)
            ],
            images=[
                ImageEntry(
                    name="worker",
                    version="1",
                    debug=False,
                    reference_values=ReferenceValues.from_platforms(*map(_reference, PLATFORMS)),
                )
            ],
        ),
        *signers,
    )
    for _ in range(UPDATES):
        signed = sign_update(signed, *signers)
    return signed


def arms(signed: SignedManifest, owners: list[KeySigner], threshold: int, count: int) -> list[Arm]:
    """A whole verification, and the signatures in it."""
    data = signed.encode()
    pin = SignerPin(signers=(owners[0].owner,))
    first = signed.links[0]
    seen = Remembered(version=first.header.version, sha256=first.digest)

    def verify() -> None:
        found = authenticate_bundle(load_bundle(data), pin, at=datetime.now(UTC), remembered=seen)
        if found.version != UPDATES + 1:
            raise RuntimeError("the chain was not followed to its end")

    public = owners[0].private_key.public_key()
    message = signed.links[-1].envelope.signed_bytes
    signature = owners[0].sign(message)

    def signatures() -> None:
        for _ in range((UPDATES + 1) * threshold):
            public.verify(signature, message)

    return [
        Arm(name=VERIFY, run=_cpu(verify, count)),
        Arm(name=SIGNATURES, run=_cpu(signatures, count)),
    ]


def _reference(platform: str) -> PlatformReference:
    registers = IDENTITY[platform][0]
    size = 32 if any(name.startswith("pcr") for name in registers) else 48
    return PlatformReference(
        platform=platform,
        name=f"worker 1 on {platform}",
        registers={name: (f"{number:02x}" * size,) for number, name in enumerate(registers)},
    )


def _cpu(call: Callable[[], object], count: int) -> Callable[[], Sample]:
    def run() -> Sample:
        began = time.process_time()
        for _ in range(count):
            call()
        return {"cpu": (time.process_time() - began) / count}

    return run
