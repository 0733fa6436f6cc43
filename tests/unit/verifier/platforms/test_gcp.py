"""Quotes of Google Cloud's virtual TPM."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography import x509

from cloister.endorsements.ak import GOOGLE_INSTANCE, TCG_KP_EK_CERTIFICATE
from cloister.endorsements.roots import Vendor
from cloister.errors import ConfigurationError
from cloister.evidence.tpm import Alg, ClockInfo
from cloister.testing.simulated_vtpm import SimulatedAkVendor, SimulatedVtpm, simulated_rsa_key
from cloister.verifier import policy
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.authenticate.tpm_quote import QuoteEvidence
from cloister.verifier.evidence import run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms import tpm
from cloister.verifier.platforms.gcp import GcpEvidence, verify_gcp
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.result import AttestationResult, Finding, Source
from support.claims import refused

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NONCE = b"a challenge"
VENDOR = SimulatedAkVendor(Vendor.GOOGLE_VTPM, now=NOW)
STRICT = policy.development()
LENIENT = replace(STRICT, require_endorsements=False)
BANKS = (Alg.SHA1, Alg.SHA256, Alg.SHA384)
INSTANCE = bytes.fromhex("3018 0c017a 020101 0c0170 020109 0c016e a007 3005 a103 0101")


def identity(*, production: bool = True) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(
        GOOGLE_INSTANCE, INSTANCE + (b"\xff" if production else b"\0")
    )


def certified(vtpm: SimulatedVtpm, **options: object) -> AkEvidence:
    options = {"extensions": (identity(),), "usages": (TCG_KP_EK_CERTIFICATE,)} | options
    certificate = VENDOR.certify(vtpm.key.public_key(), **options)  # type: ignore[arg-type]
    return AkEvidence(certificate=certificate, intermediates=VENDOR.intermediates)


VTPM = SimulatedVtpm(banks=BANKS)
VTPM.boot()
QUOTES = tuple(VTPM.quote(NONCE, bank=bank) for bank in BANKS)
GENUINE = GcpEvidence(
    quotes=QUOTES, ak_public=VTPM.public(), ak=certified(VTPM), event_log=VTPM.event_log()
)


def verify(
    evidence: GcpEvidence,
    expected: Expected = NOTHING_EXPECTED,
    *,
    policy: AppraisalPolicy = STRICT,
) -> AttestationResult:
    return run(verify_gcp, evidence, policy=policy, roots=VENDOR.roots, at=NOW, expected=expected)


def outcome(evidence: GcpEvidence) -> Outcome:
    return verify_gcp(
        evidence,
        policy=STRICT,
        roots=VENDOR.roots,
        at=NOW,
        expected=NOTHING_EXPECTED,
        ledger=Ledger(),
    )


def test_genuine_quotes_of_three_banks() -> None:
    result = verify(GENUINE, Expected(values={"extra_data": NONCE}))
    assert result.verdict is Finding.AFFIRMING
    assert result.platform == "development (Google Cloud vTPM)"
    assert result.memory_confidentiality == "none"
    assert any("Google stays trusted" in sentence for sentence in result.not_proven)
    assert result.facts["instance"] == {
        "zone": "z",
        "project_number": 1,
        "project_id": "p",
        "instance_id": "9",
        "instance_name": "n",
        "production": True,
    }
    held = {"signature": True, "pcr_digest": True, "eventlog_replay": True}
    assert result.facts["per_bank"] == dict.fromkeys(("sha1", "sha256", "sha384"), held)


def test_the_quote_that_registers_are_named_by_leads() -> None:
    found = outcome(GENUINE)
    assert found.bound == NONCE
    assert found.facts["pcr_selection"] == [{"bank": "sha256", "pcrs": list(range(24))}]
    assert len(found.registers) == 3 * 24
    assert found.registers["pcr0"] == VTPM.registers[int(Alg.SHA256)][0]
    assert found.registers["pcr0_sha384"] == VTPM.registers[int(Alg.SHA384)][0]
    assert outcome(replace(GENUINE, quotes=QUOTES[::-1])) == found


def test_one_bank_is_enough() -> None:
    result = verify(replace(GENUINE, quotes=QUOTES[1:2]))
    assert result.verdict is Finding.AFFIRMING
    assert "gcp.all_banks" not in {claim.name for claim in result.claims}


def test_registers_of_sha1_alone_are_named_weak_beside_strong_ones() -> None:
    quotes = (QUOTES[0], VTPM.quote(NONCE, pcrs=(16,)))
    result = verify(replace(GENUINE, quotes=quotes))
    assert result.verdict is Finding.AFFIRMING
    assert tpm.WEAK_BANK in result.not_proven
    assert tpm.WEAK_BANK not in verify(GENUINE).not_proven


def test_either_usage_and_no_other() -> None:
    for usage in ("2.23.133.8.1", "2.23.133.8.3"):
        ak = certified(VTPM, usages=(x509.ObjectIdentifier(usage),))
        assert verify(replace(GENUINE, ak=ak)).verdict is Finding.AFFIRMING
    other = certified(VTPM, usages=(x509.ObjectIdentifier("1.3.6.1.5.5.7.3.1"),))
    assert refused(verify(replace(GENUINE, ak=other))) == {("ak.purpose", "ak_purpose")}


def with_bank(number: int, quote: QuoteEvidence) -> GcpEvidence:
    quotes = list(QUOTES)
    quotes[number] = quote
    return replace(GENUINE, quotes=tuple(quotes))


OTHER_KEY = SimulatedVtpm(key=simulated_rsa_key("another"), banks=BANKS)
OTHER_KEY.boot()
RESTARTED = SimulatedVtpm(
    banks=BANKS, clock_info=ClockInfo(clock=1, reset_count=2, restart_count=0, safe=True)
)
RESTARTED.boot()


@pytest.mark.parametrize(
    ("evidence", "code"),
    [
        (with_bank(2, OTHER_KEY.quote(NONCE, bank=Alg.SHA384)), "bad_signature"),
        (with_bank(2, replace(QUOTES[2], pcrs=b"")), "malformed"),
        (with_bank(2, replace(QUOTES[2], quote=b"")), "malformed"),
        (with_bank(2, VTPM.quote(b"older", bank=Alg.SHA384)), "quotes_differ"),
        (with_bank(2, RESTARTED.quote(NONCE, bank=Alg.SHA384)), "quotes_differ"),
        (with_bank(2, QUOTES[1]), "quotes_differ"),
    ],
)
def test_the_other_banks_have_to_hold_and_to_belong(evidence: GcpEvidence, code: str) -> None:
    assert verify(GENUINE).verdict is Finding.AFFIRMING
    assert ("gcp.all_banks", code) in refused(verify(evidence))
    assert outcome(evidence).bound is None
    assert outcome(evidence).registers == {}


def test_the_leading_quote_is_judged_by_its_own_claims() -> None:
    evidence = with_bank(1, OTHER_KEY.quote(NONCE))
    assert ("tpm.signature", "bad_signature") in refused(verify(evidence))
    assert outcome(evidence).registers == {}


@pytest.mark.parametrize("quotes", [(), QUOTES * 2])
def test_no_quotes_or_too_many(quotes: tuple[QuoteEvidence, ...]) -> None:
    evidence = replace(GENUINE, quotes=quotes)
    assert ("gcp.quotes", "malformed") in refused(verify(evidence))
    assert outcome(evidence).bound is None


def test_a_log_that_replays_in_one_bank_only() -> None:
    twin = SimulatedVtpm(banks=BANKS)
    twin.events = list(VTPM.events)
    digests = dict(twin.events[0].digests)
    digests[int(Alg.SHA384)] = bytes(48)
    twin.events[0] = replace(twin.events[0], digests=digests)
    result = verify(replace(GENUINE, event_log=twin.event_log()))
    assert ("eventlog.replay", "eventlog_mismatch") in refused(result)
    per_bank = result.facts["per_bank"]
    assert isinstance(per_bank, dict)
    replays = [bank["eventlog_replay"] for bank in per_bank.values() if isinstance(bank, dict)]
    assert sorted(map(bool, replays)) == [False, True, True]


def test_a_key_that_google_did_not_certify() -> None:
    evidence = replace(GENUINE, ak=None)
    result = verify(evidence, policy=LENIENT)
    assert result.verdict is Finding.AFFIRMING
    assert result.platform == "Google Cloud vTPM (key not certified)"
    assert Source.HARDWARE_PROVEN not in {claim.source for claim in result.claims}
    assert refused(verify(evidence)) == {("ak.certificate", "endorsements_missing")}
    manufacturer = SimulatedAkVendor(Vendor.TPM_MANUFACTURER, now=NOW)
    ak = AkEvidence(
        certificate=manufacturer.certify(VTPM.key.public_key()),
        intermediates=manufacturer.intermediates,
    )
    assert ("ak.chain", "bad_chain") in refused(verify(replace(GENUINE, ak=ak)))


def test_a_certificate_for_another_key() -> None:
    evidence = replace(GENUINE, ak=certified(OTHER_KEY))
    assert refused(verify(evidence)) == {("ak.matches", "bad_ak_binding")}
    alone = replace(evidence, ak_public=None)
    assert ("tpm.signature", "bad_signature") in refused(verify(alone))


def test_which_instance_it_is() -> None:
    silent = verify(replace(GENUINE, ak=certified(VTPM, extensions=())))
    assert silent.verdict is Finding.AFFIRMING
    assert "instance" not in silent.facts
    for_tests = certified(VTPM, extensions=(identity(production=False),))
    result = verify(replace(GENUINE, ak=for_tests))
    assert refused(result) == {("gcp.instance", "not_production")}
    assert outcome(replace(GENUINE, ak=for_tests)).bound is None
    garbled = x509.UnrecognizedExtension(GOOGLE_INSTANCE, b"\5\0")
    malformed = certified(VTPM, extensions=(garbled,))
    assert refused(verify(replace(GENUINE, ak=malformed))) == {("gcp.instance", "malformed")}


def test_expectations() -> None:
    assert refused(verify(GENUINE, Expected(values={"extra_data": b"another"}))) == {
        ("expected.extra_data", "nonce_mismatch")
    }
    with pytest.raises(ConfigurationError):
        verify(GENUINE, Expected(values={"report_data": b""}))
