"""Certificates from outside: one error, and no word about serial numbers of zero."""

from __future__ import annotations

import base64
import threading
import warnings
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from cloister.endorsements import certificates
from cloister.endorsements.certificates import (
    MAX_CERTIFICATES,
    parse_certificate,
    parse_certificates,
    parse_crl,
    serial_number,
)
from cloister.errors import MalformedError
from cloister.testing.simulated_snp import SimulatedAmd
from support.certificates import issue

AMD = SimulatedAmd(now=datetime(2026, 3, 1, tzinfo=UTC))
ZERO = AMD.key().certificate
ORDINARY = AMD.ask.public_bytes(Encoding.DER)
PEM = AMD.ask.public_bytes(Encoding.PEM)


def as_pem(der: bytes) -> bytes:
    return parse_certificate(der).public_bytes(Encoding.PEM)


def test_the_library_still_reads_serial_number_zero_and_warns() -> None:
    """If this fails, the library has changed: see the comment in `certificates`.

    A refusal (`ValueError`) means that VCEKs and VLEKs need a reader of our own, or the library's
    upper bound in pyproject.toml has to stay. No warning any more means that `_quietly` can go.
    """
    with pytest.warns(CryptographyDeprecationWarning, match=certificates._SERIAL_WARNING):
        assert x509.load_der_x509_certificate(ZERO) is not None


def test_serial_number_zero_is_read_without_a_word() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        certificate = parse_certificate(ZERO)
        (from_pem,) = parse_certificates(as_pem(ZERO))
        assert serial_number(certificate) == serial_number(from_pem) == 0
    assert caught == []
    assert from_pem == certificate


def test_filters_are_left_as_they_were() -> None:
    before = list(warnings.filters)
    parse_certificate(ZERO)
    assert warnings.filters == before


def test_other_warnings_get_out() -> None:
    def read() -> None:
        warnings.warn("something else", CryptographyDeprecationWarning, stacklevel=1)

    with pytest.warns(CryptographyDeprecationWarning, match="something else"):
        certificates._quietly(read)


@pytest.mark.parametrize(("failures", "told"), [(1, False), (8, False), (9, True)])
def test_a_warning_turned_on_again_by_another_thread(failures: int, *, told: bool) -> None:
    calls: list[None] = []

    def read() -> str:
        calls.append(None)
        if len(calls) <= failures:
            raise CryptographyDeprecationWarning("raised, for warnings are errors")
        return "read"

    if told:
        with pytest.raises(CryptographyDeprecationWarning):
            certificates._quietly(read)
    else:
        assert certificates._quietly(read) == "read"


def test_many_threads_at_once() -> None:
    wrong: list[BaseException] = []
    before = list(warnings.filters)

    def work() -> None:
        try:
            for _ in range(100):
                assert serial_number(parse_certificate(ZERO)) == 0
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert warnings.filters == before


@pytest.mark.parametrize("serial", [1, 0x7F, 0x80, 0xFF, 0x0100, 0x00FF00, 1 << 150])
def test_ordinary_serial_numbers_take_the_short_way(
    serial: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = AMD.ask_name
    data = (
        AMD._builder(name, name, AMD.now, AMD.now)
        .serial_number(serial)
        .public_key(AMD.ask_key.public_key())
        .sign(AMD.ask_key, SHA384())
        .public_bytes(Encoding.DER)
    )
    assert len(data) > 256
    monkeypatch.setattr(certificates, "_quietly", None)
    assert parse_certificate(data).serial_number == serial


@pytest.mark.parametrize("data", [b"", b"\x30", b"no certificate", ORDINARY[:-1], ORDINARY + b"\0"])
def test_what_is_no_certificate(data: bytes) -> None:
    parse_certificate(ORDINARY)
    for parse in (parse_certificate, parse_certificates):
        with pytest.raises(MalformedError):
            parse(data)


def test_der_or_pem() -> None:
    assert parse_certificates(ORDINARY) == parse_certificates(PEM) == (AMD.ask,)
    both = parse_certificates(PEM + as_pem(ZERO))
    assert both == (AMD.ask, parse_certificate(ZERO))


def test_a_pem_text_has_so_many_certificates() -> None:
    assert len(parse_certificates(PEM * MAX_CERTIFICATES)) == MAX_CERTIFICATES
    with pytest.raises(MalformedError, match="more than 16"):
        parse_certificates(PEM * (MAX_CERTIFICATES + 1))


@pytest.mark.parametrize(
    "text",
    [
        b"-----BEGIN CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        PEM.replace(b"CERTIFICATE", b"PUBLIC KEY"),
    ],
)
def test_what_is_no_pem_certificate(text: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_certificates(text)


def test_revocation_lists() -> None:
    der = AMD.crl(revoked=[AMD.ask])
    crl = parse_crl(der)
    assert crl.issuer == AMD.ark_name
    assert parse_crl(crl.public_bytes(Encoding.PEM)) == crl
    for wrong in (b"", der[:-1], der + b"\0", ORDINARY, PEM, b"-----BEGIN X509 CRL-----\n"):
        with pytest.raises(MalformedError):
            parse_crl(wrong)


def test_names_and_extensions_are_decoded_at_once() -> None:
    """A certificate whose extension holds garbage is refused, not carried along."""
    good = issue("Leaf", ca=False)
    data = good.certificate.public_bytes(Encoding.DER)
    parse_certificate(data)
    constraints = x509.ObjectIdentifier("2.5.29.19")
    assert any(extension.oid == constraints for extension in good.certificate.extensions)
    at = data.index(bytes.fromhex("0603551d13"))
    broken = data[:at] + data[at:].replace(b"\x30\x00", b"\x31\x00", 1)
    assert broken != data
    with pytest.raises(MalformedError):
        parse_certificate(broken)


def test_a_date_that_datetime_cannot_hold() -> None:
    """DER may say the year 0, which would come out as an error of another kind at a later look."""
    good = ORDINARY
    parse_certificate(good)
    validity = bytes.fromhex("301e170d")  # two dates in 13 bytes each
    at = good.index(validity)
    first, last = b"\x18\x0f00000101000000Z", good[at + 17 : at + 32]
    dates = b"\x30" + bytes([len(first + last)]) + first + last
    broken = _longer(good[:at] + dates + good[at + 32 :], by=2)
    assert x509.load_der_x509_certificate(broken) is not None
    for parse, data in ((parse_certificate, broken), (parse_certificates, _pem(broken))):
        with pytest.raises(MalformedError):
            parse(data)


SMALL = issue("Leaf", ca=False).certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize("good", [SMALL, ORDINARY], ids=["small", "ordinary"])
def test_a_negative_serial_number(good: bytes) -> None:
    """No revocation list can be asked about one; the library would refuse the question."""
    parse_certificate(good)
    at = good.index(b"\xa0\x03\x02\x01\x02\x02") + 7  # first byte of the number
    broken = good[:at] + bytes([0x81]) + good[at + 1 :]
    for parse, data in ((parse_certificate, broken), (parse_certificates, _pem(broken))):
        with pytest.raises(MalformedError, match="negative"):
            parse(data)


def _longer(der: bytes, *, by: int) -> bytes:
    """`der` with the lengths of the certificate and of its signed part, 2 bytes each, adjusted."""
    outer, inner = (int.from_bytes(der[at : at + 2], "big") + by for at in (2, 6))
    return der[:2] + outer.to_bytes(2, "big") + der[4:6] + inner.to_bytes(2, "big") + der[8:]


def _pem(der: bytes) -> bytes:
    text = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"
