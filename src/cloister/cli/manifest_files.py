"""Files of ``cloister manifest``: drafts to edit, envelopes that wait for signatures, bundles.

A draft is a manifest in a layout for people; nobody signed it. Beside ``chat.json`` lies
``chat.signed.json`` while owners sign one after the other. The bundle is what everybody else gets.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Final

from cloister.client import locked_file
from cloister.client.manifest_options import read_bundle, read_file
from cloister.errors import AuthenticationError, ConfigurationError, MalformedError
from cloister.manifest.authenticate import AuthenticatedManifest, authenticate_bundle
from cloister.manifest.bundle import MAX_BUNDLE_BYTES, SignedManifest, load_bundle
from cloister.manifest.dsse import Envelope, parse_envelope
from cloister.manifest.model import (
    MAX_MANIFEST_BYTES,
    PAYLOAD_TYPE,
    Manifest,
    read_manifest,
)
from cloister.manifest.pin import DigestPin, Remembered
from cloister.manifest.signatures import IdentityVerifier
from cloister.manifest.signing import first_version, updated
from cloister.strictjson import parse_json_object

_PUBLIC: Final = 0o644
"""A manifest is for everybody to read."""


def read_draft(path: Path) -> Manifest:
    """Read a draft. ConfigurationError if it is none."""
    try:
        return read_manifest(read_file(path, limit=MAX_MANIFEST_BYTES))
    except MalformedError as error:
        raise ConfigurationError(f"{path}: {error}", code=error.code) from None


def write_draft(path: Path, manifest: Manifest) -> None:
    """Write a draft in place of an older one. ConfigurationError if that cannot be."""
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False) + "\n"
    _write(path, text.encode())


def envelope_path(draft: Path) -> Path:
    """Where signatures of `draft` are gathered."""
    return draft.with_name(f"{draft.stem}.signed.json")


def read_envelope(path: Path, payload: bytes) -> Envelope:
    """The envelope at `path`, or one without signatures; it is of exactly `payload`.

    ConfigurationError where somebody signed another state of the draft.
    """
    if not path.exists():
        return Envelope(payload_type=PAYLOAD_TYPE, payload=payload)
    try:
        members = parse_json_object(read_file(path), limit=MAX_BUNDLE_BYTES, what="the envelope")
        found = parse_envelope(members, payload_type=PAYLOAD_TYPE, limit=MAX_MANIFEST_BYTES)
    except MalformedError as error:
        raise ConfigurationError(f"{path}: {error}", code="manifest.malformed") from None
    if found.payload != payload:
        raise ConfigurationError(
            f"the draft was changed since somebody signed it: {path} is of another manifest. Remove"
            " it, and ask them to sign again",
            code="manifest.changed",
        )
    return found


def write_envelope(path: Path, envelope: Envelope) -> None:
    """Keep signatures that are not enough yet. ConfigurationError if that cannot be."""
    _write(path, json.dumps(envelope.to_json(), indent=1).encode())


def append_version(
    path: Path, envelope: Envelope, *, at: datetime, identities: IdentityVerifier | None
) -> AuthenticatedManifest:
    """Put a version behind those in the bundle at `path`, or begin one, and authenticate it.

    Only one process at a time does, and it looks at what is there then: of two updates of one
    version the second is refused.

    Raises:
        AuthenticationError: somebody else was first (``manifest.conflict``), or too few owners
            signed (``manifest.threshold``); nothing is written.
        ConfigurationError: the file cannot be read or written.
    """
    try:
        with locked_file.held(path):
            signed = _with_version(path, envelope)
            before = signed.links[-2] if len(signed.links) > 1 else None
            accepted = authenticate_bundle(
                signed,
                DigestPin(sha256=signed.digest),
                at=at,
                remembered=(
                    None
                    if before is None
                    else Remembered(version=before.header.version, sha256=before.digest)
                ),
                identities=identities,
            )
            locked_file.replace(path, signed.encode(), mode=_PUBLIC)
    except OSError as error:
        raise _unwritable(path, error) from None
    return accepted


def check_conflict(path: Path, envelope: Envelope) -> None:
    """AuthenticationError (``manifest.conflict``) if the bundle has gone on without this draft."""
    _with_version(path, envelope)


def _with_version(path: Path, envelope: Envelope) -> SignedManifest:
    if path.exists():
        return updated(read_bundle(path), envelope)
    signed = first_version(envelope)
    if signed.version != 1:
        raise AuthenticationError(
            f"this is version {signed.version}, and there is no bundle at {path} that it could be"
            " put behind",
            code="manifest.conflict",
        )
    return signed


def read_any(path: Path) -> Manifest:
    """The manifest of a draft, or the one in force of a bundle. ConfigurationError for others."""
    data = read_file(path)
    try:
        members = parse_json_object(data, limit=MAX_BUNDLE_BYTES, what=str(path))
        return load_bundle(data).manifest if "manifests" in members else read_manifest(data)
    except MalformedError as error:
        raise ConfigurationError(f"{path}: {error}", code="manifest.malformed") from None


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        locked_file.replace(path, data, mode=_PUBLIC)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be written: {error.strerror or 'another process holds it'}",
        code="manifest.file",
    )
