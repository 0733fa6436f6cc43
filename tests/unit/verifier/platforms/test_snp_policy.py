"""What a policy and a caller ask of an SEV-SNP report: guest policy, levels, TCB, chips, values."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.roots import fingerprint
from cloister.errors import ConfigurationError
from cloister.evidence.snp import HOST_VMPL, GuestPolicy
from cloister.testing.simulated_snp import DEFAULT_POLICY, sign
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.platforms.snp import FIELD_NAMES, SnpEvidence, verify_snp
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy
from cloister.verifier.result import Finding
from support.snp_evidence import (
    AMD,
    CAPTURED,
    GOOD,
    KEY,
    NOW,
    POLICY,
    TURIN,
    VLEK,
    check,
    codes,
    result,
    values,
    with_fields,
)


def test_debugging() -> None:
    debug = with_fields(policy=DEFAULT_POLICY | GuestPolicy.DEBUG)
    found = check(debug, {"snp.debug": "debug"})
    assert values(found)["snp.debug"] == "on"
    assert values(result(GOOD))["snp.debug"] == "off"
    accepted = result(debug, dataclasses.replace(POLICY, accept_debug=True))
    assert codes(accepted) == {}
    assert values(accepted)["snp.debug"] == "on"


def test_debugging_is_told_of_a_forged_report_too() -> None:
    debug = with_fields(policy=DEFAULT_POLICY | GuestPolicy.DEBUG)
    forged = sign(debug.report, ec.generate_private_key(ec.SECP384R1()))
    found = result(dataclasses.replace(debug, report=forged))
    assert codes(found) == {"snp.signature": "bad_signature", "snp.debug": "debug"}


def test_what_the_policy_asks_is_not_affirmed_of_a_forged_report() -> None:
    forged = sign(GOOD.report, ec.generate_private_key(ec.SECP384R1()))
    found = result(dataclasses.replace(GOOD, report=forged))
    told = {claim.name: claim.code for claim in found.claims}
    names = ("snp.debug", "snp.migration", "snp.vmpl", "snp.tcb_order", "snp.denied")
    assert [told[name] for name in names] == ["unauthenticated"] * 5


def test_migration() -> None:
    movable = with_fields(policy=DEFAULT_POLICY | GuestPolicy.MIGRATE_MA)
    check(movable, {"snp.migration": "migration"})
    assert codes(result(movable, dataclasses.replace(POLICY, accept_migration=True))) == {}


def test_privilege_levels() -> None:
    only_0 = dataclasses.replace(POLICY, snp_vmpls=(0,))
    check(with_fields(vmpl=1), {"snp.vmpl": "vmpl"}, policy=only_0)
    check(with_fields(vmpl=HOST_VMPL), {"snp.vmpl": "vmpl"})
    free = result(with_fields(vmpl=3), dataclasses.replace(POLICY, snp_vmpls=UNCHECKED))
    assert codes(free) == {}
    assert "snp.vmpl" not in values(free)


@pytest.mark.parametrize("part", [0, 1, 6, 7])
@pytest.mark.parametrize("field", ["committed_tcb", "reported_tcb"])
def test_a_tcb_above_that_of_the_firmware_that_runs(field: str, part: int) -> None:
    above = bytes(level + (index == part) for index, level in enumerate(KEY.tcb))
    key = AMD.key(tcb=above) if field == "reported_tcb" else KEY
    tcbs = {"reported_tcb": key.tcb, "committed_tcb": KEY.tcb, "launch_tcb": above, field: above}

    def evidence(current: bytes) -> SnpEvidence:
        report = AMD.report(key, **tcbs, current_tcb=current)  # type: ignore[arg-type]  # no version
        leaf = (key.certificate, *GOOD.certificates[1:])
        return dataclasses.replace(GOOD, report=report, certificates=leaf)

    check(evidence(KEY.tcb), {"snp.tcb_order": "tcb_inconsistent"}, good=evidence(above))


def test_firmware_that_went_back_behind_what_it_committed_to() -> None:
    good = with_fields(current_version=bytes([30, 55, 1]))
    altered = with_fields(current_version=bytes([28, 55, 1]))
    check(altered, {"snp.tcb_order": "tcb_inconsistent"}, good=good)


MINIMUM = {"bootloader": 4, "snp": 24, "microcode": 219}


@pytest.mark.parametrize("part", MINIMUM)
def test_minimum_tcb(part: str) -> None:
    def policy(**higher: int) -> AppraisalPolicy:
        return dataclasses.replace(POLICY, snp_minimum_tcb={"milan": MINIMUM | higher})

    assert codes(result(GOOD, policy())) == {}
    found = result(GOOD, policy(**{part: MINIMUM[part] + 1}))
    assert codes(found) == {"snp.minimum_tcb": "tcb_below_minimum"}
    claim = next(claim for claim in found.claims if claim.name == "snp.minimum_tcb")
    assert part in claim.explanation


def test_the_reported_tcb_counts_even_if_the_firmware_is_committed_to_more() -> None:
    policy = dataclasses.replace(POLICY, snp_minimum_tcb={"milan": {"microcode": 220}})
    newer = bytes([4, 0, 0, 0, 0, 0, 24, 220])
    good = AMD.evidence(AMD.key(tcb=newer), crls=[AMD.crl()])
    altered = with_fields(committed_tcb=newer, current_tcb=newer)
    check(altered, {"snp.minimum_tcb": "tcb_below_minimum"}, good=good, policy=policy)


def test_the_committed_and_the_certified_tcb_count_too() -> None:
    policy = dataclasses.replace(POLICY, snp_minimum_tcb={"milan": {"microcode": 219}})
    older = bytes([4, 0, 0, 0, 0, 0, 24, 218])
    check(
        with_fields(committed_tcb=older),
        {"snp.minimum_tcb": "tcb_below_minimum"},
        policy=policy,
    )
    newer = KEY.tcb
    altered = AMD.evidence(
        AMD.key(tcb=older),
        crls=[AMD.crl()],
        reported_tcb=newer,
        committed_tcb=newer,
        current_tcb=newer,
    )
    check(
        altered,
        {"snp.minimum_tcb": "tcb_below_minimum", "snp.certificate_tcb": "cert_mismatch"},
        policy=policy,
    )


def test_the_tcb_at_launch_counts_too() -> None:
    """Firmware may be updated under a guest, which stays what an older one made of it."""
    policy = dataclasses.replace(POLICY, snp_minimum_tcb={"milan": {"microcode": 219}})
    older = bytes([4, 0, 0, 0, 0, 0, 24, 218])
    altered = with_fields(launch_tcb=older)
    check(altered, {"snp.minimum_tcb": "tcb_below_minimum"}, policy=policy)
    assert codes(result(altered)) == {}


def test_the_reported_tcb_counts_without_a_certificate() -> None:
    policy = dataclasses.replace(CAPTURED, snp_minimum_tcb={"milan": {"microcode": 219}})
    older = bytes([4, 0, 0, 0, 0, 0, 24, 218])
    report = AMD.report(KEY, reported_tcb=older)
    found = result(SnpEvidence(report=report, certificates=()), policy)
    assert codes(found) == {
        "snp.certificate": "endorsements_missing",
        "snp.minimum_tcb": "tcb_below_minimum",
    }


def test_each_product_needs_a_minimum_of_its_own() -> None:
    for minimum in ({"genoa": {"snp": 1}}, {"milan": {"fmc": 0}}):
        policy = dataclasses.replace(POLICY, snp_minimum_tcb=minimum)
        assert codes(result(GOOD, policy)) == {"snp.minimum_tcb": "tcb_below_minimum"}
    policy = dataclasses.replace(POLICY, snp_minimum_tcb={"turin": {"fmc": 1, "snp": 4}})
    assert codes(result(TURIN.evidence(crls=[TURIN.crl()]), policy, amd=TURIN)) == {}


def test_chips_by_name() -> None:
    only = dataclasses.replace(POLICY, chip_ids=(KEY.chip_id.hex(),))
    other = AMD.evidence(AMD.key(hwid=b"\x09" * 64), crls=[AMD.crl()])
    check(other, {"snp.allowed_chip": "chip_not_allowed"}, policy=only)
    assert codes(result(with_fields(chip_id=bytes(64)), only)) == {}
    unnamed = result(AMD.evidence(VLEK, crls=[AMD.crl()]), only)
    assert codes(unnamed) == {"snp.allowed_chip": "chip_not_allowed"}
    zero = dataclasses.replace(POLICY, chip_ids=("00" * 64,))
    unnamed = result(AMD.evidence(VLEK, crls=[AMD.crl()]), zero)
    assert codes(unnamed) == {"snp.allowed_chip": "chip_not_allowed"}


def test_turins_chips_by_their_short_ids() -> None:
    key = TURIN.key()
    evidence = TURIN.evidence(key, crls=[TURIN.crl()])
    for chip_id in (key.hwid.hex(), key.chip_id.hex()):
        policy = dataclasses.replace(POLICY, chip_ids=(chip_id,))
        assert codes(result(evidence, policy, amd=TURIN)) == {}


@pytest.mark.parametrize("position", [0, 1, 2])
def test_denied_certificates(position: int) -> None:
    digest = fingerprint(parse_certificate(GOOD.certificates[position]))
    denied = dataclasses.replace(POLICY, denied=(digest,))
    assert codes(result(GOOD)) == {}
    assert codes(result(GOOD, denied)) == {"snp.denied": "denied"}
    free = dataclasses.replace(POLICY, denied=UNCHECKED)
    assert "snp.denied" not in values(result(GOOD, free))


# Expectations


@pytest.mark.parametrize("name", FIELD_NAMES)
def test_every_field_can_be_expected(name: str) -> None:
    evidence = with_fields(report_data=b"r" * 64)
    held = bytes.fromhex(str(result(evidence).facts[name]))
    assert codes(result(evidence, expected=Expected(values={name: held}))) == {}
    wrong = bytes([held[0] ^ 1]) + held[1:]
    code = "report_data_mismatch" if name == "report_data" else "measurement_mismatch"
    found = result(evidence, expected=Expected(values={name: wrong}))
    assert codes(found) == {f"expected.{name}": code}


def test_the_beginning_of_a_field() -> None:
    evidence = with_fields(report_data=b"hello")
    assert codes(result(evidence, expected=Expected(prefixes={"report_data": b"hel"}))) == {}
    found = result(evidence, expected=Expected(prefixes={"report_data": b"help"}))
    assert codes(found) == {"expected.report_data": "report_data_mismatch"}


def test_nothing_expected_is_affirmed_of_a_forged_report() -> None:
    forged = sign(GOOD.report, ec.generate_private_key(ec.SECP384R1()))
    expected = Expected(values={"measurement": b"\x4d" * 48})
    found = result(dataclasses.replace(GOOD, report=forged), expected=expected)
    claim = next(claim for claim in found.claims if claim.name == "expected.measurement")
    assert (claim.finding, claim.code) == (Finding.NONE, "unauthenticated")


def test_expecting_what_there_is_not() -> None:
    for evidence in (GOOD, dataclasses.replace(GOOD, report=b"")):
        with pytest.raises(ConfigurationError):
            result(evidence, expected=Expected(values={"mrtd": b""}))


def test_claims_can_be_about_another_device() -> None:
    ledger = Ledger()
    verify_snp(
        GOOD,
        policy=POLICY,
        roots=AMD.roots,
        at=NOW,
        expected=NOTHING_EXPECTED,
        ledger=ledger.on("cpu1"),
    )
    assert {claim.device for claim in ledger.close(development=True)} == {"cpu1"}
