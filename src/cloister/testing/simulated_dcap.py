"""A simulated Intel: platforms, SGX and TDX quotes, and collateral, all of them made up.

What it makes verifies like Intel's own (`cloister.verifier.platforms.tdx` and ``sgx``), byte for
byte in the same formats, but chains to a root marked as development: it is affirmed only by a
policy that accepts development, under `SimulatedIntel.roots`. Keys are made anew each time::

    intel = SimulatedIntel(now=now)
    platform = intel.platform()
    quote = platform.tdx_quote(report_data=nonce)
    evidence = TdxEvidence(quote=quote, collateral=intel.collateral(TDX))

Anything may be chosen, and so be made wrong: fields of reports, levels, dates, revocation; JSON
documents are plain objects to change before `SimulatedIntel.collateral` signs them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.endorsements.intel import Collateral
from cloister.endorsements.intel_pck import SGX_EXTENSIONS
from cloister.endorsements.intel_tcb_info import QE, SGX, TD_QE, TDX
from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.strictjson import Json, JsonObject
from cloister.testing.simulated_dcap_parts import (
    ENCLAVE,
    EVALUATION_NUMBER,
    FMSPC,
    GUEST,
    PCESVN,
    QE_ATTRIBUTES,
    QE_ISVSVN,
    SGX_LAYOUT,
    SGX_SVNS,
    TD10_LAYOUT,
    TD15_LAYOUT,
    FieldValue,
    date,
    descriptor,
    document,
    header,
    isv_level,
    laid_out,
    module_identity,
    module_signer,
    pem,
    raw_signature,
    sgx_extensions,
    sized,
    tcb_level,
)
from cloister.verifier.authenticate.dcap import PCK_NAME, QUOTING_ENCLAVES
from cloister.verifier.authenticate.intel_collateral import TCB_SIGNING_NAME

_ROOT_NAME: Final = "Intel SGX Root CA"
_CA_NAMES: Final = {
    "platform": "Intel SGX PCK Platform CA",
    "processor": "Intel SGX PCK Processor CA",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedPlatform:
    """A machine with its certified key (PCK), and a quoting enclave for each TEE."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate
    chain: bytes
    """PEM: the certificate, its CA, the root."""
    qe_fields: Mapping[str, FieldValue] = field(default_factory=dict)
    """What the quoting enclave's report says otherwise than by default."""

    def with_qe(self, **fields: FieldValue) -> SimulatedPlatform:
        """The same machine with another quoting enclave."""
        return replace(self, qe_fields={**self.qe_fields, **fields})

    def tdx_quote(self, *, version: int = 4, td15: bool = False, **fields: FieldValue) -> bytes:
        """A quote of a TDX guest, of version 4 or 5.

        `fields` are those of the report under the vendor's names (``report_data``, ``mr_td``,
        ``rtmr0``, ``tee_tcb_svn``, …), shorter values padded with zeros. `td15` takes the longer
        body of TDX 1.5, which only version 5 has.
        """
        body = laid_out(TD15_LAYOUT if td15 else TD10_LAYOUT, GUEST, fields)
        return self.sign(header(version, 0x81) + descriptor(version, 3 if td15 else 2, body) + body)

    def sgx_quote(self, *, version: int = 3, **fields: FieldValue) -> bytes:
        """A quote of an SGX enclave, of version 3, 4 or 5; `fields` as in `tdx_quote`."""
        body = laid_out(SGX_LAYOUT, ENCLAVE, fields)
        return self.sign(header(version, 0) + descriptor(version, 1, body) + body)

    def sign(self, message: bytes) -> bytes:
        """Append to `message` (header and body) a new attestation key's signature, and its proof.

        The layout follows the version in the header's first two bytes.
        """
        version, tee_type = message[0], message[4] if message[0] > 3 else 0
        key = ec.generate_private_key(ec.SECP256R1())
        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        auth = bytes(range(32))
        report = self._qe_report(
            "tdx" if tee_type else "sgx", hashlib.sha256(point + auth).digest()
        )
        proof = b"".join(
            (
                report,
                raw_signature(self.key, report),
                sized(auth, 2),
                (5).to_bytes(2, "little"),
                sized(self.chain, 4),
            )
        )
        if version > 3:
            proof = (6).to_bytes(2, "little") + sized(proof, 4)
        return message + sized(raw_signature(key, message) + point + proof, 4)

    def _qe_report(self, tee: Literal["sgx", "tdx"], binding: bytes) -> bytes:
        mrsigner, product = QUOTING_ENCLAVES[tee]
        defaults: dict[str, FieldValue] = {
            "attributes": QE_ATTRIBUTES,
            "mrenclave": hashlib.sha256(b"simulated quoting enclave").digest(),
            "mrsigner": bytes.fromhex(mrsigner),
            "isvprodid": product,
            "isvsvn": QE_ISVSVN if tee == "tdx" else 10,
            "report_data": binding,
        }
        return laid_out(SGX_LAYOUT, defaults, self.qe_fields)


