"""Evidence of Azure confidential virtual machines: a paravisor's TPM above an SNP or TD report.

Source: Microsoft, "Guest attestation for confidential VMs", and the layout of the HCL report as
recorded evidence shows it. NV index 0x01400001 holds the report, little-endian::

    0      "HCLA", u32 version, u32 size, u32 request type, u32 status, 12 B    32 B
    32     SNP report, or TD report of 1024 bytes and zeros                     1184 B
    1216   u32 size, u32 version, u32 type (2 SNP, 4 TDX), u32 hash, u32 n      20 B
    1236   JSON of n bytes: the TPM's attestation key and the user data

The hardware report's data begin with the SHA-256 of that JSON, so the hardware names the key;
the key (persistent handle 0x81000003) quotes the statement digest. What lies between, the
paravisor, is Microsoft's and trusted.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cloister.attester.device_tpm import (
    QuotedRegisters,
    certificates,
    quote_registers,
    read_boot_log,
    read_certificate,
)
from cloister.attester.devices import absent, answer_error
from cloister.attester.metadata import (
    TD_REPORT_SIZE,
    LinkLocalService,
    MetadataService,
    fetch_td_quote,
    fetch_vcek_chain,
)
from cloister.attester.tpm import Tpm
from cloister.attester.tpm_errors import ResponseCode, TpmError
from cloister.errors import FetchError, MalformedError
from cloister.evidence.items import (
    ITEM_AZURE_HCL_REPORT,
    ITEM_AZURE_PCRS,
    ITEM_AZURE_QUOTE,
    ITEM_AZURE_SIGNATURE,
    ITEM_AZURE_TD_QUOTE,
    MEDIA_TYPE_HCL_REPORT,
    MEDIA_TYPE_PCRS,
    MEDIA_TYPE_RSA_SIGNATURE,
    MEDIA_TYPE_TDX_QUOTE,
    TEE_TYPE_AZURE_SNP,
    TEE_TYPE_AZURE_TDX,
)
from cloister.evidence.report import (
    ITEM_EVENT_LOG,
    MEDIA_TYPE_EVENT_LOG,
    MEDIA_TYPE_QUOTE,
    Endorsement,
    EvidenceItem,
)
from cloister.evidence.tpm import Alg, RsaSignature, parse_signature

HCL_REPORT_INDEX: Final = 0x01400001
USER_DATA_INDEX: Final = 0x01400002
AK_HANDLE: Final = 0x81000003
AK_CERTIFICATE_INDEX: Final = 0x01C101D0

REGISTERS: Final = tuple(range(24))
USER_DATA_SIZE: Final = 64

MAX_REFRESHES: Final = 10
REFRESH_PAUSE_S: Final = 1.0
"""The paravisor takes about three seconds to make a report over new user data."""

_HARDWARE: Final = slice(32, 1216)
_RUNTIME: Final = struct.Struct("<5I")
_TYPE_SNP: Final = 2
_TYPE_TDX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class HclReport:
    """Where the parts of an HCL report lie. Nothing is authenticated here."""

    raw: bytes
    hardware: bytes
    """1184 bytes: an SNP report, or a TD report of 1024 bytes and zeros."""
    kind: int
    runtime: bytes
    """The JSON."""

    @property
    def tee_type(self) -> str:
        """What to call the platform in a report."""
        return TEE_TYPE_AZURE_SNP if self.kind == _TYPE_SNP else TEE_TYPE_AZURE_TDX


def split_hcl_report(data: bytes) -> HclReport:
    """Find the parts of what the NV index holds.

    Raises:
        FetchError: it is no HCL report of an SNP or TDX machine (code ``device.answer``).
    """
    what = "the paravisor"
    start = _HARDWARE.stop + _RUNTIME.size
    if not data.startswith(b"HCLA") or len(data) < start:
        raise answer_error(what, "is no HCL report")
    _, _, kind, _, size = _RUNTIME.unpack_from(data, _HARDWARE.stop)
    if kind not in {_TYPE_SNP, _TYPE_TDX}:
        raise answer_error(what, f"is of report type {kind}, neither SNP nor TDX")
    if start + size > len(data):
        raise answer_error(what, "is cut short")
    return HclReport(
        raw=data, hardware=data[_HARDWARE], kind=kind, runtime=data[start : start + size]
    )


def read_hcl_report(tpm: Tpm) -> HclReport:
    """The report that the paravisor made last.

    Raises:
        UnsupportedError: this TPM is no confidential virtual machine's.
        FetchError, TpmError: it cannot be read, or is none.
    """
    try:
        return split_hcl_report(tpm.nv_read(HCL_REPORT_INDEX))
    except TpmError as error:
        if error.response_code in {ResponseCode.HANDLE, ResponseCode.VALUE}:
            raise absent("the TPM holds no HCL report, as those of Azure's CVMs do") from None
        raise


def refresh_hcl_report(
    tpm: Tpm, user_data: bytes, *, pause: Callable[[float], None] = time.sleep
) -> HclReport:
    """Have a new report made over `user_data` (at most 64 bytes), and wait until it is there.

    Only needed after the host's firmware was renewed: a quote binds the statement by itself.

    Raises:
        FetchError: no report over this data appears in time (code ``device.timeout``).
        UnsupportedError, TpmError: see `read_hcl_report`.
    """
    if len(user_data) > USER_DATA_SIZE:
        raise ValueError(f"user data has at most {USER_DATA_SIZE} bytes")
    padded = user_data.ljust(USER_DATA_SIZE, b"\0")
    try:
        tpm.nv_write(USER_DATA_INDEX, padded)
    except TpmError as error:
        if error.response_code not in {ResponseCode.HANDLE, ResponseCode.VALUE}:
            raise
        tpm.nv_define(USER_DATA_INDEX, USER_DATA_SIZE)
        tpm.nv_write(USER_DATA_INDEX, padded)
    wanted = b'"user-data":"' + padded.hex().upper().encode() + b'"'
    for _ in range(MAX_REFRESHES):
        pause(REFRESH_PAUSE_S)
        report = read_hcl_report(tpm)
        if wanted in report.runtime:
            return report
    raise FetchError("the paravisor makes no report over new user data", code="device.timeout")


class AzureAttester:
    """Turns statement digests into evidence of an Azure confidential VM. One quote at a time."""

    def __init__(
        self,
        tpm: Tpm,
        *,
        service: MetadataService | None = None,
        event_log: bytes | None = None,
    ) -> None:
        """`event_log` is the firmware's; by default the kernel is asked for it."""
        self._tpm = tpm
        self._service = LinkLocalService() if service is None else service
        self._event_log = read_boot_log() if event_log is None else event_log
        self._lock = threading.Lock()
        # The hardware report stays the same from boot to boot, and so does what is made of it.
        self._signed: tuple[bytes, Mapping[str, EvidenceItem]] | None = None

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """A quote with `statement_digest` (32 bytes) as qualifying data, and what is below it.

        Raises:
            UnsupportedError: not a confidential virtual machine of Azure.
            FetchError, TpmError: TPM or metadata service fail.
        """
        with self._lock:
            quoted = quote_registers(self._tpm, AK_HANDLE, statement_digest, REGISTERS)
            chain = certificates(_present(read_certificate(self._tpm, AK_CERTIFICATE_INDEX)))
            below = self._hardware(read_hcl_report(self._tpm))
        return {**below, **_quote_items(quoted, chain), **self._log()}

    def _hardware(self, report: HclReport) -> Mapping[str, EvidenceItem]:
        key = hashlib.sha256(report.raw).digest()
        if self._signed is None or self._signed[0] != key:
            self._signed = key, _hardware_items(report, self._service)
        return self._signed[1]

    def _log(self) -> dict[str, EvidenceItem]:
        if not self._event_log:
            return {}
        return {ITEM_EVENT_LOG: EvidenceItem(media_type=MEDIA_TYPE_EVENT_LOG, data=self._event_log)}

    def close(self) -> None:
        """Let go of the TPM."""
        self._tpm.close()


