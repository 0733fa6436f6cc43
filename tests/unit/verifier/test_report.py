"""Reports as a whole: what is affirmed of a good one, and what of one that breaks early.

What breaks a single check stands in files of its own: `test_report_certificate`,
`test_report_changes`, `test_report_software`, `test_report_configuration`, `test_report_keyset`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloister.channel.claims import ClaimsDocument
from cloister.endorsements.roots import fingerprint
from cloister.errors import UnsupportedError
from cloister.evidence.report import ITEM_QUOTE
from cloister.evidence.tpm import ClockInfo, parse_quote
from cloister.testing.simulated_tpm import SIMULATED_FIRMWARE, SimulatedEnrolmentCa, SimulatedTpm
from cloister.verifier import policy as policies
from cloister.verifier.policy import UNCHECKED
from cloister.verifier.report import claim_names
from cloister.verifier.report_findings import DEVELOPMENT_PLATFORM
from cloister.verifier.result import Finding, Source
from support.certificates import P256_ORDER, respelled
from support.report_world import NOW, World, affirm, refuse, world

# --- a good report ------------------------------------------------------------------------


def test_a_good_report_is_affirmed_claim_by_claim() -> None:
    good = world()
    result = good.verify()
    assert {claim.finding for claim in result.claims} == {Finding.AFFIRMING}
    assert tuple(claim.name for claim in result.claims) == claim_names(good.policy)
    assert all(claim.code is None and claim.explanation for claim in result.claims)
    assert result.platform == DEVELOPMENT_PLATFORM == "development (software TPM)"
    assert result.development
    assert result.memory_confidentiality == "none"
    assert result.policy_id == good.policy.policy_id
    assert len(result.not_proven) >= 4
    affirmed = result.require_affirming()
    assert affirmed.development
    assert affirmed.platform == DEVELOPMENT_PLATFORM
    assert affirmed.keyset == good.attester.keyset
    assert affirmed.keyset_digest == good.attester.keyset.digest
    assert affirmed.claims_document["isolation"] == "sandbox"


def test_the_time_may_be_in_any_zone() -> None:
    good = world()
    good.at = NOW.astimezone(timezone(timedelta(hours=9)))
    assert good.verify().appraised_at == NOW
    affirm(good)


def test_the_keyset_expires_when_the_policy_says_or_earlier() -> None:
    good = world(keyset_lifetime=timedelta(minutes=10))
    assert good.verify().require_affirming().expires_at == NOW + timedelta(minutes=10)
    long = world(keyset_lifetime=timedelta(hours=20))
    assert long.verify().require_affirming().expires_at == NOW + timedelta(hours=1)
    long.policy = dataclasses.replace(long.policy, max_age_s=UNCHECKED)
    assert long.verify().require_affirming().expires_at == NOW + timedelta(hours=20)


def test_an_intermediate_in_the_report_may_join_key_and_root() -> None:
    good = world()
    intermediate = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Between")])
    between = good.attester.ca.certify_ca(intermediate.public_key(), name)
    below = SimulatedEnrolmentCa(now=NOW, name="Between")
    below.key = intermediate
    good.endorsed_by(below.certify(good.attester.tpm.key.public_key()), between)
    affirm(good)


@pytest.mark.parametrize("nonce", [b"", b"\0" * 31, b"\0" * 33])
def test_a_nonce_of_another_size_is_a_mistake_of_the_caller(nonce: bytes) -> None:
    good = world()
    good.nonce = nonce
    with pytest.raises(ValueError, match="nonce"):
        good.verify()


def test_a_time_without_zone_is_a_mistake_of_the_caller() -> None:
    good = world()
    good.at = NOW.replace(tzinfo=None)
    with pytest.raises(ValueError, match="time zone"):
        good.verify()


# --- refusals whose codes are not contraindications ----------------------------------------


def test_an_unknown_platform_is_undecided_and_never_passes() -> None:
    bad = world()
    affirm(bad)
    bad.report = dataclasses.replace(bad.report, tee_type="sparc")
    result = bad.verify()
    assert result.platform == "unknown"
    assert not result.development
    assert result.verdict is Finding.NONE
    with pytest.raises(UnsupportedError) as raised:
        result.require_affirming()
    assert raised.value.code == "platform_unsupported"


def test_steps_that_could_not_be_taken_are_listed_as_such() -> None:
    bad = world()
    bad.raw = b""
    result = bad.verify()
    assert tuple(claim.name for claim in result.claims) == claim_names(bad.policy)
    assert result.claims[0].code == "report_malformed"
    for claim in result.claims[1:]:
        assert claim.finding is Finding.NONE
        assert claim.code == "not_checked"
        assert "report.format" in claim.explanation


# --- the clock, and what a policy denies ---------------------------------------------------


def test_a_clock_that_may_have_gone_back_is_refused() -> None:
    affirm(world())
    clock = ClockInfo(clock=1, reset_count=3, restart_count=2, safe=False)
    bad = world(tpm=SimulatedTpm(clock_info=clock))
    refuse(bad, "quote_clock", "tpm.clock")
    bad.policy = dataclasses.replace(bad.policy, require_safe_clock=False)
    affirm(bad)


def test_reset_and_restart_counts_are_reported() -> None:
    clock = ClockInfo(clock=1, reset_count=3, restart_count=2, safe=True)
    result = world(tpm=SimulatedTpm(clock_info=clock)).verify()
    (claim,) = [claim for claim in result.claims if claim.name == "tpm.clock"]
    assert "3 times" in claim.explanation
    assert "2 times" in claim.explanation


@pytest.mark.parametrize(
    "digest",
    [
        lambda good: good.attester.keyset.digest,
        lambda good: good.attester.components[-1].digest,
        lambda good: fingerprint(good.attester.chain[0]),
        lambda good: fingerprint(good.attester.ca.certificate),
        lambda good: fingerprint(respelled(good.attester.chain[0], P256_ORDER)),
        lambda good: fingerprint(respelled(good.attester.ca.certificate, P256_ORDER)),
    ],
    ids=["keyset", "component", "certificate", "root", "certificate again", "root again"],
)
def test_what_the_policy_denies_is_refused(digest: Callable[[World], str]) -> None:
    bad = world()
    affirm(bad)
    bad.policy = dataclasses.replace(bad.policy, denied=(digest(bad),))
    refuse(bad, "denied", "denied")


# --- development ---------------------------------------------------------------------------


def test_development_affirms_only_under_a_policy_that_names_it() -> None:
    bad = world()
    affirm(bad)
    bad.policy = dataclasses.replace(bad.policy, accept_development=False)
    result = refuse(bad, "development_refused", "platform.development")
    assert result.platform == DEVELOPMENT_PLATFORM


def test_strict_refuses_memory_that_is_not_encrypted() -> None:
    bad = world()
    affirm(bad)
    bad.policy = policies.strict()
    codes = [claim.code for claim in bad.verify().failures]
    assert codes == ["memory_unencrypted", "development_refused"]


def test_the_simulated_firmware_is_recognisable() -> None:
    good = world()
    quote = parse_quote(good.report.evidence[ITEM_QUOTE].data)
    assert quote.firmware_version == SIMULATED_FIRMWARE


def test_a_claims_document_is_a_document() -> None:
    assert isinstance(world().attester.claims_document, ClaimsDocument)


def test_a_software_tpm_proves_nothing_by_hardware() -> None:
    result = world().verify()
    assert result.verdict is Finding.AFFIRMING
    assert Source.HARDWARE_PROVEN not in {claim.source for claim in result.claims}
    assert Source.OPERATOR_ASSERTED in {claim.source for claim in result.claims}
