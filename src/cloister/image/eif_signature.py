"""The signature in an enclave image: by whom PCR0 was signed, and so what PCR8 will be.

Source: AWS, aws-nitro-enclaves-image-format at 935dc62 (``src/utils/eif_signer.rs``); RFC 9052
section 4.2 (COSE_Sign1, untagged), RFC 9053 section 2.1 (ECDSA). The section is CBOR: a list of one
map with the certificate (PEM) and the COSE_Sign1, both written as lists of numbers, since that is
what the tool's library makes of byte vectors. What is signed is the map
``{"register_index": 0, "register_value": PCR0}``.

The hypervisor refuses an image whose signature does not hold, and extends PCR8 with the
certificate. The certificate vouches for nobody by itself: clients compare PCR8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.errors import AuthenticationError, ConfigurationError, MalformedError
from cloister.evidence.cbor import Cbor, parse_cbor
from cloister.image.eif import MAX_SMALL_BYTES, PCR_BYTES

_DEPTH: Final = 4
_ALGORITHM: Final = 1  # COSE header parameter, RFC 9052 section 3.1
_CURVES: Final[Mapping[str, tuple[int, Callable[[], hashes.HashAlgorithm]]]] = {
    "secp256r1": (-7, hashes.SHA256),
    "secp384r1": (-35, hashes.SHA384),
    "secp521r1": (-36, hashes.SHA512),
}
"""For each curve, COSE's number of the algorithm and its hash, as AWS' library pairs them."""

_MEMBERS: Final = frozenset({"signing_certificate", "signature"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSignature:
    """A decoded signature section; nothing is authenticated."""

    certificate: x509.Certificate
    protected: bytes = field(repr=False)
    payload: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def certificate_der(self) -> bytes:
        """What PCR8 is extended with, once hashed."""
        return self.certificate.public_bytes(Encoding.DER)


def sign_image(
    pcr0: bytes, *, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> bytes:
    """The signature section's data. Equal input gives equal bytes (RFC 6979).

    ConfigurationError when the key is not the certificate's, or on a curve that COSE does not
    pair with a hash here.
    """
    if certificate.public_key() != key.public_key():
        raise ConfigurationError(
            "the signing key is not the key in the signing certificate", code="image.signing_key"
        )
    algorithm, hash_algorithm = _algorithm(key.public_key())
    protected = cbor2.dumps({_ALGORITHM: algorithm})
    payload = _payload(pcr0)
    der = key.sign(
        _to_be_signed(protected, payload),
        ec.ECDSA(hash_algorithm, deterministic_signing=True),
    )
    size = (key.key_size + 7) // 8
    r, s = utils.decode_dss_signature(der)
    raw = r.to_bytes(size, "big") + s.to_bytes(size, "big")
    cose = cbor2.dumps([protected, {}, payload, raw])
    pem = certificate.public_bytes(Encoding.PEM)
    return cbor2.dumps([{"signing_certificate": list(pem), "signature": list(cose)}])


def parse_image_signature(data: bytes) -> ImageSignature:
    """Decode a signature section of at most 1 MiB.

    Raises MalformedError, and nothing else.
    """
    what = "the image's signature"
    section = parse_cbor(data, limit=MAX_SMALL_BYTES, depth=_DEPTH, what=what)
    if not isinstance(section, list) or len(section) != 1:
        raise _malformed("does not hold one signature")
    entry = section[0]
    if not isinstance(entry, dict) or entry.keys() != _MEMBERS:
        raise _malformed("does not hold a certificate and a signature")
    envelope = parse_cbor(
        _bytes(entry["signature"]), limit=MAX_SMALL_BYTES, depth=_DEPTH, what=what
    )
    if not isinstance(envelope, list) or len(envelope) != 4 or envelope[1] != {}:
        raise _malformed("is no COSE_Sign1 without unprotected headers")
    protected, _, payload, signature = envelope
    if not (
        isinstance(protected, bytes) and isinstance(payload, bytes) and isinstance(signature, bytes)
    ):
        raise _malformed("is no COSE_Sign1")
    try:
        certificate = x509.load_pem_x509_certificate(_bytes(entry["signing_certificate"]))
    except ValueError:
        raise _malformed("has a certificate that does not decode") from None
    return ImageSignature(
        certificate=certificate, protected=protected, payload=payload, signature=signature
    )


def authenticate_image_signature(signature: ImageSignature, *, pcr0: bytes, at: datetime) -> None:
    """Check that the certificate's key signed `pcr0`, and that the certificate is current `at`.

    `at` is aware. AuthenticationError otherwise. Who holds that key is the caller's to know.
    """
    certificate = signature.certificate
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _refused("is by a key that is not on an elliptic curve")
    try:
        algorithm, hash_algorithm = _algorithm(key)
    except ConfigurationError:
        raise _refused("is by a key on another curve than P-256, P-384 and P-521") from None
    if signature.protected != cbor2.dumps({_ALGORITHM: algorithm}):
        raise _refused("names another algorithm than its key has")
    if signature.payload != _payload(pcr0):
        raise _refused("is over another PCR0 than the image has")
    size = (key.key_size + 7) // 8
    if len(signature.signature) != 2 * size:
        raise _refused("has another length than its key makes")
    der = utils.encode_dss_signature(
        int.from_bytes(signature.signature[:size], "big"),
        int.from_bytes(signature.signature[size:], "big"),
    )
    try:
        key.verify(
            der, _to_be_signed(signature.protected, signature.payload), ec.ECDSA(hash_algorithm)
        )
    except InvalidSignature:
        raise _refused("does not hold") from None
    if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
        raise _refused("has a certificate that is not current")


def _payload(pcr0: bytes) -> bytes:
    if len(pcr0) != PCR_BYTES:
        raise ValueError("a register has 48 bytes")
    return cbor2.dumps({"register_index": 0, "register_value": list(pcr0)})


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    return cbor2.dumps(["Signature1", protected, b"", payload])


def _algorithm(key: ec.EllipticCurvePublicKey) -> tuple[int, hashes.HashAlgorithm]:
    found = _CURVES.get(key.curve.name)
    if found is None:
        raise ConfigurationError(
            "an image is signed with a key on P-256, P-384 or P-521", code="image.signing_key"
        )
    number, hash_algorithm = found
    return number, hash_algorithm()


def _bytes(value: Cbor) -> bytes:
    """Bytes from the list of numbers that AWS' tool writes."""
    if not isinstance(value, list):
        raise _malformed("does not write bytes as a list of numbers")
    numbers = [one for one in value if isinstance(one, int) and not isinstance(one, bool)]
    if len(numbers) != len(value) or not all(0 <= one <= 255 for one in numbers):
        raise _malformed("has a number in it that is no byte")
    return bytes(numbers)


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the image's signature {why}", code="image.signature")


def _refused(why: str) -> AuthenticationError:
    return AuthenticationError(f"the image's signature {why}", code="image.signature")
