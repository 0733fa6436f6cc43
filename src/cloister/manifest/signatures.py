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


class LoadedKeys:
    """Owners' public keys, each loaded once for all the versions that they signed."""

    def __init__(self) -> None:
        self._keys: dict[str, Ed25519PublicKey | MLDSA65PublicKey] = {}

    def of(self, owner: KeyOwner) -> Ed25519PublicKey | MLDSA65PublicKey:
        """The key of `owner`, whose id says algorithm and key. ValueError if it is none."""
        found = self._keys.get(owner.key_id)
        if found is None:
            kind = Ed25519PublicKey if owner.algorithm is KeyAlgorithm.ED25519 else MLDSA65PublicKey
            found = self._keys[owner.key_id] = kind.from_public_bytes(owner.public_key)
        return found


class Signatures:
    """The signatures of one envelope, each checked at most once.

    A signature by somebody who is asked about has to hold: one that does not is no accident, and
    raises AuthenticationError (code ``manifest.signature``). Others are not looked at.
    """

    def __init__(
        self, envelope: Envelope, identities: IdentityVerifier | None, keys: LoadedKeys
    ) -> None:
        self._envelope = envelope
        self._keys = keys
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
            self._check_key(owner, signature)
            return True
        if self._identities is None:
            return False
        try:
            self._identities.verify(owner, signature, self._envelope.payload)
        except UnsupportedError:
            return False
        return True

    def _check_key(self, owner: KeyOwner, signature: bytes) -> None:
        try:
            self._keys.of(owner).verify(signature, self._bytes)
        except (InvalidSignature, ValueError):
            raise AuthenticationError(
                f"the signature of {owner.describe()} under the manifest does not hold: what is"
                " there is not what they signed",
                code="manifest.signature",
            ) from None
