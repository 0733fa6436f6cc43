"""What ``worker.json`` of a guest's application disk says, which is measured with the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.attester.handover import MeasuredFile
from cloister.attester.memory import WorkerMemory
from cloister.errors import ConfigurationError, MalformedError
from cloister.evidence.component import CONFIGURATION_BROKER
from cloister.evidence.items import TEE_TYPE_TPM_BOOT
from cloister.model_digest import Role
from cloister.strictjson import (
    Json,
    JsonObject,
    expect_int,
    expect_keys,
    expect_object,
    expect_str,
    parse_json_object,
)

MAX_SETTINGS_BYTES: Final = 1024 * 1024
MAX_MEMORY_BYTES: Final = 1 << 50
MAX_MEMORY_FILES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSettings:
    """What ``worker.json`` says."""

    configuration: JsonObject
    """The worker's effective configuration."""
    operator: JsonObject
    """Where it listens. In a guest this is measured with the rest."""
    models: Mapping[str, Mapping[Role, MeasuredFile]]
    native: Mapping[str, MeasuredFile] = field(default_factory=dict)
    platform: str = TEE_TYPE_TPM_BOOT
    """What makes the evidence: the machine's measured boot, or one of
    `cloister.attester.machine.PLATFORMS`."""
    memory: WorkerMemory | None = None
    """What weights are opened into that lie sealed; None where none do."""

    @property
    def takes_keys(self) -> bool:
        """Whether a broker releases keys to this worker."""
        return self.configuration.get(CONFIGURATION_BROKER) is not None


def read_settings(data: bytes) -> GuestSettings:
    """Decode ``worker.json``.

    Raises:
        ConfigurationError: it is none (code ``configuration.guest``).
    """
    try:
        return _settings(parse_json_object(data, limit=MAX_SETTINGS_BYTES, what="worker.json"))
    except (MalformedError, ValueError) as error:
        raise ConfigurationError(
            f"the guest's settings do not decode: {error}", code="configuration.guest"
        ) from None


def _settings(members: JsonObject) -> GuestSettings:
    expect_keys(
        members,
        "worker.json",
        required={"configuration", "operator", "models"},
        optional={"native", "platform", "memory"},
    )
    models = expect_object(members["models"], "models")
    native = expect_object(members.get("native", {}), "native files")
    return GuestSettings(
        configuration=expect_object(members["configuration"], "the configuration"),
        operator=expect_object(members["operator"], "the operator's settings"),
        models={
            name: {
                Role(role): _file(name, entry)
                for role, entry in expect_object(files, "a model").items()
            }
            for name, files in models.items()
        },
        native={name: _file(name, entry) for name, entry in native.items()},
        platform=expect_str(members.get("platform", TEE_TYPE_TPM_BOOT), "a platform", limit=32),
        memory=_worker_memory(members["memory"]) if "memory" in members else None,
    )


def _worker_memory(value: Json) -> WorkerMemory:
    members = expect_object(value, "the memory")
    expect_keys(members, "the memory", required={"size", "files"})
    return WorkerMemory(
        size=expect_int(members["size"], "a size", low=1, high=MAX_MEMORY_BYTES),
        files=expect_int(members["files"], "a number of files", low=1, high=MAX_MEMORY_FILES),
    )


def _file(name: str, value: Json) -> MeasuredFile:
    members = expect_object(value, "a file")
    expect_keys(members, "a file", required={"path", "sha256"}, optional={"sealed"})
    if members.get("sealed", True) is not True:
        raise MalformedError("a file that does not lie sealed has no member `sealed`")
    return MeasuredFile(
        name=name,
        path=Path(expect_str(members["path"], "a path", limit=4096)),
        sha256=expect_str(members["sha256"], "a digest", limit=64),
        sealed=members.get("sealed") is True,
    )
