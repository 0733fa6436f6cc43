"""Quotes decode field by field, and nothing that is not exactly a quote does."""

from __future__ import annotations

import struct

import pytest

from cloister.errors import MalformedError
from cloister.evidence.dcap import (
    INTEL_QE_VENDOR,
    MAX_CERTIFICATE_BYTES,
    MAX_CERTIFICATES,
    MAX_QE_AUTH_BYTES,
    MAX_QUOTE_BYTES,
    UNSUPPORTED,
    CertificationDataType,
    parse_pem_certificates,
    parse_quote,
)
from cloister.evidence.sgx import EnclaveReport
from cloister.evidence.tdx import TdReport
from support import dcap
from support.dcap import certification, enclave_report, header, pem, quote, signature_data

VERSIONS = pytest.mark.parametrize("version", [3, 4, 5])


def code(data: bytes) -> str:
    with pytest.raises(MalformedError) as caught:
        parse_quote(data)
    return caught.value.code


@pytest.mark.parametrize(
    ("version", "tee", "body", "kind"),
    [
        (3, "sgx", None, "sgx"),
        (4, "tdx", None, "td10"),
        (4, "sgx", enclave_report(), "sgx"),
        (5, "tdx", None, "td15"),
        (5, "tdx", dcap.td_report(), "td10"),
        (5, "sgx", enclave_report(), "sgx"),
    ],
)
def test_every_field_is_where_the_specification_says(
    version: int, tee: str, body: bytes | None, kind: str
) -> None:
    number = dcap.SGX if tee == "sgx" else dcap.TDX
    data = quote(version, tee=number, body=body)
    parsed = parse_quote(data)
    assert (parsed.version, parsed.tee, parsed.body_type) == (version, tee, kind)
    assert parsed.raw == data
    assert parsed.attestation_key_type == 2
    assert parsed.qe_vendor_id == INTEL_QE_VENDOR
    assert parsed.user_data == b"\x44" * 20
    assert isinstance(parsed.body, EnclaveReport if tee == "sgx" else TdReport)
    assert parsed.signed == data[: 48 + (6 if version == 5 else 0) + len(parsed.body.raw)]
    assert parsed.signed.endswith(parsed.body.raw)
    assert parsed.signature == b"\x77" * 64
    assert parsed.attestation_key == b"\x88" * 64
    assert parsed.qe_report.raw == enclave_report()
    assert parsed.qe_report_signature == b"\x66" * 64
    assert parsed.qe_auth_data == b"\x55" * 32
    assert parsed.certification.type is CertificationDataType.PCK_CHAIN
    assert parsed.certification.certificates == (b"leaf", b"ca", b"root")
    assert parsed.certification.data == pem(b"leaf", b"ca", b"root") + b"\0"
    assert parsed.trailing_bytes == 0


def test_version_3_tells_the_versions_of_two_enclaves() -> None:
    head = header(3, dcap.SGX, reserved=struct.pack("<HH", 9, 14))
    parsed = parse_quote(quote(3, head=head))
    assert (parsed.qe_svn, parsed.pce_svn) == (9, 14)
    assert parse_quote(quote(4)).qe_svn is None


@VERSIONS
def test_zeros_may_follow_and_nothing_else(version: int) -> None:
    parsed = parse_quote(quote(version, tail=bytes(70)))
    assert parsed.trailing_bytes == 70
    assert parsed.raw == quote(version)
    assert code(quote(version, tail=bytes(69) + b"\1")) == "malformed"


@VERSIONS
def test_no_shorter_quote_decodes(version: int) -> None:
    whole = quote(version)
    parse_quote(whole)
    for length in range(len(whole)):
        assert code(whole[:length]) == "malformed"


@VERSIONS
def test_lengths_inside_fit_exactly(version: int) -> None:
    parse_quote(quote(version))
    assert code(quote(version, signatures=signature_data(version, inner_tail=b"\0"))) == "malformed"
    longer = signature_data(version)
    assert code(quote(version, signatures=longer + b"\0")) == "malformed"
    assert code(quote(version, signatures=longer[:-1])) == "malformed"


