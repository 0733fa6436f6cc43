"""Authenticates a TPM 2.0 quote on its own: by a given key, with the register values beside it.

Steps, in order; each makes one claim:

1. ``tpm.magic`` and ``tpm.type``: the structure was made inside a TPM, and is a quote.
2. ``tpm.format``: quote, signature and register values decode.
3. ``tpm.signature``: the key signed exactly these bytes, with an algorithm still in use.
4. ``tpm.selection``: the registers that were signed are those whose values are given: none is
   missing, none is added, and no bank is named twice.
5. ``tpm.pcr_digest``: the values given hash to the digest that was signed, by the hash of the
   signing scheme, whatever the bank's own.

What the caller still owes: that the key is an attestation key of a TPM (`authenticate_ak`), and
that the quote answers its challenge (`extra_data`).

Source: TCG "TPM 2.0 Library, Part 2: Structures", revision 01.59, sections 10.12 and 11.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.endorsements.ak import AkKey
from cloister.errors import MalformedError
from cloister.evidence.pcrs import PcrValues, checked_values, parse_pcrs_file
from cloister.evidence.tpm import (
    TPM_GENERATED,
    TPM_ST_ATTEST,
    TPM_ST_ATTEST_QUOTE,
    Alg,
    EcdsaSignature,
    Quote,
    RsaSignature,
    Signature,
    attest_kind,
    parse_quote,
    parse_signature,
    pcr_digest,
)
from cloister.verifier.authenticated import Authenticated, _grant
from cloister.verifier.chain import MIN_RSA_BITS
from cloister.verifier.ledger import Ledger
from cloister.verifier.result import Source

MAGIC: Final = "tpm.magic"
TYPE: Final = "tpm.type"
FORMAT: Final = "tpm.format"
SIGNATURE: Final = "tpm.signature"
SELECTION: Final = "tpm.selection"
PCR_DIGEST: Final = "tpm.pcr_digest"

CLAIMS: Final = (MAGIC, TYPE, FORMAT, SIGNATURE, SELECTION, PCR_DIGEST)

BARE_RSA_BYTES: Final = (256, 384, 512)
"""Sizes of a signature without the header of a ``TPMT_SIGNATURE``."""

_HASHES: Final[dict[int, hashes.HashAlgorithm]] = {
    Alg.SHA256: hashes.SHA256(),
    Alg.SHA384: hashes.SHA384(),
    Alg.SHA512: hashes.SHA512(),
}
"""Hashes that a quote may be signed with. SHA-1 is known, and not among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteEvidence:
    """One quote as it came, with the values of the registers that it covers."""

    quote: bytes
    """``TPMS_ATTEST``."""
    signature: bytes
    """``TPMT_SIGNATURE``, or with `bare_signature` RSASSA with SHA-256 without that header."""
    pcrs: PcrValues | bytes
    """By bank and register; bytes are a file as tpm2-tools write it."""
    bare_signature: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedQuote:
    """A quote that decodes, with its signature and register values."""

    quote: Quote
    signature: Signature
    pcrs: PcrValues


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteFindings:
    """What became of a quote. Only `authenticated` may be believed."""

    stated: SignedQuote | None
    """The quote, if it decodes, whoever made it."""
    authenticated: Authenticated[SignedQuote] | None
    """The quote, if every step held."""
    signed: bool = False
    """Whether the key signed it, of whatever it is a quote."""
    digest_matches: bool = False
    """Whether the register values are those of its digest, whoever signed it."""


def authenticate_quote(evidence: QuoteEvidence, key: AkKey | None, ledger: Ledger) -> QuoteFindings:
    """Run every step, adding `CLAIMS` to `ledger`; ``None`` for a key that does not decode."""
    _kind(evidence.quote, ledger)
    stated = _decode(evidence, ledger)
    if stated is None:
        return QuoteFindings(stated=None, authenticated=None)
    signed = key is not None and _signature(stated, key, ledger)
    matches = _registers(stated, ledger if signed else ledger.stated())
    held = ledger.holds(*CLAIMS)
    return QuoteFindings(
        stated=stated,
        authenticated=_grant(stated) if held else None,
        signed=signed,
        digest_matches=matches,
    )


