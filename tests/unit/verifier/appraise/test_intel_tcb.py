"""Judging Intel platforms: each rule with the platform that keeps it and the one that breaks it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.intel import Collateral, parse_pck_extensions
from cloister.endorsements.roots import Vendor
from cloister.evidence.dcap import parse_quote
from cloister.evidence.tdx import TdReport
from cloister.strictjson import JsonObject
from cloister.testing.simulated_dcap import (
    SGX,
    TDX,
    SimulatedIntel,
    SimulatedPlatform,
    isv_level,
    module_identity,
    tcb_level,
)
from cloister.testing.simulated_dcap_parts import (
    SGX_SVNS,
    TDX_SVNS,
    TEE_TCB_SVN,
    der,
    der_integer,
)
from cloister.verifier.appraise.intel_tcb import (
    TcbJudgement,
    collateral_claims,
    judge_tcb,
)
from cloister.verifier.authenticate.intel_collateral import authenticate_signed, check_signatures
from cloister.verifier.chain import authenticate_chain
from cloister.verifier.ledger import UNAUTHENTICATED, Ledger
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy, strict
from cloister.verifier.result import Claim, Finding

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = 24 * 3600
INTEL = SimulatedIntel(now=NOW)
PLATFORM = INTEL.platform()
STRICT = strict()
GENEROUS = dataclasses.replace(STRICT, tcb_statuses=UNCHECKED, tcb_accepted_advisories=UNCHECKED)

Tee = Literal["sgx", "tdx"]


def policy(**fields: object) -> AppraisalPolicy:
    return dataclasses.replace(STRICT, **fields)  # type: ignore[arg-type]  # checked at run time


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    claims: Mapping[str, Claim]
    judgement: TcbJudgement

    @property
    def broken(self) -> dict[str, tuple[str | None, str | None]]:
        return {
            name: (claim.code, claim.value)
            for name, claim in self.claims.items()
            if claim.finding is not Finding.AFFIRMING
        }

    def value(self, name: str) -> str | None:
        return self.claims[name].value


def judge(
    tee: Tee = "tdx",
    *,
    collateral: Collateral | None = None,
    platform: SimulatedPlatform = PLATFORM,
    policy: AppraisalPolicy = STRICT,
    at: datetime = NOW,
    authenticated: bool = True,
    chain: tuple[Any, ...] | None = None,
    **fields: bytes | int,
) -> Judged:
    """Judge a quote of `platform`, whose report holds `fields`, by `collateral`."""
    made = platform.tdx_quote(**fields) if tee == "tdx" else platform.sgx_quote(**fields)  # type: ignore[arg-type]  # no version or kind among the fields
    quote = parse_quote(made)
    ledger = Ledger()
    ledger.expect(*collateral_claims(tee, "x."))
    if collateral is None:
        collateral = INTEL.collateral(TDX if tee == "tdx" else SGX)
    signed = check_signatures(collateral, roots=INTEL.roots)
    authentic = authenticate_signed(signed, roots=INTEL.roots, at=at, ledger=ledger, prefix="x.")
    assert authentic is not None
    found = judge_tcb(
        signed.collateral,
        authenticated,
        tee=tee,
        pck=parse_pck_extensions(platform.certificate),
        pck_chain=authenticate_chain(
            platform.certificate,
            tuple(INTEL.cas.values()) if chain is None else chain,
            anchors=INTEL.roots.vendor(Vendor.INTEL),
            at=at,
        ),
        qe_report=quote.qe_report,
        td_report=quote.body if isinstance(quote.body, TdReport) else None,
        policy=policy,
        at=at,
        ledger=ledger,
        prefix="x.",
    )
    claims = {claim.name.removeprefix("x."): claim for claim in ledger.close(development=False)}
    return Judged(claims=claims, judgement=found)


def refused(code: str, value: str = "fail") -> tuple[str, str]:
    return code, value


def tdx(*levels: JsonObject, modules: list[JsonObject] | None = None) -> Collateral:
    return INTEL.collateral(tcb_info=INTEL.tcb_info(levels=levels, modules=modules))


def sgx(*levels: JsonObject) -> Collateral:
    return INTEL.collateral(SGX, tcb_info=INTEL.tcb_info(SGX, levels=levels))


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


# ---------------------------------------------------------------------- platform levels


@pytest.mark.parametrize("index", range(16))
def test_every_sgx_component_counts(index: int) -> None:
    svns = list(SGX_SVNS)
    level = tcb_level(SGX, sgx_svns=[*svns[:index], svns[index] + 1, *svns[index + 1 :]])
    assert judge("sgx", collateral=sgx(tcb_level(SGX))).broken == {}
    found = judge("sgx", collateral=sgx(level))
    assert found.broken == {
        "platform_tcb": refused("tcb_no_match", "no_matching_level"),
        "tcb_status": ("not_checked", None),
    }


@pytest.mark.parametrize("index", range(2, 16))
def test_every_tdx_component_counts(index: int) -> None:
    have = bytearray(TEE_TCB_SVN)
    have[index] = 7
    level = tcb_level(tdx_svns=[*TDX_SVNS[:index], 7, *TDX_SVNS[index + 1 :]])
    assert judge(collateral=tdx(level), tee_tcb_svn=bytes(have)).broken == {}
    have[index] = 6
    assert "platform_tcb" in judge(collateral=tdx(level), tee_tcb_svn=bytes(have)).broken


def test_the_pce_version_counts() -> None:
    level = tcb_level(SGX, pcesvn=13)
    assert judge("sgx", collateral=sgx(level)).broken == {}
    older = INTEL.platform(pcesvn=12)
    assert "platform_tcb" in judge("sgx", platform=older, collateral=sgx(level)).broken


def test_the_first_level_that_is_reached_counts() -> None:
    newer = tcb_level(pcesvn=14, dated="2026-05-01T00:00:00Z")
    own = tcb_level(status="SWHardeningNeeded", dated="2025-05-14T00:00:00Z")
    older = tcb_level(status="OutOfDate", pcesvn=1, dated="2024-01-01T00:00:00Z")
    found = judge(collateral=tdx(newer, own, older), policy=GENEROUS)
    assert found.value("platform_tcb") == "SWHardeningNeeded"
    assert found.judgement.facts["collateral"] == {
        "tcb_evaluation_data_number": 19,
        "platform_tcb_date": "2025-05-14T00:00:00Z",
        "advisory_ids": [],
    }


def test_no_level_at_all() -> None:
    found = judge(collateral=tdx())
    assert found.broken["platform_tcb"] == refused("tcb_no_match", "no_matching_level")
    assert found.judgement.facts["collateral"] == {
        "tcb_evaluation_data_number": 19,
        "platform_tcb_date": None,
        "advisory_ids": None,
    }


STATES = [
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]


@pytest.mark.parametrize("status", STATES)
def test_a_state_is_accepted_if_the_policy_names_it(status: str) -> None:
    collateral = sgx(tcb_level(SGX, status))
    accepting = policy(tcb_statuses=(status,) if status == "UpToDate" else ("UpToDate", status))
    assert judge("sgx", collateral=collateral, policy=accepting).broken == {}
    found = judge("sgx", collateral=collateral)
    if status != "UpToDate":
        assert found.broken == {
            "platform_tcb": refused("tcb_status", status),
            "tcb_status": refused("tcb_status", status),
        }


@pytest.mark.parametrize("status", ["Revoked"])
@pytest.mark.parametrize("grace", [UNCHECKED, 10 * 365 * DAY])
def test_revoked_is_never_accepted(status: str, grace: Any) -> None:
    generous = dataclasses.replace(GENEROUS, tcb_grace_s=grace)
    newer = tcb_level(SGX, pcesvn=14, dated="2026-05-31T00:00:00Z")
    good, bad = sgx(newer, tcb_level(SGX, "OutOfDate")), sgx(newer, tcb_level(SGX, status))
    assert judge("sgx", collateral=good, policy=generous).broken == {}
    assert judge("sgx", collateral=bad, policy=generous).broken == {
        "platform_tcb": refused("tcb_status", status),
        "tcb_status": refused("tcb_status", status),
    }


def test_a_state_that_is_not_known_needs_an_explicit_wish() -> None:
    collateral = sgx(tcb_level(SGX, "Splendid"))
    every = policy(tcb_statuses=tuple(STATES))
    assert judge("sgx", policy=every).broken == {}
    assert judge("sgx", collateral=collateral, policy=every).broken["platform_tcb"] == refused(
        "tcb_status", "Splendid"
    )


def test_states_taken_together_must_be_accepted_too() -> None:
    """Each is accepted on its own, but together they are out of date *and* need configuration."""
    accepting = policy(tcb_statuses=("UpToDate", "ConfigurationNeeded", "OutOfDate"))
    level = tcb_level(status="ConfigurationNeeded")
    assert judge(collateral=tdx(level), policy=accepting).broken == {}
    modules = [module_identity("TDX_01", isv_level(6), isv_level(5, "OutOfDate"))]
    found = judge(collateral=tdx(level, modules=modules), policy=accepting)
    assert found.judgement.status == "OutOfDateConfigurationNeeded"
    assert found.broken == {"tcb_status": refused("tcb_status", "OutOfDateConfigurationNeeded")}


# ------------------------------------------------------------------------------- grace

NEW = "2026-05-20T00:00:00Z"
OUT_OF_DATE = tcb_level(status="OutOfDate", dated="2025-05-14T00:00:00Z")


@pytest.mark.parametrize(("days", "holds"), [(12, True), (11, False)])
def test_grace_runs_from_the_newer_level(days: int, holds: bool) -> None:
    """Intel's newer level is twelve days old."""
    collateral = tdx(tcb_level(pcesvn=14, dated=NEW), OUT_OF_DATE)
    assert "platform_tcb" in judge(collateral=collateral).broken
    found = judge(collateral=collateral, policy=policy(tcb_grace_s=days * DAY))
    assert found.value("platform_tcb") == "OutOfDate"
    assert found.judgement.status == "OutOfDate"
    assert (found.broken == {}) is holds


