"""SEV-SNP reports and certificate tables: every field, and every rule with what breaks it."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from cloister.errors import MalformedError
from cloister.evidence.snp import (
    HOST_VMPL,
    MAX_TABLE_BYTES,
    MAX_TABLE_ENTRIES,
    REPORT_BYTES,
    CertificateEntry,
    CertificateKind,
    FirmwareVersion,
    GuestPolicy,
    Product,
    SigningKey,
    parse_certificate_table,
    parse_report,
    product_of,
    tcb_components,
)
from cloister.testing.simulated_snp import CPUIDS, SimulatedAmd, certificate_table, encode

NOW = datetime(2026, 3, 1, tzinfo=UTC)
AMD = SimulatedAmd(now=NOW)
KEY = AMD.key()
REPORT = AMD.report(KEY, version=5)
TURIN = SimulatedAmd(now=NOW, product=Product.TURIN)


def changed(report: bytes, offset: int, data: bytes) -> bytes:
    return report[:offset] + data + report[offset + len(data) :]


def test_every_field() -> None:
    report = parse_report(
        AMD.report(
            KEY,
            version=5,
            guest_svn=7,
            policy=GuestPolicy.RESERVED_ONE | GuestPolicy.DEBUG | 0x0137,
            family_id=b"f" * 16,
            image_id=b"i" * 16,
            vmpl=2,
            current_tcb=bytes([5, 1, 0, 0, 0, 0, 25, 220]),
            platform_info=0xE5,
            signer_info=0b00111,
            report_data=b"r" * 64,
            measurement=b"m" * 48,
            host_data=b"h" * 32,
            id_key_digest=b"k" * 48,
            author_key_digest=b"a" * 48,
            report_id=b"1" * 32,
            report_id_ma=b"2" * 32,
            reported_tcb=bytes([4, 1, 0, 0, 0, 0, 24, 219]),
            chip_id=b"c" * 64,
            committed_tcb=bytes([4, 1, 0, 0, 0, 0, 24, 220]),
            current_version=bytes([41, 55, 1]),
            committed_version=bytes([40, 55, 1]),
            launch_tcb=bytes([3, 1, 0, 0, 0, 0, 23, 210]),
            launch_mit_vector=0x0102030405060708,
            current_mit_vector=0x1112131415161718,
        )
    )
    assert (report.version, report.guest_svn, report.vmpl) == (5, 7, 2)
    assert report.policy == 0x0137 | 1 << 17 | 1 << 19
    assert report.abi == (1, 0x37)
    assert (report.family_id, report.image_id) == (b"f" * 16, b"i" * 16)
    assert (report.report_data, report.measurement) == (b"r" * 64, b"m" * 48)
    assert (report.host_data, report.chip_id) == (b"h" * 32, b"c" * 64)
    assert (report.id_key_digest, report.author_key_digest) == (b"k" * 48, b"a" * 48)
    assert (report.report_id, report.report_id_ma) == (b"1" * 32, b"2" * 32)
    assert (report.platform_info, report.signature_algorithm) == (0xE5, 1)
    assert report.signing_key is SigningKey.VLEK
    assert (report.author_key, report.mask_chip_key) == (True, True)
    assert report.cpuid == CPUIDS[Product.MILAN]
    assert report.product is Product.MILAN
    assert str(report.current_version) == "1.55.41"
    assert report.committed_version == FirmwareVersion(major=1, minor=55, build=40)
    assert report.launch_mit_vector == 0x0102030405060708
    assert report.current_mit_vector == 0x1112131415161718
    assert report.current_tcb == bytes([5, 1, 0, 0, 0, 0, 25, 220])
    assert report.reported_tcb == bytes([4, 1, 0, 0, 0, 0, 24, 219])
    assert report.committed_tcb == bytes([4, 1, 0, 0, 0, 0, 24, 220])
    assert report.launch_tcb == bytes([3, 1, 0, 0, 0, 0, 23, 210])


def test_the_signature_is_little_endian_and_covers_what_is_before_it() -> None:
    report = parse_report(REPORT)
    assert report.raw == REPORT
    assert report.signed == REPORT[:0x2A0]
    assert report.signature_r == int.from_bytes(REPORT[0x2A0:0x2E8], "little")
    assert report.signature_s == int.from_bytes(REPORT[0x2E8:0x330], "little")


def test_what_older_versions_do_not_have() -> None:
    second, third = parse_report(AMD.report(KEY, version=2)), parse_report(AMD.report(KEY))
    assert (second.cpuid, second.product, second.launch_mit_vector) == (None, None, None)
    assert third.cpuid == CPUIDS[Product.MILAN]
    assert (third.launch_mit_vector, third.current_mit_vector) == (None, None)
    assert parse_report(AMD.report(KEY, version=4)).product is Product.MILAN


@pytest.mark.parametrize("version", [0, 1, 6, 0xFFFFFFFF])
def test_an_unknown_version_is_malformed_unless_asked_for(version: int) -> None:
    data = changed(REPORT, 0, version.to_bytes(4, "little"))
    with pytest.raises(MalformedError, match="which is not known") as caught:
        parse_report(data)
    assert caught.value.code == "malformed"
    report = parse_report(data, any_version=True)
    assert (report.version, report.version_known, report.cpuid) == (version, False, None)
    assert report.measurement == parse_report(REPORT).measurement


@pytest.mark.parametrize("size", [0, 1, 0x2A0, REPORT_BYTES - 1, REPORT_BYTES + 1])
def test_a_report_has_one_size(size: int) -> None:
    with pytest.raises(MalformedError, match="bytes instead of 1184"):
        parse_report(REPORT.ljust(size, b"\0")[:size])


@pytest.mark.parametrize(
    ("offset", "data", "why"),
    [
        (0x04C, b"\x01", "reserved field"),
        (0x18B, b"\x01", "reserved field"),
        (0x19F, b"\x80", "reserved field"),
        (0x208, b"\x01", "reserved field"),
        (0x29F, b"\x80", "reserved field"),
        (0x1EB, b"\x01", "firmware version with a reserved byte"),
        (0x1EF, b"\x01", "firmware version with a reserved byte"),
        (0x008, (1 << 16).to_bytes(8, "little"), "policy with reserved bits"),
        (0x008, (1 << 17 | 1 << 26).to_bytes(8, "little"), "policy with reserved bits"),
        (0x008, (1 << 17 | 1 << 63).to_bytes(8, "little"), "policy with reserved bits"),
        (0x041, b"\x01", "PLATFORM_INFO with reserved bits"),
        (0x047, b"\x80", "PLATFORM_INFO with reserved bits"),
        (0x048, b"\x20", "SIGNER_INFO with reserved bits"),
        (0x04B, b"\x80", "SIGNER_INFO with reserved bits"),
        (0x048, b"\x08", "key of a reserved kind"),
        (0x048, b"\x18", "key of a reserved kind"),
        (0x030, b"\x04\0\0\0", "VMPL 4"),
        (0x03A, b"\x01", "TCB with reserved bytes"),
        (0x183, b"\x01", "TCB with reserved bytes"),
        (0x1E4, b"\x01", "TCB with reserved bytes"),
        (0x1F5, b"\x01", "TCB with reserved bytes"),
        (0x2A0 + 48, b"\x01", "signature longer than its curve"),
        (0x2E7, b"\x01", "signature longer than its curve"),
        (0x2E8 + 48, b"\x01", "signature longer than its curve"),
        (0x330, b"\x01", "signature whose end"),
        (0x49F, b"\x01", "signature whose end"),
    ],
)
def test_what_is_reserved_is_zero(offset: int, data: bytes, why: str) -> None:
    parse_report(REPORT)
    with pytest.raises(MalformedError, match=why) as caught:
        parse_report(changed(REPORT, offset, data))
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("index", [4, 5, 6])
def test_turin_reserves_other_bytes_of_its_tcb(index: int) -> None:
    report = TURIN.report(TURIN.key())
    assert parse_report(report).product is Product.TURIN
    with pytest.raises(MalformedError, match="TCB with reserved bytes"):
        parse_report(changed(report, 0x180 + index, b"\x01"))


def test_fields_of_later_versions_are_reserved_in_earlier_ones() -> None:
    for version, offset, why in ((2, 0x188, "2 has a reserved"), (4, 0x1F8, "4 has a reserved")):
        report = AMD.report(KEY, version=version)
        parse_report(report)
        with pytest.raises(MalformedError, match=why):
            parse_report(changed(report, offset, b"\x19"))
    with pytest.raises(MalformedError, match="reserved field"):
        parse_report(changed(AMD.report(KEY, version=3), 0x200, b"\x01"))


def test_the_host_has_a_level_of_its_own() -> None:
    assert parse_report(AMD.report(KEY, vmpl=HOST_VMPL)).vmpl == HOST_VMPL


def test_a_report_that_is_not_signed() -> None:
    assert parse_report(AMD.report(KEY, signer_info=7 << 2)).signing_key is SigningKey.NONE


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [
        (0x19, 0x00, Product.MILAN),
        (0x19, 0x0F, Product.MILAN),
        (0x19, 0x10, Product.GENOA),
        (0x19, 0x1F, Product.GENOA),
        (0x19, 0x20, None),
        (0x19, 0x9F, None),
        (0x19, 0xA0, Product.GENOA),
        (0x19, 0xAF, Product.GENOA),
        (0x19, 0xB0, None),
        (0x1A, 0x00, Product.TURIN),
        (0x1A, 0x1F, Product.TURIN),
        (0x1A, 0x20, None),
        (0x17, 0x01, None),
    ],
)
def test_products(family: int, model: int, product: Product | None) -> None:
    assert product_of(family, model) is product


def test_a_processor_that_is_not_known_is_no_malformed_report() -> None:
    report = parse_report(AMD.report(KEY, cpuid=bytes([0x1B, 0, 0]), current_tcb=b"\x01" * 8))
    assert report.product is None


def test_parts_of_a_tcb() -> None:
    raw = bytes([1, 2, 3, 4, 5, 6, 7, 8])
    old = {"bootloader": 1, "tee": 2, "snp": 7, "microcode": 8}
    assert tcb_components(raw, Product.MILAN) == old
    assert tcb_components(raw, Product.GENOA) == old
    assert tcb_components(raw, Product.TURIN) == {
        "fmc": 1,
        "bootloader": 2,
        "tee": 3,
        "snp": 4,
        "microcode": 8,
    }


def test_firmware_versions_compare_as_numbers() -> None:
    def version(*parts: int) -> FirmwareVersion:
        return FirmwareVersion(major=parts[0], minor=parts[1], build=parts[2])

    assert version(1, 55, 29) <= version(1, 55, 29) <= version(1, 56, 1) <= version(2, 0, 0)
    assert not version(1, 56, 1) <= version(1, 55, 29)


ENTRIES = {CertificateKind.VCEK: b"vcek", CertificateKind.ASK: b"ask", CertificateKind.CRL: b"l"}
TABLE = certificate_table(ENTRIES)


def entry(guid: UUID, offset: int, size: int) -> bytes:
    return guid.bytes + offset.to_bytes(4, "little") + size.to_bytes(4, "little")


def test_a_certificate_table() -> None:
    found = parse_certificate_table(TABLE)
    assert {one.kind: one.data for one in found} == ENTRIES
    assert found[0].guid == UUID("63da758d-e664-4564-adc5-f4b93be8accd")
    assert parse_certificate_table(certificate_table(ENTRIES, pad_to=4096)) == found


def test_empty_tables() -> None:
    assert parse_certificate_table(b"") == ()
    assert parse_certificate_table(bytes(24)) == ()
    assert parse_certificate_table(bytes(4096)) == ()


def test_a_guid_of_the_hosts_own() -> None:
    own = UUID("ecae0c0f-9502-43b1-afa2-0ae2e0d565b6")
    table = entry(own, 48, 2) + bytes(24) + b"xy"
    assert parse_certificate_table(table) == (CertificateEntry(guid=own, kind=None, data=b"xy"),)


VCEK, ASK = CertificateKind.VCEK.value, CertificateKind.ASK.value
GOOD_PAIR = entry(VCEK, 72, 4) + entry(ASK, 76, 4) + bytes(24) + b"vcekaask"


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (GOOD_PAIR[:47], "ends"),
        (GOOD_PAIR[:48], "ends"),
        (GOOD_PAIR[:-1], "outside"),
        (GOOD_PAIR.replace(entry(ASK, 76, 4), entry(ASK, 76, 0xFFFFFFFF)), "outside"),
        (GOOD_PAIR.replace(entry(ASK, 76, 4), entry(ASK, 0xFFFFFFFF, 4)), "no entry|outside"),
        (GOOD_PAIR.replace(entry(ASK, 76, 4), entry(ASK, 75, 5)), "overlap"),
        (GOOD_PAIR.replace(entry(ASK, 76, 4), entry(ASK, 72, 8)), "overlap"),
        (GOOD_PAIR.replace(entry(VCEK, 72, 4), entry(VCEK, 71, 5)), "overlap"),
        (GOOD_PAIR.replace(entry(VCEK, 72, 4), entry(VCEK, 0, 4)), "overlap"),
        (GOOD_PAIR.replace(entry(VCEK, 72, 4), entry(VCEK, 0, 0)), "overlap"),
        (GOOD_PAIR.replace(entry(VCEK, 72, 4), entry(VCEK, 73, 3)), "no entry"),
        (GOOD_PAIR + b"x", "no entry"),
        (GOOD_PAIR.replace(entry(ASK, 76, 4), entry(VCEK, 76, 4)), "two entries"),
        (GOOD_PAIR.ljust(MAX_TABLE_BYTES + 1, b"\0"), "more than 131072 bytes"),
    ],
)
def test_tables_with_one_thing_wrong(table: bytes, why: str) -> None:
    assert len(parse_certificate_table(GOOD_PAIR)) == 2
    with pytest.raises(MalformedError, match=why) as caught:
        parse_certificate_table(table)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(("count", "accepted"), [(0, True), (1, False)])
def test_a_table_has_so_many_entries(count: int, *, accepted: bool) -> None:
    guids = [UUID(int=number) for number in range(1, MAX_TABLE_ENTRIES + 1 + count)]
    start = 24 * (len(guids) + 1)
    table = b"".join(entry(guid, start, 0) for guid in guids) + bytes(24)
    if accepted:
        assert len(parse_certificate_table(table)) == MAX_TABLE_ENTRIES
        return
    with pytest.raises(MalformedError, match="more than 16 entries"):
        parse_certificate_table(table)


def test_encoding_leaves_out_what_is_none() -> None:
    assert encode({"version": None}) == bytes(REPORT_BYTES)
