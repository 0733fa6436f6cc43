"""A manifest with its signatures and the versions that lead to it, in one document.

::

    {"format": "cloister/manifest-bundle/1", "manifests": [<DSSE envelope>, …]}

The oldest version first, the one in force last, none left out between. What a worker serves may
begin later than version 1: whoever saw one of the versions in it can go on from there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from cloister.errors import MalformedError
from cloister.manifest.dsse import Envelope, parse_envelope
from cloister.manifest.model import (
    MAX_MANIFEST_BYTES,
    PAYLOAD_TYPE,
    Manifest,
    ManifestHeader,
    manifest_digest,
    parse_header,
    parse_manifest,
)
from cloister.strictjson import Json, JsonObject, expect_keys, expect_list, parse_json_object

FORMAT: Final = "cloister/manifest-bundle/1"
MAX_BUNDLE_BYTES: Final = 4 * 1024 * 1024
MAX_LINKS: Final = 1024

_CODE: Final = "manifest.malformed"
_WHAT: Final = "the manifest bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One version in its envelope. Nothing is authenticated."""

    envelope: Envelope
    header: ManifestHeader
    digest: str
    """Of the envelope's payload, lower-case hex."""

    @classmethod
    def of(cls, envelope: Envelope, *, before: Link | None = None) -> Link:
        """Read the header of what is in `envelope`, behind `before`. Raises MalformedError."""
        payload = envelope.payload
        header = parse_header(payload, before=None if before is None else before.header)
        return cls(envelope=envelope, header=header, digest=manifest_digest(payload))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedManifest:
    """A manifest with what leads to it. Nothing is authenticated.

    The versions are of one name, rise by one, and each names the digest of the one before.
    """

    links: tuple[Link, ...] = field(repr=False)
    """The oldest first."""
    manifest: Manifest
    """The version in force: the last one."""

    @property
    def digest(self) -> str:
        """Of the version in force, lower-case hex."""
        return self.links[-1].digest

    @property
    def version(self) -> int:
        """Of the version in force."""
        return self.links[-1].header.version

    def tail(self, limit: int) -> SignedManifest:
        """This with as many of the newest versions as encode to at most `limit` bytes.

        Raises:
            MalformedError: the version in force alone is larger.
        """
        room = limit - len(SignedManifest(links=(), manifest=self.manifest).encode())
        start = len(self.links)
        while start > 0 and (room := room - _encoded_size(self.links[start - 1])) >= -1:
            start -= 1  # the first one of the list has no comma
        if start < len(self.links):
            return SignedManifest(links=self.links[start:], manifest=self.manifest)
        raise MalformedError(f"the manifest has more than {limit} bytes in its bundle", code=_CODE)

    def encode(self) -> bytes:
        """The bundle's JSON."""
        manifests: list[Json] = [link.envelope.to_json() for link in self.links]
        document: JsonObject = {"format": FORMAT, "manifests": manifests}
        return json.dumps(document, separators=(",", ":")).encode()


def _encoded_size(link: Link) -> int:
    """Bytes of one version in a bundle, with a comma."""
    return len(json.dumps(link.envelope.to_json(), separators=(",", ":"))) + 1


def load_bundle(data: bytes) -> SignedManifest:
    """Decode a bundle of at most `MAX_BUNDLE_BYTES`. Nothing is authenticated.

    Raises MalformedError (code ``manifest.malformed``), and nothing else.
    """
    try:
        members = parse_json_object(data, limit=MAX_BUNDLE_BYTES, what=_WHAT)
        expect_keys(members, _WHAT, required={"format", "manifests"})
        if members["format"] != FORMAT:
            raise MalformedError(f"{_WHAT} is not of the format {FORMAT}")
        listed = expect_list(members["manifests"], "manifests", limit=MAX_LINKS)
        links: list[Link] = []
        for entry in listed:
            envelope = parse_envelope(entry, payload_type=PAYLOAD_TYPE, limit=MAX_MANIFEST_BYTES)
            links.append(Link.of(envelope, before=links[-1] if links else None))
        return join(tuple(links))
    except MalformedError as error:
        raise MalformedError(str(error), code=_CODE) from None


def join(links: tuple[Link, ...]) -> SignedManifest:
    """Put versions together, the oldest first. Raises MalformedError if they do not fit."""
    if not links:
        raise MalformedError(f"{_WHAT} holds no manifest", code=_CODE)
    for before, after in pairwise(links):
        check_follows(before, after)
    return SignedManifest(links=links, manifest=parse_manifest(links[-1].envelope.payload))


def check_follows(before: Link, after: Link) -> None:
    """MalformedError unless `after` is the version after `before`, whoever signed it."""
    if after.header.name != before.header.name:
        raise MalformedError("a manifest's name changes from one version to the next", code=_CODE)
    if after.header.version != before.header.version + 1 or after.header.previous != before.digest:
        raise MalformedError(
            f"version {after.header.version} does not follow the version before it in the bundle",
            code=_CODE,
        )