def test_grace_from_the_end_of_time() -> None:
    """Dates of collateral that nobody signed are compared all the same."""
    collateral = tdx(tcb_level(pcesvn=14, dated="9999-12-31T23:59:59Z"), OUT_OF_DATE)
    assert "platform_tcb" in judge(collateral=collateral).broken
    assert judge(collateral=collateral, policy=policy(tcb_grace_s=DAY)).broken == {}


def test_grace_runs_from_the_first_newer_level() -> None:
    first = tcb_level(status="OutOfDate", pcesvn=14, dated="2026-01-01T00:00:00Z")
    newest = tcb_level(pcesvn=15, dated=NEW)
    generous = policy(tcb_grace_s=30 * DAY)
    assert judge(collateral=tdx(newest, OUT_OF_DATE), policy=generous).broken == {}
    assert (
        "platform_tcb" in judge(collateral=tdx(newest, first, OUT_OF_DATE), policy=generous).broken
    )


def test_levels_of_the_same_date_are_not_newer() -> None:
    same = tcb_level(pcesvn=14, dated="2025-05-14T00:00:00Z")
    newest = tcb_level(pcesvn=15, dated=NEW)
    generous = policy(tcb_grace_s=30 * DAY)
    assert judge(collateral=tdx(newest, same, OUT_OF_DATE), policy=generous).broken == {}
    assert "platform_tcb" in judge(collateral=tdx(same, OUT_OF_DATE), policy=generous).broken


