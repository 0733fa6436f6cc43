"""Makes signed manifests: owners with keys of their own, first versions, updates.

::

    alice = ManifestOwner.generate("alice")
    signed = sign_first(make_manifest(owners=[alice], models=[...]), alice)
    signed = sign_update(signed, alice, models=[...])
    bundle = signed.encode()  # what `cloister.manifest.load_bundle` reads

Keys are made on the spot and forgotten: nothing made here is worth anything outside a test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from cloister.manifest.bundle import SignedManifest
from cloister.manifest.entries import EngineEntry, ImageEntry, ModelEntry, Serving
from cloister.manifest.model import Manifest, ManifestHeader
from cloister.manifest.owners import KeyAlgorithm, Owner, Owners
from cloister.manifest.signing import KeySigner, Signer, envelope_of, first_version, updated
from cloister.verifier.policy import UNCHECKED, Checked, parse_fields

NAME: Final = "example/chat"
LIFETIME: Final = timedelta(days=90)


class ManifestOwner:
    """Makes signers with fresh keys."""

    @staticmethod
    def generate(name: str, algorithm: KeyAlgorithm = KeyAlgorithm.ED25519) -> KeySigner:
        """An owner, who holds their private key in memory."""
        if algorithm is KeyAlgorithm.ED25519:
            return KeySigner.of(name, Ed25519PrivateKey.generate())
        return KeySigner.of(name, MLDSA65PrivateKey.generate())


def make_manifest(
    *,
    owners: Sequence[KeySigner | Owner],
    threshold: int = 1,
    models: Iterable[ModelEntry] = (),
    images: Iterable[ImageEntry] = (),
    engines: Checked[tuple[EngineEntry, ...]] = UNCHECKED,
    serving: Serving | None = None,
    policy: Mapping[str, object] | None = None,
    name: str = NAME,
    at: datetime | None = None,
    lifetime: timedelta = LIFETIME,
) -> Manifest:
    """A first version, issued `at` (default: now). `policy` as the document writes it."""
    issued = (at or datetime.now(UTC)).replace(microsecond=0)
    return Manifest(
        header=ManifestHeader(
            name=name,
            version=1,
            previous=None,
            issued=issued,
            expires=issued + lifetime,
            owners=owners_of(owners, threshold),
        ),
        models=tuple(models),
        engines=engines,
        images=tuple(images),
        serving=serving or Serving(),
        policy=parse_fields(policy or {}),
    )


def owners_of(owners: Sequence[KeySigner | Owner], threshold: int = 1) -> Owners:
    """The member `owners`, of signers or of owners whose keys are elsewhere."""
    listed = tuple(one.owner if isinstance(one, KeySigner) else one for one in owners)
    return Owners(threshold=threshold, listed=listed)


def sign_first(manifest: Manifest, *signers: Signer) -> SignedManifest:
    """A bundle that holds the first version alone."""
    return first_version(envelope_of(manifest, *signers))


def next_version(
    signed: SignedManifest,
    *,
    owners: Owners | None = None,
    overlap: timedelta | None = None,
    **changes: object,
) -> Manifest:
    """The manifest after the one in force, with other fields where they are named.

    `overlap`: for how long after its issue the one in force may still be served.
    """
    issued = signed.manifest.header.issued
    header = dataclasses.replace(
        signed.manifest.header,
        version=signed.version + 1,
        previous=signed.digest,
        owners=owners or signed.manifest.header.owners,
        overlap_until=None if overlap is None else issued + overlap,
    )
    return dataclasses.replace(signed.manifest, header=header, **changes)  # type: ignore[arg-type]  # the caller's own fields


def sign_update(
    signed: SignedManifest,
    *signers: Signer,
    owners: Owners | None = None,
    overlap: timedelta | None = None,
    **changes: object,
) -> SignedManifest:
    """The bundle with another version, of `next_version`, behind those in it."""
    made = next_version(signed, owners=owners, overlap=overlap, **changes)
    return updated(signed, envelope_of(made, *signers))
