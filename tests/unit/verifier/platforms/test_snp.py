"""SEV-SNP evidence: each check with the evidence that passes it and its altered twin."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.pinned import pinned_roots
from cloister.endorsements.roots import Roots, Vendor, fingerprint
from cloister.errors import MalformedError
from cloister.evidence.snp import CertificateKind, Product, SigningKey
from cloister.testing.simulated_snp import TCBS, SimulatedAmd, SimulatedKey, certificate_table, sign
from cloister.verifier.expected import NOTHING_EXPECTED
from cloister.verifier.platforms.snp import (
    MAX_ENDORSEMENTS,
    NOT_PROVEN_CHIP,
    NOT_PROVEN_REVOCATION,
    SnpEvidence,
    claims,
    snp_evidence_from_table,
)
from cloister.verifier.policy import strict
from cloister.verifier.result import Finding
from support.snp_evidence import (
    AMD,
    CAPTURED,
    GENOA,
    GOOD,
    KEY,
    NOW,
    POLICY,
    TURIN,
    VLEK,
    check,
    codes,
    outcome,
    result,
    values,
    with_fields,
)

# What affirms


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [SigningKey.VCEK, SigningKey.VLEK])
@pytest.mark.parametrize("amd", [AMD, GENOA, TURIN], ids=lambda amd: amd.product)
def test_everything_affirms(amd: SimulatedAmd, kind: SigningKey, version: int) -> None:
    evidence = amd.evidence(amd.key(kind), version=version, crls=[amd.crl()])
    found = result(evidence, amd=amd)
    assert found.verdict is Finding.AFFIRMING
    assert found.platform == f"development (AMD SEV-SNP ({amd.product.label}))"
    assert found.development
    assert found.facts["product"] == amd.product
    assert found.facts["leaf_kind"] == kind.name


def test_claims_in_order() -> None:
    names = [claim.name for claim in result(GOOD).claims]
    assert names == [
        "snp.parse",
        "snp.signature",
        "snp.chain",
        "snp.time",
        "snp.revocation",
        "snp.certificate",
        "snp.signing_key",
        "snp.certificate_tcb",
        "snp.chip_id",
        "snp.version",
        "snp.debug",
        "snp.migration",
        "snp.vmpl",
        "snp.tcb_order",
        "snp.denied",
        "platform.development",
    ]
    assert tuple(names[:-1]) == claims(GOOD, policy=POLICY, expected=NOTHING_EXPECTED)


def test_what_comes_out() -> None:
    evidence = with_fields(report_data=b"r" * 64, host_data=b"h" * 32)
    found = outcome(evidence)
    assert found.bound == b"r" * 64
    assert found.registers == {
        "measurement": b"\x4d" * 48,
        "host_data": b"h" * 32,
        "id_key_digest": bytes(48),
        "author_key_digest": bytes(48),
    }
    assert (found.memory_confidentiality, found.development) == ("sev_snp", True)
    assert found.platform == "AMD SEV-SNP (Milan)"


def test_facts() -> None:
    facts = result(GOOD).facts
    tcb = {"raw": "04000000000018db", "bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}
    assert facts["reported_tcb"] == facts["committed_tcb"] == facts["current_tcb"] == tcb
    assert facts["launch_tcb"] == tcb
    assert facts["policy"] == "0x30000"
    assert (facts["policy_smt"], facts["policy_debug"]) == (True, False)
    assert (facts["platform_smt_en"], facts["platform_tsme_en"]) == (True, False)
    assert facts["cpuid_family_model_stepping"] == [25, 1, 1]
    assert facts["leaf_serial"] == "0"
    assert facts["leaf_hwid"] == KEY.hwid.hex()
    assert facts["leaf_sha256"] == leaf_digest()
    assert "launch_mit_vector" not in facts
    fifth = result(AMD.evidence(KEY, version=5, crls=[AMD.crl()])).facts
    assert (fifth["launch_mit_vector"], fifth["current_mit_vector"]) == ("0xb", "0xf")


def leaf_digest() -> str:
    return fingerprint(parse_certificate(KEY.certificate)).removeprefix("sha256:")


def test_a_report_of_version_2_without_leaf_is_from_no_known_product() -> None:
    bare = SnpEvidence(report=AMD.report(KEY, version=2), certificates=())
    found = result(bare, CAPTURED)
    assert found.platform == "AMD SEV-SNP"
    assert found.facts["reported_tcb"] == {"raw": TCBS[Product.MILAN].hex()}
    assert "product" not in found.facts


def test_the_order_and_form_of_certificates_do_not_matter() -> None:
    leaf, ask, ark = GOOD.certificates
    pem = b"".join(parse_certificate(der).public_bytes(Encoding.PEM) for der in GOOD.certificates)
    for certificates in ((ark, ask, leaf), (ask, leaf), (leaf,), (pem,), (leaf, leaf, ark)):
        evidence = dataclasses.replace(GOOD, certificates=certificates)
        assert codes(result(evidence)) == {}


def test_of_two_leaves_the_kind_that_signed_is_taken() -> None:
    both = (VLEK.certificate, KEY.certificate)
    for key, evidence in ((KEY, GOOD), (VLEK, AMD.evidence(VLEK, crls=[AMD.crl()]))):
        for certificates in (both, both[::-1]):
            found = result(dataclasses.replace(evidence, certificates=certificates))
            assert codes(found) == {}
            assert found.facts["leaf_kind"] == key.kind.name


def test_an_extended_report() -> None:
    ask, ark = AMD.authorities()
    table = certificate_table(
        {
            CertificateKind.ARK: ark,
            CertificateKind.ASK: ask,
            CertificateKind.VCEK: KEY.certificate,
            CertificateKind.CRL: AMD.crl(),
        },
        pad_to=16384,
    )
    evidence = snp_evidence_from_table(GOOD.report, table)
    assert (len(evidence.certificates), len(evidence.crls)) == (3, 1)
    assert codes(result(evidence)) == {}
    with pytest.raises(MalformedError):
        snp_evidence_from_table(GOOD.report, table[:-1] + b"x")


def test_entries_of_the_hosts_own_are_left_alone() -> None:
    table = bytearray(certificate_table({CertificateKind.VCEK: b"what the host likes"}))
    table[0] ^= 1
    assert snp_evidence_from_table(b"", bytes(table)).certificates == ()


def test_a_masked_chip_is_reported() -> None:
    found = result(with_fields(chip_id=bytes(64)))
    assert codes(found) == {}
    assert values(found)["snp.chip_id"] == "masked"


def test_a_vlek_belongs_to_no_chip() -> None:
    for chip_id in (bytes(64), b"c" * 64):
        found = result(AMD.evidence(VLEK, crls=[AMD.crl()], chip_id=chip_id))
        assert codes(found) == {}
        assert values(found)["snp.chip_id"] == "not_applicable"
        assert (NOT_PROVEN_CHIP in found.not_proven) is not any(chip_id)
    assert NOT_PROVEN_CHIP not in result(GOOD).not_proven
    assert NOT_PROVEN_CHIP not in result(with_fields(chip_id=bytes(64))).not_proven


# What authentication refuses


def test_a_simulated_vendor_affirms_nothing_by_itself() -> None:
    assert codes(result(GOOD, strict())) == {"platform.development": "development_refused"}
    assert codes(result(GOOD, roots=pinned_roots())) == {"snp.chain": "bad_chain"}


@pytest.mark.parametrize("offset", [0x04, 0x50, 0x90, 0xC0, 0x110, 0x140])
def test_an_altered_report(offset: int) -> None:
    report = bytearray(GOOD.report)
    report[offset] ^= 1
    altered = dataclasses.replace(GOOD, report=bytes(report))
    found = check(altered, {"snp.signature": "bad_signature"})
    assert values(found)["snp.debug"] == "off"
    silent = outcome(altered)
    assert (silent.bound, silent.registers) == (None, {})


def test_a_report_that_another_key_signed() -> None:
    report = sign(GOOD.report, ec.generate_private_key(ec.SECP384R1()))
    check(dataclasses.replace(GOOD, report=report), {"snp.signature": "bad_signature"})


@pytest.mark.parametrize("half", [0x2A0, 0x2E8])
def test_a_signature_of_zeros(half: int) -> None:
    report = GOOD.report[:half] + bytes(72) + GOOD.report[half + 72 :]
    check(dataclasses.replace(GOOD, report=report), {"snp.signature": "bad_signature"})


@pytest.mark.parametrize("algorithm", [0, 2])
def test_another_algorithm_than_the_one_there_is(algorithm: int) -> None:
    check(with_fields(signature_algorithm=algorithm), {"snp.signature": "bad_signature"})


def test_a_key_on_another_curve() -> None:
    evidence = AMD.evidence(AMD.key(curve=ec.SECP256R1()), crls=[AMD.crl()])
    check(evidence, {"snp.signature": "bad_signature"})


def test_a_root_that_is_not_pinned() -> None:
    other = SimulatedAmd(now=NOW)
    other.ark_key = GENOA.ark_key
    other.ark = other._authority(other.ark_name, other.ark_key, serial=0x10001, path_length=1)
    other.ask = other._authority(other.ask_name, other.ask_key, serial=0x10002, path_length=0)
    evidence = other.evidence(crls=[other.crl()])
    assert codes(result(evidence, amd=other)) == {}
    roots = Roots(anchors=AMD.roots.anchors)
    assert codes(result(GOOD, roots=roots)) == {}
    assert codes(result(evidence, roots=roots)) == {"snp.chain": "bad_chain"}


def test_roots_of_other_vendors_vouch_for_nothing() -> None:
    (anchor,) = AMD.roots.anchors
    intel = dataclasses.replace(anchor, vendor=Vendor.INTEL)
    assert codes(result(GOOD, roots=Roots(anchors=(intel,)))) == {"snp.chain": "bad_chain"}


def test_a_leaf_signed_by_nobody_above() -> None:
    leaf = bytearray(KEY.certificate)
    leaf[-1] ^= 1
    altered = dataclasses.replace(GOOD, certificates=(bytes(leaf), *GOOD.certificates[1:]))
    check(altered, {"snp.chain": "bad_chain"})


@pytest.mark.parametrize("days", [-2, 366])
def test_an_expired_leaf(days: int) -> None:
    assert codes(result(GOOD)) == {}
    at = NOW + timedelta(days=days)
    crl = AMD.crl(issued_at=NOW - timedelta(days=9), until=NOW + timedelta(days=999))
    found = result(dataclasses.replace(GOOD, crls=(crl,)), at=at)
    assert codes(found) == {"snp.time": "expired"}
    assert values(found)["snp.chain"] == "pass"


def test_no_leaf() -> None:
    found = check(
        dataclasses.replace(GOOD, certificates=GOOD.certificates[1:]),
        {"snp.certificate": "endorsements_missing"},
    )
    assert found.verdict is Finding.CONTRAINDICATED
    assert "not_checked" in {claim.code for claim in found.claims if claim.name == "snp.signature"}


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\n"])
def test_certificates_that_do_not_decode(garbage: bytes) -> None:
    altered = dataclasses.replace(GOOD, certificates=(*GOOD.certificates, garbage))
    found = check(altered, {"snp.certificate": "malformed"})
    assert values(found)["snp.signature"] == "pass"
    alone = dataclasses.replace(GOOD, certificates=(garbage,))
    check(alone, {"snp.certificate": "malformed"})


def test_a_list_that_does_not_decode() -> None:
    altered = dataclasses.replace(GOOD, crls=(*GOOD.crls, b"garbage"))
    check(altered, {"snp.certificate": "malformed"})
    alone = dataclasses.replace(GOOD, crls=(b"garbage",))
    found = result(alone, CAPTURED)
    assert codes(found) == {"snp.certificate": "malformed"}
    assert values(found)["snp.revocation"] is None


def test_more_than_a_report_needs() -> None:
    room = MAX_ENDORSEMENTS - 1 - len(GOOD.certificates)
    full = (*GOOD.certificates, *[KEY.certificate] * room)
    filled = dataclasses.replace(GOOD, certificates=full)
    check(
        dataclasses.replace(filled, certificates=(*full, KEY.certificate)),
        {"snp.certificate": "malformed"},
        good=filled,
    )


def test_a_leaf_whose_extensions_do_not_decode() -> None:
    key = AMD.key(extensions={"3.1": b"\x02\x02\x00\x04"})
    check(AMD.evidence(key, crls=[AMD.crl()]), {"snp.certificate": "malformed"})


def test_a_leaf_for_another_product_than_its_issuers() -> None:
    key = AMD.key(product_name="Genoa")
    evidence = AMD.evidence(key, crls=[AMD.crl()], version=2)
    check(
        evidence,
        {"snp.certificate": "cert_mismatch"},
        good=AMD.evidence(KEY, crls=[AMD.crl()], version=2),
    )


def test_a_report_from_another_product_than_its_leaf() -> None:
    check(with_fields(cpuid=bytes([0x19, 0x11, 1])), {"snp.certificate": "cert_mismatch"})


def test_a_report_from_an_unknown_processor() -> None:
    found = check(
        with_fields(cpuid=bytes([0x1B, 0, 1])), {"snp.certificate": "platform_unsupported"}
    )
    assert found.verdict is Finding.NONE


def test_a_vcek_certified_by_the_authority_of_vleks() -> None:
    """The other way round too: what each authority may certify is in its name."""
    for kind, other in ((SigningKey.VCEK, SigningKey.VLEK), (SigningKey.VLEK, SigningKey.VCEK)):
        good = AMD.evidence(AMD.key(kind), crls=[AMD.crl()])
        altered = AMD.evidence(AMD.key(kind, issuer=other), crls=[AMD.crl()])
        check(altered, {"snp.certificate": "cert_mismatch"}, good=good)


def test_a_root_of_another_product() -> None:
    """Genoa's ASK under Milan's root: names below the root agree, the root's does not."""
    mixed = SimulatedAmd(now=NOW, product=Product.GENOA)
    mixed.ark_name, mixed.ark_key = AMD.ark_name, AMD.ark_key
    mixed.ark = AMD.ark
    mixed.ask = mixed._authority(mixed.ask_name, mixed.ask_key, serial=7, path_length=0)
    good = GENOA.evidence(crls=[GENOA.crl()])
    assert codes(result(good, amd=GENOA)) == {}
    evidence = mixed.evidence(crls=[mixed.crl()])
    assert codes(result(evidence, amd=mixed)) == {"snp.certificate": "cert_mismatch"}


