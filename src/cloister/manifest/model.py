"""The manifest: which models, engines and images may see prompts, and under which policy.

One JSON document in canonical form (RFC 8785); its SHA-256 is the manifest's digest. Every member
is required, so that nothing is decided by leaving it out; ``"unchecked"`` says that one is.
`docs/reference/manifest.md` explains each.

Versions begin with 1 and rise by one. Each names the digest of the one before it
(`cloister.manifest.authenticate` checks who signed what).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final, TypeVar

from cloister.errors import ConfigurationError, MalformedError
from cloister.manifest.entries import (
    EngineEntry,
    ImageEntry,
    ModelEntry,
    Serving,
    parse_engine,
    parse_image,
    parse_model,
    parse_serving,
)
from cloister.manifest.owners import Owners, parse_owners, text
from cloister.strictjson import (
    Json,
    JsonObject,
    canonical,
    expect_hex,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)
from cloister.verifier.policy import UNCHECKED, Checked, Unchecked, dump_fields, parse_fields

FORMAT: Final = "cloister/manifest/1"
PAYLOAD_TYPE: Final = "application/vnd.cloister.manifest+json"
"""Of the envelope that a manifest is signed in."""

MAX_MANIFEST_BYTES: Final = 1024 * 1024
MAX_VERSION: Final = 1 << 31
MAX_MODELS: Final = 64
MAX_ENGINES: Final = 64
MAX_IMAGES: Final = 64
MAX_LIFETIME: Final = timedelta(days=2 * 366)
"""A manifest that never ended could be shown for ever to who never saw a newer one."""

MAX_OVERLAP: Final = timedelta(days=31)
"""Two versions that were in force together for ever would be no update."""

_WHAT: Final = "the manifest"
_MALFORMED: Final = "manifest.malformed"
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_HEADER: Final = frozenset({"format", "name", "version", "previous", "issued", "expires", "owners"})
_ALL: Final = _HEADER | {"models", "engines", "images", "serving", "policy"}
_OVERLAP: Final = "overlap_until"
"""The one member that may be left out: most versions grant no overlap."""
_MAY: Final = frozenset({_OVERLAP})
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestHeader:
    """What chains one manifest to the one before it."""

    name: str
    """Of the service; the same in all versions."""
    version: int
    previous: str | None
    """Digest of the version before, lower-case hex; None for version 1."""
    issued: datetime
    """Aware UTC, whole seconds."""
    expires: datetime
    """Aware UTC, whole seconds; at most `MAX_LIFETIME` after `issued`."""
    owners: Owners
    """Who signs this version, and has to sign the next."""
    overlap_until: datetime | None = None
    """Aware UTC, whole seconds: until when those who have seen this version still accept workers
    under `previous`. None: not at all."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself. MalformedError."""
        if not 1 <= self.version <= MAX_VERSION or (self.version == 1) != (self.previous is None):
            raise MalformedError(f"{_WHAT} names a version before it, or it is version 1")
        if not self.issued < self.expires <= self.issued + MAX_LIFETIME:
            raise MalformedError(
                f"{_WHAT} expires after it was issued, and at most {MAX_LIFETIME.days} days after"
            )
        until = self.overlap_until
        if until is not None and (
            self.previous is None
            or not self.issued < until <= min(self.expires, self.issued + MAX_OVERLAP)
        ):
            raise MalformedError(
                f"{_WHAT} overlaps with a version before it until at most {MAX_OVERLAP.days} days"
                " after it was issued, and not beyond its own end"
            )

    def to_json(self) -> JsonObject:
        """Its members, as the manifest writes them."""
        until = self.overlap_until
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "previous": self.previous,
            "issued": encode_time(self.issued),
            "expires": encode_time(self.expires),
            "owners": self.owners.to_json(),
            **({} if until is None else {_OVERLAP: encode_time(until)}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One version of a manifest, whoever signed it."""

    header: ManifestHeader
    models: tuple[ModelEntry, ...]
    engines: Checked[tuple[EngineEntry, ...]]
    images: tuple[ImageEntry, ...]
    """Alternatives: a worker runs from one of them."""
    serving: Serving
    policy: Mapping[str, object]
    """Fields of an `AppraisalPolicy` with their values; each narrows the client's own."""

    def __post_init__(self) -> None:
        """Refuse two entries of one name. MalformedError."""
        _distinct("models", [model.name for model in self.models])
        _distinct("images", [(image.name, image.version) for image in self.images])
        if not isinstance(self.engines, Unchecked):
            _distinct("engines", [(engine.name, engine.version) for engine in self.engines])

    def to_json(self) -> JsonObject:
        """The manifest as a JSON object."""
        engines = self.engines
        return {
            **self.header.to_json(),
            "models": [model.to_json() for model in self.models],
            "engines": (
                engines.value
                if isinstance(engines, Unchecked)
                else [engine.to_json() for engine in engines]
            ),
            "images": [image.to_json() for image in self.images],
            "serving": self.serving.to_json(),
            "policy": dump_fields(self.policy),
        }

    def encode(self) -> bytes:
        """The canonical bytes, which are signed and hashed."""
        return canonical(self.to_json())

    @property
    def digest(self) -> str:
        """SHA-256 of `encode`, lower-case hex."""
        return manifest_digest(self.encode())

    def model(self, name: str) -> ModelEntry | None:
        """The model that is served under `name`, if the manifest lists it."""
        return next((model for model in self.models if model.name == name), None)


def manifest_digest(payload: bytes) -> str:
    """The digest of a manifest's canonical bytes: SHA-256, lower-case hex."""
    return hashlib.sha256(payload).hexdigest()


def parse_manifest(payload: bytes) -> Manifest:
    """Decode a manifest; `payload` must be its canonical form, at most `MAX_MANIFEST_BYTES`.

    Raises MalformedError (code ``manifest.malformed``), and nothing else.
    """
    manifest = read_manifest(payload)
    if manifest.encode() != payload:
        raise MalformedError(f"{_WHAT} is not in canonical form", code=_MALFORMED)
    return manifest


def read_manifest(document: bytes) -> Manifest:
    """Decode a manifest in any layout, as people write it. Errors as for `parse_manifest`."""
    return _coded(lambda: _manifest(_members(document)))


def parse_header(payload: bytes, *, before: ManifestHeader | None = None) -> ManifestHeader:
    """Decode only what chains a manifest to others. Errors as for `parse_manifest`.

    Owners seldom change: where they are those of the version `before`, they are not read again.
    """
    return _coded(lambda: _header(_members(payload), before))


def encode_time(at: datetime) -> str:
    """``2026-11-29T18:00:00Z``, without fractions."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _coded(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except MalformedError as error:
        raise MalformedError(str(error), code=_MALFORMED) from None


def _members(document: bytes) -> JsonObject:
    members = parse_json_object(document, limit=MAX_MANIFEST_BYTES, what=_WHAT)
    expect_keys(members, _WHAT, required=_ALL, optional=_MAY)
    if members["format"] != FORMAT:
        raise MalformedError(f"{_WHAT} is not of the format {FORMAT}")
    return members


def _header(members: JsonObject, before: ManifestHeader | None = None) -> ManifestHeader:
    previous = members["previous"]
    owners = members["owners"]
    return ManifestHeader(
        name=text(members["name"], "a manifest's name"),
        version=expect_int(members["version"], "a manifest's version", low=1, high=MAX_VERSION),
        previous=None if previous is None else expect_hex(previous, "previous", size=32).hex(),
        issued=parse_time(members["issued"], "issued"),
        expires=parse_time(members["expires"], "expires"),
        owners=(
            before.owners
            if before is not None and before.owners.are_written(owners)
            else parse_owners(owners)
        ),
        overlap_until=parse_time(members[_OVERLAP], _OVERLAP) if _OVERLAP in members else None,
    )


def _manifest(members: JsonObject) -> Manifest:
    models = expect_list(members["models"], "models", limit=MAX_MODELS)
    images = expect_list(members["images"], "images", limit=MAX_IMAGES)
    return Manifest(
        header=_header(members),
        models=tuple(parse_model(entry) for entry in models),
        engines=_engines(members["engines"]),
        images=tuple(parse_image(entry) for entry in images),
        serving=parse_serving(members["serving"]),
        policy=_policy(members["policy"]),
    )


def _engines(value: Json) -> Checked[tuple[EngineEntry, ...]]:
    if value == UNCHECKED.value:
        return UNCHECKED
    listed = expect_list(value, "engines", limit=MAX_ENGINES)
    return tuple(parse_engine(entry) for entry in listed)


def _policy(value: Json) -> Mapping[str, object]:
    try:
        return MappingProxyType(dict(parse_fields(expect_object(value, "policy"))))
    except ConfigurationError as error:
        raise MalformedError(f"{_WHAT}: {error}") from None


def parse_time(value: object, what: str) -> datetime:
    """The time that `encode_time` writes. MalformedError for any other spelling."""
    found = expect_str(value, what, limit=20)
    try:
        if _TIME.fullmatch(found):
            return datetime.fromisoformat(found)
    except ValueError:  # such as the 30th of February
        pass
    raise MalformedError(f"{what} is not a time in UTC, as 2026-11-29T18:00:00Z")


def _distinct(what: str, names: list[str] | list[tuple[str, str]]) -> None:
    if len(set(names)) != len(names):
        raise MalformedError(f"{_WHAT} names two of its {what} alike")
