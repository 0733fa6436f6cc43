"""Quotes of simulated platforms: each way in which one can be wrong, and nothing else changed.

Their certificates and collateral are in `test_dcap_chain`.
"""

from __future__ import annotations

import dataclasses
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.endorsements.roots import Anchor, Roots, Vendor, fingerprint
from cloister.evidence.dcap import parse_quote
from cloister.testing.simulated_dcap import SimulatedIntel, raw_signature
from cloister.verifier.expected import Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.platforms.tdx import TdxEvidence, verify_tdx
from cloister.verifier.policy import as_captured, strict
from cloister.verifier.result import Finding
from support.certificates import P256_ORDER, respelled
from support.dcap import PCK_CHAIN, header, reassembled
from support.dcap_platform import (
    COLLATERAL,
    INTEL,
    LENIENT,
    NONCE,
    NOW,
    PLATFORM,
    POLICY,
    TEES,
    Found,
    quoted,
    verified,
)


@TEES
def test_a_genuine_quote(tee: str) -> None:
    found = verified(tee, quoted(tee))
    assert found.affirmed, found.result.failures
    assert found.result.development
    assert found.result.platform == f"development (Intel {tee.upper()})"
    assert found.outcome.bound == NONCE
    assert found.outcome.registers
    assert "report_data" not in found.outcome.registers
    assert found.outcome.memory_confidentiality == tee


@TEES
def test_the_lenient_policy_takes_it_without_collateral(tee: str) -> None:
    found = verified(tee, quoted(tee), collateral=None, policy=LENIENT)
    assert found.affirmed, found.result.failures
    assert found.outcome.bound == NONCE
    assert any("Without Intel's collateral" in text for text in found.result.not_proven)
    assert "collateral_format" not in {c.name.partition(".")[2] for c in found.result.claims}


@TEES
def test_the_strict_policy_does_not(tee: str) -> None:
    found = verified(tee, quoted(tee), collateral=None)
    assert found.reason == "endorsements_missing"
    assert found.failed() == {"collateral"}


@TEES
def test_a_simulated_platform_is_refused_by_policies_for_production(tee: str) -> None:
    assert verified(tee, quoted(tee), policy=strict()).reason == "development_refused"
    without = verified(tee, quoted(tee), collateral=None, policy=as_captured(strict()))
    assert without.reason == "development_refused"


def test_simulated_collateral_alone_makes_a_platform_a_simulated_one() -> None:
    """Were only the quote's root genuine, the states of its platform would be made up."""
    genuine = SimulatedIntel(now=NOW)
    roots = Roots(anchors=(Anchor(vendor=Vendor.INTEL, certificate=genuine.root),))
    quote = genuine.platform().tdx_quote()
    assert not verified(
        "tdx", quote, collateral=genuine.collateral(), roots=roots
    ).result.development
    both = roots.merged(INTEL.roots)
    assert verified("tdx", quote, collateral=INTEL.collateral(), roots=both).result.development


class TestParse:
    @TEES
    def test_truncated(self, tee: str) -> None:
        found = verified(tee, quoted(tee)[:-40])
        assert (found.reason, found.failed()) == ("malformed", {"parse"})
        assert (found.outcome.bound, found.outcome.facts) == (None, {})

    @TEES
    def test_padded(self, tee: str) -> None:
        found = verified(tee, quoted(tee) + bytes(100))
        assert found.affirmed
        assert found.outcome.facts["trailing_bytes"] == 100

    def test_a_kind_that_is_not_known_is_not_decided(self) -> None:
        quote = quoted("tdx")
        other = header(4, 0x81, key_type=3) + quote[48:]
        found = verified("tdx", other)
        assert found.result.verdict is Finding.NONE
        assert found.reason == "quote_unsupported"

    def test_the_quote_of_another_environment(self) -> None:
        assert verified("sgx", quoted("sgx")).affirmed
        assert verified("tdx", quoted("sgx")).reason == "quote_kind"
        assert verified("sgx", quoted("tdx")).reason == "quote_kind"