@pytest.mark.parametrize(("key", "other"), [(KEY, SigningKey.VLEK), (VLEK, SigningKey.VCEK)])
def test_a_report_that_names_another_kind_of_key(key: SimulatedKey, other: SigningKey) -> None:
    good = AMD.evidence(key, crls=[AMD.crl()])
    altered = AMD.evidence(key, crls=[AMD.crl()], signer_info=other << 2)
    check(altered, {"snp.signing_key": "cert_mismatch"}, good=good)


def test_a_report_that_says_it_is_not_signed() -> None:
    check(with_fields(signer_info=SigningKey.NONE << 2), {"snp.signing_key": "unsigned"})


@pytest.mark.parametrize("index", range(8))
def test_a_leaf_for_another_tcb(index: int) -> None:
    """Any byte, reserved ones too, which only a version 2 report could carry."""
    tcb = bytearray(KEY.tcb)
    tcb[index] += 1
    good = AMD.evidence(KEY, crls=[AMD.crl()], version=2)
    altered = AMD.evidence(
        AMD.key(tcb=bytes(tcb)),
        crls=[AMD.crl()],
        version=2,
        reported_tcb=KEY.tcb,
    )
    check(altered, {"snp.certificate_tcb": "cert_mismatch"}, good=good)


def test_a_leaf_for_another_chip() -> None:
    check(with_fields(chip_id=b"\x02" + KEY.chip_id[1:]), {"snp.chip_id": "cert_mismatch"})
    check(with_fields(chip_id=KEY.chip_id[:-1] + b"\x01"), {"snp.chip_id": "cert_mismatch"})


