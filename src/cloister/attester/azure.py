"""Evidence of Azure confidential virtual machines: a paravisor's TPM above an SNP or TD report.

Source: Microsoft, "Guest attestation for confidential VMs". NV index 0x01400001 holds the
paravisor's report (`cloister.evidence.hcl`): an SNP or TD report, and JSON with the TPM's
attestation key. The hardware report's data begin with the hash of that JSON, so the hardware
names the key; the key (persistent handle 0x81000003) quotes the statement digest. What lies
between, the paravisor, is Microsoft's and trusted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
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
    LinkLocalService,
    MetadataService,
    fetch_td_quote,
    fetch_vcek_chain,
)
from cloister.attester.tpm import Tpm
from cloister.attester.tpm_errors import ResponseCode, TpmError
from cloister.errors import FetchError, MalformedError
from cloister.evidence.hcl import HardwareType, HclReport, parse_hcl_report
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

_NOT_THERE: Final = frozenset({ResponseCode.HANDLE, ResponseCode.VALUE})


TEE_TYPES: Final = {
    HardwareType.SNP: TEE_TYPE_AZURE_SNP,
    HardwareType.TDX: TEE_TYPE_AZURE_TDX,
}
"""What to call the platform in a report."""


def read_hcl_report(tpm: Tpm) -> tuple[bytes, HclReport]:
    """The report that the paravisor made last: its bytes, and what they say.

    Raises:
        UnsupportedError: this TPM is no confidential virtual machine's.
        FetchError, TpmError: it cannot be read, or is none.
    """
    try:
        data = tpm.nv_read(HCL_REPORT_INDEX)
        return data, parse_hcl_report(data)
    except MalformedError as error:
        raise answer_error("the paravisor", f"is no report: {error}") from None
    except TpmError as error:
        if error.response_code in _NOT_THERE:
            raise absent("the TPM holds no HCL report, as those of Azure's CVMs do") from None
        raise


def refresh_hcl_report(
    tpm: Tpm, user_data: bytes, *, pause: Callable[[float], None] = time.sleep
) -> tuple[bytes, HclReport]:
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
        if error.response_code not in _NOT_THERE:
            raise
        tpm.nv_define(USER_DATA_INDEX, USER_DATA_SIZE)
        tpm.nv_write(USER_DATA_INDEX, padded)
    for _ in range(MAX_REFRESHES):
        pause(REFRESH_PAUSE_S)
        data, report = read_hcl_report(tpm)
        if bytes.fromhex(report.runtime.user_data) == padded:
            return data, report
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
            below = self._hardware(*read_hcl_report(self._tpm))
        return {**below, **_quote_items(quoted, chain), **self._log()}

    def _hardware(self, data: bytes, report: HclReport) -> Mapping[str, EvidenceItem]:
        if self._signed is None or self._signed[0] != data:
            self._signed = data, _hardware_items(data, report, self._service)
        return self._signed[1]

    def _log(self) -> dict[str, EvidenceItem]:
        if not self._event_log:
            return {}
        return {ITEM_EVENT_LOG: EvidenceItem(media_type=MEDIA_TYPE_EVENT_LOG, data=self._event_log)}

    def close(self) -> None:
        """Let go of the TPM."""
        self._tpm.close()


def _hardware_items(
    data: bytes, report: HclReport, service: MetadataService
) -> dict[str, EvidenceItem]:
    vouching: tuple[Endorsement, ...] = ()
    items: dict[str, EvidenceItem] = {}
    if report.hardware_type is HardwareType.SNP:
        vouching = certificates(fetch_vcek_chain(service))
    else:
        quote = fetch_td_quote(service, report.hardware_report)
        items[ITEM_AZURE_TD_QUOTE] = EvidenceItem(media_type=MEDIA_TYPE_TDX_QUOTE, data=quote)
    items[ITEM_AZURE_HCL_REPORT] = EvidenceItem(
        media_type=MEDIA_TYPE_HCL_REPORT, data=data, endorsements=vouching
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