def signed_by(key: AkKey, signature: Signature, message: bytes) -> bool:
    """Whether `key` made `signature` over `message`, with an algorithm of `_HASHES`."""
    algorithm = _HASHES.get(signature.hash_algorithm)
    if algorithm is None:
        return False
    try:
        match key, signature:
            case rsa.RSAPublicKey(), RsaSignature():
                key.verify(signature.signature, message, _padding(signature, algorithm), algorithm)
            case ec.EllipticCurvePublicKey(), EcdsaSignature():
                pair = encode_dss_signature(signature.r, signature.s)
                key.verify(pair, message, ec.ECDSA(algorithm))
            case _:
                return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _padding(
    signature: RsaSignature, algorithm: hashes.HashAlgorithm
) -> padding.PKCS1v15 | padding.PSS:
    """TPMs salt RSAPSS with as many bytes as fit, or with those of a digest (Part 1 B.7)."""
    if signature.scheme == Alg.RSASSA:
        return padding.PKCS1v15()
    return padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.AUTO)


def _kind(quote: bytes, ledger: Ledger) -> None:
    """Step 1."""
    try:
        magic, kind = attest_kind(quote)
    except MalformedError:
        return  # step 2 says so
    ledger.check(
        MAGIC,
        holds=magic == TPM_GENERATED,
        affirmed="The structure carries the mark of what a TPM made itself.",
        code="attest_magic",
        refused="The structure was not made inside a TPM: it does not carry its mark.",
    )
    name = TPM_ST_ATTEST.get(kind, f"0x{kind:04x}")
    ledger.check(
        TYPE,
        holds=kind == TPM_ST_ATTEST_QUOTE,
        affirmed="The attested structure is a quote.",
        code="attest_type",
        refused=f"The attested structure is no quote, but of type {name}.",
        value=name,
    )


def _decode(evidence: QuoteEvidence, ledger: Ledger) -> SignedQuote | None:
    """Step 2."""
    try:
        stated = SignedQuote(
            quote=parse_quote(evidence.quote),
            signature=_parse_signature(evidence),
            pcrs=(
                parse_pcrs_file(evidence.pcrs)
                if isinstance(evidence.pcrs, bytes)
                else checked_values(evidence.pcrs)
            ),
        )
    except MalformedError as error:
        ledger.refuse(FORMAT, "malformed", f"The quote is refused: {error}.")
        return None
    ledger.affirm(FORMAT, "Quote, signature and register values decode.")
    return stated


def _parse_signature(evidence: QuoteEvidence) -> Signature:
    if not evidence.bare_signature:
        return parse_signature(evidence.signature)
    if len(evidence.signature) not in BARE_RSA_BYTES:
        raise MalformedError("the bare signature is of no size that RSA signatures have")
    return RsaSignature(scheme=Alg.RSASSA, hash_algorithm=Alg.SHA256, signature=evidence.signature)


def _signature(stated: SignedQuote, key: AkKey, ledger: Ledger) -> bool:
    """Step 3."""
    if stated.signature.hash_algorithm not in _HASHES:
        ledger.refuse(
            SIGNATURE,
            "quote_algorithm",
            "The quote is signed over SHA-1, or a hash that is not known: that can be forged.",
        )
        return False
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        ledger.refuse(
            SIGNATURE, "quote_algorithm", f"The quoting key has only {key.key_size} bits."
        )
        return False
    return ledger.check(
        SIGNATURE,
        holds=signed_by(key, stated.signature, stated.quote.raw),
        affirmed="The attestation key signed this quote.",
        code="bad_signature",
        refused="The quote was not signed by the attestation key, or was changed since.",
        source=Source.HARDWARE_PROVEN,
    )


def _registers(stated: SignedQuote, ledger: Ledger) -> bool:
    """Steps 4 and 5."""
    selections = stated.quote.selections
    signed = [(choice.hash_algorithm, pcr) for choice in selections for pcr in choice.pcrs]
    values = {
        (bank, pcr): value
        for bank, registers in stated.pcrs.items()
        for pcr, value in registers.items()
    }
    banks = [choice.hash_algorithm for choice in selections]
    same = ledger.check(
        SELECTION,
        holds=bool(signed) and set(signed) == set(values) and len(set(banks)) == len(banks),
        affirmed=f"The {len(signed)} registers that were signed are those given.",
        code="pcr_selection_mismatch",
        refused="The registers that were signed are others than those whose values are given.",
        source=Source.HARDWARE_PROVEN,
    )
    if not set(signed) <= set(values):
        return False  # there is nothing to hash
    digest = pcr_digest(selections, values, hash_algorithm=_digest_hash(stated.signature))
    matches = ledger.check(
        PCR_DIGEST,
        holds=digest == stated.quote.pcr_digest,
        affirmed="The register values hash to the digest that was signed.",
        code="pcr_digest_mismatch",
        refused="The register values do not hash to the digest that was signed.",
        source=Source.HARDWARE_PROVEN,
    )
    return same and matches


def _digest_hash(signature: Signature) -> int:
    """The hash of the signing scheme; one that is not known was refused in step 3."""
    return signature.hash_algorithm if signature.hash_algorithm in _HASHES else Alg.SHA256
