"""What kind of guest or enclave a quote shows, and what callers expect of its registers."""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from cloister.errors import ConfigurationError
from cloister.evidence.ccel import replay_rtmrs
from cloister.evidence.dcap import parse_quote
from cloister.evidence.sgx import SgxAttribute
from cloister.evidence.tdx import TdAttribute
from cloister.testing.simulated_dcap import SGX, TDX, SimulatedIntel
from cloister.verifier.appraise.sgx import appraise_enclave
from cloister.verifier.appraise.tdx import appraise_td
from cloister.verifier.authenticate.dcap import authenticate_quote, read_pck
from cloister.verifier.evidence import run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.platforms import sgx, tdx
from cloister.verifier.policy import AppraisalPolicy, strict
from cloister.verifier.result import AttestationResult, Claim, Finding
from support.dcap import reassembled
from support.tdx_logs import boot, ccel

NOW: Final = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
INTEL: Final = SimulatedIntel(now=NOW)
PLATFORM: Final = INTEL.platform()
POLICY: Final = dataclasses.replace(strict(), accept_development=True)
NONCE: Final = hashlib.sha512(b"nonce").digest()

GUEST: Final = int(TdAttribute.SEPT_VE_DISABLE)
ENCLAVE: Final = int(SgxAttribute.INIT | SgxAttribute.MODE64BIT)


def guest(
    *,
    policy: AppraisalPolicy = POLICY,
    expected: Expected = NOTHING_EXPECTED,
    forged: bool = False,
    log: bytes | None = None,
    **fields: Any,
) -> AttestationResult:
    quote = PLATFORM.tdx_quote(**fields)
    if forged:
        quote = reassembled(quote, signature=b"\1" * 64)
    evidence = tdx.TdxEvidence(quote=quote, collateral=INTEL.collateral(TDX), ccel_event_log=log)
    return run(
        tdx.verify_tdx, evidence, policy=policy, roots=INTEL.roots, at=NOW, expected=expected
    )


def enclave(
    *,
    policy: AppraisalPolicy = POLICY,
    expected: Expected = NOTHING_EXPECTED,
    forged: bool = False,
    **fields: Any,
) -> AttestationResult:
    quote = PLATFORM.sgx_quote(**fields)
    if forged:
        quote = reassembled(quote, signature=b"\1" * 64)
    evidence = sgx.SgxEvidence(quote=quote, collateral=INTEL.collateral(SGX))
    return run(
        sgx.verify_sgx, evidence, policy=policy, roots=INTEL.roots, at=NOW, expected=expected
    )


def nothing_that_decodes(*, expected: Expected) -> AttestationResult:
    evidence = tdx.TdxEvidence(quote=b"")
    return run(
        tdx.verify_tdx, evidence, policy=POLICY, roots=INTEL.roots, at=NOW, expected=expected
    )


def claim(result: AttestationResult, name: str) -> Claim:
    return next(claim for claim in result.claims if claim.name == name)


def failed(result: AttestationResult) -> dict[str, str | None]:
    return {claim.name: claim.code for claim in result.failures}


