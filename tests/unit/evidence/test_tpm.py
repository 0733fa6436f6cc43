"""TPM structures, against a quote that a TPM made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.errors import MalformedError
from cloister.evidence.eventlog import parse_event_log, replay
from cloister.evidence.tpm import (
    Alg,
    ClockInfo,
    EccPublic,
    EcdsaSignature,
    PcrSelection,
    RsaPublic,
    RsaSignature,
    encode_ecdsa_signature,
    encode_quote,
    encode_selections,
    parse_public,
    parse_quote,
    parse_signature,
    parse_tpm2b_public,
    pcr_digest,
    sized,
)

VECTOR: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "tpm" / "swtpm-quote.json").read_text()
)
EXPECTED = VECTOR["expected"]
QUOTE = bytes.fromhex(VECTOR["quote"])
SIGNATURE = bytes.fromhex(VECTOR["signature"])
PUBLIC = bytes.fromhex(VECTOR["public_area"])


def test_quote() -> None:
    quote = parse_quote(QUOTE)
    assert quote.raw == QUOTE
    assert quote.extra_data.hex() == EXPECTED["extra_data"]
    assert quote.pcr_digest.hex() == EXPECTED["pcr_digest"]
    assert quote.selections == (
        PcrSelection(hash_algorithm=Alg.SHA256, pcrs=tuple(EXPECTED["selection"][0]["pcrs"])),
    )
    assert quote.clock_info.reset_count == EXPECTED["reset_count"]
    assert quote.clock_info.restart_count == EXPECTED["restart_count"]
    assert quote.clock_info.safe is EXPECTED["safe"]


def test_a_quote_is_written_as_a_tpm_writes_it() -> None:
    quote = parse_quote(QUOTE)
    again = encode_quote(
        qualified_signer=quote.qualified_signer,
        extra_data=quote.extra_data,
        clock_info=quote.clock_info,
        firmware_version=quote.firmware_version,
        selections=quote.selections,
        pcr_digest=quote.pcr_digest,
    )
    assert again == QUOTE


def test_public_area_and_name() -> None:
    area = parse_public(PUBLIC)
    assert parse_tpm2b_public(sized(PUBLIC)) == area
    assert area.name.hex() == EXPECTED["name"]
    assert int(area.attributes) == EXPECTED["attributes"]
    assert isinstance(area.key, EccPublic)
    assert area.key.curve == EXPECTED["curve"]
    assert (area.scheme, area.scheme_hash, area.symmetric) == (Alg.ECDSA, Alg.SHA256, None)


@pytest.mark.parametrize("bit", [0, 3, 12, 15, 20, 31])
def test_reserved_attributes(bit: int) -> None:
    reserved = int(parse_public(PUBLIC).attributes) | 1 << bit
    with pytest.raises(MalformedError, match="reserved attributes"):
        parse_public(PUBLIC[:4] + reserved.to_bytes(4, "big") + PUBLIC[8:])


def test_a_scheme_that_is_not_known() -> None:
    at = PUBLIC.index(bytes.fromhex("0018000b"))
    assert parse_public(PUBLIC).scheme == Alg.ECDSA
    with pytest.raises(MalformedError, match="scheme 0x8018"):
        parse_public(PUBLIC[:at] + b"\x80" + PUBLIC[at + 1 :])


@pytest.mark.parametrize("bits", [2049, 2040, 1024, 0])
def test_a_modulus_of_another_size_than_its_area_says(bits: int) -> None:
    head, size = bytes.fromhex("0001000b00050072000000100014000b"), b"\x08\x00"
    rest = bytes(4) + sized(b"\xc3" * 256)
    parse_public(head + size + rest)
    with pytest.raises(MalformedError, match="bits of a modulus"):
        parse_public(head + bits.to_bytes(2, "big") + rest)


def test_signature_over_the_quote() -> None:
    area, signature = parse_public(PUBLIC), parse_signature(SIGNATURE)
    assert isinstance(area.key, EccPublic)
    assert isinstance(signature, EcdsaSignature)
    assert signature.hash_algorithm == Alg.SHA256
    assert encode_ecdsa_signature(signature) == SIGNATURE
    key = ec.EllipticCurvePublicNumbers(
        int.from_bytes(area.key.x, "big"), int.from_bytes(area.key.y, "big"), ec.SECP256R1()
    ).public_key()
    key.verify(encode_dss_signature(signature.r, signature.s), QUOTE, ec.ECDSA(hashes.SHA256()))


def test_the_log_replays_to_the_registers_that_were_quoted() -> None:
    registers = replay(parse_event_log(bytes.fromhex(VECTOR["event_log"])))
    for pcr, value in EXPECTED["registers"].items():
        assert registers[int(pcr)].hex() == value
    quote = parse_quote(QUOTE)
    values = {(int(Alg.SHA256), pcr): registers[pcr] for pcr in range(16)}
    assert pcr_digest(quote.selections, values) == quote.pcr_digest


def test_the_digest_of_registers_is_that_of_the_signing_hash() -> None:
    selection = (PcrSelection(hash_algorithm=Alg.SHA1, pcrs=(0,)),)
    values = {(int(Alg.SHA1), 0): bytes(20)}
    assert len(pcr_digest(selection, values)) == 32
    assert len(pcr_digest(selection, values, hash_algorithm=Alg.SHA384)) == 48
    with pytest.raises(MalformedError):
        pcr_digest(selection, values, hash_algorithm=Alg.SM3_256)
    with pytest.raises(KeyError):
        pcr_digest(selection, {})


def rsa_public() -> bytes:
    """A storage key: AES-128 in CFB mode, RSA-2048, default exponent, SHA-256 name."""
    return b"".join(
        (
            bytes.fromhex("0001 000b 00030072"),
            sized(bytes(32)),
            bytes.fromhex("0006 0080 0043 0010 0800 00000000"),
            sized(bytes(256)),
        )
    )


def test_rsa_structures() -> None:
    area = parse_public(rsa_public())
    assert area.key == RsaPublic(bits=2048, exponent=0, modulus=bytes(256))
    assert area.symmetric == (Alg.AES, 128, Alg.CFB)
    assert area.scheme == Alg.NULL
    assert area.scheme_hash is None
    signature = parse_signature(b"\x00\x14\x00\x0b" + sized(b"\x01" * 256))
    assert signature == RsaSignature(
        scheme=Alg.RSASSA, hash_algorithm=Alg.SHA256, signature=b"\x01" * 256
    )


def test_a_name_of_an_unknown_hash_cannot_be_computed() -> None:
    area = parse_public(PUBLIC[:2] + b"\x00\x12" + PUBLIC[4:])
    with pytest.raises(MalformedError):
        _ = area.name


@pytest.mark.parametrize("size", range(len(QUOTE)))
def test_every_shorter_quote_is_malformed(size: int) -> None:
    with pytest.raises(MalformedError) as raised:
        parse_quote(QUOTE[:size])
    assert raised.value.code in {"quote_malformed", "quote_type"}


@pytest.mark.parametrize("data", [PUBLIC, rsa_public()])
def test_every_shorter_public_area_is_malformed(data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises(MalformedError) as raised:
            parse_public(data[:size])
        assert raised.value.code == "tpm_public_malformed"


def quote_with(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "qualified_signer": b"",
        "extra_data": b"",
        "clock_info": ClockInfo(clock=0, reset_count=0, restart_count=0, safe=True),
        "firmware_version": 0,
        "selections": (),
        "pcr_digest": b"",
    }
    return encode_quote(**{**fields, **changes})


MALFORMED = {
    "trailing byte": QUOTE + b"\0",
    "long extra data": quote_with(extra_data=bytes(67)),
    "long digest": quote_with(pcr_digest=bytes(65)),
    "too many banks": quote_with(
        selections=[PcrSelection(hash_algorithm=Alg.SHA256, pcrs=())] * 17
    ),
    "neither safe nor unsafe": QUOTE[:-53] + b"\x02" + QUOTE[-52:],
    "too long": quote_with() + bytes(9000),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_quotes(name: str) -> None:
    parse_quote(quote_with())
    assert MALFORMED[name] != QUOTE
    with pytest.raises(MalformedError) as raised:
        parse_quote(MALFORMED[name])
    assert raised.value.code == "quote_malformed"


def test_a_bitmap_longer_than_any_bank_is_malformed() -> None:
    one = PcrSelection(hash_algorithm=Alg.SHA256, pcrs=(0,))
    good = quote_with(selections=(one,))
    parse_quote(good)
    long = good.replace(encode_selections((one,)), encode_selections((one,), select_bytes=5))
    with pytest.raises(MalformedError):
        parse_quote(long)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"TCG\xff" + QUOTE[4:], "quote_type"),
        (QUOTE[:4] + b"\x80\x14" + QUOTE[6:], "quote_type"),
    ],
)
def test_other_structures_are_no_quotes(data: bytes, code: str) -> None:
    with pytest.raises(MalformedError) as raised:
        parse_quote(data)
    assert raised.value.code == code


@pytest.mark.parametrize(
    "data",
    [
        SIGNATURE + b"\0",
        SIGNATURE[:-1],
        b"\x00\x05" + SIGNATURE[2:],
        b"\x00\x18\x00\x0b" + sized(bytes(67)) + sized(bytes(32)),
    ],
)
def test_malformed_signatures(data: bytes) -> None:
    parse_signature(SIGNATURE)
    with pytest.raises(MalformedError):
        parse_signature(data)


@pytest.mark.parametrize(
    "data", [PUBLIC + b"\0", b"\x00\x08" + PUBLIC[2:], PUBLIC[:8] + sized(bytes(65))]
)
def test_malformed_public_areas(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_public(data)


def test_a_sized_public_area_says_its_size() -> None:
    for data in (sized(PUBLIC) + b"\0", sized(PUBLIC)[:-1], sized(PUBLIC[:-1])):
        with pytest.raises(MalformedError):
            parse_tpm2b_public(data)
