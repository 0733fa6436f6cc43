"""AMD SEV-SNP attestation reports and the certificate tables of extended reports, to records.

Source: AMD 56860 "SEV Secure Nested Paging Firmware ABI Specification", revision 1.58, table
"ATTESTATION_REPORT" and the tables it refers to; for certificate tables AMD 56421 "SEV-ES
Guest-Hypervisor Communication Block Standardization", section "SNP Extended Guest Request".
All integers are little-endian, unless said otherwise. Nothing here is authenticated: a report is
what somebody sent, until its signature is checked against a key that AMD certified.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Final
from uuid import UUID

from cloister.errors import MalformedError
from cloister.evidence.reader import ByteReader

REPORT_BYTES: Final = 0x4A0
SIGNED_BYTES: Final = 0x2A0
"""The signature covers everything before itself."""

VERSIONS: Final = (2, 3, 4, 5)
"""Versions of the report that are known: 2 is of Milan's first firmware, 3 added the processor's
family, model and stepping, 5 the mitigation vectors; 4 has the fields of 3."""

ECDSA_P384_SHA384: Final = 1
"""The only SIGNATURE_ALGO there is."""

HOST_VMPL: Final = 0xFFFFFFFF
"""VMPL of a report that the host asked for, with no REPORT_DATA of the guest's."""

MAX_TABLE_BYTES: Final = 128 * 1024
"""Longest certificate table accepted; Linux hosts give at most 16 KiB."""

MAX_TABLE_ENTRIES: Final = 16

_CODE: Final = "malformed"
_REPORT: Final = "an SEV-SNP report"
_COMPONENT_BYTES: Final = 48
"""Of the 72 bytes for each half of the signature, those that a number on P-384 needs."""


class Product(enum.StrEnum):
    """Product lines of processors; each has its own root key (ARK)."""

    MILAN = "milan"
    GENOA = "genoa"
    """Bergamo and Siena too, whose keys Genoa's signing key certifies."""
    TURIN = "turin"

    @property
    def label(self) -> str:
        """The name as AMD writes it."""
        return self.value.title()


class SigningKey(enum.IntEnum):
    """SIGNING_KEY: what kind of key signed the report; 2 to 6 are reserved."""

    VCEK = 0
    """Versioned Chip Endorsement Key: derived from the chip's secret and its TCB."""
    VLEK = 1
    """Versioned Loaded Endorsement Key: one that AMD gave a cloud provider to load."""
    NONE = 7


class GuestPolicy(enum.IntFlag):
    """POLICY above the 16 bits of the minimum ABI version; bits 26 to 63 are reserved."""

    SMT = 1 << 16
    RESERVED_ONE = 1 << 17
    """Reserved; is one."""
    MIGRATE_MA = 1 << 18
    DEBUG = 1 << 19
    """The host may read and write the guest's memory through the firmware."""
    SINGLE_SOCKET = 1 << 20
    CXL_ALLOW = 1 << 21
    MEM_AES_256_XTS = 1 << 22
    RAPL_DIS = 1 << 23
    CIPHERTEXT_HIDING_DRAM = 1 << 24
    PAGE_SWAP_DISABLE = 1 << 25


class PlatformInfo(enum.IntFlag):
    """PLATFORM_INFO; bits 8 to 63 are reserved."""

    SMT_EN = 1 << 0
    TSME_EN = 1 << 1
    ECC_EN = 1 << 2
    RAPL_DIS = 1 << 3
    CIPHERTEXT_HIDING_DRAM_EN = 1 << 4
    ALIAS_CHECK_COMPLETE = 1 << 5
    """Memory was checked for aliases since the last reset (AMD-SB-3015, "BadRAM")."""
    IOMMU_WRITE_SAFE = 1 << 6
    """Turin only."""
    TIO_EN = 1 << 7


