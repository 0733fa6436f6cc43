"""Quotes of simulated platforms: each way in which one can be wrong, and nothing else changed."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.intel import Collateral
from cloister.endorsements.intel_pck import SGX_EXTENSIONS
from cloister.endorsements.intel_tcb_info import SGX, TDX
from cloister.endorsements.roots import Anchor, Roots, Vendor, fingerprint
from cloister.evidence.dcap import parse_quote
from cloister.testing.simulated_dcap import (
    SimulatedIntel,
    SimulatedPlatform,
    pem,
    raw_signature,
    tcb_level,
)
from cloister.testing.simulated_dcap_parts import sgx_extensions
from cloister.verifier.authenticate.intel_collateral import check_signatures
from cloister.verifier.evidence import run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms.dcap import CollateralInput
from cloister.verifier.platforms.sgx import SgxEvidence, verify_sgx
from cloister.verifier.platforms.tdx import TdxEvidence, verify_tdx
from cloister.verifier.policy import AppraisalPolicy, as_captured, strict
from cloister.verifier.result import AttestationResult, Claim, Finding
from support.certificates import P256_ORDER, respelled
from support.dcap import PCK_CHAIN, header, reassembled

NOW: Final = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
NONCE: Final = hashlib.sha512(b"nonce").digest()
INTEL: Final = SimulatedIntel(now=NOW)
PLATFORM: Final = INTEL.platform()
POLICY: Final = dataclasses.replace(strict(), accept_development=True)
LENIENT: Final = as_captured(POLICY)
COLLATERAL: Final = {"tdx": INTEL.collateral(TDX), "sgx": INTEL.collateral(SGX)}

TEES = pytest.mark.parametrize("tee", ["tdx", "sgx"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A verdict, and what comes of it beyond the claims."""

    result: AttestationResult
    outcome: Outcome

    @property
    def reason(self) -> str | None:
        failures = self.result.failures
        worst = [claim for claim in failures if claim.finding is self.result.verdict]
        return worst[0].code if worst else None

    @property
    def affirmed(self) -> bool:
        return self.result.verdict is Finding.AFFIRMING

    def claim(self, name: str) -> Claim:
        return next(c for c in self.result.claims if c.name.partition(".")[2] == name)

    def failed(self) -> set[str]:
        return {
            claim.name.partition(".")[2]
            for claim in self.result.claims
            if claim.finding is Finding.CONTRAINDICATED
        }


def quoted(tee: str, platform: SimulatedPlatform = PLATFORM, **fields: bytes | int) -> bytes:
    arguments: dict[str, Any] = {"report_data": NONCE, **fields}
    return platform.tdx_quote(**arguments) if tee == "tdx" else platform.sgx_quote(**arguments)


def verified(
    tee: str,
    quote: bytes,
    *,
    collateral: CollateralInput | str | None = "its own",
    certificates: tuple[bytes, ...] = (),
    policy: AppraisalPolicy = POLICY,
    roots: Roots = INTEL.roots,
    at: datetime = NOW,
    expected: Expected = NOTHING_EXPECTED,
) -> Found:
    given: Any = COLLATERAL[tee] if collateral == "its own" else collateral
    kept: list[Outcome] = []
    kind, verify = (TdxEvidence, verify_tdx) if tee == "tdx" else (SgxEvidence, verify_sgx)

    def keeping(evidence: object, **arguments: Any) -> Outcome:
        call: Callable[..., Outcome] = verify
        kept.append(call(evidence, **arguments))
        return kept[0]

    evidence = kind(quote=quote, collateral=given, certificates=certificates)
    result = run(keeping, evidence, policy=policy, roots=roots, at=at, expected=expected)
    return Found(result=result, outcome=kept[0])


def der(*certificates: x509.Certificate) -> tuple[bytes, ...]:
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)


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