def test_no_grace_without_a_newer_level() -> None:
    generous = policy(tcb_grace_s=10 * 365 * DAY)
    newer = tcb_level(pcesvn=14, dated=NEW)
    assert judge(collateral=tdx(newer, OUT_OF_DATE), policy=generous).broken == {}
    assert "platform_tcb" in judge(collateral=tdx(OUT_OF_DATE, newer), policy=generous).broken


def test_grace_is_for_out_of_date_alone() -> None:
    generous = policy(tcb_grace_s=30 * DAY)
    newer = tcb_level(pcesvn=14, dated=NEW)
    assert judge(collateral=tdx(newer, OUT_OF_DATE), policy=generous).broken == {}
    for status in ("OutOfDateConfigurationNeeded", "SWHardeningNeeded", "Revoked"):
        level = tcb_level(status=status, dated="2025-05-14T00:00:00Z")
        assert "platform_tcb" in judge(collateral=tdx(newer, level), policy=generous).broken


def test_grace_for_the_module_and_the_quoting_enclave() -> None:
    generous = policy(tcb_grace_s=30 * DAY)
    old = isv_level(1, "OutOfDate")
    modules = [module_identity("TDX_01", isv_level(6, dated=NEW), old)]
    identity = INTEL.qe_identity(levels=[isv_level(7, dated=NEW), old])
    collateral = INTEL.collateral(tcb_info=INTEL.tcb_info(modules=modules), qe_identity=identity)
    found = judge(collateral=collateral, policy=generous)
    assert found.broken == {}
    assert found.judgement.status == found.value("tcb_status") == "OutOfDate"
    assert judge(collateral=collateral).broken.keys() == {
        "qe_tcb",
        "tdx_module_tcb",
        "tcb_status",
    }


