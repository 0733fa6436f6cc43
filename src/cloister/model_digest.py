"""One digest for a model that is made of several files.

A file beside the weights can decide what is answered: an adapter changes every answer, a
projector says what an image means. So a model's digest covers all that its engine loads for it:

- of one file, it is the SHA-256 of that file;
- of several, the SHA-256 of the canonical JSON (RFC 8785) of their roles and digests::

    {"files":{"adapter":"<64 hex>","model":"<64 hex>"},"version":"cloister/model/1"}

No file of weights begins like that, so the one never passes for the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from cloister.strictjson import canonical

MODEL_DIGEST_VERSION: Final = "cloister/model/1"


class Role(StrEnum):
    """What one of a model's files is to it."""

    MODEL = "model"
    """The weights. Every model has these."""
    ADAPTER = "adapter"
    """A low-rank adapter that is laid over the weights."""
    DRAFT = "draft"
    """A smaller model that guesses tokens, which the model then accepts or not."""
    PROJECTOR = "projector"
    """Turns images into what the model reads."""


def model_digest(files: Mapping[Role, str]) -> str:
    """The digest of a model whose `files` have these lower-case hex SHA-256, by role.

    ValueError if the weights are not among them.
    """
    if Role.MODEL not in files:
        raise ValueError("a model without weights has no digest")
    if len(files) == 1:
        return files[Role.MODEL]
    named = {role.value: digest for role, digest in files.items()}
    return hashlib.sha256(canonical({"files": named, "version": MODEL_DIGEST_VERSION})).hexdigest()
