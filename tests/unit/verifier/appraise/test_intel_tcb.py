"""Judging Intel platforms: each rule with the platform that keeps it and the one that breaks it.

Which level a platform reaches, and what a policy makes of it, is in `test_intel_tcb_states`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.intel import parse_pck_extensions
from cloister.endorsements.roots import Vendor
from cloister.evidence.dcap import parse_quote
from cloister.evidence.tdx import TdReport
from cloister.testing.simulated_dcap import (
    SGX,
    TDX,
    SimulatedIntel,
    isv_level,
    module_identity,
    tcb_level,
)
from cloister.testing.simulated_dcap_parts import der, der_integer
from cloister.verifier.appraise.intel_tcb import collateral_claims, judge_tcb
from cloister.verifier.authenticate.intel_collateral import check_signatures
from cloister.verifier.chain import authenticate_chain
from cloister.verifier.ledger import UNAUTHENTICATED, Ledger
from cloister.verifier.result import Finding
from support.intel_judging import INTEL, NOW, PLATFORM, STRICT, Tee, judge, refused, tdx


@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_a_platform_that_is_up_to_date(tee: Tee) -> None:
    found = judge(tee)
    assert found.broken == {}
    assert tuple(f"x.{name}" for name in found.claims) == collateral_claims(tee, "x.")
    assert found.value("platform_tcb") == found.value("qe_tcb") == "UpToDate"
    assert (found.value("pck_revoked"), found.value("fmspc_match")) == ("no", "pass")
    assert found.value("tcb_evaluation_number") == "19"
    assert found.judgement.status == "UpToDate"
    assert found.judgement.advisory_ids == ()
    assert found.judgement.not_proven == ()
    assert found.judgement.facts["collateral"] == {
        "tcb_evaluation_data_number": 19,
        "platform_tcb_date": "2025-05-14T00:00:00Z",
        "advisory_ids": [],
    }
    if tee == "tdx":
        assert found.value("tdx_module_tcb") == "UpToDate"
        assert found.judgement.facts["tdx_module"] == found.judgement.tdx_module_id == "TDX_01"
    else:
        assert "tdx_module" not in found.judgement.facts
        assert "tdx_module_tcb" not in found.claims


# ------------------------------------------------------------------ is it for this platform


def test_the_family_must_be_the_platforms() -> None:
    other = INTEL.platform(fmspc=bytes.fromhex("b0c06f000000"))
    assert judge().broken == {}
    assert judge(platform=other).broken == {"fmspc_match": refused("fmspc_mismatch")}
    matching = INTEL.collateral(tcb_info=INTEL.tcb_info(fmspc=bytes.fromhex("b0c06f000000")))
    assert judge(platform=other, collateral=matching).broken == {}


def test_the_pce_must_be_the_platforms() -> None:
    other = INTEL.platform(pceid=b"\x01\x00")
    assert judge(platform=other).broken == {"fmspc_match": refused("fmspc_mismatch")}
    matching = INTEL.collateral(tcb_info=INTEL.tcb_info() | {"pceId": "0100"})
    assert judge(platform=other, collateral=matching).broken == {}


def test_tcb_info_for_the_other_tee() -> None:
    mixed = INTEL.collateral(SGX, tcb_info=INTEL.tcb_info(TDX))
    assert judge("sgx").broken == {}
    assert judge("sgx", collateral=mixed).broken == {"fmspc_match": refused("tcb_info_mismatch")}
    mixed = INTEL.collateral(TDX, tcb_info=INTEL.tcb_info(SGX))
    broken = judge(collateral=mixed).broken
    assert broken["fmspc_match"] == refused("tcb_info_mismatch")
    assert broken["platform_tcb"] == refused("tcb_no_match", "no_matching_level")


# -------------------------------------------------------------------------- revocation


def test_a_revoked_platform() -> None:
    other = INTEL.platform()
    listed = INTEL.collateral(revoked=[PLATFORM.certificate])
    assert judge(platform=other, collateral=listed).broken == {}
    assert judge(collateral=listed).broken == {"pck_revoked": refused("revoked", "yes")}


def test_a_revoked_ca() -> None:
    """The list is the other CA's, so that only what is above the platform counts."""
    platform = INTEL.platform(ca="processor")
    good = INTEL.collateral(ca="processor")
    assert judge(platform=platform, collateral=good).broken == {}
    ledger = Ledger()
    revoked = INTEL.collateral(ca="processor", revoked=[INTEL.cas["processor"]])
    signed = check_signatures(revoked, roots=INTEL.roots)
    quote = parse_quote(platform.tdx_quote())
    assert isinstance(quote.body, TdReport)
    judge_tcb(
        signed.collateral,
        True,
        tee="tdx",
        pck=parse_pck_extensions(platform.certificate),
        pck_chain=authenticate_chain(
            platform.certificate,
            [INTEL.cas["processor"]],
            anchors=INTEL.roots.vendor(Vendor.INTEL),
            at=NOW,
        ),
        qe_report=quote.qe_report,
        td_report=quote.body,
        policy=STRICT,
        at=NOW,
        ledger=ledger,
        prefix="x.",
    )
    assert not ledger.holds("x.pck_revoked")
    assert ledger.holds("x.platform_tcb")