def test_grace_does_not_hide_what_else_is_needed() -> None:
    modules = [module_identity("TDX_01", isv_level(6, dated=NEW), isv_level(1, "OutOfDate"))]
    collateral = tdx(tcb_level(status="ConfigurationNeeded"), modules=modules)
    generous = policy(tcb_grace_s=30 * DAY, tcb_statuses=("UpToDate", "ConfigurationNeeded"))
    found = judge(collateral=collateral, policy=generous)
    assert found.broken == {}
    assert found.value("tcb_status") == "OutOfDateConfigurationNeeded"
    less = policy(tcb_grace_s=30 * DAY)
    assert judge(collateral=collateral, policy=less).broken == {
        "platform_tcb": refused("tcb_status", "ConfigurationNeeded"),
        "tcb_status": refused("tcb_status", "OutOfDateConfigurationNeeded"),
    }


# -------------------------------------------------------------------------- advisories

ONE, TWO = "INTEL-SA-00615", "INTEL-SA-00837"


def test_open_advisories_must_be_accepted_by_name() -> None:
    level = tcb_level(SGX, "SWHardeningNeeded", advisories=[TWO, ONE])
    state = ("UpToDate", "SWHardeningNeeded")
    both = policy(tcb_statuses=state, tcb_accepted_advisories=(ONE, TWO))
    found = judge("sgx", collateral=sgx(level), policy=both)
    assert found.broken == {}
    assert found.value("tcb_advisories") == f"{ONE},{TWO}"
    assert found.judgement.advisory_ids == (ONE, TWO)
    for accepted in ((), (ONE,)):
        some = policy(tcb_statuses=state, tcb_accepted_advisories=accepted)
        broken = judge("sgx", collateral=sgx(level), policy=some).broken
        assert broken == {"tcb_advisories": refused("advisory_open", f"{ONE},{TWO}")}
    unchecked = policy(tcb_statuses=state, tcb_accepted_advisories=UNCHECKED)
    assert judge("sgx", collateral=sgx(level), policy=unchecked).broken == {}


def test_advisories_of_a_level_that_is_up_to_date_are_dealt_with() -> None:
    level = tcb_level(SGX, advisories=[ONE])
    assert judge("sgx", collateral=sgx(level)).broken == {}


def test_denied_advisories_are_refused_in_any_state() -> None:
    for status in ("UpToDate", "SWHardeningNeeded"):
        collateral = sgx(tcb_level(SGX, status, advisories=[ONE, TWO]))
        assert judge("sgx", collateral=collateral, policy=GENEROUS).broken == {}
        denying = dataclasses.replace(GENEROUS, tcb_denied_advisories=(TWO,))
        assert judge("sgx", collateral=collateral, policy=denying).broken == {
            "tcb_advisories": refused("advisory_denied", f"{ONE},{TWO}")
        }
        unchecked = dataclasses.replace(GENEROUS, tcb_denied_advisories=UNCHECKED)
        assert judge("sgx", collateral=collateral, policy=unchecked).broken == {}