class TestChain:
    def found(self, platform: SimulatedPlatform, **arguments: Any) -> Found:
        return verified("tdx", quoted("tdx", platform), **arguments)

    def platform(self, *certificates: x509.Certificate, key: Any) -> SimulatedPlatform:
        return SimulatedPlatform(
            key=key, certificate=certificates[0], chain=pem(*certificates, INTEL.root)
        )

    def leaf(self, *, name: str = "Intel SGX PCK Certificate", **issued: Any) -> Any:
        key = ec.generate_private_key(ec.SECP256R1())
        under: dict[str, Any] = {
            "issuer": INTEL.cas["platform"],
            "issuer_key": INTEL.ca_keys["platform"],
        }
        return INTEL.certify(name, key, extensions=sgx_extensions(), **under | issued), key

    @pytest.mark.parametrize("ca", ["platform", "processor"])
    def test_both_cas(self, ca: Any) -> None:
        collateral = INTEL.collateral(ca=ca)
        assert self.found(INTEL.platform(ca=ca), collateral=collateral).affirmed

    def test_a_root_in_the_quote_is_worth_nothing(self) -> None:
        other = SimulatedIntel(now=NOW)
        platform = other.platform()
        assert self.found(platform, collateral=other.collateral(), roots=other.roots).affirmed
        found = self.found(platform)
        assert found.reason == "bad_chain"
        assert "pck_chain" in found.failed()
        assert found.outcome.bound is None

    def test_the_root_of_another_vendor(self) -> None:
        anchors = (Anchor(vendor=Vendor.AMD, certificate=INTEL.root, development=True),)
        roots = INTEL.roots
        assert self.found(PLATFORM, roots=roots, collateral=None, policy=LENIENT).affirmed
        roots = Roots(anchors=anchors)
        found = self.found(PLATFORM, roots=roots, collateral=None, policy=LENIENT)
        assert (found.reason, found.failed()) == ("bad_chain", {"pck_chain"})

    def test_the_leaf_has_a_platforms_name(self) -> None:
        leaf, key = self.leaf()
        assert self.found(self.platform(leaf, INTEL.cas["platform"], key=key)).affirmed
        leaf, key = self.leaf(name="Intel SGX TCB Signing")
        found = self.found(self.platform(leaf, INTEL.cas["platform"], key=key))
        assert (found.reason, found.failed()) == ("bad_chain", {"pck_chain"})

    @pytest.mark.parametrize(
        ("ca", "signs", "fault"),
        [(False, True, set()), (True, True, {"pck_chain"}), (False, False, {"pck_chain"})],
    )
    def test_a_leaf_signs_data_and_no_certificates(
        self, ca: bool, signs: bool, fault: set[str]
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        issued = INTEL.certify("Intel SGX PCK Certificate", key, extensions=sgx_extensions())
        usage = issued.extensions.get_extension_for_class(x509.KeyUsage).value
        uses: Any = {name.removeprefix("_"): value for name, value in vars(usage).items()}
        leaf = (
            x509.CertificateBuilder()
            .subject_name(issued.subject)
            .issuer_name(INTEL.cas["platform"].subject)
            .public_key(key.public_key())
            .serial_number(7)
            .not_valid_before(issued.not_valid_before_utc)
            .not_valid_after(issued.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**uses | {"digital_signature": signs}), critical=True)
            .add_extension(
                x509.UnrecognizedExtension(SGX_EXTENSIONS, sgx_extensions()), critical=False
            )
            .sign(INTEL.ca_keys["platform"], hashes.SHA256())
        )
        found = self.found(self.platform(leaf, INTEL.cas["platform"], key=key))
        assert found.failed() == fault

    def test_the_root_certifies_no_platforms(self) -> None:
        leaf, key = self.leaf(issuer="root", issuer_key=INTEL.root_key)
        found = self.found(self.platform(leaf, key=key))
        assert "pck_chain" in found.failed()

    def test_a_ca_for_something_else(self) -> None:
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca = INTEL.certify("Intel SGX Something CA", ca_key, ca=0)
        leaf, key = self.leaf(issuer=ca, issuer_key=ca_key)
        found = verified(
            "tdx",
            quoted("tdx", self.platform(leaf, ca, key=key)),
            collateral=None,
            policy=LENIENT,
        )
        assert (found.reason, found.failed()) == ("bad_chain", {"pck_chain"})

    def test_a_longer_chain(self) -> None:
        """Under a root that allows it, which Intel's does not."""
        root_key, upper_key, ca_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        root = INTEL.certify("Root", root_key, issuer=None, issuer_key=root_key, ca=4)
        roots = Roots(anchors=(Anchor(vendor=Vendor.INTEL, certificate=root, development=True),))
        upper = INTEL.certify(
            "Intel SGX PCK Platform CA", upper_key, issuer=root, issuer_key=root_key, ca=1
        )
        ca = INTEL.certify(
            "Intel SGX PCK Platform CA", ca_key, issuer=upper, issuer_key=upper_key, ca=0
        )
        leaf, key = self.leaf(issuer=ca, issuer_key=ca_key)
        found = verified(
            "tdx",
            quoted("tdx", self.platform(leaf, ca, upper, key=key)),
            collateral=None,
            policy=LENIENT,
            roots=roots,
        )
        assert found.failed() == {"pck_chain"}
        leaf, key = self.leaf(issuer=upper, issuer_key=upper_key)
        shorter = quoted("tdx", self.platform(leaf, upper, key=key))
        assert verified("tdx", shorter, collateral=None, policy=LENIENT, roots=roots).affirmed

    def test_extensions_that_do_not_decode(self) -> None:
        found = self.found(INTEL.platform(extensions=b"\x30\x00"))
        assert (found.reason, found.failed()) == ("bad_chain", {"pck_chain"})
        assert found.outcome.bound is None

    def test_a_certificate_that_does_not_decode(self) -> None:
        chain = PLATFORM.chain.replace(b"MII", b"MIJ", 1)
        found = verified("tdx", reassembled(quoted("tdx"), certificates=(PCK_CHAIN, chain)))
        assert (found.reason, found.failed()) == ("bad_chain", {"pck_chain"})

    @pytest.mark.parametrize("number", [b"\x00", b"\x81\x01"], ids=["zero", "below"])
    def test_a_serial_number_that_no_list_can_name(self, number: bytes) -> None:
        """Neither an exception nor a warning gets out, whatever an unsigned certificate says."""
        assert verified("tdx", quoted("tdx")).affirmed
        (leaf,) = der(PLATFORM.certificate)
        own = PLATFORM.certificate.serial_number
        size = own.bit_length() // 8 + 1
        before = b"\x02" + bytes([size]) + own.to_bytes(size, "big")
        after = b"\x02" + bytes([len(number)]) + number
        assert leaf.count(before) == 1
        change = len(after) - len(before)
        outer, inner = (int.from_bytes(leaf[at : at + 2], "big") + change for at in (2, 6))
        altered = leaf.replace(before, after)
        altered = b"".join(
            (leaf[:2], outer.to_bytes(2, "big"), leaf[4:6], inner.to_bytes(2, "big"), altered[8:])
        )
        text = base64.encodebytes(altered)
        chain = b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"
        chain += pem(INTEL.cas["platform"], INTEL.root)
        found = verified("tdx", reassembled(quoted("tdx"), certificates=(PCK_CHAIN, chain)))
        assert "pck_chain" in found.failed()
        assert found.reason == "bad_chain"
        assert found.outcome.bound is None

    def test_expired(self) -> None:
        platform = INTEL.platform(not_after=NOW + timedelta(days=1))
        assert self.found(platform).affirmed
        found = self.found(platform, at=NOW + timedelta(days=2))
        assert (found.reason, found.failed()) == ("expired", {"time"})
        assert found.claim("pck_chain").finding is Finding.AFFIRMING
        assert found.outcome.bound is None
        assert found.claim("debug").code == "unauthenticated"

    def test_not_valid_yet(self) -> None:
        found = self.found(PLATFORM, at=NOW - timedelta(days=366), collateral=None, policy=LENIENT)
        assert (found.reason, found.failed()) == ("expired", {"time"})

    def test_a_leaf_alone_is_completed_by_our_own_intermediates(self) -> None:
        quote = reassembled(quoted("tdx"), certificates=(4, pem(PLATFORM.certificate)))
        assert verified("tdx", quote).reason == "bad_chain"
        own = dataclasses.replace(INTEL.roots, intermediates=(INTEL.cas["platform"],))
        assert verified("tdx", quote, roots=own).affirmed

    def test_a_quote_that_only_names_its_platform(self) -> None:
        quote = reassembled(quoted("tdx"), certificates=(1, bytes(36)))
        chain = (PLATFORM.certificate, INTEL.cas["platform"])
        assert verified("tdx", quote, certificates=der(*chain)).affirmed
        found = verified("tdx", quote)
        assert (found.reason, found.failed()) == ("endorsements_missing", {"pck_chain"})
        assert found.outcome.bound is None

    def test_the_chain_may_come_with_the_collateral(self) -> None:
        quote = reassembled(quoted("tdx"), certificates=(1, bytes(36)))
        with_chain = dataclasses.replace(INTEL.collateral(), pck_certificate_chain=PLATFORM.chain)
        assert verified("tdx", quote, collateral=with_chain).affirmed
        signed = check_signatures(with_chain, roots=INTEL.roots)
        assert verified("tdx", quote, collateral=signed).affirmed
        assert verified("tdx", quote, collateral=with_chain.encode()).affirmed
        bad = dataclasses.replace(with_chain, pck_certificate_chain=b"no PEM")
        assert verified("tdx", quote, collateral=bad).reason == "endorsements_missing"

    def test_the_chain_in_the_quote_comes_first(self) -> None:
        other = INTEL.platform()
        assert verified("tdx", quoted("tdx"), certificates=der(other.certificate)).affirmed


