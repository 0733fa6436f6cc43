"""The SGX extensions of PCK certificates: what decodes, and what strict DER refuses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography import x509

from cloister.endorsements.intel import parse_pck_extensions
from cloister.endorsements.intel_pck import MAX_EXTENSION_BYTES
from cloister.errors import MalformedError
from cloister.testing.simulated_dcap import SimulatedIntel
from cloister.testing.simulated_dcap_parts import der, der_integer, sgx_extensions

INTEL = SimulatedIntel(now=datetime(2026, 6, 1, tzinfo=UTC))
GOOD = sgx_extensions(ppid=bytes(range(16)))
ARC = bytes.fromhex("060a2a864886f84d010d01")


def certificate(extensions: bytes) -> x509.Certificate:
    return INTEL.platform(extensions=extensions).certificate


def parse(extensions: bytes) -> object:
    return parse_pck_extensions(certificate(extensions))


def content(extensions: bytes) -> bytes:
    """What is inside the outer sequence, which has a length of two bytes."""
    assert extensions[:2] == b"\x30\x82"
    return extensions[4:]


def test_all_fields() -> None:
    found = parse_pck_extensions(
        certificate(
            sgx_extensions(
                sgx_svns=range(240, 256),
                pcesvn=0xFFFF,
                fmspc=bytes.fromhex("b0c06f000000"),
                pceid=b"\x01\x02",
                ppid=bytes(range(16)),
            )
        )
    )
    assert found.tcb_components == tuple(range(240, 256))
    assert found.cpusvn == bytes(range(240, 256))
    assert found.pcesvn == 0xFFFF
    assert found.fmspc.hex() == "b0c06f000000"
    assert found.pceid == b"\x01\x02"
    assert found.ppid == bytes(range(16))
    assert found.sgx_type == 1
    assert found.platform_instance_id is not None
    assert len(found.platform_instance_id) == 16
    assert (found.dynamic_platform, found.cached_keys, found.smt_enabled) == (True, True, True)


def test_a_certificate_of_the_processor_ca_says_less() -> None:
    found = parse_pck_extensions(certificate(sgx_extensions(multi_package=False)))
    assert found.platform_instance_id is None
    assert (found.dynamic_platform, found.cached_keys, found.smt_enabled) == (None, None, None)


def test_a_switch_may_be_off_or_absent() -> None:
    off = GOOD.replace(der(0x01, b"\xff"), der(0x01, b"\x00"), 1)
    assert off != GOOD
    found = parse_pck_extensions(certificate(off))
    assert (found.dynamic_platform, found.cached_keys, found.smt_enabled) == (False, True, True)


def test_other_certificates_have_no_such_extensions() -> None:
    with pytest.raises(MalformedError, match="no SGX extensions"):
        parse_pck_extensions(INTEL.signer)


PPID = der(0x04, bytes(range(16)))
PPID_FIELD = der(0x30, ARC + b"\x01" + PPID)
PCESVN = der_integer(13)


def with_ppid(good: bytes, value: bytes) -> bytes:
    """The extensions with another PPID, all lengths around it as they should be."""
    assert PPID_FIELD in good
    return der(0x30, content(good).replace(PPID_FIELD, der(0x30, ARC + b"\x01" + value), 1))


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "trailing": lambda good: good + b"\x00",
    "truncated": lambda good: good[:-1],
    "empty": lambda _: b"",
    "no sequence": lambda good: b"\x31" + good[1:],
    "indefinite length": lambda good: b"\x30\x80" + content(good) + b"\x00\x00",
    "padded length": lambda good: b"\x30\x83\x00" + good[2:],
    "long length for a short one": lambda good: with_ppid(good, b"\x04\x81\x10" + PPID[2:]),
    "two length bytes for one": lambda good: with_ppid(good, b"\x04\x82\x00\x10" + PPID[2:]),
    "three length bytes for one": lambda good: with_ppid(good, b"\x04\x83\x00\x00\x10" + PPID[2:]),
    "a field twice": lambda good: der(0x30, content(good) + der(0x30, ARC + b"\x01" + PPID)),
    "an unknown field": lambda good: der(0x30, content(good) + der(0x30, ARC + b"\x08" + PPID)),
    "a field of another arc": lambda good: good.replace(ARC + b"\x01", ARC[:-1] + b"\x02\x01", 1),
    "a deeper name": lambda good: der(
        0x30,
        content(good).replace(PPID_FIELD, der(0x30, b"\x06\x0b" + ARC[2:] + b"\x08\x01" + PPID)),
    ),
    "no PPID": lambda good: der(0x30, content(good).replace(PPID_FIELD, b"")),
    "a short PPID": lambda good: with_ppid(good, der(0x04, bytes(15))),
    "a PPID that is a number": lambda good: good.replace(PPID, b"\x02" + PPID[1:]),
    "something behind a value": lambda good: with_ppid(good, PPID + b"\x05\x00"),
    "a last field that promises more": lambda good: der(
        0x30,
        content(good).replace(PPID_FIELD, b"")
        + PPID_FIELD[:1]
        + bytes([PPID_FIELD[1] + 1])
        + PPID_FIELD[2:],
    ),
    "a switch that is neither": lambda good: good.replace(
        der(0x01, b"\xff"), der(0x01, b"\x01"), 1
    ),
    "an SGX type that is a number": lambda good: good.replace(
        der(0x0A, b"\x01"), der(0x02, b"\x01"), 1
    ),
}


def test_no_processor_has_so_much_to_say() -> None:
    parse(GOOD)
    with pytest.raises(MalformedError, match="longer"):
        parse(der(0x30, bytes(MAX_EXTENSION_BYTES)))


@pytest.mark.parametrize("name", CHANGES)
def test_strict_der(name: str) -> None:
    parse(GOOD)
    assert parse(with_ppid(GOOD, PPID)) == parse(GOOD)
    assert parse(der(0x30, content(GOOD).replace(PPID_FIELD, b"") + PPID_FIELD)) == parse(GOOD)
    changed = CHANGES[name](GOOD)
    assert changed != GOOD
    with pytest.raises(MalformedError):
        parse(changed)


@pytest.mark.parametrize(
    ("number", "accepted"),
    [
        (b"\x0d", True),
        (b"\x00\x0d", False),  # padded
        (b"\x00\x8d", True),
        (b"\x8d", False),  # negative
        (b"", False),
        (b"\x00\xff\xff", True),
        (b"\x01\x00\x00", False),  # above 65535
    ],
)
def test_numbers_are_minimal_and_in_range(number: bytes, accepted: bool) -> None:
    tcb_field = b"\x06\x0b" + ARC[2:] + b"\x02\x11"
    pair, other = der(0x30, tcb_field + PCESVN), der(0x30, tcb_field + der(0x02, number))
    inner = b"".join(
        der(0x30, b"\x06\x0b" + ARC[2:] + bytes([2, index]) + der_integer(1))
        for index in range(1, 17)
    )
    cpusvn = der(0x30, b"\x06\x0b" + ARC[2:] + b"\x02\x12" + der(0x04, bytes(16)))
    fields = [
        der(0x30, ARC + b"\x01" + PPID),
        der(0x30, ARC + b"\x02" + der(0x30, inner + pair + cpusvn)),
        der(0x30, ARC + b"\x03" + der(0x04, bytes(2))),
        der(0x30, ARC + b"\x04" + der(0x04, bytes(6))),
        der(0x30, ARC + b"\x05" + der(0x0A, b"\x00")),
    ]
    assert parse_pck_extensions(certificate(der(0x30, b"".join(fields)))).pcesvn == 13
    fields[1] = der(0x30, ARC + b"\x02" + der(0x30, inner + other + cpusvn))
    made = certificate(der(0x30, b"".join(fields)))
    if accepted:
        assert parse_pck_extensions(made).pcesvn == int.from_bytes(number, "big")
    else:
        with pytest.raises(MalformedError):
            parse_pck_extensions(made)


def test_a_component_has_one_byte() -> None:
    good = sgx_extensions(sgx_svns=(255, *([0] * 15)))
    assert parse_pck_extensions(certificate(good)).tcb_components[0] == 255
    inner = der(0x30, b"\x06\x0b" + ARC[2:] + b"\x02\x01" + der_integer(255))
    wider = der(0x30, b"\x06\x0b" + ARC[2:] + b"\x02\x01" + der_integer(256))
    assert len(inner) == len(wider)
    with pytest.raises(MalformedError, match="out of range"):
        parse_pck_extensions(certificate(good.replace(inner, wider, 1)))