_POLICY_BITS: Final = 0xFFFF | sum(GuestPolicy)
_PLATFORM_BITS: Final = sum(PlatformInfo)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareVersion:
    """CURRENT_* or COMMITTED_*: the SNP firmware's version; compares as versions do."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"

    def __le__(self, other: FirmwareVersion) -> bool:
        return self._parts <= other._parts

    @property
    def _parts(self) -> tuple[int, int, int]:
        return self.major, self.minor, self.build


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """ATTESTATION_REPORT. A TCB is the 8 bytes as they arrived: see `tcb_components`."""

    raw: bytes
    """The bytes that arrived; the signature covers `signed`, its beginning."""
    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    """Privilege level of who asked for the report, 0 to 3, or `HOST_VMPL`."""
    signature_algorithm: int
    current_tcb: bytes
    platform_info: int
    signer_info: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    """Of the migration agent; all ones where there is none."""
    reported_tcb: bytes
    """The TCB by which the signing key was derived."""
    cpuid: tuple[int, int, int] | None
    """Family, model and stepping; ``None`` before version 3, and where the version is unknown."""
    chip_id: bytes
    """Zero where the host masks it; on Turin 8 bytes followed by zeros."""
    committed_tcb: bytes
    """What the firmware can no longer be taken back behind."""
    current_version: FirmwareVersion
    committed_version: FirmwareVersion
    launch_tcb: bytes
    launch_mit_vector: int | None
    """Mitigations of vulnerabilities, a bit each, when the guest was launched; from version 5."""
    current_mit_vector: int | None
    signature_r: int
    signature_s: int

    @property
    def signed(self) -> bytes:
        """What the signature covers."""
        return self.raw[:SIGNED_BYTES]

    @property
    def version_known(self) -> bool:
        """Whether the version is one of `VERSIONS`."""
        return self.version in VERSIONS

    @property
    def abi(self) -> tuple[int, int]:
        """Major and minor of the lowest ABI version that the guest's policy accepts."""
        return self.policy >> 8 & 0xFF, self.policy & 0xFF

    @property
    def signing_key(self) -> SigningKey:
        """What kind of key signed the report."""
        return SigningKey(self.signer_info >> 2 & 7)

    @property
    def author_key(self) -> bool:
        """AUTHOR_KEY_EN: whether `author_key_digest` holds one."""
        return bool(self.signer_info & 1)

    @property
    def mask_chip_key(self) -> bool:
        """MASK_CHIP_KEY: whether the host keeps the firmware from signing with the VCEK."""
        return bool(self.signer_info & 2)

    @property
    def product(self) -> Product | None:
        """The product line, by family and model; ``None`` where they are missing or unknown."""
        return None if self.cpuid is None else product_of(*self.cpuid[:2])


def product_of(family: int, model: int) -> Product | None:
    """The product line of a processor (AMD 57230 section "Determining the Product Name")."""
    if family == 0x19 and model <= 0x0F:
        return Product.MILAN
    if family == 0x19 and (0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF):
        return Product.GENOA
    if family == 0x1A and model <= 0x1F:
        return Product.TURIN
    return None


_TCB: Final = ("bootloader", "tee", None, None, None, None, "snp", "microcode")
_TURIN_TCB: Final = ("fmc", "bootloader", "tee", "snp", None, None, None, "microcode")


def tcb_components(raw: bytes, product: Product) -> dict[str, int]:
    """The parts of a TCB_VERSION, one byte each, under AMD's names; reserved bytes are left out.

    Which byte is which depends on the product: Turin's begins with the FMC's.
    """
    names = _TURIN_TCB if product is Product.TURIN else _TCB
    return {name: raw[index] for index, name in enumerate(names) if name is not None}


