"""The report of an SGX enclave, as the processor fills it in.

Source: Intel "SDM" volume 3D, chapter "Enclave Access Control and Data Structures" (its number
changes with editions), table "Layout of REPORT", with the extensions for key separation and
sharing; the same 384 bytes are the body of an SGX quote and the report of the quoting enclave
inside every DCAP quote. All integers are little-endian. Nothing here is authenticated.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from cloister.evidence.reader import ByteReader

ENCLAVE_REPORT_BYTES: Final = 384
REPORT_DATA_BYTES: Final = 64

_CODE: Final = "malformed"


class SgxAttribute(enum.IntFlag):
    """``ATTRIBUTES`` of an enclave (table "Layout of ATTRIBUTES"), the low 64 bits."""

    INIT = 1 << 0
    """Initialised: set in every report that EREPORT makes."""
    DEBUG = 1 << 1
    """A debugger may read and write the enclave's memory."""
    MODE64BIT = 1 << 2
    PROVISIONKEY = 1 << 4
    """May derive keys that identify the platform."""
    EINITTOKEN_KEY = 1 << 5
    """May launch other enclaves."""
    CET = 1 << 6
    KSS = 1 << 7
    """Key separation and sharing: only then do the configuration fields mean anything."""
    AEXNOTIFY = 1 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveReport:
    """``REPORTBODY`` (384 bytes) of an enclave."""

    raw: bytes
    """The 384 bytes that arrived."""
    cpusvn: bytes
    """16 bytes."""
    miscselect: bytes
    """4 bytes, in the order of the report."""
    isvextprodid: bytes
    """16 bytes."""
    attributes: bytes
    """16 bytes: `flags`, then `xfrm`."""
    mrenclave: bytes
    """32 bytes: SHA-256 of how the enclave was built."""
    mrsigner: bytes
    """32 bytes: SHA-256 of the modulus of the key that signed the enclave."""
    config_id: bytes
    """64 bytes, chosen by whoever launches the enclave."""
    isvprodid: int
    isvsvn: int
    config_svn: int
    isvfamilyid: bytes
    """16 bytes."""
    report_data: bytes
    """64 bytes, chosen by the enclave."""

    @property
    def flags(self) -> int:
        """The low half of `attributes`; bits are those of `SgxAttribute`."""
        return int.from_bytes(self.attributes[:8], "little")

    @property
    def xfrm(self) -> int:
        """The high half of `attributes`: the processor's extended state, as in XCR0."""
        return int.from_bytes(self.attributes[8:], "little")

    @property
    def debug(self) -> bool:
        """Whether a debugger may open the enclave."""
        return bool(self.flags & SgxAttribute.DEBUG)


def parse_enclave_report(data: bytes) -> EnclaveReport:
    """Decode an enclave's report body.

    `data` is exactly 384 bytes; the reserved fields must be zero. Whether the attributes are
    acceptable is not looked at, and nothing is authenticated.

    Raises MalformedError, and nothing else.
    """
    reader = ByteReader(data, what="the enclave report", code=_CODE, byteorder="little")
    cpusvn = reader.take(16)
    miscselect = reader.take(4)
    _reserved(reader, 12)
    isvextprodid = reader.take(16)
    attributes = reader.take(16)
    mrenclave = reader.take(32)
    _reserved(reader, 32)
    mrsigner = reader.take(32)
    _reserved(reader, 32)
    config_id = reader.take(64)
    isvprodid, isvsvn, config_svn = reader.integer(2), reader.integer(2), reader.integer(2)
    _reserved(reader, 42)
    isvfamilyid = reader.take(16)
    report_data = reader.take(REPORT_DATA_BYTES)
    reader.finish()
    return EnclaveReport(
        raw=data,
        cpusvn=cpusvn,
        miscselect=miscselect,
        isvextprodid=isvextprodid,
        attributes=attributes,
        mrenclave=mrenclave,
        mrsigner=mrsigner,
        config_id=config_id,
        isvprodid=isvprodid,
        isvsvn=isvsvn,
        config_svn=config_svn,
        isvfamilyid=isvfamilyid,
        report_data=report_data,
    )


def _reserved(reader: ByteReader, size: int) -> None:
    if any(reader.take(size)):
        raise reader.fail("has a reserved field that is not zero")
