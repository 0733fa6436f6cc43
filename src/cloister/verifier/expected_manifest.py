"""What an authenticated manifest says that a worker must be.

`cloister.manifest.terms` makes these; this folder knows nothing of manifests themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cloister.verifier.policy import Checked


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedManifest:
    """The terms that a worker's own word, and its hardware's, are compared with."""

    sha256: str
    """The manifest's digest, lower-case hex."""
    standing: str
    """A sentence for the result: which manifest it is, and who stands behind it."""
    signed: bool
    """Whether somebody does. Otherwise the caller asked for an unsigned one by name."""
    signer_ids: tuple[str, ...]
    """``sha256:<hex>`` of those who signed, which a policy may deny."""
    expires: datetime
    """Aware UTC: until when it is in force, and so until when a worker may be believed by it."""
    models: Mapping[str, str]
    """Digest (lower-case hex) of each model that may be served, by its name."""
    engines: Checked[frozenset[tuple[str, str]]]
    """Names and versions of engines."""
    egress: Checked[frozenset[str]]
    """Where the worker may connect to."""
    receipts_keep_s: Checked[int]
    """At most."""
    stream_bucket: Checked[int]
    """At least."""
    body_bucket: Checked[int]
    """At least."""
