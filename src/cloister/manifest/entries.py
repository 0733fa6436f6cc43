"""What a manifest lists: models, engines, images, and how conversations are served."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cloister.errors import MalformedError
from cloister.manifest.owners import text
from cloister.strictjson import (
    Json,
    JsonObject,
    expect_hex,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
)
from cloister.verifier.policy import UNCHECKED, Checked, Unchecked
from cloister.verifier.reference_values import ReferenceValues, parse_reference_values

MAX_EGRESS: Final = 64

_FORMAT: Final = re.compile(r"[a-z0-9][a-z0-9+._-]{0,31}")
# A repository, a type and a tag, each a name without a way out of the broker's tree.
_KEY_URI: Final = re.compile(r"kbs://(?:/[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}){3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedWeights:
    """How a model's weights are encrypted."""

    key: str
    """The key's address at a broker: ``kbs:///<repository>/<type>/<tag>``."""
    header_sha256: str
    """Lower-case hex, of the sealed file's header."""

    def to_json(self) -> JsonObject:
        """The member as the manifest writes it."""
        return {"key": self.key, "header_sha256": self.header_sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model that may read prompts."""

    name: str
    """As the worker serves it."""
    format: str
    """``gguf``, ``safetensors``, …"""
    sha256: str
    """Lower-case hex, of the plain model (`cloister.model_digest`)."""
    sealed: SealedWeights | None = None

    def to_json(self) -> JsonObject:
        """The entry as the manifest writes it."""
        return {
            "name": self.name,
            "format": self.format,
            "sha256": self.sha256,
            "sealed": None if self.sealed is None else self.sealed.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
    """An engine that may read prompts, in one version."""

    name: str
    version: str

    def to_json(self) -> JsonObject:
        """The entry as the manifest writes it."""
        return {"name": self.name, "version": self.version}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEntry:
    """An image, or an installation, that workers may run from, and what it measures as."""

    name: str
    version: str
    debug: bool
    """Whether somebody can look into it while it runs."""
    reference_values: ReferenceValues

    def __post_init__(self) -> None:
        """Refuse an image that its own build calls otherwise. MalformedError."""
        built = {(one.name, one.version, one.debug) for one in self.reference_values.images}
        if built - {(self.name, self.version, self.debug)}:
            raise MalformedError(
                "an image's name, version or debug are not those that its reference values name"
            )

    def to_json(self) -> JsonObject:
        """The entry as the manifest writes it."""
        return {
            "name": self.name,
            "version": self.version,
            "debug": self.debug,
            "reference_values": self.reference_values.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Bounds on the worker's measured configuration; each is a value or `UNCHECKED`."""

    egress: Checked[tuple[str, ...]] = UNCHECKED
    """Where the worker may connect to, ``host:port`` each; empty for nowhere."""
    receipts_keep_s: Checked[int] = UNCHECKED
    """Seconds for which a receipt may be looked up, at most."""
    stream_bucket: Checked[int] = UNCHECKED
    """Bytes that pieces of a stream are padded to, at least."""
    body_bucket: Checked[int] = UNCHECKED
    """Bytes that whole answers are padded to, at least."""

    def to_json(self) -> JsonObject:
        """The member as the manifest writes it."""
        egress = self.egress
        return {
            "egress": egress.value if isinstance(egress, Unchecked) else list[Json](egress),
            "receipts_keep_s": _number_to_json(self.receipts_keep_s),
            "stream_bucket": _number_to_json(self.stream_bucket),
            "body_bucket": _number_to_json(self.body_bucket),
        }


def parse_model(value: object) -> ModelEntry:
    """Read one model. Raises MalformedError, and nothing else."""
    what = "a model of the manifest"
    members = expect_object(value, what)
    expect_keys(members, what, required={"name", "format", "sha256", "sealed"})
    kind = expect_str(members["format"], "a model's format", limit=32)
    if not _FORMAT.fullmatch(kind):
        raise MalformedError("a model's format is not a word in small letters")
    return ModelEntry(
        name=text(members["name"], "a model's name"),
        format=kind,
        sha256=expect_hex(members["sha256"], "a model's sha256", size=32).hex(),
        sealed=None if members["sealed"] is None else parse_sealed(members["sealed"]),
    )


def parse_sealed(value: object) -> SealedWeights:
    """Read how a model is encrypted. Raises MalformedError, and nothing else."""
    what = "a model's member `sealed`"
    members = expect_object(value, what)
    expect_keys(members, what, required={"key", "header_sha256"})
    key = expect_str(members["key"], "a key's address", limit=400)
    if not _KEY_URI.fullmatch(key):
        raise MalformedError("a key's address is not kbs:///<repository>/<type>/<tag>")
    return SealedWeights(
        key=key, header_sha256=expect_hex(members["header_sha256"], "header_sha256", size=32).hex()
    )


def parse_engine(value: object) -> EngineEntry:
    """Read one engine. Raises MalformedError, and nothing else."""
    what = "an engine of the manifest"
    members = expect_object(value, what)
    expect_keys(members, what, required={"name", "version"})
    return EngineEntry(
        name=text(members["name"], "an engine's name"),
        version=text(members["version"], "an engine's version"),
    )


def parse_image(value: object) -> ImageEntry:
    """Read one image. Raises MalformedError, and nothing else."""
    what = "an image of the manifest"
    members = expect_object(value, what)
    expect_keys(members, what, required={"name", "version", "debug", "reference_values"})
    if not isinstance(members["debug"], bool):
        raise MalformedError("an image does not say whether it is for debugging")
    listed = expect_object(members["reference_values"], "an image's reference values")
    return ImageEntry(
        name=text(members["name"], "an image's name"),
        version=text(members["version"], "an image's version"),
        debug=members["debug"],
        reference_values=parse_reference_values(listed),
    )


def parse_serving(value: object) -> Serving:
    """Read the bounds on the configuration. Raises MalformedError, and nothing else."""
    what = "serving"
    members = expect_object(value, what)
    expect_keys(
        members, what, required={"egress", "receipts_keep_s", "stream_bucket", "body_bucket"}
    )
    return Serving(
        egress=_egress(members["egress"]),
        receipts_keep_s=_number(members, "receipts_keep_s"),
        stream_bucket=_number(members, "stream_bucket"),
        body_bucket=_number(members, "body_bucket"),
    )


def _egress(value: Json) -> Checked[tuple[str, ...]]:
    if value == UNCHECKED.value:
        return UNCHECKED
    listed = expect_list(value, "egress", limit=MAX_EGRESS)
    return tuple(sorted({text(entry, "a destination of egress") for entry in listed}))


def _number(members: Mapping[str, Json], name: str) -> Checked[int]:
    value = members[name]
    return UNCHECKED if value == UNCHECKED.value else expect_int(value, name, high=1 << 31)


def _number_to_json(value: Checked[int]) -> Json:
    return value.value if isinstance(value, Unchecked) else value