class TestGuest:
    def test_by_default(self) -> None:
        result = guest()
        assert result.verdict is Finding.AFFIRMING, result.failures
        assert claim(result, "tdx.debug").value == "off"
        assert claim(result, "tdx.migration").value == "off"
        assert claim(result, "tdx.sept_ve_disable").value == "on"
        assert claim(result, "tdx.service_td").value == "none"
        assert claim(result, "tdx.perfmon").value == "off"

    @pytest.mark.parametrize("bit", range(8))
    def test_debugging_of_any_kind(self, bit: int) -> None:
        result = guest(td_attributes=GUEST | 1 << bit)
        assert failed(result) == {"tdx.debug": "debug"}
        assert claim(result, "tdx.debug").value == "on"
        accepting = dataclasses.replace(POLICY, accept_debug=True)
        accepted = guest(policy=accepting, td_attributes=GUEST | 1 << bit)
        assert accepted.verdict is Finding.AFFIRMING
        assert claim(accepted, "tdx.debug").value == "on"

    def test_migration(self) -> None:
        attributes = GUEST | TdAttribute.MIGRATABLE
        assert failed(guest(td_attributes=attributes)) == {"tdx.migration": "migration"}
        accepting = dataclasses.replace(POLICY, accept_migration=True)
        accepted = guest(policy=accepting, td_attributes=attributes)
        assert accepted.verdict is Finding.AFFIRMING
        assert claim(accepted, "tdx.migration").value == "on"

    @pytest.mark.parametrize("bit", [8, 15, 17, 26, 32, 61])
    def test_attributes_that_nobody_knows(self, bit: int) -> None:
        result = guest(td_attributes=GUEST | 1 << bit)
        assert failed(result) == {"tdx.attributes": "attributes_unknown"}
        assert result.verdict is Finding.NONE

    @pytest.mark.parametrize("bit", [16, 27, 30, 31, 62, 63])
    def test_attributes_that_open_nothing(self, bit: int) -> None:
        assert guest(td_attributes=GUEST | 1 << bit).verdict is Finding.AFFIRMING

    def test_what_is_told_and_not_refused(self) -> None:
        result = guest(
            td_attributes=int(TdAttribute.PERFMON),
            version=5,
            td15=True,
            mr_service_td=b"\1" * 48,
        )
        assert result.verdict is Finding.AFFIRMING
        assert claim(result, "tdx.perfmon").value == "on"
        assert claim(result, "tdx.sept_ve_disable").value == "off"
        assert claim(result, "tdx.service_td").value == "bound"

    @pytest.mark.parametrize("field", ["seam_attributes", "mrsigner_seam"])
    def test_a_module_that_is_not_for_production(self, field: str) -> None:
        fields: dict[str, Any] = {field: b"\1"}
        result = guest(**fields)
        assert claim(result, "tdx.seam").code == "seam_module"

    def test_that_there_is_a_debugger_is_told_of_forged_quotes_too(self) -> None:
        result = guest(forged=True, td_attributes=GUEST | 1)
        assert claim(result, "tdx.debug").finding is Finding.CONTRAINDICATED
        result = guest(forged=True)
        stated = claim(result, "tdx.debug")
        assert (stated.finding, stated.code, stated.value) == (
            Finding.NONE,
            "unauthenticated",
            "off",
        )


class TestEventLog:
    REPLAYED: Final = replay_rtmrs(boot())
    QUOTED: Final[dict[str, Any]] = {
        f"rtmr{number}": value for number, value in enumerate(REPLAYED)
    }

    def test_a_log_that_leads_to_the_registers(self) -> None:
        result = guest(log=ccel(boot()), **self.QUOTED)
        assert result.verdict is Finding.AFFIRMING, result.failures
        assert result.facts["eventlog_replay"] == {
            "events": len(boot()) + 1,
            "sha384": {f"rtmr{number}": self.REPLAYED[number].hex() for number in (0, 1)},
        }

    def test_a_log_that_does_not(self) -> None:
        result = guest(log=ccel(boot()[1:]), **self.QUOTED)
        assert failed(result) == {"tdx.eventlog": "eventlog_mismatch"}
        replay = result.facts["eventlog_replay"]
        assert isinstance(replay, dict)
        assert replay["matches"] == {"rtmr0": False, "rtmr1": True}

    def test_what_is_no_log(self) -> None:
        result = guest(log=b"no log", **self.QUOTED)
        assert claim(result, "tdx.eventlog").finding is Finding.CONTRAINDICATED
        assert "eventlog_replay" not in result.facts

    def test_registers_of_a_forged_quote_prove_no_log(self) -> None:
        result = guest(log=ccel(boot()), forged=True, **self.QUOTED)
        assert claim(result, "tdx.eventlog").code == "unauthenticated"

    def test_without_a_log_there_is_no_claim(self) -> None:
        assert not any("eventlog" in claim.name for claim in guest().claims)


