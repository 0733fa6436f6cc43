"""Signatures of identities through Sigstore, checked without a network (extra ``sigstore``).

An owner by identity signs the manifest's canonical bytes as a file, with any of Sigstore's tools;
the bundle that comes out is their signature in the envelope. It holds a certificate for the
identity, good for minutes, and the entry of a transparency log that shows the signature was made
within them (github.com/sigstore/protobuf-specs, "Sigstore bundle").

The trusted root (certificate authority, logs, timestamping) is the caller's, as a file: nothing is
fetched, and nothing that was fetched at some time is taken from a cache. Whoever relies on it owes
its renewal.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.errors import AuthenticationError, ConfigurationError, UnsupportedError
from cloister.manifest.owners import SigstoreOwner

if TYPE_CHECKING:
    from sigstore.verify import Verifier

MAX_ROOT_BYTES: Final = 1024 * 1024
_CODE: Final = "manifest.sigstore_root"


class SigstoreIdentities:
    """Checks Sigstore bundles against one trusted root. An `IdentityVerifier`."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

    @classmethod
    def from_trusted_root(cls, path: Path) -> SigstoreIdentities:
        """Read a trusted root (JSON, ``application/vnd.dev.sigstore.trustedroot+json``).

        Raises:
            ConfigurationError: it cannot be read (code ``manifest.sigstore_root``).
            UnsupportedError: Sigstore's library is not installed (``manifest.identities``).
        """
        try:
            from sigstore.models import TrustedRoot
            from sigstore.verify import Verifier
        except ImportError:
            raise UnsupportedError(
                "checking signatures by identity takes Sigstore's library: install"
                " cloister[sigstore]",
                code="manifest.identities",
            ) from None
        try:
            return cls(Verifier(trusted_root=TrustedRoot.from_file(str(path.expanduser()))))
        except Exception as error:  # whatever the library raises for a file that is none
            raise ConfigurationError(
                f"{path} is no trusted root of Sigstore ({type(error).__name__})", code=_CODE
            ) from None

    def verify(self, owner: SigstoreOwner, signature: bytes, payload: bytes) -> None:
        """Check that `signature`, a bundle's JSON, is the owner's over `payload`.

        Raises AuthenticationError (code ``manifest.signature``).
        """
        from sigstore.models import Bundle
        from sigstore.verify.policy import Identity

        try:
            bundle = Bundle.from_json(signature)
            policy = Identity(identity=owner.subject, issuer=owner.issuer)
            self._verifier.verify_artifact(payload, bundle, policy)
        except Exception as error:  # the library reads hostile bytes: any of its errors refuses
            raise AuthenticationError(
                f"the signature of {owner.describe()} under the manifest does not hold"
                f" ({type(error).__name__})",
                code="manifest.signature",
            ) from None