def parse_report(data: bytes, *, any_version: bool = False) -> SnpReport:
    """Decode an ATTESTATION_REPORT of exactly 1184 bytes; reserved fields must be zero.

    With `any_version`, a report of an unknown version is decoded as far as all known ones
    agree, without a look at fields that a version may have redefined; the caller must refuse it
    (`SnpReport.version_known`) once everything else is reported. The signature is not checked,
    nor which product a report of version 2 is from: its signing key's certificate says so.

    Raises MalformedError (code ``malformed``), and nothing else.
    """
    if len(data) != REPORT_BYTES:
        raise _fail(f"has {len(data)} bytes instead of {REPORT_BYTES}")
    version, guest_svn, policy, family_id, image_id, vmpl, algorithm, *rest = _LAYOUT.unpack_from(
        data
    )
    current_tcb, platform_info, signer_info, report_data, measurement, host_data, *rest = rest
    id_key, author_key, report_id, report_id_ma, reported_tcb, cpuid, chip_id, *rest = rest
    committed_tcb, current, committed, launch_tcb, launch_vector, current_vector = rest
    report = SnpReport(
        raw=data,
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        signature_algorithm=algorithm,
        current_tcb=current_tcb,
        platform_info=platform_info,
        signer_info=signer_info,
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key,
        author_key_digest=author_key,
        report_id=report_id,
        report_id_ma=report_id_ma,
        reported_tcb=reported_tcb,
        cpuid=(cpuid[0], cpuid[1], cpuid[2]) if version in VERSIONS[1:] else None,
        chip_id=chip_id,
        committed_tcb=committed_tcb,
        current_version=_version(current),
        committed_version=_version(committed),
        launch_tcb=launch_tcb,
        launch_mit_vector=launch_vector if version == 5 else None,
        current_mit_vector=current_vector if version == 5 else None,
        signature_r=_component(data[0x2A0:0x2E8]),
        signature_s=_component(data[0x2E8:0x330]),
    )
    if not any_version and not report.version_known:
        raise _fail(f"is of version {version}, which is not known")
    _check(report)
    return report


_RESERVED: Final = ((0x04C, 0x050), (0x18B, 0x1A0), (0x208, 0x2A0))
_CPUID: Final = (0x188, 0x18B)
_VECTORS: Final = (0x1F8, 0x208)


def _check(report: SnpReport) -> None:
    """Bits, bytes and values that are reserved: in the report's version, if that is known."""
    if report.signer_info >> 2 & 7 not in set(SigningKey):
        raise _fail("was signed by a key of a reserved kind")
    if any(report.raw[0x330:]):
        raise _fail("has a signature whose end is not zero")
    if not report.version_known:
        return
    without_cpuid = (_CPUID,) if report.cpuid is None else ()
    without_vectors = (_VECTORS,) if report.launch_mit_vector is None else ()
    for start, end in (*_RESERVED, *without_cpuid, *without_vectors):
        if any(report.raw[start:end]):
            raise _fail(f"of version {report.version} has a reserved field that is not zero")
    if report.policy & ~_POLICY_BITS or not report.policy & GuestPolicy.RESERVED_ONE:
        raise _fail("has a policy with reserved bits")
    if report.platform_info & ~_PLATFORM_BITS:
        raise _fail("has PLATFORM_INFO with reserved bits")
    if report.signer_info >> 5:
        raise _fail("has SIGNER_INFO with reserved bits")
    if report.vmpl > 3 and report.vmpl != HOST_VMPL:
        raise _fail(f"was asked for from VMPL {report.vmpl}, which does not exist")
    _check_tcbs(report)


def _check_tcbs(report: SnpReport) -> None:
    """Reserved bytes of TCBs, where the report says from which product it is."""
    if report.product is None:
        return
    names = _TURIN_TCB if report.product is Product.TURIN else _TCB
    reserved = [index for index, name in enumerate(names) if name is None]
    tcbs = report.current_tcb, report.reported_tcb, report.committed_tcb, report.launch_tcb
    if any(tcb[index] for tcb in tcbs for index in reserved):
        raise _fail("has a TCB with reserved bytes")


def _version(data: bytes) -> FirmwareVersion:
    if data[3]:
        raise _fail("has a firmware version with a reserved byte")
    return FirmwareVersion(build=data[0], minor=data[1], major=data[2])


