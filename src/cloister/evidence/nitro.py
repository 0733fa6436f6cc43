"""AWS Nitro attestation documents, of enclaves and of NitroTPMs, to records.

Sources: AWS, "Verifying the root of trust: Nitro Enclaves attestation process" (aws-nitro-enclaves-
nsm-api, docs/attestation_process.md), sections 2 and 3; AWS, "EC2 User Guide", "NitroTPM
Attestation Document contents" and "Validate a NitroTPM Attestation Document"; RFC 9052 section 4.2
for the envelope, COSE_Sign1; RFC 8949 for the encoding. Nothing here is authenticated.

A document of a NitroTPM, which AWS signs for ordinary EC2 instances, has the same format and
chain, and names its registers ``nitrotpm_pcrs`` instead of ``pcrs``: those of a TPM, in its SHA-384
bank. It says something else altogether: the memory of such an instance is not isolated as that of
an enclave is.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.cbor import Cbor, parse_cbor
from cloister.evidence.reader import ByteReader
from cloister.strictjson import decode_base64

MAX_DOCUMENT_BYTES: Final = 32 * 1024
"""Longest document; the security module's answer to a request has at most 12 KiB."""

MAX_WRAPPED_BYTES: Final = 64 * 1024

PCR_BYTES: Final = 48
"""SHA-384, the only ``digest`` there is; AWS' description leaves room for 32 and 64."""

MAX_PCRS: Final = 32
"""Registers of an enclave."""

TPM_PCRS: Final = 24
"""Registers of a TPM (TCG "PC Client Platform TPM Profile", section 4.6); AWS sends all of them."""

MAX_CERTIFICATE_BYTES: Final = 1024

MAX_CABUNDLE: Final = 8
"""Certificates between leaf and root, root included; AWS sends 4."""

MAX_FIELD_BYTES: Final = 1024
"""Longest public key, user data and nonce. AWS names 512 in one place for the latter two, and
1024 in another."""

SIGNATURE_BYTES: Final = 96
"""ES384: r and s, 48 bytes each, big-endian (RFC 9053 section 2.1)."""

PROTECTED: Final = bytes.fromhex("a1013822")
"""The one protected header: the map {1 (algorithm): -35 (ES384)}, as every encoder writes it."""

_TAG: Final = b"\xd2"
"""CBOR tag 18, COSE_Sign1; AWS leaves it out."""

_BARE: Final = (_TAG, b"\x84")
"""First bytes of an envelope: the tag, or a list of four."""

_DEPTH: Final = 4


class DocumentKind(enum.StrEnum):
    """Who made a document, by the name of its registers."""

    ENCLAVE = "pcrs"
    NITRO_TPM = "nitrotpm_pcrs"


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroDocument:
    """An attestation document, envelope and payload."""

    raw: bytes
    """The envelope as it arrived, without what it was wrapped in."""
    tagged: bool
    payload: bytes
    """What is signed, together with `PROTECTED`."""
    signature: bytes
    kind: DocumentKind
    module_id: str
    timestamp: datetime
    """UTC, to the millisecond, by the hypervisor's clock."""
    pcrs: Mapping[int, bytes]
    """By index, ascending; registers that AWS leaves out are not in here."""
    certificate: bytes
    """DER of the certificate of the key that signed."""
    cabundle: tuple[bytes, ...]
    """DER, from the root down to the issuer of `certificate`."""
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None


