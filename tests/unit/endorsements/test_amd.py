"""AMD's extensions of endorsement keys' certificates: each rule with what breaks it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from cloister.endorsements.amd import (
    EndorsementKey,
    common_name,
    kind_of,
    parse_endorsement_key,
)
from cloister.endorsements.certificates import parse_certificate
from cloister.errors import MalformedError
from cloister.evidence.snp import Product, SigningKey
from cloister.testing.simulated_snp import TCBS, SimulatedAmd, SimulatedKey, amd_name

NOW = datetime(2026, 3, 1, tzinfo=UTC)
VENDORS = {product: SimulatedAmd(now=NOW, product=product) for product in Product}
MILAN, TURIN = VENDORS[Product.MILAN], VENDORS[Product.TURIN]


def parsed(key: SimulatedKey) -> EndorsementKey:
    return parse_endorsement_key(parse_certificate(key.certificate))


@pytest.mark.parametrize("product", Product)
def test_a_vcek(product: Product) -> None:
    made = VENDORS[product].key(product_name=f"{product.label}-B0")
    key = parsed(made)
    assert key.kind is kind_of(key.certificate) is SigningKey.VCEK
    assert (key.product, key.product_name) == (product, f"{product.label}-B0")
    assert key.tcb == TCBS[product]
    assert key.hwid == made.hwid
    assert key.chip_id == made.chip_id
    assert key.csp_id is None
    assert (key.issuer_name, key.root_name) == (f"SEV-{product.label}", f"ARK-{product.label}")


@pytest.mark.parametrize("product", Product)
def test_a_vlek(product: Product) -> None:
    key = parsed(VENDORS[product].key(SigningKey.VLEK, csp_id="CN=cloud.example"))
    assert key.kind is SigningKey.VLEK
    assert (key.csp_id, key.hwid, key.chip_id) == ("CN=cloud.example", None, None)
    assert key.tcb == TCBS[product]
    assert key.issuer_name == f"SEV-VLEK-{product.label}"


def test_each_part_of_the_tcb_has_its_byte() -> None:
    old, turin = bytes([1, 2, 3, 4, 5, 6, 7, 255]), bytes([1, 2, 3, 4, 5, 6, 7, 128])
    assert parsed(MILAN.key(tcb=old)).tcb == old
    assert parsed(TURIN.key(tcb=turin)).tcb == turin


@pytest.mark.parametrize("product", Product)
def test_a_chip_id_inside_an_octet_string(product: Product) -> None:
    wrapped = VENDORS[product].key(wrapped=True)
    assert parsed(wrapped).hwid == wrapped.hwid


def test_a_bare_id_that_looks_wrapped_is_bare() -> None:
    hwid = bytes([4, 62]) + bytes(62)
    assert parsed(MILAN.key(hwid=hwid)).hwid == hwid


@pytest.mark.parametrize(
    ("extensions", "why"),
    [
        ({"1": None}, "no number"),
        ({"1": b"\x02\x01\x01"}, "version of its format"),
        ({"2": None}, "no text"),
        ({"2": b"\x16\x00"}, "no text"),
        ({"2": b"\x0c\x05Milan"}, "no text"),
        ({"2": b"\x16\x04Milan"}, "no text"),
        ({"2": b"\x16\x06Milan"}, "no text"),
        ({"2": b"\x16\x80" + b"M" * 128}, "no text"),
        ({"2": b"\x16\x06Milan\n"}, "printed"),
        ({"2": b"\x16\x06Milan\xe9"}, "printed"),
        ({"2": b"\x16\x06Venice"}, "product that is not known"),
        ({"2": b"\x16\x06MilanX"}, "product that is not known"),
        ({"3.1": None}, "parts of Milan's TCB"),
        ({"3.8": None}, "parts of Milan's TCB"),
        ({"3.9": b"\x02\x01\x00"}, "parts of Milan's TCB"),
        ({"3.1": b""}, "no number"),
        ({"3.1": b"\x02\x00"}, "no number"),
        ({"3.1": b"\x02\x01"}, "no number"),
        ({"3.1": b"\x02\x01\x04\x00"}, "no number"),
        ({"3.1": b"\x03\x01\x04"}, "no number"),
        ({"3.1": b"\x02\x81\x01\x04"}, "no number"),
        ({"3.1": b"\x02\x03\x00\x00\x04"}, "no number"),
        ({"3.1": b"\x02\x02\x00\x04"}, "none of DER's"),
        ({"3.1": b"\x02\x02\x01\x00"}, "not one byte's"),
        ({"3.1": b"\x02\x01\x80"}, "not one byte's"),
        ({"3.1": b"\x02\x02\xff\x80"}, "not one byte's"),
        ({"4": None}, "name its chip"),
        ({"5": b"\x16\x01x"}, "name its chip"),
        ({"4": bytes(63)}, "does not have 64 bytes"),
        ({"4": bytes(8)}, "does not have 64 bytes"),
        ({"4": bytes(66)}, "does not have 64 bytes"),
        ({"4": b"\x04\x3f" + bytes(64)}, "does not have 64 bytes"),
    ],
)
def test_extensions_with_one_thing_wrong(extensions: dict[str, bytes | None], why: str) -> None:
    parsed(MILAN.key())
    with pytest.raises(MalformedError, match=why) as caught:
        parsed(MILAN.key(extensions=extensions))
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    "extensions",
    [
        {"1": b"\x02\x01\x00"},
        {"3.4": b"\x02\x01\x00"},
        {"3.9": None},
        {"4": bytes(64)},
    ],
)
def test_turin_differs(extensions: dict[str, bytes | None]) -> None:
    parsed(TURIN.key())
    with pytest.raises(MalformedError):
        parsed(TURIN.key(extensions=extensions))


@pytest.mark.parametrize(
    "extensions", [{"5": None}, {"4": bytes(64)}, {"5": b"\x16\x00"}, {"5": b"\x16\x02a\x07"}]
)
def test_a_vlek_names_its_provider_and_no_chip(extensions: dict[str, bytes | None]) -> None:
    with pytest.raises(MalformedError):
        parsed(MILAN.key(SigningKey.VLEK, extensions=extensions))


def test_other_certificates_are_no_endorsement_keys() -> None:
    for certificate in (MILAN.ark, MILAN.ask, MILAN.asvk):
        assert kind_of(certificate) is None
        with pytest.raises(MalformedError, match="VCEK or VLEK"):
            parse_endorsement_key(certificate)


def test_common_names() -> None:
    assert common_name(amd_name("ARK-Milan")) == "ARK-Milan"
    assert common_name(x509.Name([])) is None
    twice = [x509.NameAttribute(NameOID.COMMON_NAME, text) for text in ("ARK-Milan", "x")]
    assert common_name(x509.Name(twice)) is None
