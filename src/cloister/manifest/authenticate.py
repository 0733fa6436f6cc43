"""Authenticates a manifest: who stands behind it, and that it is not an older or another one.

Steps, in order:

1. The version in force is the one pinned by digest, or has the pinned name and is at least of the
   pinned version.
2. It is in force at the given time.
3. Where to begin: the version remembered, which must be among those that lead here, unaltered; or
   else the newest one that the pinned signers signed, as owners. A version counts only if as many
   of its own owners signed it as it asks for. An older one than the one remembered is accepted
   where that one names it as the version before, and lets it be served until later.
4. From there on each version is signed by as many owners of the one before it as that one asks
   for, and by as many of its own. So an owner who was removed leads nowhere, and nobody is made an
   owner without holding a key.

What the caller still owes: to remember the version (`AuthenticatedManifest.remembered`), and to
check that workers run under this manifest and no other.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final

from cloister.errors import AuthenticationError, UnsupportedError
from cloister.manifest.bundle import Link, SignedManifest
from cloister.manifest.model import Manifest
from cloister.manifest.owners import Owner, Owners
from cloister.manifest.pin import (
    DigestPin,
    ManifestPin,
    Overlap,
    Remembered,
    SignerPin,
    UnsafeUnsignedManifest,
)
from cloister.manifest.signatures import IdentityVerifier, LoadedKeys, Signatures
from cloister.verifier.policy import Unchecked

SKEW: Final = timedelta(minutes=5)
"""How far a clock may be behind that of whoever issued the manifest."""

_GRANT: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticatedManifest:
    """A manifest that somebody known stands behind. Made by `authenticate_bundle` alone."""

    manifest: Manifest
    digest: str
    """Lower-case hex."""
    signers: tuple[Owner, ...]
    """The owners who signed this version."""
    signed: bool
    """False where it was accepted by `UnsafeUnsignedManifest`, whoever may have signed it."""
    handed_over_from: int | None = None
    """Where the pinned signers did not sign this version: the one, signed by them or remembered,
    whose owners began to hand over to those who did."""
    later: Remembered | None = None
    """Where this is the version before the one remembered: that one, which lets it be served."""
    grant: InitVar[object] = None

    def __post_init__(self, grant: object) -> None:
        """Refuse to be made by anybody else."""
        if grant is not _GRANT:
            raise TypeError("only authenticate_bundle makes authenticated manifests")

    @property
    def version(self) -> int:
        """Of the manifest."""
        return self.manifest.header.version

    @property
    def remembered(self) -> Remembered:
        """What to remember: this version, or the later one that was remembered already."""
        if self.later is not None:
            return self.later
        header = self.manifest.header
        overlap = None
        if header.previous is not None and header.overlap_until is not None:
            overlap = Overlap(sha256=header.previous, until=header.overlap_until)
        return Remembered(version=self.version, sha256=self.digest, overlap=overlap)

    @property
    def expires(self) -> datetime:
        """Until when a worker may be believed by it, aware UTC."""
        expires = self.manifest.header.expires
        if self.later is None or self.later.overlap is None:
            return expires
        return min(expires, self.later.overlap.until)


def authenticate_bundle(
    signed: SignedManifest,
    pin: ManifestPin,
    *,
    at: datetime,
    remembered: Remembered | None = None,
    identities: IdentityVerifier | None = None,
) -> AuthenticatedManifest:
    """Check `signed` against `pin` at the time `at` (aware).

    `remembered` is the highest version accepted under this pin before, None if there was none.
    Without `identities`, signatures through Sigstore are not counted.

    Raises:
        AuthenticationError: it is not what was pinned, or older or other than what is remembered
            (codes ``manifest.*``).
        UnsupportedError: whether enough owners signed depends on signatures that this installation
            cannot check (``manifest.identities``).
        ValueError: `at` has no time zone.
    """
    if at.tzinfo is None:
        raise ValueError("the time of verification needs a time zone")
    links = signed.links
    _check_pinned(signed, pin)
    _check_time(signed, at.astimezone(UTC))
    keys = LoadedKeys()
    checks = [Signatures(link.envelope, identities, keys) for link in links]
    if isinstance(pin, UnsafeUnsignedManifest):
        return AuthenticatedManifest(
            manifest=signed.manifest,
            digest=signed.digest,
            signers=checks[-1].by(links[-1].header.owners.listed),
            signed=False,
            grant=_GRANT,
        )
    later = remembered if remembered is not None and _overlaps(links, remembered, at) else None
    if later is not None:
        start = len(links) - 1  # named by its digest; what led to it says nothing more
    elif remembered is not None:
        start = _find_remembered(links, remembered)
    elif isinstance(pin, SignerPin):
        start = _find_signed(links, checks, pin)
    else:
        start = len(links) - 1
    _require(links[start].header.owners, checks[start], links[start], "its own owners")
    for before, after in pairwise(range(start, len(links))):
        owners = links[before].header.owners
        _require(owners, checks[after], links[after], "the owners of the version before it")
        if links[after].header.owners is not owners:
            _require(links[after].header.owners, checks[after], links[after], "its own owners")
    return AuthenticatedManifest(
        manifest=signed.manifest,
        digest=signed.digest,
        signers=checks[-1].by(links[-1].header.owners.listed),
        signed=True,
        handed_over_from=_handed_over(links, checks, pin, start),
        later=later,
        grant=_GRANT,
    )


def _check_pinned(signed: SignedManifest, pin: ManifestPin) -> None:
    """Step 1."""
    header = signed.manifest.header
    if isinstance(pin, DigestPin) and signed.digest != pin.sha256:
        raise AuthenticationError(
            f"the manifest is another one than you pinned: it has the SHA-256 {signed.digest}",
            code="manifest.digest",
        )
    if isinstance(pin, SignerPin):
        if not isinstance(pin.name, Unchecked) and header.name != pin.name:
            raise AuthenticationError(
                f"the manifest is that of {header.name}, not of {pin.name}", code="manifest.name"
            )
        if header.version < pin.minimum_version:
            raise AuthenticationError(
                f"the manifest is version {header.version}; you accept no version below"
                f" {pin.minimum_version}",
                code="manifest.version",
            )


def _check_time(signed: SignedManifest, at: datetime) -> None:
    """Step 2. Versions before the last may have expired."""
    header = signed.manifest.header
    if at >= header.expires:
        raise AuthenticationError(
            f"the manifest expired at {header.expires:%Y-%m-%d %H:%M} UTC; its owners have to sign"
            " another version",
            code="manifest.expired",
        )
    if at < header.issued - SKEW:
        raise AuthenticationError(
            f"the manifest was issued at {header.issued:%Y-%m-%d %H:%M} UTC, which is still to"
            " come: a clock is wrong",
            code="manifest.not_yet",
        )


def _overlaps(links: tuple[Link, ...], remembered: Remembered, at: datetime) -> bool:
    """Step 3: whether this is the version before the remembered one, which lets it be served."""
    overlap = remembered.overlap
    return (
        overlap is not None
        and links[-1].header.version == remembered.version - 1
        and links[-1].digest == overlap.sha256
        and at < overlap.until
    )


def _find_remembered(links: tuple[Link, ...], remembered: Remembered) -> int:
    """Step 3, for who has seen the manifest before: where the remembered version is."""
    newest = links[-1].header.version
    if newest < remembered.version:
        raise AuthenticationError(
            f"the manifest is version {newest}, older than version {remembered.version}, which you"
            " accepted before"
            + ("" if remembered.overlap is None else "; where they overlapped, that is over now"),
            code="manifest.rollback",
        )
    index = len(links) - 1 - (newest - remembered.version)
    if index < 0:
        raise AuthenticationError(
            f"nothing shows how version {newest} of the manifest follows from version"
            f" {remembered.version}, which you accepted before: get the bundle with every version",
            code="manifest.gap",
        )
    if links[index].digest != remembered.sha256:
        raise AuthenticationError(
            f"version {remembered.version} of the manifest is not the one that you accepted before:"
            " there are two, and somebody forked it",
            code="manifest.fork",
        )
    return index


def _find_signed(links: tuple[Link, ...], checks: list[Signatures], pin: SignerPin) -> int:
    """Step 3, for who has not: the newest version that the pinned signers signed as owners."""
    undecided = False
    for index in reversed(range(len(links))):
        if len(_pinned_signers(links[index], checks[index], pin)) >= pin.threshold:
            return index
        undecided = undecided or checks[index].undecided
    if undecided:
        raise _cannot_decide()
    raise AuthenticationError(
        "no version of the manifest is signed by whom you pinned ("
        + ", ".join(signer.describe() for signer in pin.signers)
        + ")",
        code="manifest.signer",
    )


def _pinned_signers(link: Link, check: Signatures, pin: SignerPin) -> tuple[Owner, ...]:
    """The pinned signers who signed `link`, of those whom it lists as owners."""
    pinned = {signer.key_id for signer in pin.signers}
    return check.by(owner for owner in link.header.owners.listed if owner.key_id in pinned)


def _require(owners: Owners, check: Signatures, link: Link, who: str) -> None:
    """Step 4: as many of `owners` as they agreed on signed `link`."""
    found = check.by(owners.listed)
    if len(found) >= owners.threshold:
        return
    if check.undecided:
        raise _cannot_decide()
    raise AuthenticationError(
        f"version {link.header.version} of the manifest is signed by {len(found)} of {who}, who"
        f" have to be {owners.threshold}",
        code="manifest.threshold",
    )


def _handed_over(
    links: tuple[Link, ...], checks: list[Signatures], pin: ManifestPin, start: int
) -> int | None:
    """The version whose owners handed over to others, where no pinned signer signed the last."""
    if not isinstance(pin, SignerPin):
        return None
    if len(_pinned_signers(links[-1], checks[-1], pin)) >= pin.threshold:
        return None
    return links[start].header.version


def _cannot_decide() -> UnsupportedError:
    return UnsupportedError(
        "whether enough owners signed the manifest depends on a signature through Sigstore, which"
        " cannot be checked here: install cloister[sigstore], and name a trusted root",
        code="manifest.identities",
    )
