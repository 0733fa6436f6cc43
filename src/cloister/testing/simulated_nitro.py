"""A simulated AWS Nitro: attestation documents of enclaves and NitroTPMs that do not exist.

Documents are byte for byte like AWS', signed by keys in this process under a made-up root. Only
`SimulatedNitro.roots` accepts them, and only a policy that names development affirms them::

    nitro = SimulatedNitro(now=at)
    result = run(
        verify_nitro,
        NitroEvidence(document=nitro.document(user_data=statement)),
        policy=policy.development(),
        roots=nitro.roots,
        at=at,
    )
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.evidence.nitro import PCR_BYTES, PROTECTED, SIGNATURE_BYTES, DocumentKind

MODULE_ID: Final = "i-00000000000000000-enc0000000000000000"
TPM_MODULE_ID: Final = "i-00000000000000000-tpm0000000000000000"

DEFAULT_PCRS: Final[Mapping[int, bytes]] = {
    index: hashlib.sha384(f"simulated PCR{index}".encode()).digest() if index < 3 else bytes(48)
    for index in range(16)
}
"""An image that was measured; nothing else was."""

DEBUG_PCRS: Final[Mapping[int, bytes]] = {index: bytes(PCR_BYTES) for index in range(16)}
"""What an enclave in debug mode shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedAuthority:
    """A certificate and its key: a CA's, or an enclave's."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def der(self) -> bytes:
        """The certificate, encoded."""
        return self.certificate.public_bytes(Encoding.DER)


class SimulatedNitro:
    """Root, regional, zonal and instance CA, and an enclave, with lifetimes like AWS' ones.

    The parts may be replaced before `document` is called, to make documents that lie: with
    `certify` any certificate can be had.
    """

    def __init__(self, *, now: datetime) -> None:
        self.now = now
        self.root = self.certify("simulated.nitro-enclaves", None, days=3650, path_length=None)
        regional = self.certify("regional.nitro-enclaves", self.root, days=20, path_length=2)
        zonal = self.certify("zonal.nitro-enclaves", regional, days=6, path_length=1)
        instance = self.certify("instance.nitro-enclaves", zonal, days=1, path_length=0)
        self.authorities: tuple[SimulatedAuthority, ...] = (self.root, regional, zonal, instance)
        """From the root down, as a document's ``cabundle`` has them."""
        self.enclave = self.certify_enclave(instance)

    @property
    def roots(self) -> Roots:
        """Pins for this simulated AWS alone."""
        anchor = Anchor(
            vendor=Vendor.AWS_NITRO, certificate=self.root.certificate, development=True
        )
        return Roots(anchors=(anchor,))

    def certify(
        self,
        name: str,
        issuer: SimulatedAuthority | None,
        *,
        days: int,
        path_length: int | None,
        ca: bool = True,
    ) -> SimulatedAuthority:
        """A CA under `issuer`, or by itself; with ``ca=False`` one that must not sign others."""
        key = ec.generate_private_key(ec.SECP384R1())
        constraints = x509.BasicConstraints(ca=ca, path_length=path_length if ca else None)
        builder = self._builder(name, issuer, key.public_key(), timedelta(days=days))
        builder = builder.add_extension(constraints, critical=True)
        builder = builder.add_extension(_usage(ca=ca), critical=True)
        certificate = builder.sign(key if issuer is None else issuer.key, hashes.SHA384())
        return SimulatedAuthority(certificate=certificate, key=key)

    def certify_enclave(
        self,
        issuer: SimulatedAuthority,
        *,
        curve: ec.EllipticCurve | None = None,
        usage: x509.KeyUsage | None = None,
        ca: bool = False,
    ) -> SimulatedAuthority:
        """An enclave's certificate, valid for three hours from `now`, and its key."""
        key = ec.generate_private_key(ec.SECP384R1() if curve is None else curve)
        builder = self._builder(MODULE_ID, issuer, key.public_key(), timedelta(hours=3))
        builder = builder.add_extension(
            x509.BasicConstraints(ca=ca, path_length=None), critical=True
        )
        builder = builder.add_extension(usage or _usage(ca=False), critical=False)
        certificate = builder.sign(issuer.key, hashes.SHA384())
        return SimulatedAuthority(certificate=certificate, key=key)

    def document(
        self,
        *,
        pcrs: Mapping[int, bytes] = DEFAULT_PCRS,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        public_key: bytes | None = None,
        timestamp: datetime | None = None,
        kind: DocumentKind = DocumentKind.ENCLAVE,
    ) -> bytes:
        """A document, untagged and unwrapped, made at `timestamp` or else at `now`."""
        return self.sign(
            self.payload(
                pcrs=pcrs,
                user_data=user_data,
                nonce=nonce,
                public_key=public_key,
                timestamp=timestamp,
                kind=kind,
            )
        )

    def payload(
        self,
        *,
        pcrs: Mapping[int, bytes] = DEFAULT_PCRS,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        public_key: bytes | None = None,
        timestamp: datetime | None = None,
        kind: DocumentKind = DocumentKind.ENCLAVE,
    ) -> dict[str, Any]:
        """The members of a document, to change before they are signed."""
        made = self.now if timestamp is None else timestamp
        return {
            "module_id": MODULE_ID if kind is DocumentKind.ENCLAVE else TPM_MODULE_ID,
            "digest": "SHA384",
            "timestamp": round(made.timestamp() * 1000),
            kind.value: dict(pcrs),
            "certificate": self.enclave.der,
            "cabundle": [authority.der for authority in self.authorities],
            "public_key": public_key,
            "user_data": user_data,
            "nonce": nonce,
        }

    def sign(self, payload: Mapping[str, Any]) -> bytes:
        """Encode any `payload` and sign it as a document, with the enclave's key."""
        encoded = cbor2.dumps(dict(payload))
        message = cbor2.dumps(["Signature1", PROTECTED, b"", encoded])
        signature = self.enclave.key.sign(message, ec.ECDSA(hashes.SHA384()))
        half = SIGNATURE_BYTES // 2
        r, s = (number.to_bytes(half, "big") for number in decode_dss_signature(signature))
        return cbor2.dumps([PROTECTED, {}, encoded, r + s])

    def _builder(
        self,
        name: str,
        issuer: SimulatedAuthority | None,
        key: ec.EllipticCurvePublicKey,
        lifetime: timedelta,
    ) -> x509.CertificateBuilder:
        subject = _name(name)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if issuer is None else issuer.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - timedelta(seconds=3))
            .not_valid_after(self.now + lifetime)
        )


def nsm_answer(document: bytes) -> bytes:
    """`document` as the security module hands it out."""
    return cbor2.dumps({"Attestation": {"document": document}})


def _name(name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Simulated"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
