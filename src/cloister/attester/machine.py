"""Opens the attester of a platform by its name, and asks it in a child with a time limit."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from cloister.attester.azure import AzureAttester
from cloister.attester.background import BackgroundDevice, Exchange
from cloister.attester.configfs_tsm import REPORTS, TsmAttester
from cloister.attester.device_tpm import (
    DeviceTpmAttester,
    find_attestation_key,
    open_tpm,
    read_boot_log,
)
from cloister.attester.devices import absent, answer_error, check_digest, read_file
from cloister.attester.gramine import GramineAttester
from cloister.attester.nitro_tpm import DEVICE as NITRO_TPM
from cloister.attester.nitro_tpm import NitroTpmAttester
from cloister.attester.nsm import NitroAttester
from cloister.attester.sev_guest import SevGuestAttester
from cloister.attester.tdx_guest import TdxGuestAttester
from cloister.errors import ConfigurationError, UnsupportedError
from cloister.evidence.items import (
    TEE_TYPE_AZURE_SNP,
    TEE_TYPE_AZURE_TDX,
    TEE_TYPE_GCP_SNP,
    TEE_TYPE_GCP_TDX,
    TEE_TYPE_GCP_VTPM,
    TEE_TYPE_NITRO,
    TEE_TYPE_NITRO_TPM,
    TEE_TYPE_SEV_SNP,
    TEE_TYPE_SGX,
    TEE_TYPE_TDX,
)
from cloister.evidence.report import (
    MAX_ITEM_BYTES,
    MEDIA_TYPE_CERTIFICATE,
    TEE_TYPE_TPM,
    Endorsement,
    EvidenceItem,
)
from cloister.strictjson import Json, JsonObject

CCEL: Final = Path("/sys/firmware/acpi/tables/data/CCEL")
"""The guest firmware's event log on TDX machines; the kernel shows it to root alone."""

HANDLER: Final = "cloister.attester.machine:handle"
LIMIT_S: Final = 60.0
"""A TPM that was just powered on tests itself for seconds; the rest answer within one."""


class Attester(Protocol):
    """What turns statement digests into evidence."""

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """Evidence that binds these 32 bytes."""


class Together:
    """Evidence of several attesters over one digest, such as a CPU's and a GPU's."""

    def __init__(self, attesters: Sequence[Attester]) -> None:
        self._attesters = tuple(attesters)

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """All items; raises what the first of them that fails raises."""
        items: dict[str, EvidenceItem] = {}
        for attester in self._attesters:
            items.update(attester.quote(statement_digest))
        return items


def open_attester(platform: str) -> Attester:
    """Open this machine's attester of `platform`, one of `PLATFORMS`.

    Raises:
        ConfigurationError: no such platform.
        UnsupportedError, FetchError, TpmError: the machine lacks it, or it fails.
    """
    opener = _OPENERS.get(platform)
    if opener is None:
        raise ConfigurationError(
            f"there is no platform {platform!r}; there are {', '.join(_OPENERS)}",
            code="configuration.platform",
        )
    return opener()


def read_ccel(path: Path = CCEL) -> bytes | None:
    """The firmware's event log of a TDX machine, or None where the kernel shows none."""
    with contextlib.suppress(UnsupportedError):
        return read_file(path, limit=MAX_ITEM_BYTES) or None
    return None


class MachineAttester:
    """A platform's attester in a child process, so that a hanging device hangs nothing else."""

    def __init__(
        self, platform: str, *, limit_s: float = LIMIT_S, device: Exchange | None = None
    ) -> None:
        if platform not in _OPENERS:
            raise absent(f"a platform called {platform}")
        self._platform = platform
        self._device = BackgroundDevice(HANDLER, limit_s=limit_s) if device is None else device

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """Evidence that binds `statement_digest` (32 bytes).

        Raises:
            UnsupportedError: the machine lacks what it takes.
            FetchError: a device fails, or gives no answer in time (code ``device.timeout``).
        """
        check_digest(statement_digest)
        answer = self._device.ask({"platform": self._platform, "digest": statement_digest.hex()})
        items = answer.get("items")
        if not isinstance(items, dict):
            raise answer_error(self._platform, "holds no evidence")
        return {name: decode_item(item) for name, item in items.items()}


def handle(request: JsonObject) -> JsonObject:
    """Answer ``{"platform": name, "digest": hex}`` with items. Runs in a child."""
    attester = _opened(str(request["platform"]))
    items = attester.quote(bytes.fromhex(str(request["digest"])))
    return {"items": {name: encode_item(item) for name, item in items.items()}}


def encode_item(item: EvidenceItem) -> JsonObject:
    """An item as JSON, bytes in base64."""
    return {
        "media_type": item.media_type,
        "data": base64.b64encode(item.data).decode("ascii"),
        "endorsements": [
            {
                "media_type": entry.media_type,
                "data": base64.b64encode(entry.data).decode("ascii"),
            }
            for entry in item.endorsements
        ],
    }


def decode_item(value: Json) -> EvidenceItem:
    """Back from JSON; FetchError (``device.answer``) if it is no item."""
    members = _object(value)
    endorsements = members.get("endorsements")
    if not isinstance(endorsements, list):
        raise answer_error("the child", "is no evidence")
    return EvidenceItem(
        media_type=str(members.get("media_type")),
        data=_decode(members),
        endorsements=tuple(
            Endorsement(
                media_type=str(_object(entry).get("media_type", MEDIA_TYPE_CERTIFICATE)),
                data=_decode(_object(entry)),
            )
            for entry in endorsements
        ),
    )


def _object(value: Json) -> JsonObject:
    if not isinstance(value, dict):
        raise answer_error("the child", "is no evidence")
    return value


def _decode(members: JsonObject) -> bytes:
    try:
        return base64.b64decode(str(members.get("data")), validate=True)
    except (binascii.Error, ValueError):
        raise answer_error("the child", "is no evidence") from None


@cache
def _opened(platform: str) -> Attester:
    """Opened once per child: a TPM's key is made once, and its connection kept."""
    return open_attester(platform)


def _sev_snp() -> Attester:
    return TsmAttester() if REPORTS.is_dir() else SevGuestAttester()


def _tdx() -> Attester:
    log = read_ccel()
    return TsmAttester(event_log=log) if REPORTS.is_dir() else TdxGuestAttester(event_log=log)


def _tpm() -> Attester:
    tpm = open_tpm()
    return DeviceTpmAttester(tpm, find_attestation_key(tpm), event_log=read_boot_log())


def _azure() -> Attester:
    return AzureAttester(open_tpm())


def _nitro_tpm() -> Attester:
    return NitroTpmAttester(open_tpm(NITRO_TPM), event_log=read_boot_log())


_OPENERS: Final[Mapping[str, Callable[[], Attester]]] = {
    TEE_TYPE_SEV_SNP: _sev_snp,
    TEE_TYPE_TDX: _tdx,
    TEE_TYPE_SGX: GramineAttester,
    TEE_TYPE_NITRO: NitroAttester,
    TEE_TYPE_NITRO_TPM: _nitro_tpm,
    TEE_TYPE_AZURE_SNP: _azure,
    TEE_TYPE_AZURE_TDX: _azure,
    TEE_TYPE_GCP_SNP: lambda: Together((_sev_snp(), _tpm())),
    TEE_TYPE_GCP_TDX: lambda: Together((_tdx(), _tpm())),
    TEE_TYPE_GCP_VTPM: _tpm,
    TEE_TYPE_TPM: _tpm,
}

PLATFORMS: Final = tuple(_OPENERS)
"""Names that `open_attester` knows: the ``tee_type`` of reports."""
