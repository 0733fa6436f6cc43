"""Manifests for tests: owners made once, times that do not move."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from cloister.evidence.component import ComponentKind
from cloister.manifest import (
    EngineEntry,
    ImageEntry,
    KeyAlgorithm,
    Manifest,
    ModelEntry,
    SealedWeights,
    Serving,
)
from cloister.testing.signed_manifests import ManifestOwner, make_manifest
from cloister.verifier.reference_values import ReferenceComponent, ReferenceValues

ALICE: Final = ManifestOwner.generate("alice")
BOB: Final = ManifestOwner.generate("bob")
CAROL: Final = ManifestOwner.generate("carol", KeyAlgorithm.ML_DSA_65)
MALLORY: Final = ManifestOwner.generate("mallory")
"""Owns nothing."""

ISSUED: Final = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
AT: Final = ISSUED + timedelta(days=1)

IMAGE: Final = ImageEntry(
    name="worker",
    version="1",
    debug=False,
    reference_values=ReferenceValues(
        components=(
            ReferenceComponent(
                kind=ComponentKind.STDLIB,
                name="python-stdlib",
                version="3.11",
                digests=("sha256:" + "1" * 64,),
            ),
        )
    ),
)


def full_manifest() -> Manifest:
    """Everything that a manifest may say, said once."""
    return make_manifest(
        owners=[ALICE, BOB, CAROL],
        threshold=2,
        models=[
            ModelEntry(name="open", format="gguf", sha256="a" * 64),
            ModelEntry(
                name="secret",
                format="safetensors",
                sha256="b" * 64,
                sealed=SealedWeights(key="kbs:///acme/weights/secret", header_sha256="c" * 64),
            ),
        ],
        engines=(EngineEntry(name="llama.cpp", version="2026.10.0"),),
        images=[IMAGE],
        serving=Serving(egress=(), receipts_keep_s=600, stream_bucket=256, body_bucket=1024),
        policy={"tcb_statuses": ["UpToDate"], "required_gpus": 1, "accept_debug": False},
        at=ISSUED,
    )