def _hardware_items(report: HclReport, service: MetadataService) -> dict[str, EvidenceItem]:
    vouching: tuple[Endorsement, ...] = ()
    items: dict[str, EvidenceItem] = {}
    if report.kind == _TYPE_SNP:
        vouching = certificates(fetch_vcek_chain(service))
    else:
        quote = fetch_td_quote(service, report.hardware[:TD_REPORT_SIZE])
        items[ITEM_AZURE_TD_QUOTE] = EvidenceItem(media_type=MEDIA_TYPE_TDX_QUOTE, data=quote)
    items[ITEM_AZURE_HCL_REPORT] = EvidenceItem(
        media_type=MEDIA_TYPE_HCL_REPORT, data=report.raw, endorsements=vouching
    )
    return items


def _quote_items(
    quoted: QuotedRegisters, chain: tuple[Endorsement, ...]
) -> dict[str, EvidenceItem]:
    return {
        ITEM_AZURE_QUOTE: EvidenceItem(
            media_type=MEDIA_TYPE_QUOTE, data=quoted.attest, endorsements=chain
        ),
        ITEM_AZURE_SIGNATURE: EvidenceItem(
            media_type=MEDIA_TYPE_RSA_SIGNATURE, data=_bare(quoted.signature)
        ),
        ITEM_AZURE_PCRS: EvidenceItem(media_type=MEDIA_TYPE_PCRS, data=quoted.pcrs_json()),
    }


def _bare(signature: bytes) -> bytes:
    try:
        parsed = parse_signature(signature)
    except MalformedError:
        raise answer_error("the TPM", "is no signature") from None
    if (
        not isinstance(parsed, RsaSignature)
        or parsed.scheme != Alg.RSASSA
        or parsed.hash_algorithm != Alg.SHA256
    ):
        raise answer_error("the TPM", "is no RSASSA signature with SHA-256, as Azure's are")
    return parsed.signature


def _present(certificate: bytes) -> tuple[bytes, ...]:
    return (certificate,) if certificate else ()