def test_the_list_must_be_that_of_the_platforms_ca() -> None:
    listed = INTEL.collateral(ca="processor")
    assert judge(platform=INTEL.platform(ca="processor"), collateral=listed).broken == {}
    assert judge(collateral=listed).broken == {"pck_revoked": refused("crl_mismatch", "unknown")}


def test_the_list_must_be_signed_by_the_key_of_the_platforms_ca() -> None:
    """A namesake from the same root says nothing about the platform's certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    namesake = INTEL.certify("Intel SGX PCK Platform CA", key, ca=0)
    other = SimulatedIntel(now=NOW)
    other.root, other.root_key = INTEL.root, INTEL.root_key
    other.signer, other.signing_key = INTEL.signer, INTEL.signing_key
    other.cas["platform"], other.ca_keys["platform"] = namesake, key
    assert judge(collateral=INTEL.collateral()).broken == {}
    assert judge(collateral=other.collateral()).broken == {
        "pck_revoked": refused("crl_mismatch", "unknown")
    }


def test_a_platform_without_a_chain_is_looked_up_by_its_issuers_name() -> None:
    assert judge(chain=()).broken == {}
    other = INTEL.collateral(ca="processor")
    assert judge(chain=(), collateral=other).broken == {
        "pck_revoked": refused("crl_mismatch", "unknown")
    }
    listed = INTEL.collateral(revoked=[PLATFORM.certificate])
    assert judge(chain=(), collateral=listed).broken == {"pck_revoked": refused("revoked", "yes")}


def with_serial_0(certificate: x509.Certificate) -> x509.Certificate:
    """As it was, but for the serial number (and so with a signature that does not hold)."""
    tbs, whole = certificate.tbs_certificate_bytes, certificate.public_bytes(Encoding.DER)
    version, serial = tbs[4:9], der_integer(certificate.serial_number)
    assert tbs[9 : 9 + len(serial)] == serial
    changed = der(0x30, version + der_integer(0) + tbs[9 + len(serial) :])
    return parse_certificate(der(0x30, changed + whole[4 + len(tbs) :]))


def test_a_serial_number_of_0_is_looked_up_without_a_warning() -> None:
    """Anyone may make such a certificate; the library warns, which here is an error."""
    made = with_serial_0(PLATFORM.certificate)
    with pytest.warns(UserWarning, match="serial number"):
        assert made.serial_number == 0
    assert judge(platform=dataclasses.replace(PLATFORM, certificate=made)).broken == {}


# --------------------------------------------------------------------- quoting enclave

QE_CHANGES: list[tuple[dict[str, bytes | int], bool]] = [
    ({"mrsigner": bytes(32)}, False),
    ({"isvprodid": 3}, False),
    ({"miscselect": 1}, False),
    ({"attributes": bytes.fromhex("1700000000000000e700000000000000")}, False),
    ({"attributes": bytes.fromhex("0500000000000000e700000000000000")}, False),
    ({"attributes": bytes.fromhex("1100000000000000e700000000000000")}, True),
    ({"attributes": bytes.fromhex("1500000000000000ff00000000000000")}, True),
    ({"mrenclave": bytes(32)}, True),
    ({"isvsvn": 7}, True),
]


@pytest.mark.parametrize(("fields", "holds"), QE_CHANGES, ids=range(len(QE_CHANGES)))
@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_the_quoting_enclave(tee: Tee, fields: dict[str, bytes | int], holds: bool) -> None:
    if tee == "sgx" and "isvsvn" in fields:
        fields = {"isvsvn": 9}
    assert judge(tee).broken == {}
    found = judge(tee, platform=PLATFORM.with_qe(**fields))
    assert found.broken == ({} if holds else {"qe_identity_match": refused("qe_identity_mismatch")})


def test_masks_come_from_the_identity() -> None:
    platform = PLATFORM.with_qe(miscselect=1)
    identity = INTEL.qe_identity() | {"miscselectMask": "FEFFFFFF"}
    assert judge(platform=platform, collateral=INTEL.collateral(qe_identity=identity)).broken == {}
    identity = INTEL.qe_identity() | {"miscselect": "01000000"}
    assert judge(platform=platform, collateral=INTEL.collateral(qe_identity=identity)).broken == {}
    identity = INTEL.qe_identity() | {"miscselect": "00000001"}
    assert judge(platform=platform, collateral=INTEL.collateral(qe_identity=identity)).broken == {
        "qe_identity_match": refused("qe_identity_mismatch")
    }


@pytest.mark.parametrize(("tee", "name"), [("tdx", "QE"), ("sgx", "TD_QE")])
def test_the_identity_must_be_for_this_tee(tee: Tee, name: str) -> None:
    kind = TDX if tee == "tdx" else SGX
    assert judge(tee).broken == {}
    mixed = INTEL.collateral(kind, qe_identity=INTEL.qe_identity(kind) | {"id": name})
    assert judge(tee, collateral=mixed).broken == {
        "qe_identity_match": refused("qe_identity_mismatch")
    }


@pytest.mark.parametrize(
    ("isvsvn", "status"),
    [(6, "UpToDate"), (5, "UpToDate"), (4, "OutOfDate"), (3, "Revoked"), (2, None)],
)
def test_the_state_of_the_quoting_enclave(isvsvn: int, status: str | None) -> None:
    levels = [isv_level(5), isv_level(4, "OutOfDate"), isv_level(3, "Revoked")]
    collateral = INTEL.collateral(qe_identity=INTEL.qe_identity(levels=levels))
    found = judge(platform=PLATFORM.with_qe(isvsvn=isvsvn), collateral=collateral)
    assert found.value("platform_tcb") == "UpToDate"
    if status is None:
        assert found.broken["qe_tcb"] == refused("tcb_no_match", "no_matching_level")
        assert found.judgement.status is None
    elif status == "UpToDate":
        assert found.broken == {}
    else:
        assert found.broken == {
            "qe_tcb": refused("tcb_status", status),
            "tcb_status": refused("tcb_status", status),
        }
        assert found.judgement.status == status


# -------------------------------------------------------------------------- TDX module


@pytest.mark.parametrize(
    ("fields", "holds"),
    [
        ({"mrsigner_seam": b"\x01"}, False),
        ({"seam_attributes": 1}, False),
        ({"mr_seam": bytes(48)}, True),
    ],
)
@pytest.mark.parametrize("version", [0, 1])
def test_who_signed_the_module(version: int, fields: dict[str, Any], holds: bool) -> None:
    fields = {"tee_tcb_svn": bytes([5, version, 3]), **fields}
    assert judge(tee_tcb_svn=bytes([5, version, 3])).broken == {}
    assert judge(**fields).broken == (
        {} if holds else {"tdx_module_signer": refused("tdx_module_mismatch")}
    )


def test_the_modules_own_identity_counts() -> None:
    """Where there is one, what ``tdxModule`` says is for modules of version 0."""
    info: dict[str, Any] = dict(INTEL.tcb_info())
    info["tdxModule"] = info["tdxModule"] | {"mrsigner": "11" * 48}
    collateral = INTEL.collateral(tcb_info=info)
    assert judge(collateral=collateral).broken == {}
    assert judge(collateral=collateral, tee_tcb_svn=bytes([5, 0, 3])).broken == {
        "tdx_module_signer": refused("tdx_module_mismatch")
    }


def test_the_mask_of_the_modules_attributes() -> None:
    identity = module_identity("TDX_01", isv_level(5)) | {"attributesMask": "FEFFFFFFFFFFFFFF"}
    collateral = tdx(tcb_level(), modules=[identity])
    assert judge(collateral=collateral, seam_attributes=1).broken == {}
    assert "tdx_module_signer" in judge(collateral=collateral, seam_attributes=2).broken


def test_a_module_that_intel_does_not_list() -> None:
    found = judge(tee_tcb_svn=bytes([5, 2, 3]))
    assert found.broken["tdx_module_signer"] == refused("tdx_module_mismatch")
    assert found.broken["tdx_module_tcb"] == refused("tcb_no_match", "no_matching_level")
    assert found.value("platform_tcb") == "UpToDate"
    assert found.judgement.status is None


@pytest.mark.parametrize(
    ("isvsvn", "status"), [(6, "UpToDate"), (5, "UpToDate"), (4, "OutOfDate"), (1, None)]
)
def test_the_state_of_the_module(isvsvn: int, status: str | None) -> None:
    modules = [
        module_identity("TDX_03", isv_level(9)),
        module_identity("TDX_01", isv_level(5), isv_level(2, "OutOfDate")),
    ]
    found = judge(collateral=tdx(tcb_level(), modules=modules), tee_tcb_svn=bytes([isvsvn, 1, 3]))
    assert found.value("platform_tcb") == "UpToDate"
    if status is None:
        assert found.broken["tdx_module_tcb"] == refused("tcb_no_match", "no_matching_level")
    elif status == "UpToDate":
        assert found.broken == {}
    else:
        assert found.broken["tdx_module_tcb"] == refused("tcb_status", status)


def test_a_module_of_version_0_is_judged_with_the_platform() -> None:
    found = judge(tee_tcb_svn=bytes([5, 0, 3]))
    assert found.broken == {}
    assert found.value("tdx_module_tcb") == "in_platform_tcb"
    assert found.judgement.tdx_module_id is None
    assert found.judgement.tdx_module is None
    assert "tdx_module" not in found.judgement.facts
    older = judge(tee_tcb_svn=bytes([4, 0, 3]))
    assert older.broken["platform_tcb"] == refused("tcb_no_match", "no_matching_level")


def test_a_module_of_version_0_has_no_identity() -> None:
    modules = [module_identity("TDX_00", isv_level(1))]
    found = judge(collateral=tdx(tcb_level(), modules=modules), tee_tcb_svn=bytes([5, 0, 3]))
    assert found.broken == {}
    assert found.judgement.tdx_module is None


def test_the_first_two_bytes_belong_to_the_module() -> None:
    """The platform level asks for more of them than the module has."""
    level = tcb_level(tdx_svns=(200, 200, 3, *([0] * 13)))
    assert judge(collateral=tdx(level)).broken == {}
    assert "platform_tcb" in judge(collateral=tdx(level), tee_tcb_svn=bytes([199, 0, 3])).broken


# ----------------------------------------------------------------------- authentication


def test_nothing_is_affirmed_of_what_was_not_authenticated() -> None:
    assert judge().broken == {}
    found = judge(authenticated=False)
    after = collateral_claims("tdx", "")[7:]
    assert found.broken.keys() == set(after)
    assert {found.claims[name].code for name in after} == {UNAUTHENTICATED}
    assert {found.claims[name].finding for name in after} == {Finding.NONE}
    assert found.value("platform_tcb") == "UpToDate"
    assert found.value("pck_revoked") == "no"


def test_what_is_wrong_is_refused_all_the_same() -> None:
    listed = INTEL.collateral(revoked=[PLATFORM.certificate])
    found = judge(collateral=listed, authenticated=False)
    assert found.claims["pck_revoked"].finding is Finding.CONTRAINDICATED


def test_a_guest_is_judged_with_its_report() -> None:
    quote = parse_quote(PLATFORM.sgx_quote())
    signed = check_signatures(INTEL.collateral(), roots=INTEL.roots)
    with pytest.raises(TypeError):
        judge_tcb(
            signed.collateral,
            True,
            tee="tdx",
            pck=parse_pck_extensions(PLATFORM.certificate),
            pck_chain=authenticate_chain(PLATFORM.certificate, (), anchors=(), at=NOW),
            qe_report=quote.qe_report,
            td_report=None,
            policy=STRICT,
            at=NOW,
            ledger=Ledger(),
            prefix="x.",
        )
