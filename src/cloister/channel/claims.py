"""The claims document: what a worker is running as, in one canonical JSON.

Its digest is the keyset's ``subject`` (``cloister:sha256:<hex>``), so the statement, and with
it the hardware's signature, binds it. Nothing in it points back at the statement.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cloister.channel.keyset import CLAIMS_SUBJECT_PREFIX
from cloister.errors import MalformedError
from cloister.strictjson import (
    Json,
    JsonObject,
    canonical,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)

CLAIMS_VERSION = "cloister/claims/1"
MAX_CLAIMS_BYTES = 256 * 1024
MAX_MODELS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelClaim:
    """A model by name and by the SHA-256 of its file; ``None`` where the digest is unproven."""

    name: str
    sha256: str | None

    def to_json(self) -> JsonObject:
        """The entry as the document writes it."""
        return {"name": self.name, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimsDocument:
    """Models, effective configuration and isolation of one running worker."""

    models: tuple[ModelClaim, ...]
    configuration: JsonObject
    isolation: str
    """How the engine is held: ``bubblewrap+seccomp+landlock``, ``none (unsafe)``, …"""
    manifest_sha256: str | None = None
    gpu_evidence_sha256: tuple[str, ...] = field(default=())

    def encode(self) -> bytes:
        """The canonical bytes that the report ships and the subject's digest covers."""
        models: list[Json] = [model.to_json() for model in self.models]
        gpus: list[Json] = list(self.gpu_evidence_sha256)
        document: JsonObject = {
            "configuration": self.configuration,
            "gpu_evidence_sha256": gpus,
            "isolation": self.isolation,
            "manifest_sha256": self.manifest_sha256,
            "models": models,
            "version": CLAIMS_VERSION,
        }
        return canonical(document)

    @property
    def subject(self) -> str:
        """What the keyset's ``subject`` must be for this document."""
        return CLAIMS_SUBJECT_PREFIX + hashlib.sha256(self.encode()).hexdigest()


def parse_claims(data: bytes) -> ClaimsDocument:
    """Decode a claims document; `data` must be its canonical form, at most 256 KiB.

    Raises MalformedError, and nothing else.
    """
    what = "the claims document"
    members = parse_json_object(data, limit=MAX_CLAIMS_BYTES, what=what)
    expect_keys(
        members,
        what,
        required={
            "configuration",
            "gpu_evidence_sha256",
            "isolation",
            "manifest_sha256",
            "models",
            "version",
        },
    )
    if members["version"] != CLAIMS_VERSION:
        raise MalformedError(f"{what} is not of version {CLAIMS_VERSION}")
    document = ClaimsDocument(
        models=tuple(
            _model(entry) for entry in expect_list(members["models"], "models", limit=MAX_MODELS)
        ),
        configuration=expect_object(members["configuration"], "the configuration"),
        isolation=expect_str(members["isolation"], "the isolation", limit=256),
        manifest_sha256=_digest_or_none(members["manifest_sha256"], "manifest_sha256"),
        gpu_evidence_sha256=tuple(
            _digest(entry, "gpu_evidence_sha256")
            for entry in expect_list(
                members["gpu_evidence_sha256"], "gpu_evidence_sha256", limit=64
            )
        ),
    )
    if document.encode() != data:
        raise MalformedError(f"{what} is not in canonical form")
    return document


def _model(value: object) -> ModelClaim:
    members = expect_object(value, "a model claim")
    expect_keys(members, "a model claim", required={"name", "sha256"})
    return ModelClaim(
        name=expect_str(members["name"], "a model's name", limit=512),
        sha256=_digest_or_none(members["sha256"], "a model's sha256"),
    )


def _digest(value: object, what: str) -> str:
    text = expect_str(value, what, limit=64)
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise MalformedError(f"{what} is not 64 lower-case hex characters")
    return text


def _digest_or_none(value: object, what: str) -> str | None:
    return None if value is None else _digest(value, what)
