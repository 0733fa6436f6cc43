"""What may see prompts: the signed manifest, its updates, and who stands behind it.

`load_bundle` reads one; `authenticate_bundle` says whether it is what a relying party pinned.
"""

from cloister.manifest.authenticate import AuthenticatedManifest, authenticate_bundle
from cloister.manifest.bundle import SignedManifest, load_bundle
from cloister.manifest.entries import (
    EngineEntry,
    ImageEntry,
    ModelEntry,
    SealedWeights,
    Serving,
)
from cloister.manifest.model import Manifest, ManifestHeader
from cloister.manifest.owners import KeyAlgorithm, KeyOwner, Owner, Owners, SigstoreOwner
from cloister.manifest.pin import (
    DigestPin,
    ManifestPin,
    Remembered,
    SignerPin,
    UnsafeUnsignedManifest,
)

__all__ = [
    "AuthenticatedManifest",
    "DigestPin",
    "EngineEntry",
    "ImageEntry",
    "KeyAlgorithm",
    "KeyOwner",
    "Manifest",
    "ManifestHeader",
    "ManifestPin",
    "ModelEntry",
    "Owner",
    "Owners",
    "Remembered",
    "SealedWeights",
    "Serving",
    "SignedManifest",
    "SignerPin",
    "SigstoreOwner",
    "UnsafeUnsignedManifest",
    "authenticate_bundle",
    "load_bundle",
]
