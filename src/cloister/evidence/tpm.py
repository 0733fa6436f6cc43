"""TPM 2.0 structures: quotes, signatures and public areas, to records and back.

Source: TCG "Trusted Platform Module Library, Part 2: Structures", family 2.0, revision 01.59.
All integers are big-endian; ``TPM2B_*`` is a two-byte length and that many bytes. Nothing here
is authenticated: a parsed quote is what somebody sent, until a signature over `Quote.raw` is
checked against a key that is known to live in a TPM.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from cloister.errors import MalformedError
from cloister.evidence.reader import ByteReader

TPM_GENERATED: Final = 0xFF544347
"""``magic`` of everything a TPM made itself; a restricted key signs nothing that fakes it."""

TPM_ST_ATTEST_QUOTE: Final = 0x8018

TPM_ST_ATTEST: Final[Mapping[int, str]] = {
    0x8014: "nv",
    0x8015: "command_audit",
    0x8016: "session_audit",
    0x8017: "certify",
    TPM_ST_ATTEST_QUOTE: "quote",
    0x8019: "time",
    0x801A: "creation",
    0x801C: "nv_digest",
}
"""What an attested structure is about (Part 2 section 10.12.10)."""

MAX_STRUCTURE_BYTES: Final = 8192
"""Longest structure accepted; an RSA-4096 public area with its name stays below 1200 bytes."""

MAX_SELECTIONS: Final = 16
"""Banks in one ``TPML_PCR_SELECTION`` (HASH_COUNT of the reference implementation)."""

MAX_SELECT_BYTES: Final = 4
"""Bitmap bytes of one bank: 32 registers; PC Client TPMs have 24."""


class Alg(enum.IntEnum):
    """``TPM_ALG_ID`` values used here (Part 2 section 6.3)."""

    RSA = 0x0001
    SHA1 = 0x0004
    AES = 0x0006
    KEYEDHASH = 0x0008
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    NULL = 0x0010
    SM3_256 = 0x0012
    RSASSA = 0x0014
    RSAES = 0x0015
    RSAPSS = 0x0016
    OAEP = 0x0017
    ECDSA = 0x0018
    ECDH = 0x0019
    ECDAA = 0x001A
    ECC = 0x0023
    CFB = 0x0043


class Curve(enum.IntEnum):
    """``TPM_ECC_CURVE`` values used here (Part 2 section 6.4)."""

    NIST_P256 = 0x0003
    NIST_P384 = 0x0004
    NIST_P521 = 0x0005


class ObjectAttribute(enum.IntFlag):
    """``TPMA_OBJECT`` (Part 2 section 8.3)."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    FIRMWARE_LIMITED = 1 << 8
    SVN_LIMITED = 1 << 9
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18
    X509_SIGN = 1 << 19


_ATTRIBUTES: Final = sum(ObjectAttribute)
_SCHEMES: Final = frozenset(
    {Alg.NULL, Alg.RSASSA, Alg.RSAES, Alg.RSAPSS, Alg.OAEP, Alg.ECDSA, Alg.ECDH, Alg.ECDAA}
)