def test_turins_chip_id_ends_with_zeros() -> None:
    key = TURIN.key()
    good = TURIN.evidence(key, crls=[TURIN.crl()])
    for chip_id in (key.hwid + bytes(55) + b"\x01", b"\xff" + key.chip_id[1:]):
        altered = TURIN.evidence(key, crls=[TURIN.crl()], chip_id=chip_id)
        check(altered, {"snp.chip_id": "cert_mismatch"}, good=good, amd=TURIN)


@pytest.mark.parametrize("version", [0, 1, 6])
def test_a_report_of_an_unknown_version(version: int) -> None:
    """Even one that is genuine: nobody knows what its fields mean."""
    check(with_fields(version=version), {"snp.version": "malformed"})
    unsigned = version.to_bytes(4, "little") + GOOD.report[4:]
    found = result(dataclasses.replace(GOOD, report=unsigned))
    assert codes(found) == {"snp.signature": "bad_signature", "snp.version": "malformed"}


@pytest.mark.parametrize("size", [0, 1183, 1185])
def test_a_report_that_does_not_decode(size: int) -> None:
    report = GOOD.report.ljust(size, b"\0")[:size]
    found = check(dataclasses.replace(GOOD, report=report), {"snp.parse": "malformed"})
    assert (found.facts, found.verdict) == ({}, Finding.CONTRAINDICATED)