def parse_document(data: bytes) -> NitroDocument:
    """Decode a COSE_Sign1 with an attestation document in it; no wrapper, no trailing bytes.

    The unprotected header must be empty, the protected one `PROTECTED`. Optional members may be
    missing or null, and unknown members are refused.

    Raises MalformedError, and nothing else.
    """
    tagged = data[:1] == _TAG
    envelope = parse_cbor(
        data[1:] if tagged else data,
        limit=MAX_DOCUMENT_BYTES,
        depth=_DEPTH,
        what="the attestation document",
    )
    if not isinstance(envelope, list) or len(envelope) != 4:
        raise _malformed("is no COSE_Sign1")
    protected, unprotected, payload, signature = envelope
    if protected != PROTECTED or unprotected != {}:
        raise _malformed("has headers other than the one that says ES384")
    if not isinstance(payload, bytes) or not isinstance(signature, bytes):
        raise _malformed("is no COSE_Sign1")
    if len(signature) != SIGNATURE_BYTES:
        raise _malformed(f"has a signature of {len(signature)} bytes, not {SIGNATURE_BYTES}")
    members = parse_cbor(
        payload, limit=MAX_DOCUMENT_BYTES, depth=_DEPTH, what="the payload", indefinite=True
    )
    if not isinstance(members, dict):
        raise _malformed("has a payload that is no map")
    kind = _kind(members)
    return NitroDocument(
        raw=data,
        tagged=tagged,
        payload=payload,
        signature=signature,
        kind=kind,
        module_id=_text(members, "module_id"),
        timestamp=_timestamp(members),
        pcrs=_pcrs(members[kind.value], TPM_PCRS if kind is DocumentKind.NITRO_TPM else MAX_PCRS),
        certificate=_certificate(members["certificate"]),
        cabundle=_cabundle(members["cabundle"]),
        public_key=_optional(members, "public_key", least=1),
        user_data=_optional(members, "user_data"),
        nonce=_optional(members, "nonce"),
    )


def signed_bytes(document: NitroDocument) -> bytes:
    """What the signature covers: ``Sig_structure`` of RFC 9052 section 4.4, without external data.

    Written out rather than encoded: a list of four, the text "Signature1", the protected header
    as a byte string, an empty byte string, the payload.
    """
    return b"".join(
        (
            b"\x84\x6aSignature1",
            bytes([0x40 + len(PROTECTED)]),
            PROTECTED,
            b"\x40",
            _byte_string_head(len(document.payload)),
            document.payload,
        )
    )


def unwrap_document(data: bytes) -> bytes:
    """Return the bytes of the COSE_Sign1 in `data`, out of whichever of these it came in:

    1. nothing: the envelope itself, tagged 18 or not;
    2. the security module's answer, CBOR ``{"Attestation": {"document": bytes}}``;
    3. dstack's version 0 of an attestation of an enclave, in SCALE (`_scale`);
    4. standard base64 of 1 or 2, with at most one line feed at its end.

    Each is told by its first byte and must fit to the last.

    Raises MalformedError, and nothing else.
    """
    if len(data) > MAX_WRAPPED_BYTES:
        raise _malformed(f"comes in {len(data)} bytes; at most {MAX_WRAPPED_BYTES} are accepted")
    if data[:1] in _BARE:
        return data
    if data[:1] == b"\xa1":
        return _nsm_answer(data)
    if data[:2] == b"\x00\x02":
        return _scale(data)
    # Base64 of bytes that begin with 0x84, 0xd2 or 0xa1.
    if data[:1] in (b"h", b"0", b"o"):
        return _base64(data)
    raise _malformed("comes in no known wrapper")


def _nsm_answer(data: bytes) -> bytes:
    answer = parse_cbor(data, limit=MAX_WRAPPED_BYTES, depth=_DEPTH, what="the module's answer")
    attestation = answer.get("Attestation") if isinstance(answer, dict) else None
    if not isinstance(attestation, dict) or attestation.keys() != {"document"}:
        raise _malformed("is missing in the security module's answer")
    document = attestation["document"]
    if not isinstance(document, bytes):
        raise _malformed("is missing in the security module's answer")
    return document


def _scale(data: bytes) -> bytes:
    """dstack's ``VersionedAttestation``: variant 0, then variant 2 (Nitro enclave) of the quote.

    After the document: runtime events (name and payload), 64 bytes of report data and the
    configuration. None of those is signed with the document, so they are passed over.
    """
    reader = ByteReader(data, what="dstack's attestation", code="malformed", byteorder="little")
    reader.take(2)
    document = reader.take(_compact(reader))
    for _ in range(_compact(reader)):
        reader.take(_compact(reader))
        reader.take(_compact(reader))
    reader.take(64)
    reader.take(_compact(reader))
    reader.finish()
    return document