class TestEnclave:
    def test_by_default(self) -> None:
        result = enclave()
        assert result.verdict is Finding.AFFIRMING, result.failures
        assert claim(result, "sgx.debug").value == "off"
        assert claim(result, "sgx.provision_key").value == "off"
        assert claim(result, "sgx.launch_key").value == "off"

    def test_debugging(self) -> None:
        result = enclave(attributes=ENCLAVE | SgxAttribute.DEBUG)
        assert failed(result) == {"sgx.debug": "debug"}
        assert claim(result, "sgx.debug").value == "on"
        accepting = dataclasses.replace(POLICY, accept_debug=True)
        accepted = enclave(policy=accepting, attributes=ENCLAVE | SgxAttribute.DEBUG)
        assert accepted.verdict is Finding.AFFIRMING
        assert claim(accepted, "sgx.debug").value == "on"

    def test_one_that_was_not_initialised(self) -> None:
        result = enclave(attributes=int(SgxAttribute.MODE64BIT))
        assert failed(result) == {"sgx.initialised": "enclave_not_initialised"}

    @pytest.mark.parametrize("bit", [3, 8, 9, 11, 63])
    def test_attributes_that_nobody_knows(self, bit: int) -> None:
        result = enclave(attributes=ENCLAVE | 1 << bit)
        assert failed(result) == {"sgx.attributes": "attributes_unknown"}
        assert result.verdict is Finding.NONE

    @pytest.mark.parametrize("bit", [6, 7, 10])
    def test_attributes_that_open_nothing(self, bit: int) -> None:
        assert enclave(attributes=ENCLAVE | 1 << bit).verdict is Finding.AFFIRMING

    def test_what_is_told_and_not_refused(self) -> None:
        attributes = ENCLAVE | SgxAttribute.PROVISIONKEY | SgxAttribute.EINITTOKEN_KEY
        result = enclave(attributes=attributes)
        assert result.verdict is Finding.AFFIRMING
        assert claim(result, "sgx.provision_key").value == "on"
        assert claim(result, "sgx.launch_key").value == "on"

    def test_that_there_is_a_debugger_is_told_of_forged_quotes_too(self) -> None:
        result = enclave(forged=True, attributes=ENCLAVE | SgxAttribute.DEBUG)
        assert claim(result, "sgx.debug").finding is Finding.CONTRAINDICATED
        assert claim(enclave(forged=True), "sgx.debug").code == "unauthenticated"


GUEST_FIELDS: Final[dict[str, Any]] = {
    **{
        name: bytes([number]) * 48
        for number, name in enumerate(
            (
                "mr_td",
                "mr_config_id",
                "mr_owner",
                "mr_owner_config",
                "mr_seam",
                "rtmr0",
                "rtmr1",
                "rtmr2",
                "rtmr3",
                "mr_service_td",
            ),
            start=1,
        )
    },
    "report_data": NONCE,
    "xfam": b"\xe7" + bytes(7),
    "td_attributes": GUEST.to_bytes(8, "little"),
}
ENCLAVE_FIELDS: Final[dict[str, Any]] = {
    "report_data": NONCE,
    "mrenclave": b"\1" * 32,
    "mrsigner": b"\2" * 32,
    "isvprodid": b"\3\4",
    "isvsvn": b"\5\6",
    "config_id": b"\7" * 64,
    "config_svn": b"\x08\x09",
    "isvextprodid": b"\x0a" * 16,
    "isvfamilyid": b"\x0b" * 16,
    "attributes": ENCLAVE.to_bytes(8, "little") + b"\xe7" + bytes(7),
    "miscselect": bytes(4),
}