# Revocation


def test_no_revocation_list() -> None:
    bare = dataclasses.replace(GOOD, crls=())
    check(bare, {"snp.revocation": "endorsements_missing"})
    found = result(bare, CAPTURED)
    assert codes(found) == {}
    assert "snp.revocation" not in values(found)
    assert NOT_PROVEN_REVOCATION in found.not_proven
    assert NOT_PROVEN_REVOCATION not in result(GOOD).not_proven


def test_a_revoked_signing_key() -> None:
    for key, revoked in ((KEY, AMD.ask), (VLEK, AMD.asvk)):
        good = AMD.evidence(key, crls=[AMD.crl()])
        altered = dataclasses.replace(good, crls=(AMD.crl(revoked=[revoked]),))
        check(altered, {"snp.revocation": "revoked"}, good=good)
    check(GOOD, {}, good=dataclasses.replace(GOOD, crls=(AMD.crl(revoked=[AMD.asvk]),)))


def test_a_forged_revocation_list() -> None:
    altered = dataclasses.replace(GOOD, crls=(AMD.crl(forged=True),))
    check(altered, {"snp.revocation": "crl_signature"})


def test_a_list_of_another_product() -> None:
    altered = dataclasses.replace(GOOD, crls=(GENOA.crl(),))
    for policy in (POLICY, CAPTURED):
        check(altered, {"snp.revocation": "endorsements_missing"}, policy=policy)


def test_an_old_list() -> None:
    altered = dataclasses.replace(GOOD, crls=(AMD.crl(until=NOW - timedelta(hours=1)),))
    check(altered, {"snp.time": "expired"})
    aged = dataclasses.replace(POLICY, max_collateral_age_s=2 * 86400)
    older = AMD.crl(issued_at=NOW - timedelta(days=2, seconds=1))
    assert codes(result(dataclasses.replace(GOOD, crls=(older,)))) == {}
    check(
        dataclasses.replace(GOOD, crls=(older,)),
        {"snp.revocation": "collateral_too_old"},
        policy=aged,
    )


def test_a_list_by_the_signing_key_is_looked_at_too() -> None:
    """AMD has none, as all leaves have serial number 0; looking that up is no warning."""
    lists = SimulatedAmd(now=NOW)
    lists.ark_name, lists.ark_key = AMD.ask_name, AMD.ask_key
    good = dataclasses.replace(GOOD, crls=(*GOOD.crls, lists.crl()))
    lists.ark_key = GENOA.ask_key
    altered = dataclasses.replace(GOOD, crls=(*GOOD.crls, lists.crl()))
    check(altered, {"snp.revocation": "crl_signature"}, good=good)