def test_advisories_of_the_module_and_the_quoting_enclave_count() -> None:
    modules = [module_identity("TDX_01", isv_level(5, "OutOfDate", advisories=[ONE]))]
    identity = INTEL.qe_identity(levels=[isv_level(1, "OutOfDate", advisories=[TWO])])
    collateral = INTEL.collateral(tcb_info=INTEL.tcb_info(modules=modules), qe_identity=identity)
    found = judge(collateral=collateral, policy=GENEROUS)
    assert found.broken == {}
    assert found.value("tcb_advisories") == f"{ONE},{TWO}"
    collateral_facts = found.judgement.facts["collateral"]
    assert isinstance(collateral_facts, dict)
    assert collateral_facts["advisory_ids"] == []
    for name in (ONE, TWO):
        denying = dataclasses.replace(GENEROUS, tcb_denied_advisories=(name,))
        assert "tcb_advisories" in judge(collateral=collateral, policy=denying).broken
    some = dataclasses.replace(GENEROUS, tcb_accepted_advisories=(ONE,))
    assert "tcb_advisories" in judge(collateral=collateral, policy=some).broken


def test_grace_accepts_no_advisory() -> None:
    newer = tcb_level(pcesvn=14, dated=NEW)
    old = tcb_level(status="OutOfDate", dated="2025-05-14T00:00:00Z", advisories=[ONE])
    collateral = tdx(newer, old)
    accepting = policy(tcb_grace_s=30 * DAY, tcb_accepted_advisories=(ONE,))
    assert judge(collateral=collateral, policy=accepting).broken == {}
    assert judge(collateral=collateral, policy=policy(tcb_grace_s=30 * DAY)).broken == {
        "tcb_advisories": refused("advisory_open", ONE)
    }


# ------------------------------------------------------------- age and evaluation number


@pytest.mark.parametrize(("minimum", "holds"), [(UNCHECKED, True), (19, True), (20, False)])
def test_the_evaluation_number(minimum: Any, holds: bool) -> None:
    found = judge(policy=policy(tcb_minimum_evaluation_number=minimum))
    assert found.broken == (
        {} if holds else {"tcb_evaluation_number": refused("tcb_evaluation_number", "19")}
    )


def test_both_documents_must_have_the_number_and_differing_ones_are_told() -> None:
    older: list[tuple[Collateral, str]] = [
        (INTEL.collateral(qe_identity=INTEL.qe_identity(evaluation_number=18)), "19/18"),
        (INTEL.collateral(tcb_info=INTEL.tcb_info(evaluation_number=18)), "18/19"),
    ]
    for collateral, numbers in older:
        found = judge(collateral=collateral)
        assert found.broken == {}
        assert found.value("tcb_evaluation_number") == numbers
        (sentence,) = found.judgement.not_proven
        assert numbers in sentence
        asking = policy(tcb_minimum_evaluation_number=19)
        assert judge(policy=asking).broken == {}
        assert judge(collateral=collateral, policy=asking).broken == {
            "tcb_evaluation_number": refused("tcb_evaluation_number", numbers)
        }


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity", "pck_crl", "root_crl"])
def test_no_part_may_be_older_than_the_policy_allows(part: str) -> None:
    """Except for the root's list, which is renewed once a year."""
    issued, until = NOW - timedelta(days=8), NOW + timedelta(days=22)
    ca, key = INTEL.cas["platform"], INTEL.ca_keys["platform"]
    collateral = {
        "tcb_info": lambda: INTEL.collateral(tcb_info=INTEL.tcb_info(issued=issued)),
        "qe_identity": lambda: INTEL.collateral(qe_identity=INTEL.qe_identity(issued=issued)),
        "pck_crl": lambda: INTEL.collateral(pck_crl=INTEL.crl(ca, key, issued=issued, until=until)),
        "root_crl": lambda: INTEL.collateral(
            root_crl=INTEL.crl(INTEL.root, INTEL.root_key, issued=issued, until=until)
        ),
    }[part]()
    assert judge(collateral=collateral).broken == {}
    assert judge(collateral=collateral, policy=policy(max_collateral_age_s=8 * DAY)).broken == {}
    short = judge(collateral=collateral, policy=policy(max_collateral_age_s=7 * DAY))
    assert short.broken == (
        {} if part == "root_crl" else {"collateral_age": refused("collateral_too_old")}
    )


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
