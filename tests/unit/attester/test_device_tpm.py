"""Quotes of the machine's own TPM: which key, which registers, which certificate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.attester import device_tpm
from cloister.attester.device_tpm import (
    AttestationKey,
    DeviceTpmAttester,
    der_prefix,
    find_attestation_key,
    open_tpm,
    quote_registers,
    read_boot_log,
)
from cloister.attester.tpm import signing_template
from cloister.attester.tpm_errors import TpmError
from cloister.errors import FetchError, UnsupportedError
from cloister.evidence.items import ITEM_TPM_PCRS
from cloister.evidence.pcrs import parse_pcrs_json
from cloister.evidence.report import ITEM_EVENT_LOG, ITEM_QUOTE, ITEM_SIGNATURE
from cloister.evidence.tpm import Alg, parse_quote, sized
from support.fake_tpm import FakeTpm, rsa_public

DIGEST = bytes(range(32))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def certificate(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "attestation key")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key)
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    return made.public_bytes(Encoding.DER)


def test_a_quote_binds_the_digest_and_comes_with_its_registers() -> None:
    tpm = FakeTpm()
    key = AttestationKey(handle=0x81000003, public=tpm.public, chain=(b"certificate",))
    items = DeviceTpmAttester(tpm, key, event_log=b"log").quote(DIGEST)
    quote = parse_quote(items[ITEM_QUOTE].data)
    assert quote.extra_data == DIGEST
    assert [entry.data for entry in items[ITEM_QUOTE].endorsements] == [b"certificate"]
    assert parse_pcrs_json(items[ITEM_TPM_PCRS].data) == {
        Alg.SHA256: {pcr: tpm.registers[pcr] for pcr in range(16)}
    }
    assert items[ITEM_EVENT_LOG].data == b"log"
    assert items[ITEM_SIGNATURE].data[:4] == bytes.fromhex("0014000b")
    assert tpm.handles == [0x81000003]


def test_a_register_that_changes_in_between_is_read_again() -> None:
    tpm = FakeTpm()
    tpm.unsettled = 2
    quoted = quote_registers(tpm, 1, DIGEST, range(16))
    assert quoted.values[10] == tpm.registers[10]
    assert len(tpm.handles) == 3


def test_registers_that_never_settle_are_given_up() -> None:
    tpm = FakeTpm()
    tpm.unsettled = 1000
    with pytest.raises(FetchError) as caught:
        quote_registers(tpm, 1, DIGEST, range(16))
    assert caught.value.code == "device.raced"
    assert len(tpm.handles) == device_tpm.MAX_QUOTE_ATTEMPTS


def test_what_is_no_quote_is_refused() -> None:
    class Broken(FakeTpm):
        def quote(self, key: int, qualifying_data: bytes, pcrs: object) -> tuple[bytes, bytes]:
            return b"no quote", b"no signature"

    with pytest.raises(FetchError) as caught:
        quote_registers(Broken(), 1, DIGEST, range(16))
    assert caught.value.code == "device.answer"


@pytest.mark.parametrize("padding", [b"", bytes(100), b"\xff" * 100])
@pytest.mark.parametrize("prefixed", [False, True], ids=["bare template", "sized template"])
def test_the_key_that_google_provides_is_used(padding: bytes, *, prefixed: bool) -> None:
    tpm = FakeTpm()
    der = certificate(tpm.key.public_key())
    template = rsa_public(b"")
    tpm.nv[0x01C10000] = der + padding
    tpm.nv[0x01C10001] = sized(template) if prefixed else template
    key = find_attestation_key(tpm)
    assert key.chain == (der,)
    assert tpm.created == [template]


def test_a_template_as_long_as_a_type_is_no_type() -> None:
    tpm = FakeTpm()
    template = rsa_public(bytes(11))
    assert len(template) == Alg.ECC
    tpm.nv[0x01C10000] = certificate(tpm.key.public_key())
    tpm.nv[0x01C10001] = sized(template)
    find_attestation_key(tpm)
    assert tpm.created == [template]


def test_a_certificate_for_another_key_is_refused() -> None:
    tpm = FakeTpm()
    tpm.nv[0x01C10001] = rsa_public(b"")
    for key in (FakeTpm().key.public_key(), ec.generate_private_key(ec.SECP256R1()).public_key()):
        tpm.nv[0x01C10000] = certificate(key)
        with pytest.raises(FetchError, match="another key"):
            find_attestation_key(tpm)


def test_an_unknown_template_is_unsupported() -> None:
    tpm = FakeTpm()
    tpm.nv[0x01C10000] = certificate(tpm.key.public_key())
    tpm.nv[0x01C10001] = bytes.fromhex("0008") + bytes(20)
    with pytest.raises(UnsupportedError):
        find_attestation_key(tpm)


def test_without_a_provided_key_one_is_made_that_nobody_vouches_for() -> None:
    tpm = FakeTpm()
    key = find_attestation_key(tpm)
    assert key.chain == ()
    assert tpm.created == [signing_template()]


def test_a_persistent_key_is_used_by_its_handle() -> None:
    tpm = FakeTpm()
    assert find_attestation_key(tpm, handle=0x81010001).handle == 0x81010001
    tpm.nv[0x01C101D0] = certificate(tpm.key.public_key()) + bytes(50)
    key = find_attestation_key(tpm, handle=0x81010001, certificate_index=0x01C101D0)
    assert len(key.chain) == 1
    assert tpm.created == []


def test_other_refusals_of_the_tpm_are_not_taken_for_absence() -> None:
    class Refusing(FakeTpm):
        def nv_read(self, index: int) -> bytes:
            raise TpmError.from_response("TPM2_NV_READ", 0x12F)

    with pytest.raises(TpmError):
        find_attestation_key(Refusing())


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", b""),
        (b"\x30", b""),
        (bytes(10), b""),
        (b"\xff" * 10, b""),
        (b"\x30\x02ab\0\0", b"\x30\x02ab"),
        (b"\x30\x81\x03abcd", b"\x30\x81\x03abc"),
        (b"\x30\x05abc", b""),
        (b"\x30\x84\0\0\0\x01a", b""),
        (b"\x30\0\0", b""),
    ],
)
def test_padding_of_nv_memory_is_cut_off(data: bytes, found: bytes) -> None:
    assert der_prefix(data) == found


def test_no_tpm_is_not_on_this_machine(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not on this machine"):
        open_tpm(tmp_path / "tpmrm0")


def test_the_boot_log_is_optional(tmp_path: Path) -> None:
    assert read_boot_log(tmp_path / "absent") == b""
    (tmp_path / "log").write_bytes(b"log")
    assert read_boot_log(tmp_path / "log") == b"log"
