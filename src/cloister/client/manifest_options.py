"""How a caller says which manifest to trust, in files and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from cloister.client import locked_file
from cloister.client.manifest_memory import FileMemory, ManifestMemory, default_path
from cloister.errors import ConfigurationError, MalformedError
from cloister.manifest.bundle import MAX_BUNDLE_BYTES, SignedManifest, load_bundle
from cloister.manifest.owners import KeyOwner, Owner, SigstoreOwner
from cloister.manifest.pin import DigestPin, ManifestPin, SignerPin, UnsafeUnsignedManifest
from cloister.manifest.signing import load_owner
from cloister.verifier.policy import UNCHECKED

if TYPE_CHECKING:
    from cloister.client.manifest_trust import ManifestTrust
    from cloister.endorsements.roots import Roots
    from cloister.manifest.signatures import IdentityVerifier
    from cloister.verifier.policy import AppraisalPolicy

SIGSTORE_PREFIX: Final = "sigstore:"
_MAX_KEY: Final = 64 * 1024

SignerLike: TypeAlias = str | Path | Owner
"""An owner, the file of their public key (PEM), or ``sigstore:IDENTITY,ISSUER``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestOptions:
    """Which manifest to trust. `given` says whether any."""

    signers: Sequence[SignerLike] = ()
    """Anything signed by one of them."""
    bundle: str | Path | None = None
    """A bundle's file. Without signers its manifest is the only one accepted; with them it stands
    for what the worker would staple."""
    digest: str | None = None
    """The only manifest accepted, by its SHA-256."""
    minimum_version: int | None = None
    name: str | None = None
    memory: str | Path | ManifestMemory | None = None
    """Where accepted versions are remembered; None for `default_path`."""
    unsafe_unsigned: bool = False
    """Accept the bundle, or what the worker staples, whoever wrote it."""
    sigstore_root: str | Path | None = None
    """Sigstore's trusted root (JSON), for signers by identity."""

    @property
    def given(self) -> bool:
        """Whether a manifest is asked for at all. ConfigurationError if one is only half named."""
        named = bool(self.signers) or self.bundle is not None or self.digest is not None
        rest = (self.minimum_version, self.name, self.memory, self.sigstore_root)
        if not named and not self.unsafe_unsigned and any(one is not None for one in rest):
            raise ConfigurationError(
                "a version, name, memory or Sigstore root of manifests says nothing without a"
                " signer: name whom you trust (--signer), or the manifest (--manifest)",
                code="manifest.pin",
            )
        return named or self.unsafe_unsigned

    def trust(self, *, policy: AppraisalPolicy, roots: Roots) -> ManifestTrust:
        """The verifier that these options describe.

        Raises:
            ConfigurationError: they contradict each other, or a file cannot be read.
            UnsupportedError: a signer by identity, and Sigstore's library is not installed.
        """
        from cloister.client.manifest_trust import ManifestTrust

        bundle = None if self.bundle is None else read_bundle(Path(self.bundle))
        return ManifestTrust(
            policy=policy,
            roots=roots,
            pin=self._pin(bundle),
            memory=self._memory(),
            bundle=bundle,
            identities=self._identities(),
        )

    def _pin(self, bundle: SignedManifest | None) -> ManifestPin:
        signers = tuple(read_signer(one) for one in self.signers)
        if len([one for one in (signers, self.digest, self.unsafe_unsigned) if one]) > 1:
            raise ConfigurationError(
                "a manifest is pinned by its signers, or by its digest, or not at all: name one",
                code="manifest.pin",
            )
        if signers:
            return SignerPin(
                signers=signers,
                minimum_version=1 if self.minimum_version is None else self.minimum_version,
                name=UNCHECKED if self.name is None else self.name,
            )
        if self.minimum_version is not None or self.name is not None:
            raise ConfigurationError(
                "a minimum version, or a name, goes with signers", code="manifest.pin"
            )
        if self.unsafe_unsigned:
            return UnsafeUnsignedManifest()
        if self.digest is not None:
            return DigestPin(sha256=self.digest.removeprefix("sha256:"))
        if bundle is None:
            raise RuntimeError("a pin is asked for where no manifest is named")
        return DigestPin(sha256=bundle.digest)

    def _memory(self) -> ManifestMemory:
        memory = self.memory
        if memory is None:
            return FileMemory(default_path())
        if isinstance(memory, str | Path):
            return FileMemory(Path(memory).expanduser())
        return memory

    def _identities(self) -> IdentityVerifier | None:
        if self.sigstore_root is None:
            return None
        from cloister.manifest.sigstore_identity import SigstoreIdentities

        return SigstoreIdentities.from_trusted_root(Path(self.sigstore_root))


def read_signer(given: SignerLike) -> Owner:
    """The owner that `given` names. ConfigurationError if it names none."""
    if isinstance(given, KeyOwner | SigstoreOwner):
        return given
    text = str(given)
    if text.startswith(SIGSTORE_PREFIX):
        subject, _, issuer = text.removeprefix(SIGSTORE_PREFIX).rpartition(",")
        if not subject or not issuer:
            raise ConfigurationError(
                "a signer by identity is written sigstore:IDENTITY,ISSUER", code="manifest.pin"
            )
        return SigstoreOwner(name="pinned", subject=subject, issuer=issuer)
    path = Path(text).expanduser()
    return load_owner(path.stem, read_file(path, limit=_MAX_KEY))


def read_bundle(path: Path) -> SignedManifest:
    """Read a bundle from a file. ConfigurationError if that cannot be."""
    try:
        return load_bundle(read_file(path, limit=MAX_BUNDLE_BYTES))
    except MalformedError as error:
        raise ConfigurationError(f"{path}: {error}", code=error.code) from None


def read_file(path: Path, *, limit: int = MAX_BUNDLE_BYTES) -> bytes:
    """The bytes of a file that has to be there, at most `limit`. ConfigurationError otherwise."""
    path = path.expanduser()
    try:
        data = locked_file.read(path, limit)
    except OSError as error:
        raise _unreadable(path, error.strerror or "unknown reason") from None
    if data is None:
        raise _unreadable(path, "no such file")
    if len(data) > limit:
        raise _unreadable(path, "it is too large")
    return data


def _unreadable(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(f"{path} cannot be read: {why}", code="manifest.file")