def _component(data: bytes) -> int:
    """R or S: 72 bytes, of which the high ones are zero on P-384."""
    if any(data[_COMPONENT_BYTES:]):
        raise _fail("has a signature longer than its curve allows")
    return int.from_bytes(data, "little")


def _fail(why: str) -> MalformedError:
    return MalformedError(f"{_REPORT} {why}", code=_CODE)


_LAYOUT: Final = Struct(
    "<"
    "IIQ16s16sII"  # 0x000 version, guest SVN, policy, family id, image id, VMPL, algorithm
    "8sQI4x"  # 0x038 current TCB, platform info, signer info, reserved
    "64s48s32s48s48s"  # 0x050 report data, measurement, host data, digests of id and author key
    "32s32s8s"  # 0x140 report id, that of the migration agent, reported TCB
    "3s21x64s8s"  # 0x188 CPUID, reserved, chip id, committed TCB
    "4s4s8s"  # 0x1E8 current version, committed version, launch TCB
    "QQ"  # 0x1F8 mitigation vectors at launch and now
)
"""What comes before 0x208; from there to the signature at 0x2A0 all is reserved."""


class CertificateKind(enum.Enum):
    """What a GUID of the certificate table stands for (AMD 56421, and AMD's tools for CRLs).

    GUIDs are stored in the order in which they are written.
    """

    ARK = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
    ASK = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
    """Of the ASVK too, which has no GUID of its own."""
    VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
    VLEK = UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
    CRL = UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea")


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateEntry:
    """One entry of the table. `kind` is ``None`` for a GUID that is the host's own."""

    guid: UUID
    kind: CertificateKind | None
    data: bytes


_ENTRY_BYTES: Final = 24
_KINDS: Final[Mapping[UUID, CertificateKind]] = {kind.value: kind for kind in CertificateKind}


def parse_certificate_table(data: bytes) -> tuple[CertificateEntry, ...]:
    """Decode the table that comes with an extended report: what the host has to say about it.

    Entries of 24 bytes (GUID, offset from the start of `data`, length) end with one of zeros; then
    come the contents, which may neither overlap nor lie outside. Bytes that belong to no entry
    must be zero: pages are handed over whole. No bytes at all are an empty table.

    Raises MalformedError (code ``malformed``), and nothing else.
    """
    reader = ByteReader(data, what="a certificate table", code=_CODE, byteorder="little")
    if len(data) > MAX_TABLE_BYTES:
        raise reader.fail(f"has more than {MAX_TABLE_BYTES} bytes")
    if not data:
        return ()
    spans: list[tuple[int, int, UUID]] = []
    while any(head := reader.take(_ENTRY_BYTES)):
        if len(spans) == MAX_TABLE_ENTRIES:
            raise reader.fail(f"has more than {MAX_TABLE_ENTRIES} entries")
        start, size = (int.from_bytes(head[at : at + 4], "little") for at in (16, 20))
        spans.append((start, start + size, UUID(bytes=head[:16])))
    if len({guid for _, _, guid in spans}) != len(spans):
        raise reader.fail("has two entries of one kind")
    _check_spans(data, spans, len(data) - reader.remaining, reader)
    return tuple(
        CertificateEntry(guid=guid, kind=_KINDS.get(guid), data=data[start:end])
        for start, end, guid in spans
    )


def _check_spans(
    data: bytes, spans: list[tuple[int, int, UUID]], header: int, reader: ByteReader
) -> None:
    """Contents follow the header without overlap, and all else is zero."""
    last = header
    for start, end, _ in (*sorted(spans), (len(data), len(data), None)):
        if start < last:
            raise reader.fail("has entries that overlap")
        if end > len(data):
            raise reader.fail("has an entry that lies outside")
        if any(data[last:start]):
            raise reader.fail("has bytes that belong to no entry")
        last = end
