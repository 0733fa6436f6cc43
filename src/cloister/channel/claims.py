"""The claims document: what a worker is running as, in one canonical JSON.

Its digest is the keyset's ``subject`` (``cloister:sha256:<hex>``), so the statement, and with
it the hardware's signature, binds it. Nothing in it points back at the statement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloister.channel.keyset import CLAIMS_SUBJECT_PREFIX
from cloister.errors import MalformedError
from cloister.model_digest import Role, model_digest
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
    """A model by name and digest (`cloister.model_digest`); ``None`` where that is unproven.

    `files` holds the digest of each file by its role where there are several, and is empty where
    `sha256` is the file's own.
    """

    name: str
    sha256: str | None
    files: Mapping[Role, str] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """The entry as the document writes it."""
        files: JsonObject = {role.value: digest for role, digest in self.files.items()}
        entry: JsonObject = {"name": self.name, "sha256": self.sha256}
        return {**entry, "files": files} if files else entry

    @property
    def digests(self) -> frozenset[str]:
        """Every digest in it: the model's and its files'."""
        return frozenset(self.files.values()) | ({self.sha256} if self.sha256 else frozenset())


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
    expect_keys(members, "a model claim", required={"name", "sha256"}, optional={"files"})
    claim = ModelClaim(
        name=expect_str(members["name"], "a model's name", limit=512),
        sha256=_digest_or_none(members["sha256"], "a model's sha256"),
        files=_files(members["files"]) if "files" in members else {},
    )
    if claim.files and model_digest(claim.files) != claim.sha256:
        raise MalformedError("a model's sha256 does not cover its files")
    return claim


def _files(value: object) -> Mapping[Role, str]:
    members = expect_object(value, "a model's files")
    try:
        files = {Role(role): _digest(digest, "a file's sha256") for role, digest in members.items()}
    except ValueError:
        raise MalformedError("a model has a file of an unknown role") from None
    if Role.MODEL not in files or len(files) < 2:
        raise MalformedError("a model's files are listed where it has more than its weights")
    return files


def _digest(value: object, what: str) -> str:
    text = expect_str(value, what, limit=64)
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise MalformedError(f"{what} is not 64 lower-case hex characters")
    return text


def _digest_or_none(value: object, what: str) -> str | None:
    return None if value is None else _digest(value, what)