class SimulatedIntel:
    """Intel's root, its CAs and its TCB signing key."""

    def __init__(self, *, now: datetime) -> None:
        self.now = now
        self.root_key, self.signing_key = _key(), _key()
        self.root = self.certify(_ROOT_NAME, self.root_key, issuer=None, ca=1)
        self.signer = self.certify(TCB_SIGNING_NAME, self.signing_key)
        self.ca_keys = {kind: _key() for kind in _CA_NAMES}
        self.cas = {
            kind: self.certify(name, self.ca_keys[kind], ca=0) for kind, name in _CA_NAMES.items()
        }

    @property
    def roots(self) -> Roots:
        """The root, marked as development."""
        return Roots(
            anchors=(Anchor(vendor=Vendor.INTEL, certificate=self.root, development=True),)
        )

    def platform(
        self,
        *,
        sgx_svns: Sequence[int] = SGX_SVNS,
        pcesvn: int = PCESVN,
        fmspc: bytes = FMSPC,
        pceid: bytes = bytes(2),
        ppid: bytes = hashlib.sha256(b"simulated platform").digest()[:16],
        ca: Literal["platform", "processor"] = "platform",
        extensions: bytes | None = None,
        not_after: datetime | None = None,
    ) -> SimulatedPlatform:
        """Certify a new machine. `extensions` replaces the SGX extensions (DER)."""
        key = _key()
        if extensions is None:
            extensions = sgx_extensions(
                sgx_svns=sgx_svns,
                pcesvn=pcesvn,
                fmspc=fmspc,
                pceid=pceid,
                ppid=ppid,
                multi_package=ca == "platform",
            )
        certificate = self.certify(
            PCK_NAME,
            key,
            issuer=self.cas[ca],
            issuer_key=self.ca_keys[ca],
            extensions=extensions,
            not_after=not_after,
        )
        chain = pem(certificate, self.cas[ca], self.root)
        return SimulatedPlatform(key=key, certificate=certificate, chain=chain)

    def certify(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        issuer: x509.Certificate | Literal["root"] | None = "root",
        issuer_key: ec.EllipticCurvePrivateKey | None = None,
        ca: int | None = None,
        extensions: bytes | None = None,
        not_after: datetime | None = None,
    ) -> x509.Certificate:
        """Issue a certificate, by the root where nothing else is said; ``None`` signs itself.

        `ca` is the path length of a CA.
        """
        if issuer == "root":
            issuer = self.root
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(name) if issuer is None else issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - timedelta(days=365))
            .not_valid_after(not_after or self.now + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=ca is not None, path_length=ca), critical=True)
            .add_extension(_usage(ca=ca is not None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
        )
        if extensions is not None:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(SGX_EXTENSIONS, extensions), critical=False
            )
        return builder.sign(issuer_key or self.root_key, hashes.SHA256())

    def crl(
        self,
        issuer: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        revoked: Iterable[x509.Certificate] = (),
        *,
        issued: datetime | None = None,
        until: datetime | None = None,
    ) -> bytes:
        """A revocation list (DER) of `issuer`, current from a day ago for 30 days."""
        issued = issued or self.now - timedelta(days=1)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.subject)
            .last_update(issued)
            .next_update(until or issued + timedelta(days=30))
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
                critical=False,
            )
        )
        for certificate in revoked:
            entry = (
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(issued)
                .build()
            )
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)

    def tcb_info(
        self,
        tee: str = TDX,
        *,
        levels: Iterable[JsonObject] | None = None,
        modules: Iterable[JsonObject] | None = None,
        fmspc: bytes = FMSPC,
        issued: datetime | None = None,
        until: datetime | None = None,
        evaluation_number: int = EVALUATION_NUMBER,
    ) -> JsonObject:
        """TCB info of version 3 for `tee` (``SGX``, ``TDX``), by default with one level.

        The default level is what the default platform has, and ``UpToDate``.
        """
        levels = [tcb_level(tee)] if levels is None else levels
        info: JsonObject = {
            "id": tee,
            "version": 3,
            **self._dates(issued, until),
            "fmspc": fmspc.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": evaluation_number,
        }
        if tee == TDX:
            modules = [module_identity("TDX_01", isv_level(5))] if modules is None else modules
            info["tdxModule"] = module_signer()
            info["tdxModuleIdentities"] = list[Json](modules)
        return info | {"tcbLevels": list[Json](levels)}

    def qe_identity(
        self,
        tee: str = TDX,
        *,
        levels: Iterable[JsonObject] | None = None,
        issued: datetime | None = None,
        until: datetime | None = None,
        evaluation_number: int = EVALUATION_NUMBER,
    ) -> JsonObject:
        """The identity of the quoting enclave for `tee` (``SGX``, ``TDX``)."""
        mrsigner, product = QUOTING_ENCLAVES["tdx" if tee == TDX else "sgx"]
        levels = [isv_level(4 if tee == TDX else 8)] if levels is None else levels
        return {
            "id": TD_QE if tee == TDX else QE,
            "version": 2,
            **self._dates(issued, until),
            "tcbEvaluationDataNumber": evaluation_number,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": mrsigner.upper(),
            "isvprodid": product,
            "tcbLevels": list[Json](levels),
        }

    def collateral(
        self,
        tee: str = TDX,
        *,
        tcb_info: JsonObject | bytes | None = None,
        qe_identity: JsonObject | bytes | None = None,
        ca: Literal["platform", "processor"] = "platform",
        revoked: Iterable[x509.Certificate] = (),
        pck_crl: bytes | None = None,
        root_crl: bytes | None = None,
        signer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    ) -> Collateral:
        """Sign `tcb_info` and `qe_identity`, and put the revocation lists beside them.

        `revoked` certificates are on the list of whoever issued them. `ca` is the one whose list
        of PCK certificates it is. `signer` signs in the place of the TCB signing certificate.
        """
        certificate, key = signer or (self.signer, self.signing_key)
        info = document(self.tcb_info(tee) if tcb_info is None else tcb_info)
        identity = document(self.qe_identity(tee) if qe_identity is None else qe_identity)
        listed = list(revoked)
        chain = pem(certificate, self.root)
        return Collateral(
            pck_crl_issuer_chain=pem(self.cas[ca], self.root),
            root_ca_crl=root_crl or self._crl(self.root, self.root_key, listed),
            pck_crl=pck_crl or self._crl(self.cas[ca], self.ca_keys[ca], listed),
            tcb_info_issuer_chain=chain,
            tcb_info=info,
            tcb_info_signature=raw_signature(key, info),
            qe_identity_issuer_chain=chain,
            qe_identity=identity,
            qe_identity_signature=raw_signature(key, identity),
        )

    def _crl(
        self,
        issuer: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        revoked: Sequence[x509.Certificate],
    ) -> bytes:
        own = (found for found in revoked if found.issuer == issuer.subject)
        return self.crl(issuer, key, own)

    def _dates(self, issued: datetime | None, until: datetime | None) -> JsonObject:
        issued = issued or self.now - timedelta(days=1)
        return {
            "issueDate": date(issued),
            "nextUpdate": date(until or issued + timedelta(days=30)),
        }


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Simulated Intel"),
        ]
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=not ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


__all__ = [
    "SGX",
    "TDX",
    "SimulatedIntel",
    "SimulatedPlatform",
    "date",
    "document",
    "isv_level",
    "module_identity",
    "module_signer",
    "pem",
    "raw_signature",
    "tcb_level",
]
