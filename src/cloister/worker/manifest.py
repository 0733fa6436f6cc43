"""The manifest that a worker runs under: it serves nothing that the manifest does not list.

Its digest is in the measured configuration, and so in the claims document. The bundle itself is
the operator's to keep up to date: it counts only if the manifest in it has that digest. What a
client would refuse is refused here already, before a model is loaded.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

from cloister.channel.claims import ClaimsDocument
from cloister.errors import (
    AuthenticationError,
    ConfigurationError,
    MalformedError,
    UnsupportedError,
)
from cloister.manifest.authenticate import AuthenticatedManifest, authenticate_bundle
from cloister.manifest.bundle import MAX_BUNDLE_BYTES, SignedManifest, load_bundle
from cloister.manifest.pin import DigestPin
from cloister.manifest.signatures import IdentityVerifier
from cloister.manifest.terms import broken_terms

MAX_STAPLED_BYTES: Final = 384 * 1024
"""Of the bundle in a report. A client takes reports of a mebibyte, base64 included; who saw none of
the versions that fit needs the whole bundle from elsewhere."""

_CODE: Final = "configuration.manifest"


def manifest_to_serve(path: Path | None, claims: ClaimsDocument, *, at: datetime) -> bytes | None:
    """The bundle to staple to reports, for a worker that `claims` describe; None without one.

    Raises:
        ConfigurationError: the bundle is missing, is not of the manifest that the configuration
            names, is not in force, or does not list the worker (``configuration.manifest``).
    """
    if path is None and claims.manifest_sha256 is None:
        return None
    if path is None or claims.manifest_sha256 is None:
        raise ConfigurationError(
            "a manifest has to be both in the worker's measured configuration, by its digest, and"
            " in the operator's settings, as a bundle",
            code=_CODE,
        )
    signed = read_bundle(path)
    manifest = require_in_force(signed, at=at, sha256=claims.manifest_sha256)
    require_terms(claims, manifest)
    try:
        return signed.tail(MAX_STAPLED_BYTES).encode()
    except MalformedError as error:
        raise ConfigurationError(str(error), code=_CODE) from None


def read_bundle(path: Path) -> SignedManifest:
    """Read a bundle. ConfigurationError if that cannot be."""
    try:
        with path.open("rb") as file:
            return load_bundle(file.read(MAX_BUNDLE_BYTES + 1))
    except OSError as error:
        raise ConfigurationError(
            f"the manifest's bundle {path} cannot be read: {error.strerror}", code=_CODE
        ) from None
    except MalformedError as error:
        raise ConfigurationError(f"{path}: {error}", code=_CODE) from None


def require_in_force(
    signed: SignedManifest,
    *,
    at: datetime,
    sha256: str | None = None,
    identities: IdentityVerifier | None = None,
) -> AuthenticatedManifest:
    """The manifest, if its own owners signed it and it is in force; and has `sha256` if given.

    Whether these owners are anybody's to trust is for clients to say. ConfigurationError otherwise.
    """
    pin = DigestPin(sha256=signed.digest if sha256 is None else sha256)
    try:
        return authenticate_bundle(signed, pin, at=at, identities=identities)
    except (AuthenticationError, UnsupportedError) as error:
        raise ConfigurationError(
            f"no worker starts under this manifest: {error}", code=_CODE
        ) from (None)


def require_terms(claims: ClaimsDocument, manifest: AuthenticatedManifest) -> None:
    """ConfigurationError unless the worker that `claims` describe is one that the manifest lists.

    Its image and the hardware are not looked at: only clients can believe what is said of those.
    """
    broken = broken_terms(claims, manifest)
    if broken:
        raise ConfigurationError(
            f"the worker is not what its manifest lists. {' '.join(broken)}", code=_CODE
        )
