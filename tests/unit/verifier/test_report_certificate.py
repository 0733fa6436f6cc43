"""The certificate of the attestation key, by the one thing that breaks it."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloister.endorsements.roots import Roots
from cloister.evidence.report import ITEM_QUOTE, Endorsement
from cloister.testing.simulated_tpm import SimulatedEnrolmentCa
from cloister.verifier.result import Finding
from support.report_world import NOW, Cases, World, affirm, refuse, world

CASES = Cases()
case = CASES.case


@case("ak_uncertified", "tpm.certificate")
def key_without_certificate(bad: World) -> None:
    bad.endorsed_by()


@case("ak_uncertified", "tpm.certificate")
def key_certified_by_another_ca(bad: World) -> None:
    other = SimulatedEnrolmentCa(now=NOW, name="Another CA")
    bad.endorsed_by(other.certify(bad.attester.tpm.key.public_key()))


@case("ak_uncertified", "tpm.certificate")
def key_certified_by_a_ca_of_the_same_name(bad: World) -> None:
    bad.endorsed_by(SimulatedEnrolmentCa(now=NOW).certify(bad.attester.tpm.key.public_key()))


@case("ak_uncertified", "tpm.certificate")
def certificate_that_does_not_decode(bad: World) -> None:
    quote = bad.report.evidence[ITEM_QUOTE]
    broken = dataclasses.replace(quote.endorsements[0], data=quote.endorsements[0].data[:-1])
    bad.replace_item(ITEM_QUOTE, dataclasses.replace(quote, endorsements=(broken,)))


@case("ak_uncertified", "tpm.certificate")
def certificate_of_a_version_that_does_not_exist(bad: World) -> None:
    patch_certificate(bad, b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05")


@case("ak_uncertified", "tpm.certificate")
def certificate_with_an_issuer_that_does_not_decode(bad: World) -> None:
    patch_certificate(bad, b"\x0c\x16Simulated enrolment CA", b"\x03\x16Simulated enrolment CA")


@case("ak_uncertified", "tpm.certificate")
def certificate_with_a_name_of_a_kind_nobody_reads(bad: World) -> None:
    directory_of_parties = x509.UnrecognizedExtension(
        x509.SubjectAlternativeName.oid, b"\x30\x04\xa5\x02\x05\x00"
    )
    bad.endorsed_by(with_extension(bad, directory_of_parties))


@case("ak_uncertified", "tpm.certificate")
def certificate_of_a_key_of_an_unknown_type(bad: World) -> None:
    ecdsa = b"\x06\x07\x2a\x86\x48\xce\x3d\x02"
    patch_certificate(bad, ecdsa + b"\x01", ecdsa + b"\x09")


@case("ak_uncertified", "tpm.certificate")
def key_certified_by_a_ca_whose_key_has_other_uses(bad: World) -> None:
    middle = SimulatedEnrolmentCa(now=NOW, name="Middle")
    bad.endorsed_by(
        middle.certify(bad.attester.tpm.key.public_key()),
        bad.attester.ca.certify_ca(
            middle.key.public_key(), middle.certificate.subject, may_certify=False
        ),
    )


@case("ak_uncertified", "tpm.certificate")
def certificate_under_another_media_type(bad: World) -> None:
    quote = bad.report.evidence[ITEM_QUOTE]
    endorsement = Endorsement(media_type="text/plain", data=quote.endorsements[0].data)
    bad.replace_item(ITEM_QUOTE, dataclasses.replace(quote, endorsements=(endorsement,)))


@case("ak_uncertified", "tpm.certificate")
def key_certified_by_somebody_who_is_no_ca(bad: World) -> None:
    middle = ec.generate_private_key(ec.SECP256R1())
    impostor = SimulatedEnrolmentCa(now=NOW, name="Simulated attestation key")
    impostor.key = middle
    bad.endorsed_by(
        impostor.certify(bad.attester.tpm.key.public_key()),
        bad.attester.ca.certify(middle.public_key()),
    )


@case("ak_root_unpinned", "tpm.certificate")
def key_certified_by_a_root_that_only_the_report_names(bad: World) -> None:
    other = SimulatedEnrolmentCa(now=NOW, name="Another CA")
    bad.endorsed_by(other.certify(bad.attester.tpm.key.public_key()), other.certificate)


@case("ak_root_unpinned", "tpm.certificate")
def nothing_pinned(bad: World) -> None:
    bad.endorsed_by(*bad.attester.chain, bad.attester.ca.certificate)
    bad.roots = Roots(enrolment_cas=())


@case("ak_expired", "tpm.certificate")
def certificate_of_the_key_expired(bad: World) -> None:
    bad.endorsed_by(
        bad.attester.ca.certify(
            bad.attester.tpm.key.public_key(),
            not_before=NOW - timedelta(hours=2),
            not_after=NOW - timedelta(hours=1),
        )
    )


@case("ak_expired", "tpm.certificate")
def certificate_of_the_key_not_yet_valid(bad: World) -> None:
    bad.endorsed_by(
        bad.attester.ca.certify(
            bad.attester.tpm.key.public_key(), not_before=NOW + timedelta(hours=1)
        )
    )


@case("ak_purpose", "tpm.certificate")
def certificate_without_purpose(bad: World) -> None:
    bad.endorsed_by(bad.attester.ca.certify(bad.attester.tpm.key.public_key(), usages=()))


@case("ak_purpose", "tpm.certificate")
def certificate_for_another_purpose(bad: World) -> None:
    bad.endorsed_by(
        bad.attester.ca.certify(
            bad.attester.tpm.key.public_key(),
            usages=(ExtendedKeyUsageOID.CLIENT_AUTH,),
        )
    )


@case("ak_purpose", "tpm.certificate")
def certificate_of_a_ca(bad: World) -> None:
    bad.endorsed_by(bad.attester.ca.certify(bad.attester.tpm.key.public_key(), ca=True))


@case("ak_key_type", "tpm.certificate")
def key_on_another_curve(bad: World) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    bad.endorsed_by(bad.attester.ca.certify(key.public_key()))


def patch_certificate(bad: World, old: bytes, new: bytes) -> None:
    """Change the encoding of the attestation key's certificate."""
    quote = bad.report.evidence[ITEM_QUOTE]
    (whole,) = quote.endorsements
    assert old in whole.data
    changed = dataclasses.replace(whole, data=whole.data.replace(old, new))
    bad.replace_item(ITEM_QUOTE, dataclasses.replace(quote, endorsements=(changed,)))


