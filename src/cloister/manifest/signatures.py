"""Who of a manifest's owners signed it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from cloister.errors import AuthenticationError, UnsupportedError
from cloister.manifest.dsse import Envelope
from cloister.manifest.owners import KeyAlgorithm, KeyOwner, Owner, SigstoreOwner


class IdentityVerifier(Protocol):
    """Checks signatures of identities; `cloister.manifest.sigstore_identity` makes one."""

    def verify(self, owner: SigstoreOwner, signature: bytes, payload: bytes) -> None:
        """Check a Sigstore bundle over `payload`. Raises AuthenticationError, UnsupportedError."""


class Signatures:
    """The signatures of one envelope, each checked at most once.

    A signature by somebody who is asked about has to hold: one that does not is no accident, and
    raises AuthenticationError (code ``manifest.signature``). Others are not looked at.
    """

    def __init__(self, envelope: Envelope, identities: IdentityVerifier | None) -> None:
        self._envelope = envelope
        self._signed = {signature.key_id: signature.data for signature in envelope.signatures}
        self._bytes = envelope.signed_bytes
        self._identities = identities
        self._checked: dict[str, bool] = {}

    def by(self, owners: Iterable[Owner]) -> tuple[Owner, ...]:
        """Those of `owners` who signed."""
        return tuple(owner for owner in owners if self._by(owner))

    @property
    def undecided(self) -> bool:
        """Whether somebody may have signed in a way that this installation cannot check."""
        return not all(self._checked.values())

    def _by(self, owner: Owner) -> bool:
        key_id = owner.key_id
        if key_id not in self._signed:
            return False
        if key_id not in self._checked:
            self._checked[key_id] = self._check(owner, self._signed[key_id])
        return self._checked[key_id]

    def _check(self, owner: Owner, signature: bytes) -> bool:
        if isinstance(owner, KeyOwner):
            _check_key(owner, signature, self._bytes)
            return True
        if self._identities is None:
            return False
        try:
            self._identities.verify(owner, signature, self._envelope.payload)
        except UnsupportedError:
            return False
        return True


def _check_key(owner: KeyOwner, signature: bytes, signed: bytes) -> None:
    try:
        if owner.algorithm is KeyAlgorithm.ED25519:
            Ed25519PublicKey.from_public_bytes(owner.public_key).verify(signature, signed)
        else:
            MLDSA65PublicKey.from_public_bytes(owner.public_key).verify(signature, signed)
    except (InvalidSignature, ValueError):
        raise AuthenticationError(
            f"the signature of {owner.describe()} under the manifest does not hold: what is there"
            " is not what they signed",
            code="manifest.signature",
        ) from None
