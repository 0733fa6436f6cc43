"""Reports of enclaves and guests decode field by field."""

from __future__ import annotations

import struct

import pytest

from cloister.errors import MalformedError
from cloister.evidence.sgx import SgxAttribute, parse_enclave_report
from cloister.evidence.tdx import TdAttribute, parse_td_report
from support.dcap import enclave_report, td_report


def test_an_enclaves_fields() -> None:
    data = enclave_report(
        at_16=b"\x01\x02\x03\x04",
        at_32=b"\x0a" * 16,
        at_48=struct.pack("<QQ", 0x85, 0x02E7),
        at_192=b"\x0b" * 64,
        at_304=b"\x0c" * 16,
    )
    report = parse_enclave_report(data)
    assert report.raw == data
    assert report.cpusvn == bytes(range(16))
    assert report.miscselect == b"\x01\x02\x03\x04"
    assert report.isvextprodid == b"\x0a" * 16
    assert report.flags == SgxAttribute.INIT | SgxAttribute.MODE64BIT | SgxAttribute.KSS
    assert report.xfrm == 0x02E7
    assert report.attributes == data[48:64]
    assert report.mrenclave == b"\x11" * 32
    assert report.mrsigner == b"\x22" * 32
    assert report.config_id == b"\x0b" * 64
    assert (report.isvprodid, report.isvsvn, report.config_svn) == (1, 2, 3)
    assert report.isvfamilyid == b"\x0c" * 16
    assert report.report_data == b"\x33" * 64
    assert not report.debug


def test_an_enclave_that_can_be_debugged() -> None:
    assert parse_enclave_report(enclave_report(at_48=b"\x07")).debug


@pytest.mark.parametrize("size", [0, 383, 385])
def test_an_enclaves_report_of_another_size(size: int) -> None:
    with pytest.raises(MalformedError):
        parse_enclave_report((enclave_report() * 2)[:size])


@pytest.mark.parametrize("place", [20, 31, 96, 127, 160, 191, 262, 303])
def test_reserved_bytes_of_an_enclaves_report(place: int) -> None:
    parse_enclave_report(enclave_report())
    with pytest.raises(MalformedError) as caught:
        parse_enclave_report(enclave_report(**{f"at_{place}": b"\x01"}))
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("place", [19, 32, 95, 128, 159, 192, 261, 304])
def test_the_bytes_beside_them(place: int) -> None:
    parse_enclave_report(enclave_report(**{f"at_{place}": b"\x01"}))


def test_a_guests_fields() -> None:
    data = td_report()
    report = parse_td_report(data)
    assert report.raw == data
    assert report.tee_tcb_svn == b"\x01" * 16
    assert report.mr_seam == b"\x02" * 48
    assert report.mrsigner_seam == bytes(48)
    assert report.seam_attributes == bytes(8)
    assert report.attributes == TdAttribute.SEPT_VE_DISABLE
    assert report.td_attributes == data[120:128]
    assert report.xfam == b"\x06" * 8
    assert report.mr_td == b"\x07" * 48
    assert report.mr_config_id == b"\x08" * 48
    assert report.mr_owner == b"\x09" * 48
    assert report.mr_owner_config == b"\x0a" * 48
    assert report.rtmrs == (b"\x0b" * 48, b"\x0c" * 48, b"\x0d" * 48, b"\x0e" * 48)
    assert report.report_data == b"\x0f" * 64
    assert report.tee_tcb_svn2 is None
    assert report.mr_service_td is None


def test_what_later_modules_add() -> None:
    report = parse_td_report(td_report(later=True))
    assert report.tee_tcb_svn2 == b"\x10" * 16
    assert report.mr_service_td == b"\x11" * 48


@pytest.mark.parametrize("size", [0, 583, 585, 647, 649])
def test_a_guests_report_of_another_size(size: int) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_td_report((td_report(later=True) * 2)[:size])
    assert caught.value.code == "malformed"


@pytest.mark.parametrize("bit", range(64))
def test_bits_that_open_a_guest(bit: int) -> None:
    assert parse_td_report(td_report(attributes=1 << bit)).debug == (bit < 8)