def with_extension(bad: World, value: x509.ExtensionType) -> x509.Certificate:
    """The attestation key's certificate with one critical extension more."""
    ca, key = bad.attester.ca, bad.attester.tpm.key.public_key()
    plain = ca.certify(key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(plain.subject)
        .issuer_name(plain.issuer)
        .serial_number(7)
        .public_key(key)
        .not_valid_before(plain.not_valid_before_utc)
        .not_valid_after(plain.not_valid_after_utc)
        .add_extension(value, critical=True)
    )
    for extension in plain.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(ca.key, hashes.SHA256())


@pytest.mark.parametrize("name", sorted(CASES))
def test_one_change_is_refused(name: str) -> None:
    CASES.refuse_one(name)


def test_later_steps_go_on_where_they_can() -> None:
    bad = world()
    key_without_certificate(bad)
    by_name = {claim.name: claim for claim in bad.verify().claims}
    assert by_name["eventlog.digests"].finding is Finding.AFFIRMING
    assert by_name["keyset.expiry"].finding is Finding.AFFIRMING
    assert by_name["claims.bound"].finding is Finding.AFFIRMING
    for name in ("tpm.signature", "quote.fresh", "tpm.registers", "software.model"):
        assert by_name[name].code == "not_checked"


def test_an_unpinned_key_still_gets_its_quote_checked_but_nothing_is_appraised() -> None:
    bad = world()
    key_certified_by_a_root_that_only_the_report_names(bad)
    by_name = {claim.name: claim for claim in bad.verify().claims}
    assert by_name["tpm.signature"].finding is Finding.AFFIRMING
    assert by_name["software.model"].finding is Finding.NONE


def test_a_pinned_root_must_be_valid_itself() -> None:
    bad = world()
    affirm(bad)
    bad.roots = SimulatedEnrolmentCa(now=NOW - timedelta(days=800)).roots
    refuse(bad, "ak_expired", "tpm.certificate")


def test_an_unknown_critical_extension_is_refused() -> None:
    bad = world()
    affirm(bad)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    bad.endorsed_by(with_extension(bad, unknown))
    refuse(bad, "ak_uncertified", "tpm.certificate")


@pytest.mark.parametrize("signs", [True, False])
def test_a_certificate_that_names_uses_must_name_signing(signs: bool) -> None:
    bad = world()
    affirm(bad)
    usage = x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=True,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    bad.endorsed_by(with_extension(bad, usage))
    if signs:
        affirm(bad)
    else:
        refuse(bad, "ak_purpose", "tpm.certificate")