def test_the_outer_certification_data_ends_with_the_signature_data() -> None:
    parse_quote(quote(4))
    assert code(quote(4, signatures=signature_data(4, outer_tail=b"\0"))) == "malformed"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(quote(4, head=header(2, dcap.TDX)), id="version 2"),
        pytest.param(quote(4, head=header(6, dcap.TDX)), id="version 6"),
        pytest.param(quote(4, head=header(4, dcap.TDX, key_type=3)), id="P-384"),
        pytest.param(quote(4, head=header(4, 0x01)), id="another environment"),
        pytest.param(quote(3, head=header(3, dcap.TDX)), id="TDX in version 3"),
        pytest.param(quote(4, head=header(4, dcap.TDX, vendor=bytes(16))), id="another vendor"),
        pytest.param(quote(5, descriptor=struct.pack("<HI", 4, 648)), id="another body"),
        pytest.param(
            quote(4, signatures=signature_data(4, certificates=certification(8, b""))),
            id="other certification data",
        ),
    ],
)
def test_kinds_that_are_not_known_are_told_apart(data: bytes) -> None:
    assert code(data) == UNSUPPORTED


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(quote(4, head=header(4, dcap.TDX, reserved=b"\0\0\0\1")), id="reserved"),
        pytest.param(quote(5, descriptor=struct.pack("<HI", 2, 648)), id="kind of another body"),
        pytest.param(quote(5, descriptor=struct.pack("<HI", 3, 584)), id="size of another body"),
        pytest.param(
            quote(5, tee=dcap.SGX, body=enclave_report(), descriptor=struct.pack("<HI", 2, 584)),
            id="guest in a quote of an enclave",
        ),
        pytest.param(
            quote(5, body=enclave_report(), descriptor=struct.pack("<HI", 1, 384)),
            id="enclave in a quote of a guest",
        ),
        pytest.param(quote(4, signatures=signature_data(4, outer=5)), id="no QE report"),
        pytest.param(
            quote(4, signatures=signature_data(4, certificates=certification(6, b""))),
            id="nested QE report",
        ),
        pytest.param(
            quote(3, signatures=signature_data(3, certificates=certification(5, b""))),
            id="empty chain",
        ),
        pytest.param(
            quote(4, signatures=signature_data(4, certificates=certification(4, pem(b"a", b"b")))),
            id="two leaves",
        ),
    ],
)
def test_quotes_that_contradict_themselves(data: bytes) -> None:
    assert code(data) == "malformed"


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_other_certification_data_names_no_certificate(number: int) -> None:
    signatures = signature_data(4, certificates=certification(number, b"\x99" * 36))
    found = parse_quote(quote(4, signatures=signatures)).certification
    assert (found.type, found.data, found.certificates) == (number, b"\x99" * 36, ())


def test_a_leaf_alone() -> None:
    signatures = signature_data(4, certificates=certification(4, pem(b"leaf")))
    assert parse_quote(quote(4, signatures=signatures)).certification.certificates == (b"leaf",)


def test_limits() -> None:
    parse_quote(quote(4, signatures=signature_data(4, auth=bytes(MAX_QE_AUTH_BYTES))))
    over = signature_data(4, auth=bytes(MAX_QE_AUTH_BYTES + 1))
    assert code(quote(4, signatures=over)) == "malformed"
    whole = quote(4)
    parse_quote(whole + bytes(MAX_QUOTE_BYTES - len(whole)))
    assert code(whole + bytes(MAX_QUOTE_BYTES - len(whole) + 1)) == "malformed"


class TestPem:
    @pytest.mark.parametrize(
        "text",
        [
            pem(b"one", b"two"),
            pem(b"one", b"two") + b"\0",
            pem(b"one") + b"\n\n" + pem(b"two"),
            pem(b"one", b"two").replace(b"\n", b"\r\n"),
        ],
    )
    def test_blocks(self, text: bytes) -> None:
        assert parse_pem_certificates(text) == (b"one", b"two")

    def test_long_lines(self) -> None:
        der = bytes(range(256)) * 4
        assert parse_pem_certificates(pem(der)) == (der,)

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"\0",
            b"text\n" + pem(b"one"),
            pem(b"one") + b"text\n" + pem(b"two"),
            pem(b"one") + b"text\n",
            pem(b"one") + b"\0" + pem(b"two"),
            b"\n" + pem(b"one"),
            pem(b"one").replace(b"CERTIFICATE", b"PRIVATE KEY"),
            pem(b"one").replace(b"b25l", b"b25"),
            pem(b"one").replace(b"b25l", b"b2*l"),
            pem(b"one").replace(b"b25l", b"b25l "),
            pem(b"one").rstrip(b"-\n"),
            pem(b""),
        ],
    )
    def test_anything_else(self, text: bytes) -> None:
        with pytest.raises(MalformedError) as caught:
            parse_pem_certificates(text)
        assert caught.value.code == "malformed"

    def test_limits(self) -> None:
        assert len(parse_pem_certificates(pem(*[b"one"] * MAX_CERTIFICATES))) == MAX_CERTIFICATES
        with pytest.raises(MalformedError):
            parse_pem_certificates(pem(*[b"one"] * (MAX_CERTIFICATES + 1)))
        parse_pem_certificates(pem(b"a", b"b"), limit=2)
        with pytest.raises(MalformedError):
            parse_pem_certificates(pem(b"a", b"b"), limit=1)
        parse_pem_certificates(pem(bytes(MAX_CERTIFICATE_BYTES)))
        with pytest.raises(MalformedError):
            parse_pem_certificates(pem(bytes(MAX_CERTIFICATE_BYTES + 1)))