class TestExpectations:
    def test_every_field_of_a_guest(self) -> None:
        assert set(GUEST_FIELDS) == set(tdx.FIELD_NAMES)
        result = guest(version=5, td15=True, expected=Expected(values=GUEST_FIELDS), **GUEST_FIELDS)
        assert result.verdict is Finding.AFFIRMING, result.failures

    @pytest.mark.parametrize("name", sorted(GUEST_FIELDS))
    def test_each_one_of_a_guest(self, name: str) -> None:
        wanted = {**GUEST_FIELDS, name: b"\xff" * len(GUEST_FIELDS[name])}
        result = guest(version=5, td15=True, expected=Expected(values=wanted), **GUEST_FIELDS)
        code = "report_data_mismatch" if name == "report_data" else "measurement_mismatch"
        assert failed(result) == {f"expected.{name}": code}

    def test_what_an_older_guest_does_not_report(self) -> None:
        expected = Expected(values={"mr_service_td": bytes(48)})
        assert guest(version=5, td15=True, expected=expected).verdict is Finding.AFFIRMING
        assert failed(guest(expected=expected)) == {
            "expected.mr_service_td": "measurement_mismatch"
        }

    def test_every_field_of_an_enclave(self) -> None:
        assert set(ENCLAVE_FIELDS) == set(sgx.FIELD_NAMES)
        result = enclave(expected=Expected(values=ENCLAVE_FIELDS), **ENCLAVE_FIELDS)
        assert result.verdict is Finding.AFFIRMING, result.failures

    @pytest.mark.parametrize("name", sorted(ENCLAVE_FIELDS))
    def test_each_one_of_an_enclave(self, name: str) -> None:
        wanted = {**ENCLAVE_FIELDS, name: b"\xff" * len(ENCLAVE_FIELDS[name])}
        result = enclave(expected=Expected(values=wanted), **ENCLAVE_FIELDS)
        code = "report_data_mismatch" if name == "report_data" else "measurement_mismatch"
        assert failed(result) == {f"expected.{name}": code}

    def test_the_beginning_of_a_field(self) -> None:
        good = Expected(prefixes={"report_data": NONCE[:32]})
        assert guest(report_data=NONCE, expected=good).verdict is Finding.AFFIRMING
        bad = Expected(prefixes={"report_data": NONCE[32:]})
        result = guest(report_data=NONCE, expected=bad)
        assert failed(result) == {"expected.report_data": "report_data_mismatch"}

    def test_fields_that_there_are_not(self) -> None:
        expected = Expected(values={"measurement": b""})
        for verify in (guest, enclave, nothing_that_decodes):
            with pytest.raises(ConfigurationError) as caught:
                verify(expected=expected)
            assert caught.value.code == "expected.unknown"

    @pytest.mark.parametrize("verify", [guest, enclave])
    def test_a_forged_quote_meets_no_expectation(self, verify: Any) -> None:
        expected = Expected(values={"report_data": NONCE})
        assert verify(report_data=NONCE, expected=expected).verdict is Finding.AFFIRMING
        result = verify(report_data=NONCE, expected=expected, forged=True)
        assert claim(result, "expected.report_data").code == "unauthenticated"


def test_facts_of_a_guest() -> None:
    facts = guest(version=5, td15=True, **GUEST_FIELDS).facts
    assert {name: facts[name] for name in GUEST_FIELDS} == {
        name: value.hex() for name, value in GUEST_FIELDS.items()
    }
    assert facts["tee_tcb_svn"] == facts["tee_tcb_svn2"] == "050103" + "00" * 13
    assert (facts["quote_version"], facts["body_type"]) == (5, "td15")
    assert "mr_service_td" not in guest().facts


def test_facts_of_an_enclave() -> None:
    facts = enclave(**ENCLAVE_FIELDS).facts
    assert facts["mrenclave"] == "01" * 32
    assert (facts["isvprodid"], facts["isvsvn"], facts["config_svn"]) == (0x0403, 0x0605, 0x0908)


def test_a_quote_is_appraised_as_what_it_is() -> None:
    for quote, appraise in (
        (PLATFORM.sgx_quote(), appraise_td),
        (PLATFORM.tdx_quote(), appraise_enclave),
    ):
        parsed = parse_quote(quote)
        pck = read_pck(parsed, (), roots=INTEL.roots, at=NOW)
        authenticated = authenticate_quote(parsed, pck, ledger=Ledger(), prefix="x.")
        assert authenticated is not None
        with pytest.raises(TypeError):
            appraise(authenticated, policy=POLICY, ledger=Ledger())
