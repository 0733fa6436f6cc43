"""What the enrolment CA refuses, each beside the twin it accepts. No TPM needed."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloister.attester.enrolment import (
    AK_LIFETIME,
    ANSWER_WITHIN,
    MAX_PENDING,
    TCG_KP_AIK_CERTIFICATE,
    TCG_KP_EK_CERTIFICATE,
    EnrolmentCa,
)
from cloister.attester.tpm import AK_ATTRIBUTES, signing_template
from cloister.errors import AuthenticationError, ConfigurationError
from cloister.evidence.tpm import ObjectAttribute, sized

AT: Final = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
CURVE: Final = ec.SECP256R1()


def ak_public(attributes: int = AK_ATTRIBUTES) -> bytes:
    numbers = ec.generate_private_key(CURVE).public_key().public_numbers()
    point = sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))
    return signing_template(attributes)[:-4] + point


class Manufacturer:
    """A TPM manufacturer with a root, an intermediate and EK certificates as asked."""

    def __init__(
        self, *, root_ends: timedelta = timedelta(days=9), root_length: int | None = None
    ) -> None:
        self.root_key = ec.generate_private_key(CURVE)
        self.issuer_key = ec.generate_private_key(CURVE)
        self.root = self._certificate(
            "root", self.root_key, "root", self.root_key,
            ca=True, ends=root_ends, length=root_length,
        )  # fmt: skip
        self.issuer = self.intermediate()

    def intermediate(
        self, *, ca: bool = True, cert_sign: bool = True, ends: timedelta = timedelta(days=9)
    ) -> x509.Certificate:
        return self._certificate(
            "issuer", self.issuer_key, "root", self.root_key, ca=ca, sign=cert_sign, ends=ends
        )

    def ek(
        self,
        *,
        eku: x509.ObjectIdentifier = TCG_KP_EK_CERTIFICATE,
        ca: bool = False,
        ends: timedelta = timedelta(days=9),
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> bytes:
        certificate = self._certificate(
            "ek", key or ec.generate_private_key(CURVE), "issuer", self.issuer_key,
            ca=ca, sign=False, eku=eku, ends=ends,
        )  # fmt: skip
        return certificate.public_bytes(serialization.Encoding.DER)

    def _certificate(
        self,
        subject: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: str,
        issuer_key: ec.EllipticCurvePrivateKey,
        *,
        ca: bool,
        sign: bool = True,
        eku: x509.ObjectIdentifier | None = None,
        ends: timedelta = timedelta(days=9),
        length: int | None = None,
    ) -> x509.Certificate:
        unused = (
            "digital_signature", "content_commitment", "key_encipherment",
            "data_encipherment", "crl_sign", "encipher_only", "decipher_only",
        )  # fmt: skip
        usage = dict.fromkeys(unused, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(AT - timedelta(days=9))
            .not_valid_after(AT + ends)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=length), critical=True)
            .add_extension(
                x509.KeyUsage(**usage, key_cert_sign=sign, key_agreement=not sign), critical=True
            )
        )
        if eku is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([eku]), critical=False)
        return builder.sign(issuer_key, hashes.SHA256())


@pytest.fixture(scope="module")
def manufacturer() -> Manufacturer:
    return Manufacturer()


@pytest.fixture
def ca(manufacturer: Manufacturer) -> EnrolmentCa:
    return EnrolmentCa.in_memory(manufacturers=[manufacturer.root], at=AT)


def refused(
    ca: EnrolmentCa,
    *,
    ek: bytes,
    ak: bytes,
    intermediates: tuple[x509.Certificate, ...],
    at: datetime = AT,
) -> str:
    with pytest.raises(AuthenticationError) as caught:
        ca.challenge(ek_certificate=ek, intermediates=intermediates, ak_public=ak, at=at)
    return caught.value.code


def test_good_key_is_challenged_even_with_padding_behind_the_certificate(
    ca: EnrolmentCa, manufacturer: Manufacturer
) -> None:
    for padding in (b"", bytes(300)):
        challenge = ca.challenge(
            ek_certificate=manufacturer.ek() + padding,
            intermediates=[manufacturer.issuer],
            ak_public=ak_public(),
            at=AT,
        )
        assert challenge.sealed.credential
        assert challenge.sealed.secret


def test_ek_of_another_manufacturer_is_refused(ca: EnrolmentCa) -> None:
    stranger = Manufacturer()
    code = refused(ca, ek=stranger.ek(), ak=ak_public(), intermediates=(stranger.issuer,))
    assert code == "enrolment.ek_chain"
    # Bringing one's own root along does not help.
    chain = (stranger.issuer, stranger.root)
    assert refused(ca, ek=stranger.ek(), ak=ak_public(), intermediates=chain) == code


def test_ek_without_its_intermediate_is_refused(
    ca: EnrolmentCa, manufacturer: Manufacturer
) -> None:
    assert refused(ca, ek=manufacturer.ek(), ak=ak_public(), intermediates=()) == (
        "enrolment.ek_chain"
    )


@pytest.mark.parametrize("bad", [{"ca": False}, {"cert_sign": False}, {"ends": -timedelta(1)}])
def test_intermediate_that_may_not_issue_is_refused(
    ca: EnrolmentCa, manufacturer: Manufacturer, bad: dict[str, object]
) -> None:
    issuer = manufacturer.intermediate(**bad)  # type: ignore[arg-type]
    assert refused(ca, ek=manufacturer.ek(), ak=ak_public(), intermediates=(issuer,)) == (
        "enrolment.ek_chain"
    )


@pytest.mark.parametrize(
    ("changed", "accepted"),
    [
        ({"root_length": 1}, True),
        ({"root_length": 0}, False),
        ({"root_ends": timedelta(days=1)}, True),
        ({"root_ends": -timedelta(days=1)}, False),
    ],
)
def test_pinned_root_is_held_to_its_own_limits(changed: dict[str, Any], *, accepted: bool) -> None:
    made = Manufacturer(**changed)
    ca = EnrolmentCa.in_memory(manufacturers=[made.root], at=AT)
    if accepted:
        ca.challenge(
            ek_certificate=made.ek(), intermediates=[made.issuer], ak_public=ak_public(), at=AT
        )
    else:
        code = refused(ca, ek=made.ek(), ak=ak_public(), intermediates=(made.issuer,))
        assert code == "enrolment.ek_chain"


@pytest.mark.parametrize("bad", [{"eku": TCG_KP_AIK_CERTIFICATE}, {"ca": True}])
def test_certificate_of_another_purpose_is_refused(
    ca: EnrolmentCa, manufacturer: Manufacturer, bad: dict[str, object]
) -> None:
    ek = manufacturer.ek(**bad)  # type: ignore[arg-type]
    assert refused(ca, ek=ek, ak=ak_public(), intermediates=(manufacturer.issuer,)) == (
        "enrolment.ek_certificate"
    )


def test_expired_ek_certificate_is_refused(ca: EnrolmentCa, manufacturer: Manufacturer) -> None:
    ek = manufacturer.ek(ends=timedelta(days=1))
    issuers = (manufacturer.issuer,)
    ca.challenge(ek_certificate=ek, intermediates=issuers, ak_public=ak_public(), at=AT)
    later = AT + timedelta(days=2)
    assert refused(ca, ek=ek, ak=ak_public(), intermediates=issuers, at=later) == (
        "enrolment.ek_chain"
    )


def test_bytes_that_are_no_certificate_are_refused(ca: EnrolmentCa) -> None:
    assert refused(ca, ek=b"\x30\x82\x00\x01\x00", ak=ak_public(), intermediates=()) == (
        "enrolment.ek_certificate"
    )


@pytest.mark.parametrize(
    "flag",
    [
        ObjectAttribute.RESTRICTED,
        ObjectAttribute.SIGN,
        ObjectAttribute.FIXED_TPM,
        ObjectAttribute.FIXED_PARENT,
        ObjectAttribute.SENSITIVE_DATA_ORIGIN,
        ObjectAttribute.DECRYPT,
        ObjectAttribute.ENCRYPTED_DUPLICATION,
    ],
)
def test_ak_with_wrong_attributes_is_refused(
    ca: EnrolmentCa, manufacturer: Manufacturer, flag: ObjectAttribute
) -> None:
    ak = ak_public(AK_ATTRIBUTES ^ flag)
    code = refused(ca, ek=manufacturer.ek(), ak=ak, intermediates=(manufacturer.issuer,))
    assert code == "enrolment.ak_attributes"


@pytest.mark.parametrize(
    ("offset", "value", "what"),
    [
        (16, 0x0004, "curve P-384"),
        (14, 0x000C, "SHA-384"),
        (12, 0x001A, "ECDAA"),
        (2, 0x000C, "name"),
    ],
)
def test_ak_of_another_type_is_refused(
    ca: EnrolmentCa, manufacturer: Manufacturer, offset: int, value: int, what: str
) -> None:
    ak = bytearray(ak_public())
    ak[offset : offset + 2] = value.to_bytes(2, "big")
    code = refused(ca, ek=manufacturer.ek(), ak=bytes(ak), intermediates=(manufacturer.issuer,))
    assert code == "enrolment.ak_type", what


def test_ak_off_the_curve_is_refused(ca: EnrolmentCa, manufacturer: Manufacturer) -> None:
    ak = bytearray(ak_public())
    ak[-1] ^= 1
    code = refused(ca, ek=manufacturer.ek(), ak=bytes(ak), intermediates=(manufacturer.issuer,))
    assert code == "enrolment.ak_type"


def test_answers_that_show_nothing_are_refused(ca: EnrolmentCa, manufacturer: Manufacturer) -> None:
    def challenge() -> str:
        return ca.challenge(
            ek_certificate=manufacturer.ek(),
            intermediates=[manufacturer.issuer],
            ak_public=ak_public(),
            at=AT,
        ).id

    identifier = challenge()
    for name, answer in ((identifier, bytes(32)), (identifier, b""), ("unknown", bytes(32))):
        with pytest.raises(AuthenticationError) as caught:
            ca.certify(name, answer, at=AT)
        assert caught.value.code == "enrolment.activation"


@pytest.mark.parametrize(
    ("after", "answer", "certified"),
    [
        (ANSWER_WITHIN - timedelta(seconds=1), bytes(32), True),
        (ANSWER_WITHIN, bytes(32), False),
        (timedelta(0), bytes(31) + b"\1", False),
    ],
)
def test_only_the_secret_itself_in_time_is_an_answer(
    manufacturer: Manufacturer, after: timedelta, answer: bytes, *, certified: bool
) -> None:
    stored = EnrolmentCa.in_memory(manufacturers=[manufacturer.root], at=AT)
    ca = EnrolmentCa(
        key=stored._key,
        certificate=stored.certificate,
        manufacturers=[manufacturer.root],
        random_bytes=bytes,  # the secret is all zeros
    )
    challenge = ca.challenge(
        ek_certificate=manufacturer.ek(),
        intermediates=[manufacturer.issuer],
        ak_public=ak_public(),
        at=AT,
    )
    if certified:
        certificate = ca.certify(challenge.id, answer, at=AT + after)
        assert certificate.not_valid_after_utc == AT + after + AK_LIFETIME
    else:
        with pytest.raises(AuthenticationError) as caught:
            ca.certify(challenge.id, answer, at=AT + after)
        assert caught.value.code == "enrolment.activation"


def test_pending_challenges_are_bounded_and_expire(
    ca: EnrolmentCa, manufacturer: Manufacturer
) -> None:
    ek, issuers = manufacturer.ek(), (manufacturer.issuer,)
    for _ in range(MAX_PENDING):
        ca.challenge(ek_certificate=ek, intermediates=issuers, ak_public=ak_public(), at=AT)
    assert refused(ca, ek=ek, ak=ak_public(), intermediates=issuers) == "enrolment.busy"
    later = AT + ANSWER_WITHIN
    ca.challenge(ek_certificate=ek, intermediates=issuers, ak_public=ak_public(), at=later)


def test_stored_ca_comes_back_the_same_and_is_private(tmp_path: Path) -> None:
    first = EnrolmentCa.open(tmp_path / "ca", manufacturers=[], at=AT)
    again = EnrolmentCa.open(tmp_path / "ca", manufacturers=[], at=AT + timedelta(days=30))
    assert first.certificate == again.certificate
    key = tmp_path / "ca" / "enrolment-ca.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700


def test_ca_that_is_about_to_end_is_replaced(tmp_path: Path) -> None:
    first = EnrolmentCa.open(tmp_path, manufacturers=[], at=AT)
    end = first.certificate.not_valid_after_utc
    replaced = EnrolmentCa.open(tmp_path, manufacturers=[], at=end - AK_LIFETIME)
    assert replaced.certificate != first.certificate


def test_state_that_is_no_ca_is_refused(tmp_path: Path) -> None:
    (tmp_path / "enrolment-ca.key").write_text("nothing")
    with pytest.raises(ConfigurationError):
        EnrolmentCa.open(tmp_path, manufacturers=[], at=AT)