def _compact(reader: ByteReader) -> int:
    """SCALE's compact integer in its one-, two- and four-byte forms, in the shortest that fits."""
    first = reader.integer(1)
    mode = first & 3
    if mode == 0:
        return first >> 2
    if mode == 3:
        raise reader.fail("holds a length beyond anything that is accepted")
    more = 1 if mode == 1 else 3
    value = (first | reader.integer(more) << 8) >> 2
    if value < (1 << 6 if mode == 1 else 1 << 14):
        raise reader.fail("holds a length in more bytes than it needs")
    return value


def _base64(data: bytes) -> bytes:
    try:
        text = data.removesuffix(b"\n").decode("ascii")
    except ValueError:
        raise _malformed("is not base64") from None
    inner = decode_base64(text, limit=MAX_WRAPPED_BYTES, what="the attestation document")
    if inner[:1] == b"\xa1":
        return _nsm_answer(inner)
    if inner[:1] not in _BARE:
        raise _malformed("comes in no known wrapper")
    return inner


_REQUIRED: Final = frozenset({"module_id", "digest", "timestamp", "certificate", "cabundle"})
_OPTIONAL: Final = frozenset({"public_key", "user_data", "nonce"})


def _kind(members: Mapping[str | int, Cbor]) -> DocumentKind:
    """Which registers are in it; the members must be the required ones, and none unknown."""
    kind = next((kind for kind in DocumentKind if kind.value in members), None)
    if kind is None or not members.keys() >= _REQUIRED:
        raise _malformed("lacks a member")
    if members.keys() - _REQUIRED - _OPTIONAL - {kind.value}:
        raise _malformed("has a member that this version does not know, or registers twice")
    if members["digest"] != "SHA384":
        raise _malformed("has registers of a digest other than SHA384")
    return kind


def _text(members: Mapping[str | int, Cbor], name: str) -> str:
    value = members[name]
    if not isinstance(value, str) or not 1 <= len(value) <= 256:
        raise _malformed(f"has no text for {name}")
    return value


def _timestamp(members: Mapping[str | int, Cbor]) -> datetime:
    value = members["timestamp"]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _YEAR_9999:
        raise _malformed("has no time within four-digit years")
    return datetime.fromtimestamp(value // 1000, UTC) + timedelta(milliseconds=value % 1000)


_YEAR_9999: Final = 253_370_764_800_000
"""Milliseconds to the beginning of that year; `datetime` knows none after it."""


def _pcrs(value: Cbor, count: int) -> dict[int, bytes]:
    if not isinstance(value, dict) or not 1 <= len(value) <= count:
        raise _malformed("has no registers, or too many")
    registers: dict[int, bytes] = {}
    for index, register in value.items():
        if not isinstance(index, int) or not 0 <= index < count:
            raise _malformed("has a register that does not exist")
        if not isinstance(register, bytes) or len(register) != PCR_BYTES:
            raise _malformed(f"has a register that does not have {PCR_BYTES} bytes")
        registers[index] = register
    return dict(sorted(registers.items()))


def _certificate(value: Cbor) -> bytes:
    if not isinstance(value, bytes) or not 1 <= len(value) <= MAX_CERTIFICATE_BYTES:
        raise _malformed(f"has a certificate that is not of 1 to {MAX_CERTIFICATE_BYTES} bytes")
    return value


def _cabundle(value: Cbor) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CABUNDLE:
        raise _malformed(f"does not have 1 to {MAX_CABUNDLE} certificates of CAs")
    return tuple(map(_certificate, value))


def _optional(members: Mapping[str | int, Cbor], name: str, *, least: int = 0) -> bytes | None:
    value = members.get(name)
    if value is None:
        return None
    if not isinstance(value, bytes) or not least <= len(value) <= MAX_FIELD_BYTES:
        raise _malformed(f"has no {name} of at most {MAX_FIELD_BYTES} bytes")
    return value


def _byte_string_head(size: int) -> bytes:
    """The head of a CBOR byte string of `size` bytes, at most 65535, in its shortest form."""
    if size < 24:
        return bytes([0x40 + size])
    if size < 256:
        return bytes([0x58, size])
    return b"\x59" + size.to_bytes(2, "big")


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the attestation document {why}")
