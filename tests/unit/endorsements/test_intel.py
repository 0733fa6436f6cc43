"""Sets of collateral: one JSON document, its members and their limits."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import pytest

from cloister.endorsements import intel
from cloister.endorsements.intel import (
    Collateral,
    parse_chain,
    parse_collateral,
    parse_crl,
    parse_members,
)
from cloister.errors import MalformedError
from cloister.testing.simulated_dcap import SimulatedIntel, pem

INTEL = SimulatedIntel(now=datetime(2026, 6, 1, tzinfo=UTC))
GOOD = INTEL.collateral()
MEMBERS = json.loads(GOOD.encode())
HEX = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")


def test_what_is_encoded_decodes() -> None:
    assert parse_collateral(GOOD.encode()) == GOOD
    whole = dataclasses.replace(GOOD, pck_certificate_chain=INTEL.platform().chain)
    assert parse_collateral(whole.encode()) == whole


def test_the_members() -> None:
    found = parse_members(GOOD)
    assert found.raw is GOOD
    assert found.tcb_info.id == "TDX"
    assert found.qe_identity.id == "TD_QE"
    assert found.tcb_info_chain == found.qe_identity_chain == (INTEL.signer, INTEL.root)
    assert found.pck_crl_chain == (INTEL.cas["platform"], INTEL.root)
    assert found.pck_crl.issuer == INTEL.cas["platform"].subject
    assert found.root_crl.issuer == INTEL.root.subject


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_is_needed_and_of_its_type(name: str) -> None:
    for members in (
        {key: value for key, value in MEMBERS.items() if key != name},
        MEMBERS | {name: 1},
        MEMBERS | {name: None},
    ):
        with pytest.raises(MalformedError):
            parse_collateral(json.dumps(members).encode())


@pytest.mark.parametrize("name", HEX)
@pytest.mark.parametrize("change", ["upper", "space", "odd", "prefix"])
def test_hexadecimal_is_written_in_one_way(name: str, change: str) -> None:
    text = MEMBERS[name]
    changed = {
        "upper": text.upper(),
        "space": text + " ",
        "odd": text + "0",
        "prefix": "0x" + text,
    }[change]
    with pytest.raises(MalformedError):
        parse_collateral(json.dumps(MEMBERS | {name: changed}).encode())


@pytest.mark.parametrize("name", HEX[2:])
def test_signatures_have_64_bytes(name: str) -> None:
    for text in (MEMBERS[name][2:], MEMBERS[name] + "00"):
        with pytest.raises(MalformedError):
            parse_collateral(json.dumps(MEMBERS | {name: text}).encode())


def test_nothing_else_is_in_it() -> None:
    with pytest.raises(MalformedError, match="does not know"):
        parse_collateral(json.dumps(MEMBERS | {"more": ""}).encode())
    with pytest.raises(MalformedError):
        parse_collateral(GOOD.encode() + b"{}")
    with pytest.raises(MalformedError, match="twice"):
        parse_collateral(GOOD.encode()[:-1] + b',"tcb_info":""}')


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("pck_crl", intel.MAX_CRL_BYTES),
        ("tcb_info", intel.MAX_TEXT_BYTES),
        ("tcb_info_issuer_chain", intel.MAX_CHAIN_BYTES),
    ],
)
def test_limits(name: str, limit: int) -> None:
    character = "00" if name == "pck_crl" else " "
    parse_collateral(json.dumps(MEMBERS | {name: character * limit}).encode())
    with pytest.raises(MalformedError):
        parse_collateral(json.dumps(MEMBERS | {name: character * (limit + 1)}).encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tcb_info", b"{}"),
        ("qe_identity", b"[]"),
        ("pck_crl", b""),
        ("root_ca_crl", b"\x30\x00"),
        ("tcb_info_issuer_chain", b""),
        ("qe_identity_issuer_chain", b"no PEM"),
        ("pck_crl_issuer_chain", pem(INTEL.root)[:-40]),
    ],
)
def test_every_member_must_decode(name: str, value: bytes) -> None:
    parse_members(GOOD)
    changed: Collateral = dataclasses.replace(GOOD, **{name: value})
    with pytest.raises(MalformedError):
        parse_members(changed)


def test_chains_are_bounded() -> None:
    assert len(parse_chain(pem(*[INTEL.root] * intel.MAX_CHAIN))) == intel.MAX_CHAIN
    with pytest.raises(MalformedError):
        parse_chain(pem(*[INTEL.root] * (intel.MAX_CHAIN + 1)))
    with pytest.raises(MalformedError, match="longer"):
        parse_chain(pem(INTEL.root) + b"\n" * intel.MAX_CHAIN_BYTES)


def test_revocation_lists_are_der_and_bounded() -> None:
    assert parse_crl(GOOD.pck_crl).issuer == INTEL.cas["platform"].subject
    for data in (GOOD.pck_crl[:-1], GOOD.pck_crl + b"\x00", b""):
        with pytest.raises(MalformedError):
            parse_crl(data)
    with pytest.raises(MalformedError, match="longer"):
        parse_crl(bytes(intel.MAX_CRL_BYTES + 1))
