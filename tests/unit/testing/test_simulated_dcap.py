"""The simulated Intel: what it issues verifies, and an independent verifier agrees on it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import dcap_qvl  # type: ignore[import-untyped]  # its stubs are not marked as such
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.intel import Collateral
from cloister.strictjson import JsonObject
from cloister.testing.simulated_dcap import (
    SGX,
    TDX,
    SimulatedIntel,
    isv_level,
    module_identity,
    tcb_level,
)
from cloister.testing.simulated_dcap_parts import SGX_SVNS, TDX_SVNS
from cloister.verifier.authenticate.intel_collateral import check_signatures
from cloister.verifier.evidence import run
from cloister.verifier.expected import Expected
from cloister.verifier.platforms.sgx import SgxEvidence, verify_sgx
from cloister.verifier.platforms.tdx import TdxEvidence, verify_tdx
from cloister.verifier.policy import UNCHECKED, development, strict
from cloister.verifier.result import AttestationResult, Finding

NOW = datetime(2026, 6, 1, tzinfo=UTC)
INTEL = SimulatedIntel(now=NOW)
PLATFORM = INTEL.platform()
POLICY = development()
ANY_STATE = dataclasses.replace(POLICY, tcb_statuses=UNCHECKED, tcb_accepted_advisories=UNCHECKED)


def tdx(quote: bytes, collateral: Collateral, **options: object) -> AttestationResult:
    given: dict[str, object] = {"policy": POLICY, "roots": INTEL.roots, "at": NOW, **options}
    evidence = TdxEvidence(quote=quote, collateral=collateral)
    return run(verify_tdx, evidence, **given)  # type: ignore[arg-type]


def sgx(quote: bytes, collateral: Collateral, **options: object) -> AttestationResult:
    given: dict[str, object] = {"policy": POLICY, "roots": INTEL.roots, "at": NOW, **options}
    evidence = SgxEvidence(quote=quote, collateral=collateral)
    return run(verify_sgx, evidence, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("version", "td15"), [(4, False), (5, False), (5, True)])
def test_guests(version: int, td15: bool) -> None:
    quote = PLATFORM.tdx_quote(
        version=version, td15=td15, report_data=b"nonce", mr_td=b"\1" * 48, rtmr3=b"\2" * 48
    )
    expected = Expected(
        values={
            "report_data": b"nonce".ljust(64, b"\0"),
            "mr_td": b"\1" * 48,
            "rtmr3": b"\2" * 48,
        }
    )
    result = tdx(quote, INTEL.collateral(), expected=expected)
    assert result.failures == ()
    assert result.development
    assert result.platform.startswith("development")
    assert result.facts["tdx_module"] == "TDX_01"


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("ca", ["platform", "processor"])
def test_enclaves(version: int, ca: str) -> None:
    assert ca in ("platform", "processor")
    platform = INTEL.platform(ca=ca)  # type: ignore[arg-type]  # one of the two
    quote = platform.sgx_quote(version=version, report_data=b"nonce", mrenclave=b"\1" * 32)
    expected = Expected(values={"mrenclave": b"\1" * 32})
    collateral = INTEL.collateral(SGX, ca=ca)  # type: ignore[arg-type]  # one of the two
    assert sgx(quote, collateral, expected=expected).failures == ()


def test_only_a_policy_that_names_development_affirms_it() -> None:
    quote, collateral = PLATFORM.tdx_quote(), INTEL.collateral()
    assert tdx(quote, collateral).verdict is Finding.AFFIRMING
    result = tdx(quote, collateral, policy=strict())
    assert [claim.code for claim in result.failures] == ["development_refused"]


def test_nobody_else_believes_it() -> None:
    quote, collateral = PLATFORM.tdx_quote(), INTEL.collateral()
    other = SimulatedIntel(now=NOW)
    assert tdx(quote, collateral).verdict is Finding.AFFIRMING
    assert tdx(quote, collateral, roots=other.roots).verdict is Finding.CONTRAINDICATED
    mixed = other.collateral()
    both = INTEL.roots.merged(other.roots)
    found = tdx(quote, mixed, roots=both)
    assert {claim.code for claim in found.failures} >= {"crl_mismatch"}


def test_signed_once() -> None:
    signed = check_signatures(INTEL.collateral(), roots=INTEL.roots)
    for _ in range(2):
        evidence = TdxEvidence(quote=PLATFORM.tdx_quote(), collateral=signed)
        given = run(verify_tdx, evidence, policy=POLICY, roots=INTEL.roots, at=NOW)
        assert given.verdict is Finding.AFFIRMING


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match="no field mr_tb"):
        PLATFORM.tdx_quote(mr_tb=bytes(48))
    with pytest.raises(ValueError, match="48 bytes"):
        PLATFORM.tdx_quote(mr_td=bytes(49))
    with pytest.raises(OverflowError):
        PLATFORM.sgx_quote(isvsvn=65536)


# ------------------------------------------------- against `dcap-qvl`, which shares no code


def judged_by_dcap_qvl(quote: bytes, collateral: Collateral, at: datetime = NOW) -> str:
    """The state it finds, or the beginning of its error."""
    root = INTEL.root.public_bytes(Encoding.DER)
    theirs = dcap_qvl.QuoteCollateralV3.from_json(collateral.encode().decode())
    try:
        report = dcap_qvl.verify_with_root_ca(quote, theirs, root, int(at.timestamp()))
    except ValueError as error:
        return f"error: {error}"
    return f"{report.status} {sorted(report.advisory_ids)}"


def judged_by_us(quote: bytes, collateral: Collateral, at: datetime = NOW) -> str:
    result = tdx(quote, collateral, policy=ANY_STATE, at=at)
    claims = {claim.name.removeprefix("tdx."): claim for claim in result.claims}
    refused = [claim.code for claim in result.failures if claim.finding is Finding.CONTRAINDICATED]
    if refused and set(refused) != {"tcb_status"}:
        return f"error: {refused[0]}"
    advisories = claims["tcb_advisories"].value or ""
    listed = [] if advisories == "none" else advisories.split(",")
    return f"{claims['tcb_status'].value} {listed}"


STATES = [
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
]
ONE, TWO, THREE = "INTEL-SA-00615", "INTEL-SA-00837", "INTEL-SA-00960"


@pytest.mark.parametrize("module", ["UpToDate", "OutOfDate"])
@pytest.mark.parametrize("enclave", ["UpToDate", "OutOfDate"])
@pytest.mark.parametrize("platform", STATES)
def test_the_same_states(platform: str, enclave: str, module: str) -> None:
    info = INTEL.tcb_info(
        levels=[tcb_level(status=platform, advisories=[ONE])],
        modules=[module_identity("TDX_01", isv_level(5, module, advisories=[TWO]))],
    )
    identity = INTEL.qe_identity(levels=[isv_level(4, enclave, advisories=[THREE])])
    collateral = INTEL.collateral(tcb_info=info, qe_identity=identity)
    quote = PLATFORM.tdx_quote()
    ours = judged_by_us(quote, collateral)
    assert not ours.startswith("error")
    assert ours == judged_by_dcap_qvl(quote, collateral)


LEVELS: list[tuple[bytes, list[JsonObject], bool]] = [
    (bytes([5, 1, 3]), [tcb_level(pcesvn=14), tcb_level(status="OutOfDate")], True),
    (bytes([5, 1, 3]), [tcb_level(tdx_svns=(9, 9, *TDX_SVNS[2:]))], True),
    (bytes([5, 0, 3]), [tcb_level(tdx_svns=(9, 0, *TDX_SVNS[2:]))], False),
    (bytes([5, 0, 3]), [tcb_level(tdx_svns=(5, 0, *TDX_SVNS[2:]))], True),
    (bytes([5, 1, 2]), [tcb_level()], False),
    (bytes([5, 1, 3, 0, 1]), [tcb_level(tdx_svns=(*TDX_SVNS[:4], 1, *TDX_SVNS[5:]))], True),
    (bytes([5, 1, 3]), [tcb_level(sgx_svns=(*SGX_SVNS[:15], 1))], False),
    (bytes([4, 1, 3]), [tcb_level()], False),
    (bytes([5, 2, 3]), [tcb_level()], False),
]


@pytest.mark.parametrize(("svn", "levels", "matches"), LEVELS, ids=range(len(LEVELS)))
def test_the_same_levels(svn: bytes, levels: list[JsonObject], matches: bool) -> None:
    collateral = INTEL.collateral(tcb_info=INTEL.tcb_info(levels=levels))
    quote = PLATFORM.tdx_quote(tee_tcb_svn=svn)
    ours, theirs = judged_by_us(quote, collateral), judged_by_dcap_qvl(quote, collateral)
    assert ours.startswith("error") is theirs.startswith("error") is not matches
    if matches:
        assert ours == theirs


OTHER_SIGNER = SimulatedIntel(now=NOW)
REFUSED: list[tuple[Collateral, datetime]] = [
    (INTEL.collateral(revoked=[PLATFORM.certificate]), NOW),
    (INTEL.collateral(revoked=[INTEL.cas["platform"]]), NOW),
    (INTEL.collateral(revoked=[INTEL.signer]), NOW),
    (OTHER_SIGNER.collateral(), NOW),
    (INTEL.collateral(signer=(OTHER_SIGNER.signer, OTHER_SIGNER.signing_key)), NOW),
    (INTEL.collateral(), NOW + timedelta(days=40)),
    (INTEL.collateral(), NOW - timedelta(days=2)),
    (INTEL.collateral(SGX), NOW),
    (INTEL.collateral(qe_identity=INTEL.qe_identity(SGX)), NOW),
    (INTEL.collateral(tcb_info=INTEL.tcb_info(fmspc=bytes(6))), NOW),
    (INTEL.collateral(tcb_info=INTEL.tcb_info(modules=[])), NOW),
]


@pytest.mark.parametrize(("collateral", "at"), REFUSED, ids=range(len(REFUSED)))
def test_the_same_is_refused(collateral: Collateral, at: datetime) -> None:
    quote = PLATFORM.tdx_quote()
    good = INTEL.collateral(TDX)
    assert judged_by_us(quote, good) == judged_by_dcap_qvl(quote, good) == "UpToDate []"
    assert judged_by_us(quote, collateral, at).startswith("error")
    assert judged_by_dcap_qvl(quote, collateral, at).startswith("error")
