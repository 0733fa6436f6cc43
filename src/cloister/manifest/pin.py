"""What a relying party knows of a manifest beforehand, and what it remembers of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from cloister.errors import ConfigurationError
from cloister.manifest.owners import Owner
from cloister.strictjson import canonical
from cloister.verifier.policy import UNCHECKED, Checked, Unchecked

_CODE: Final = "manifest.pin"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerPin:
    """Any manifest that these owners signed, or handed over, from a minimum version on."""

    signers: tuple[Owner, ...]
    minimum_version: int = 1
    threshold: int = 1
    """How many of `signers` must have signed."""
    name: Checked[str] = UNCHECKED
    """Of the service: who signs for several needs it to tell them apart."""

    def __post_init__(self) -> None:
        """Refuse a pin that nothing, or anything, would fit."""
        ids = {signer.key_id for signer in self.signers}
        if len(ids) != len(self.signers) or not 1 <= self.threshold <= len(ids):
            raise ConfigurationError(
                "a pin names signers, each once, and how many of them must have signed", code=_CODE
            )
        if self.minimum_version < 1:
            raise ConfigurationError("versions of a manifest begin with 1", code=_CODE)

    @property
    def pin_id(self) -> str:
        """``sha256:<hex>``: what is remembered under this pin. The minimum may rise later.

        Taken from the pin alone, never from a manifest, which could choose another.
        """
        name = None if isinstance(self.name, Unchecked) else self.name
        identity = {
            "name": name,
            "signers": sorted(signer.key_id for signer in self.signers),
            "threshold": self.threshold,
        }
        return "sha256:" + hashlib.sha256(canonical(identity)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestPin:
    """Exactly one manifest. Its own owners must have signed it all the same."""

    sha256: str
    """Lower-case hex."""

    def __post_init__(self) -> None:
        """Refuse what is no digest: nothing would ever match it."""
        if len(self.sha256) != 64 or not set(self.sha256) <= set("0123456789abcdef"):
            raise ConfigurationError(
                "a manifest's digest is 64 lower-case hexadecimal digits", code=_CODE
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsafeUnsignedManifest:
    """Whatever manifest there is, signed or not: whoever can write the file decides everything."""


ManifestPin: TypeAlias = SignerPin | DigestPin | UnsafeUnsignedManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """The version before, which may still be served while its workers are replaced."""

    sha256: str
    """Its digest, lower-case hex."""
    until: datetime
    """Aware UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """The highest version that was ever accepted under a pin."""

    version: int
    sha256: str
    """Lower-case hex."""
    overlap: Overlap | None = field(default=None, compare=False)
    """What its owners signed in it about the version before. The digest stands for it."""