HASH_NAMES: Final[Mapping[int, str]] = {
    Alg.SHA1: "sha1",
    Alg.SHA256: "sha256",
    Alg.SHA384: "sha384",
    Alg.SHA512: "sha512",
}
"""Hash algorithms this module can compute, by the name `hashlib` gives them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PcrSelection:
    """``TPMS_PCR_SELECTION``: which registers of one bank; `pcrs` ascends."""

    hash_algorithm: int
    pcrs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockInfo:
    """``TPMS_CLOCK_INFO``: milliseconds of power, resets and restarts."""

    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    """False when `clock` may have gone backwards after a power loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """``TPMS_ATTEST`` of type ``TPM_ST_ATTEST_QUOTE``."""

    raw: bytes
    """The bytes that arrived; the signature covers exactly these."""
    qualified_signer: bytes
    extra_data: bytes
    """Qualifying data of the caller: here the digest of the attestation statement."""
    clock_info: ClockInfo
    firmware_version: int
    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes
    """Hash of the selected registers; the hash is that of the signing scheme, not the bank's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EcdsaSignature:
    """``TPMT_SIGNATURE`` of an ECC key; `r` and `s` as numbers."""

    hash_algorithm: int
    r: int
    s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RsaSignature:
    """``TPMT_SIGNATURE`` of an RSA key; `scheme` is ``RSASSA`` (PKCS #1 v1.5) or ``RSAPSS``."""

    scheme: int
    hash_algorithm: int
    signature: bytes


Signature: TypeAlias = EcdsaSignature | RsaSignature


@dataclass(frozen=True, slots=True, kw_only=True)
class RsaPublic:
    """Parameters and modulus of an RSA key; ``exponent`` 0 stands for 65537 on the wire."""

    bits: int
    exponent: int
    modulus: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EccPublic:
    """Curve and point of an ECC key, coordinates big-endian as the TPM wrote them."""

    curve: int
    x: bytes
    y: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicArea:
    """``TPMT_PUBLIC`` of an asymmetric key."""

    raw: bytes
    name_algorithm: int
    attributes: ObjectAttribute
    auth_policy: bytes
    symmetric: tuple[int, int, int] | None
    """Algorithm, key bits and mode of a storage key; ``None`` for ``TPM_ALG_NULL``."""
    scheme: int
    scheme_hash: int | None
    key: RsaPublic | EccPublic

    @property
    def name(self) -> bytes:
        """The object's Name (Part 1 section 16): algorithm and hash of the public area.

        Raises:
            MalformedError: the name algorithm is one this module cannot compute.
        """
        return self.name_algorithm.to_bytes(2, "big") + _hash(self.name_algorithm, self.raw)


def attest_kind(data: bytes) -> tuple[int, int]:
    """``magic`` and ``type`` of a ``TPMS_ATTEST``, whose rest is not looked at.

    Raises MalformedError (code ``quote_malformed``), and nothing else.
    """
    reader = _reader(data, "the TPM quote", "quote_malformed")
    return reader.integer(4), reader.integer(2)


def parse_quote(data: bytes) -> Quote:
    """Decode a ``TPMS_ATTEST`` that must be a quote (Part 2 section 10.12.8).

    Raises MalformedError, and nothing else: code ``quote_type`` where the structure was not
    made by a TPM (wrong magic) or is not a quote, ``quote_malformed`` otherwise.
    """
    reader = _reader(data, "the TPM quote", "quote_malformed")
    if reader.integer(4) != TPM_GENERATED:
        raise MalformedError(
            "the quoted structure does not carry the mark of a TPM", code="quote_type"
        )
    if reader.integer(2) != TPM_ST_ATTEST_QUOTE:
        raise MalformedError("the attested structure is not a quote", code="quote_type")
    quote = Quote(
        raw=data,
        qualified_signer=reader.sized(limit=66),
        extra_data=reader.sized(limit=66),
        clock_info=_clock_info(reader),
        firmware_version=reader.integer(8),
        selections=_selections(reader),
        pcr_digest=reader.sized(limit=64),
    )
    reader.finish()
    return quote


def encode_quote(
    *,
    qualified_signer: bytes,
    extra_data: bytes,
    clock_info: ClockInfo,
    firmware_version: int,
    selections: Iterable[PcrSelection],
    pcr_digest: bytes,
) -> bytes:
    """Encode a quote as a TPM would; for simulated attesters and tests."""
    return b"".join(
        (
            TPM_GENERATED.to_bytes(4, "big"),
            TPM_ST_ATTEST_QUOTE.to_bytes(2, "big"),
            sized(qualified_signer),
            sized(extra_data),
            clock_info.clock.to_bytes(8, "big"),
            clock_info.reset_count.to_bytes(4, "big"),
            clock_info.restart_count.to_bytes(4, "big"),
            bytes([clock_info.safe]),
            firmware_version.to_bytes(8, "big"),
            encode_selections(selections),
            sized(pcr_digest),
        )
    )


def parse_signature(data: bytes) -> Signature:
    """Decode a ``TPMT_SIGNATURE`` (Part 2 section 11.3.4): ECDSA, RSASSA or RSAPSS.

    Raises MalformedError (code ``quote_malformed``), and nothing else.
    """
    reader = _reader(data, "the TPM signature", "quote_malformed")
    scheme = reader.integer(2)
    signature: Signature
    match scheme:
        case Alg.ECDSA:
            signature = EcdsaSignature(
                hash_algorithm=reader.integer(2),
                r=int.from_bytes(reader.sized(limit=66), "big"),
                s=int.from_bytes(reader.sized(limit=66), "big"),
            )
        case Alg.RSASSA | Alg.RSAPSS:
            signature = RsaSignature(
                scheme=scheme,
                hash_algorithm=reader.integer(2),
                signature=reader.sized(limit=512),
            )
        case _:
            raise reader.fail(f"uses scheme 0x{scheme:04x}, which is none that signs quotes")
    reader.finish()
    return signature


def encode_ecdsa_signature(signature: EcdsaSignature, *, size: int = 32) -> bytes:
    """Encode an ECDSA ``TPMT_SIGNATURE`` with coordinates of `size` bytes."""
    return b"".join(
        (
            Alg.ECDSA.to_bytes(2, "big"),
            signature.hash_algorithm.to_bytes(2, "big"),
            sized(signature.r.to_bytes(size, "big")),
            sized(signature.s.to_bytes(size, "big")),
        )
    )


def parse_public(data: bytes) -> PublicArea:
    """Decode a ``TPMT_PUBLIC`` (Part 2 section 12.2.4) of an RSA or ECC key.

    Reserved attributes must be zero, and the scheme one of the known.

    Raises MalformedError (code ``tpm_public_malformed``), and nothing else.
    """
    reader = _reader(data, "the TPM public area", "tpm_public_malformed")
    kind = reader.integer(2)
    name_algorithm = reader.integer(2)
    bits = reader.integer(4)
    if bits & ~_ATTRIBUTES:
        raise reader.fail(f"has reserved attributes (0x{bits:08x})")
    attributes = ObjectAttribute(bits)
    auth_policy = reader.sized(limit=64)
    algorithm = reader.integer(2)
    symmetric = None if algorithm == Alg.NULL else (algorithm, reader.integer(2), reader.integer(2))
    scheme = reader.integer(2)
    if scheme not in _SCHEMES:
        raise reader.fail(f"names scheme 0x{scheme:04x}, which is not known")
    scheme_hash = None if scheme in {Alg.NULL, Alg.RSAES} else reader.integer(2)
    if scheme == Alg.ECDAA:
        reader.integer(2)
    key: RsaPublic | EccPublic
    match kind:
        case Alg.RSA:
            key = RsaPublic(
                bits=reader.integer(2), exponent=reader.integer(4), modulus=reader.sized(limit=512)
            )
        case Alg.ECC:
            curve = reader.integer(2)
            if reader.integer(2) != Alg.NULL:
                reader.integer(2)  # the hash of a key derivation scheme
            key = EccPublic(curve=curve, x=reader.sized(limit=66), y=reader.sized(limit=66))
        case _:
            raise reader.fail(f"is of type 0x{kind:04x}, neither RSA nor ECC")
    reader.finish()
    if isinstance(key, RsaPublic) and 8 * len(key.modulus) != key.bits:
        raise reader.fail(f"says {key.bits} bits of a modulus of {len(key.modulus)} bytes")
    return PublicArea(
        raw=data,
        name_algorithm=name_algorithm,
        attributes=attributes,
        auth_policy=auth_policy,
        symmetric=symmetric,
        scheme=scheme,
        scheme_hash=scheme_hash,
        key=key,
    )


def parse_tpm2b_public(data: bytes) -> PublicArea:
    """Decode a ``TPM2B_PUBLIC``: a public area after its length.

    Raises MalformedError (code ``tpm_public_malformed``), and nothing else.
    """
    reader = _reader(data, "the TPM public area", "tpm_public_malformed")
    area = reader.sized(limit=MAX_STRUCTURE_BYTES)
    reader.finish()
    return parse_public(area)


def pcr_digest(
    selections: Iterable[PcrSelection],
    values: Mapping[tuple[int, int], bytes],
    *,
    hash_algorithm: int = Alg.SHA256,
) -> bytes:
    """Compute what a quote's ``pcrDigest`` must be (Part 1 section 17.6, Part 3 section 18.4).

    `values` maps (bank, register) to the register's value. The hash is that of the signing
    scheme, whatever the banks are.

    Raises:
        KeyError: `values` lacks a selected register.
        MalformedError: the hash is one this module cannot compute.
    """
    return _hash(
        hash_algorithm,
        b"".join(
            values[selection.hash_algorithm, pcr]
            for selection in selections
            for pcr in selection.pcrs
        ),
    )


def encode_selections(selections: Iterable[PcrSelection], *, select_bytes: int = 3) -> bytes:
    """Encode a ``TPML_PCR_SELECTION`` with `select_bytes` bytes of bitmap per bank."""
    encoded = [
        selection.hash_algorithm.to_bytes(2, "big")
        + bytes([select_bytes])
        + sum(1 << pcr for pcr in selection.pcrs).to_bytes(select_bytes, "little")
        for selection in selections
    ]
    return len(encoded).to_bytes(4, "big") + b"".join(encoded)


def sized(data: bytes) -> bytes:
    """Encode `data` as a ``TPM2B``: two bytes of length, then the bytes."""
    return len(data).to_bytes(2, "big") + data


def _reader(data: bytes, what: str, code: str) -> ByteReader:
    if len(data) > MAX_STRUCTURE_BYTES:
        raise MalformedError(
            f"{what} has {len(data)} bytes; at most {MAX_STRUCTURE_BYTES} are accepted", code=code
        )
    return ByteReader(data, what=what, code=code, byteorder="big")


def _clock_info(reader: ByteReader) -> ClockInfo:
    clock, resets, restarts = reader.integer(8), reader.integer(4), reader.integer(4)
    safe = reader.integer(1)
    if safe > 1:
        raise reader.fail("says neither yes nor no about its clock")
    return ClockInfo(clock=clock, reset_count=resets, restart_count=restarts, safe=safe == 1)


def _selections(reader: ByteReader) -> tuple[PcrSelection, ...]:
    count = reader.integer(4)
    if count > MAX_SELECTIONS:
        raise reader.fail(f"selects {count} banks; at most {MAX_SELECTIONS} are accepted")
    return tuple(_selection(reader) for _ in range(count))


def _selection(reader: ByteReader) -> PcrSelection:
    hash_algorithm = reader.integer(2)
    bitmap = int.from_bytes(reader.sized(prefix=1, limit=MAX_SELECT_BYTES), "little")
    return PcrSelection(
        hash_algorithm=hash_algorithm,
        pcrs=tuple(pcr for pcr in range(8 * MAX_SELECT_BYTES) if bitmap >> pcr & 1),
    )


def _hash(algorithm: int, data: bytes) -> bytes:
    name = HASH_NAMES.get(algorithm)
    if name is None:
        raise MalformedError(f"hash algorithm 0x{algorithm:04x} is none this verifier computes")
    return hashlib.new(name, data).digest()
