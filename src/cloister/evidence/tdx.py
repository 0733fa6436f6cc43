"""The report of a TDX guest (trust domain), as the TDX module fills it in.

Source: Intel "TDX Module Base Architecture Specification" and "TDX Module ABI Specification"
(348551), TDREPORT_STRUCT, TEE_TCB_INFO and TDINFO; laid out as in the body of a DCAP quote
(Intel "TDX DCAP Quoting Library API", appendix A.3.2: TD Quote Body for TDX 1.0 and 1.5).
All integers are little-endian. Nothing here is authenticated.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from cloister.evidence.reader import ByteReader

TD10_REPORT_BYTES: Final = 584
TD15_REPORT_BYTES: Final = 648
RTMRS: Final = 4

_REGISTER_BYTES: Final = 48
_CODE: Final = "malformed"


class TdAttribute(enum.IntFlag):
    """``ATTRIBUTES`` of a trust domain (ABI specification, "ATTRIBUTES")."""

    DEBUG = 1 << 0
    """The host may read and write the guest's state."""
    HGS_PLUS_PROF = 1 << 4
    PERF_PROF = 1 << 5
    PMT_PROF = 1 << 6
    ICSSD = 1 << 16
    LASS = 1 << 27
    SEPT_VE_DISABLE = 1 << 28
    """A page that the host takes away stops the guest, instead of raising an exception in it."""
    MIGRATABLE = 1 << 29
    """A service TD may move the guest to another machine."""
    PKS = 1 << 30
    KL = 1 << 31
    TPA = 1 << 62
    PERFMON = 1 << 63
    """The guest may use performance counters."""


TD_UNDER_DEBUG: Final = 0xFF
"""The attributes' first byte (``TUD``): any bit in it lets something outside look into the
guest, those not yet defined included."""

KNOWN_TD_ATTRIBUTES: Final = TD_UNDER_DEBUG | int(
    TdAttribute.ICSSD
    | TdAttribute.LASS
    | TdAttribute.SEPT_VE_DISABLE
    | TdAttribute.MIGRATABLE
    | TdAttribute.PKS
    | TdAttribute.KL
    | TdAttribute.TPA
    | TdAttribute.PERFMON
)
"""Bits with a meaning; the specification reserves all others as zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """A guest's report as quoted: 584 bytes for TDX 1.0, 648 for TDX 1.5."""

    raw: bytes
    """The bytes that arrived."""
    tee_tcb_svn: bytes
    """16 bytes: security versions of the TDX module and loader as loaded at boot."""
    mr_seam: bytes
    """48 bytes: measurement of the TDX module."""
    mrsigner_seam: bytes
    """48 bytes: who signed the TDX module; zero for Intel."""
    seam_attributes: bytes
    """8 bytes."""
    td_attributes: bytes
    """8 bytes; bits are those of `TdAttribute`."""
    xfam: bytes
    """8 bytes: the extended processor state the guest may use, as in XCR0 and IA32_XSS."""
    mr_td: bytes
    """48 bytes: measurement of the guest's initial memory."""
    mr_config_id: bytes
    """48 bytes, chosen by the host."""
    mr_owner: bytes
    """48 bytes, chosen by the host."""
    mr_owner_config: bytes
    """48 bytes, chosen by the host."""
    rtmrs: tuple[bytes, ...]
    """Four registers of 48 bytes, extended while the guest runs."""
    report_data: bytes
    """64 bytes, chosen by the guest."""
    tee_tcb_svn2: bytes | None
    """16 bytes, TDX 1.5 only: versions of the module that runs now."""
    mr_service_td: bytes | None
    """48 bytes, TDX 1.5 only: hash over the service TDs bound to the guest; zero for none."""

    @property
    def attributes(self) -> int:
        """`td_attributes` as a number."""
        return int.from_bytes(self.td_attributes, "little")

    @property
    def debug(self) -> bool:
        """Whether something outside may look into the guest: any bit of `TD_UNDER_DEBUG`."""
        return bool(self.attributes & TD_UNDER_DEBUG)


def parse_td_report(data: bytes) -> TdReport:
    """Decode a guest's report.

    `data` is exactly 584 (TDX 1.0) or 648 bytes (TDX 1.5). Whether the attributes are
    acceptable is not looked at, and nothing is authenticated.

    Raises MalformedError, and nothing else.
    """
    reader = ByteReader(data, what="the TD report", code=_CODE, byteorder="little")
    if len(data) not in (TD10_REPORT_BYTES, TD15_REPORT_BYTES):
        raise reader.fail(f"has {len(data)} bytes; TDX knows 584 and 648")
    later = len(data) == TD15_REPORT_BYTES
    return TdReport(
        raw=data,
        tee_tcb_svn=reader.take(16),
        mr_seam=reader.take(_REGISTER_BYTES),
        mrsigner_seam=reader.take(_REGISTER_BYTES),
        seam_attributes=reader.take(8),
        td_attributes=reader.take(8),
        xfam=reader.take(8),
        mr_td=reader.take(_REGISTER_BYTES),
        mr_config_id=reader.take(_REGISTER_BYTES),
        mr_owner=reader.take(_REGISTER_BYTES),
        mr_owner_config=reader.take(_REGISTER_BYTES),
        rtmrs=tuple(reader.take(_REGISTER_BYTES) for _ in range(RTMRS)),
        report_data=reader.take(64),
        tee_tcb_svn2=reader.take(16) if later else None,
        mr_service_td=reader.take(_REGISTER_BYTES) if later else None,
    )
