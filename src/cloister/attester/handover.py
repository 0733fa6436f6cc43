"""What a worker is handed by whoever starts it: a launcher, or a guest's own program."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cloister.attester import link
from cloister.evidence.report import TEE_TYPE_TPM, EvidenceItem
from cloister.model_digest import Role
from cloister.strictjson import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFile:
    """A file, or a directory, as the launcher measured it. Whoever opens it should compare."""

    name: str
    path: Path
    sha256: str
    """Lower-case hex."""
    sealed: bool = False
    """Whether what lies at `path` is encrypted, and `sha256` what its plaintext has to have."""


class Evidence(Protocol):
    """What makes the worker's evidence."""

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """Evidence that binds these 32 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Everything the worker needs; it reads no environment variable and no file for it."""

    configuration: JsonObject
    """Measured: what the worker does. Nothing else may change what it does."""
    operator: JsonObject
    """Not measured: where it listens, who may use it."""
    models: Mapping[str, Mapping[Role, MeasuredFile]]
    """The files of each model, by its name, in the order in which they are served."""
    native: Mapping[str, MeasuredFile]
    directory: Path
    """Private (mode 0700), for sockets and temporary files; removed with the worker."""
    memory: Path | None = None
    """A folder in memory that only this worker sees, where it has sealed weights to open."""
    attester: Evidence = field(repr=False)
    tee_type: str = TEE_TYPE_TPM
    """What `attester`'s evidence is to be read as."""
    measured_root: bool = False
    """Whether all files that this process can read were measured, compiled code included: those
    of a machine image, whose disks are read through dm-verity."""
    _connection: socket.socket = field(repr=False)

    def ready(self, message: Mapping[str, Any] | None = None) -> None:
        """Tell the launcher that requests are answered; `message` is JSON for whoever waits."""
        with contextlib.suppress(OSError):
            link.send(self._connection, {"ready": dict(message or {})})
