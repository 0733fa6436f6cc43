"""Certificates and collateral of quoting platforms: each way in which they can be wrong."""

from __future__ import annotations

import base64
import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.endorsements.intel import Collateral
from cloister.endorsements.intel_pck import SGX_EXTENSIONS
from cloister.endorsements.intel_tcb_info import SGX
from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.testing.simulated_dcap import SimulatedIntel, SimulatedPlatform, pem, tcb_level
from cloister.testing.simulated_dcap_parts import sgx_extensions
from cloister.verifier.authenticate.intel_collateral import check_signatures
from cloister.verifier.platforms.dcap import CollateralInput
from cloister.verifier.result import Finding
from support.dcap import PCK_CHAIN, reassembled
from support.dcap_platform import (
    COLLATERAL,
    INTEL,
    LENIENT,
    NONCE,
    NOW,
    PLATFORM,
    TEES,
    Found,
    der,
    quoted,
    verified,
)


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