class TestSignatures:
    @TEES
    @pytest.mark.parametrize("place", [47, 60, -1])
    def test_every_signed_byte(self, tee: str, place: int) -> None:
        quote = quoted(tee)
        assert verified(tee, quote).affirmed
        signed = bytearray(parse_quote(quote).signed)
        signed[place] ^= 1
        found = verified(tee, reassembled(quote, signed=bytes(signed)))
        assert found.reason == "bad_signature"
        assert found.failed() >= {"quote_signature"}
        assert found.outcome.bound is None
        assert found.outcome.registers == {}

    @pytest.mark.parametrize("td15", [False, True])
    def test_version_5_signs_its_descriptor(self, td15: bool) -> None:
        quote = PLATFORM.tdx_quote(version=5, td15=td15)
        assert verified("tdx", quote).affirmed
        parsed = parse_quote(quote)
        key = ec.generate_private_key(ec.SECP256R1())
        point = key.public_key().public_numbers()
        raw = point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")
        report = bytearray(parsed.qe_report.raw)
        report[320:352] = hashlib.sha256(raw + parsed.qe_auth_data).digest()

        def signed(message: bytes) -> Found:
            return verified(
                "tdx",
                reassembled(
                    quote,
                    signature=raw_signature(key, message),
                    key=raw,
                    qe_report=bytes(report),
                    qe_signature=raw_signature(PLATFORM.key, bytes(report)),
                ),
            )

        assert signed(parsed.signed).affirmed
        assert signed(parsed.signed[:48] + parsed.signed[54:]).reason == "bad_signature"

    @TEES
    def test_a_signature_of_zeros(self, tee: str) -> None:
        found = verified(tee, reassembled(quoted(tee), signature=bytes(63) + b"\1"))
        assert found.failed() == {"quote_signature"}

    @TEES
    def test_a_key_that_is_no_point(self, tee: str) -> None:
        found = verified(tee, reassembled(quoted(tee), key=b"\1" * 64))
        assert found.failed() == {"quote_signature", "ak_binding"}
        assert found.reason == "bad_signature"

    @TEES
    def test_a_key_of_ones_own(self, tee: str) -> None:
        """The whole report signed by somebody else: only the quoting enclave's word is missing."""
        quote = quoted(tee)
        own = PLATFORM.sign(parse_quote(quote).signed)
        parsed = parse_quote(own)
        assert verified(tee, own).affirmed
        found = verified(
            tee,
            reassembled(quote, signature=parsed.signature, key=parsed.attestation_key),
        )
        assert (found.reason, found.failed()) == ("bad_ak_binding", {"ak_binding"})

    @TEES
    def test_other_authentication_data(self, tee: str) -> None:
        found = verified(tee, reassembled(quoted(tee), auth=bytes(32)))
        assert (found.reason, found.failed()) == ("bad_ak_binding", {"ak_binding"})

    @TEES
    def test_the_binding_is_followed_by_zeros(self, tee: str) -> None:
        quote = quoted(tee)
        report = bytearray(parse_quote(quote).qe_report.raw)
        report[-1] = 1
        signature = raw_signature(PLATFORM.key, bytes(report))
        found = verified(tee, reassembled(quote, qe_report=bytes(report), qe_signature=signature))
        assert (found.reason, found.failed()) == ("bad_ak_binding", {"ak_binding"})

    @TEES
    def test_a_quoting_enclave_on_another_machine(self, tee: str) -> None:
        other = INTEL.platform()
        assert verified(tee, quoted(tee, other)).affirmed
        found = verified(tee, reassembled(quoted(tee), certificates=(PCK_CHAIN, other.chain)))
        assert (found.reason, found.failed()) == ("bad_signature", {"qe_report_signature"})
        assert found.outcome.bound is None