class TestCollateral:
    @TEES
    def test_the_three_forms_say_the_same(self, tee: str) -> None:
        quote, collateral = quoted(tee), COLLATERAL[tee]
        signed = check_signatures(collateral, roots=INTEL.roots)
        forms: tuple[CollateralInput, ...] = (collateral.encode(), collateral, signed, signed)
        results = [verified(tee, quote, collateral=form).result for form in forms]
        assert all(result.claims == results[0].claims for result in results)
        assert results[0].verdict is Finding.AFFIRMING

    @pytest.mark.parametrize("form", [b"", b"{}", b"\xff", b'{"tcb_info": 1}'])
    def test_what_does_not_decode_is_a_claim(self, form: bytes) -> None:
        found = verified("tdx", quoted("tdx"), collateral=form)
        assert (found.reason, found.failed()) == ("malformed", {"collateral_format"})
        assert found.outcome.bound is None

    def test_a_member_that_does_not_decode_is_a_claim(self) -> None:
        collateral = dataclasses.replace(INTEL.collateral(), pck_crl=b"\0")
        found = verified("tdx", quoted("tdx"), collateral=collateral)
        assert (found.reason, found.failed()) == ("malformed", {"collateral_format"})

    def test_out_of_date_is_authentic_all_the_same(self) -> None:
        info = INTEL.tcb_info(levels=[tcb_level(status="OutOfDate")])
        found = verified("tdx", quoted("tdx"), collateral=INTEL.collateral(tcb_info=info))
        assert found.reason == "tcb_status"
        assert found.claim("platform_tcb").value == "OutOfDate"
        assert found.outcome.bound == NONCE

    def bound(self, collateral: Collateral, code: str) -> bytes | None:
        found = verified("tdx", quoted("tdx"), collateral=collateral)
        assert found.reason == code
        return found.outcome.bound

    def test_nothing_is_bound_where_the_collateral_is_another_platforms(self) -> None:
        info = INTEL.tcb_info(fmspc=bytes(6))
        assert self.bound(INTEL.collateral(tcb_info=info), "fmspc_mismatch") is None

    def test_nothing_is_bound_where_the_platform_was_revoked(self) -> None:
        revoked = INTEL.collateral(revoked=[PLATFORM.certificate])
        assert self.bound(revoked, "revoked") is None

    def test_nothing_is_bound_where_the_quoting_enclave_is_another(self) -> None:
        identity = INTEL.qe_identity(SGX)
        assert self.bound(INTEL.collateral(qe_identity=identity), "qe_identity_mismatch") is None

    def test_nothing_is_bound_where_the_collateral_is_forged(self) -> None:
        collateral = INTEL.collateral()
        edited = dataclasses.replace(collateral, tcb_info=collateral.tcb_info + b" ")
        assert self.bound(edited, "collateral_signature") is None

    def test_time_covers_collateral(self) -> None:
        found = verified("tdx", quoted("tdx"), at=NOW + timedelta(days=60))
        assert found.reason == "expired"
        assert found.failed() == {"collateral_time", "time"}
        assert found.outcome.bound is None

    def test_states_are_told_of_quotes_that_are_forged(self) -> None:
        quote = reassembled(quoted("tdx"), signature=b"\1" * 64)
        claim = verified("tdx", quote).claim("platform_tcb")
        assert (claim.finding, claim.value) == (Finding.NONE, "UpToDate")

    def test_states_in_forged_collateral_are_not_affirmed(self) -> None:
        collateral = INTEL.collateral()
        edited = dataclasses.replace(collateral, tcb_info=collateral.tcb_info + b" ")
        found = verified("tdx", quoted("tdx"), collateral=edited)
        assert found.claim("platform_tcb").code == "unauthenticated"
        assert found.claim("debug").finding is Finding.AFFIRMING


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