class TestQuotingEnclave:
    """Without collateral."""

    def found(self, tee: str, **fields: bytes | int) -> Found:
        platform = PLATFORM.with_qe(**fields)
        return verified(tee, quoted(tee, platform), collateral=None, policy=LENIENT)

    @TEES
    @pytest.mark.parametrize(
        ("field", "value"), [("mrsigner", bytes(32)), ("isvprodid", 7), ("attributes", 0x17)]
    )
    def test_another_enclave(self, tee: str, field: str, value: bytes | int) -> None:
        assert self.found(tee).affirmed
        found = self.found(tee, **{field: value})
        assert (found.reason, found.failed()) == ("qe_identity_mismatch", {"quoting_enclave"})
        assert found.outcome.bound is None

    def test_that_of_a_forged_quote_is_not_affirmed(self) -> None:
        quote = reassembled(quoted("tdx"), signature=b"\1" * 64)
        found = verified("tdx", quote, collateral=None, policy=LENIENT)
        assert found.claim("quoting_enclave").code == "unauthenticated"

    def test_that_of_the_other_environment(self) -> None:
        quote = quoted("sgx")
        report = parse_quote(quote).qe_report
        found = self.found("tdx", mrsigner=report.mrsigner, isvprodid=report.isvprodid)
        assert found.reason == "qe_identity_mismatch"


class TestPolicy:
    @TEES
    def test_chips(self, tee: str) -> None:
        ppid = hashlib.sha256(b"simulated platform").digest()[:16].hex()
        policy = dataclasses.replace(POLICY, chip_ids=(ppid, "00" * 16))
        found = verified(tee, quoted(tee), policy=policy)
        assert found.affirmed
        assert found.claim("allowed_chip").value == ppid
        policy = dataclasses.replace(POLICY, chip_ids=("00" * 16,))
        found = verified(tee, quoted(tee), policy=policy)
        assert (found.reason, found.failed()) == ("chip_not_allowed", {"allowed_chip"})

    def test_an_unauthenticated_chip_is_not_affirmed(self) -> None:
        ppid = hashlib.sha256(b"simulated platform").digest()[:16].hex()
        policy = dataclasses.replace(POLICY, chip_ids=(ppid,))
        quote = reassembled(quoted("tdx"), signature=b"\1" * 64)
        assert verified("tdx", quote, policy=policy).claim("allowed_chip").code == "unauthenticated"

    @TEES
    @pytest.mark.parametrize("which", ["leaf", "ca", "root", "signer"])
    def test_denied_certificates(self, tee: str, which: str) -> None:
        certificates = {
            "leaf": PLATFORM.certificate,
            "ca": INTEL.cas["platform"],
            "root": INTEL.root,
            "signer": INTEL.signer,
        }
        policy = dataclasses.replace(POLICY, denied=("sha256:" + "00" * 32,))
        assert verified(tee, quoted(tee), policy=policy).affirmed
        for spelt in (certificates[which], respelled(certificates[which], P256_ORDER)):
            policy = dataclasses.replace(POLICY, denied=(fingerprint(spelt),))
            found = verified(tee, quoted(tee), policy=policy)
            assert (found.reason, found.failed()) == ("denied", {"denied"})


def test_facts_are_told_of_any_quote_that_decodes() -> None:
    quote = reassembled(quoted("tdx"), signature=b"\1" * 64)
    facts = verified("tdx", quote).outcome.facts
    assert facts["report_data"] == NONCE.hex()
    assert facts["pck"] == verified("tdx", quoted("tdx")).outcome.facts["pck"]


def test_every_claim_is_decided_and_none_besides() -> None:
    """`Ledger.close` refuses claims that were not promised; nothing promised is left open."""
    for tee in ("tdx", "sgx"):
        for collateral in (None, COLLATERAL[tee]):
            found = verified(tee, quoted(tee), collateral=collateral, policy=LENIENT)
            assert {claim.code for claim in found.result.claims} == {None}


def test_a_ledger_of_ones_own() -> None:
    """What `run` does, by hand, as a platform that wraps quotes does."""
    ledger = Ledger()
    evidence = TdxEvidence(quote=quoted("tdx"), collateral=COLLATERAL["tdx"])
    outcome = verify_tdx(
        evidence,
        policy=POLICY,
        roots=INTEL.roots,
        at=NOW,
        expected=Expected(prefixes={"report_data": NONCE[:32]}),
        ledger=ledger,
    )
    claims = ledger.close(development=outcome.development)
    assert all(claim.finding is Finding.AFFIRMING for claim in claims)
    assert claims[-1].name == "expected.report_data"
