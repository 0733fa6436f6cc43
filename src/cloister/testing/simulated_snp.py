"""A simulated AMD: root, signing and endorsement keys, and reports that say whatever is asked.

What it makes verifies like AMD's own (`cloister.verifier.platforms.snp`), down to serial number 0
of the leaf, but chains to a root marked as development: it is affirmed only by a policy that
accepts development, under `SimulatedAmd.roots`. RSA keys have 2048 bits instead of 4096, and are
made once in each process; everything else is made anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.evidence.snp import (
    REPORT_BYTES,
    SIGNED_BYTES,
    CertificateKind,
    GuestPolicy,
    PlatformInfo,
    Product,
    SigningKey,
)
from cloister.verifier.platforms.snp import SnpEvidence

OIDS: Final = "1.3.6.1.4.1.3704.1."
"""AMD's extensions of endorsement keys' certificates."""

TCBS: Final[Mapping[Product, bytes]] = {
    Product.MILAN: bytes([4, 0, 0, 0, 0, 0, 24, 219]),
    Product.GENOA: bytes([10, 0, 0, 0, 0, 0, 27, 27]),
    Product.TURIN: bytes([1, 1, 1, 4, 0, 0, 0, 81]),
}
"""A TCB_VERSION for each product: bootloader, tee, snp, microcode; Turin's FMC first."""

CPUIDS: Final[Mapping[Product, tuple[int, int, int]]] = {
    Product.MILAN: (0x19, 0x01, 1),
    Product.GENOA: (0x19, 0x11, 1),
    Product.TURIN: (0x1A, 0x02, 1),
}

DEFAULT_POLICY: Final = int(GuestPolicy.SMT | GuestPolicy.RESERVED_ONE)

_TCB_OIDS: Final = ("3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8")
_TURIN_TCB_OIDS: Final = ("3.9", "3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8")

_OFFSETS: Final[Mapping[str, tuple[int, int]]] = {
    "version": (0x000, 4),
    "guest_svn": (0x004, 4),
    "policy": (0x008, 8),
    "family_id": (0x010, 16),
    "image_id": (0x020, 16),
    "vmpl": (0x030, 4),
    "signature_algorithm": (0x034, 4),
    "current_tcb": (0x038, 8),
    "platform_info": (0x040, 8),
    "signer_info": (0x048, 4),
    "report_data": (0x050, 64),
    "measurement": (0x090, 48),
    "host_data": (0x0C0, 32),
    "id_key_digest": (0x0E0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32),
    "reported_tcb": (0x180, 8),
    "cpuid": (0x188, 3),
    "chip_id": (0x1A0, 64),
    "committed_tcb": (0x1E0, 8),
    "current_version": (0x1E8, 3),
    "committed_version": (0x1EC, 3),
    "launch_tcb": (0x1F0, 8),
    "launch_mit_vector": (0x1F8, 8),
    "current_mit_vector": (0x200, 8),
}
"""Offset and size of every field that can be chosen."""

_PSS: Final = padding.PSS(mgf=padding.MGF1(SHA384()), salt_length=48)


@cache
def _rsa(_name: str) -> rsa.RSAPrivateKey:
    """The key of the CA `_name`, the same for the life of the process: making one is slow."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedKey:
    """An endorsement key with its certificate."""

    kind: SigningKey
    product: Product
    tcb: bytes
    hwid: bytes
    """The chip's id, 64 bytes or 8 on Turin, whether or not the certificate holds it."""
    certificate: bytes
    """DER."""
    private: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def chip_id(self) -> bytes:
        """`hwid` as CHIP_ID holds it."""
        return self.hwid.ljust(64, b"\0")


class SimulatedAmd:
    """One product line's keys: ARK, ASK and ASVK, and endorsement keys that they certify."""

    def __init__(self, *, now: datetime, product: Product = Product.MILAN) -> None:
        self.now = now
        self.product = product
        label = product.label
        self.ark_name, self.ask_name, self.asvk_name = map(
            amd_name, (f"ARK-{label}", f"SEV-{label}", f"SEV-VLEK-{label}")
        )
        self.ark_key, self.ask_key, self.asvk_key = (
            _rsa(f"{kind}-{product}") for kind in ("ARK", "ASK", "ASVK")
        )
        self.ark = self._authority(self.ark_name, self.ark_key, serial=0x10001, path_length=1)
        self.ask = self._authority(self.ask_name, self.ask_key, serial=0x10002, path_length=0)
        self.asvk = self._authority(self.asvk_name, self.asvk_key, serial=0x10003, path_length=0)

    @property
    def roots(self) -> Roots:
        """The root, marked as development; ASK and ASVK complete chains."""
        anchor = Anchor(vendor=Vendor.AMD, certificate=self.ark, development=True)
        return Roots(anchors=(anchor,), intermediates=(self.ask, self.asvk))

    def key(
        self,
        kind: SigningKey = SigningKey.VCEK,
        *,
        tcb: bytes | None = None,
        hwid: bytes | None = None,
        wrapped: bool = False,
        csp_id: str = "CN=simulated.example",
        product_name: str | None = None,
        extensions: Mapping[str, bytes | None] | None = None,
        issuer: SigningKey | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        curve: ec.EllipticCurve | None = None,
    ) -> SimulatedKey:
        """Make an endorsement key and certify it.

        `wrapped` puts the chip's id into an OCTET STRING. `extensions` replaces values of AMD's
        extensions, by the end of their identifier (``"3.1"``), or leaves out those given ``None``.
        `issuer` is the kind whose authority signs, if another than `kind`'s.
        """
        size = 8 if self.product is Product.TURIN else 64
        tcb = TCBS[self.product] if tcb is None else tcb
        hwid = bytes(range(1, size + 1)) if hwid is None else hwid
        values = _extensions(self.product, tcb, product_name or self.product.label)
        if kind is SigningKey.VLEK:
            values["5"] = _der(0x16, csp_id.encode())
        else:
            values["4"] = _der(0x04, hwid) if wrapped else hwid
        values |= extensions or {}
        private = ec.generate_private_key(curve or ec.SECP384R1())
        vlek = (kind if issuer is None else issuer) is SigningKey.VLEK
        builder = self._builder(
            amd_name(f"SEV-{kind.name}"),
            self.asvk_name if vlek else self.ask_name,
            not_before or self.now - timedelta(days=1),
            not_after or self.now + timedelta(days=365),
        ).public_key(private.public_key())
        for oid, value in values.items():
            if value is not None:
                extension = x509.UnrecognizedExtension(ObjectIdentifier(OIDS + oid), value)
                builder = builder.add_extension(extension, critical=False)
        return SimulatedKey(
            kind=kind,
            product=self.product,
            tcb=tcb,
            hwid=hwid,
            certificate=_without_serial(builder, self.asvk_key if vlek else self.ask_key),
            private=private,
        )

    def report(self, key: SimulatedKey, *, version: int = 3, **fields: int | bytes | None) -> bytes:
        """A report of `version` that `key` signed.

        `fields` are those of `cloister.evidence.snp.SnpReport`, numbers or bytes (firmware
        versions as build, minor, major); what is not given suits key and version.
        """
        unknown = fields.keys() - _OFFSETS.keys()
        if unknown:
            raise TypeError(f"a report has no fields {sorted(unknown)}")
        vlek = key.kind is SigningKey.VLEK
        values: dict[str, int | bytes | None] = {
            "version": version,
            "policy": DEFAULT_POLICY,
            "signature_algorithm": 1,
            "platform_info": int(PlatformInfo.SMT_EN | PlatformInfo.ECC_EN),
            "signer_info": key.kind << 2,
            "measurement": b"\x4d" * 48,
            "report_id": b"\x1d" * 32,
            "report_id_ma": b"\xff" * 32,
            "cpuid": bytes(CPUIDS[self.product]) if version > 2 else None,
            "chip_id": None if vlek else key.chip_id,
            "current_version": bytes([29, 55, 1]),
            "committed_version": bytes([29, 55, 1]),
            "launch_mit_vector": 0b1011 if version > 4 else None,
            "current_mit_vector": 0b1111 if version > 4 else None,
        }
        tcbs = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
        return sign(encode(values | dict.fromkeys(tcbs, key.tcb) | fields), key.private)

    def evidence(
        self,
        key: SimulatedKey | None = None,
        *,
        crls: Iterable[bytes] = (),
        version: int = 3,
        **fields: int | bytes | None,
    ) -> SnpEvidence:
        """A report by `key` (a new VCEK if none is given) with its certificates."""
        key = key or self.key()
        return SnpEvidence(
            report=self.report(key, version=version, **fields),
            certificates=(key.certificate, *self.authorities(key.kind)),
            crls=tuple(crls),
        )

    def authorities(self, kind: SigningKey = SigningKey.VCEK) -> tuple[bytes, bytes]:
        """The DER certificates above a leaf of `kind`: ASK or ASVK, and ARK."""
        signing = self.asvk if kind is SigningKey.VLEK else self.ask
        return signing.public_bytes(Encoding.DER), self.ark.public_bytes(Encoding.DER)

    def crl(
        self,
        *,
        revoked: Iterable[x509.Certificate] = (),
        issued_at: datetime | None = None,
        until: datetime | None = None,
        forged: bool = False,
    ) -> bytes:
        """The root's revocation list as DER, naming `revoked`; `forged` by another key."""
        issued_at = issued_at or self.now - timedelta(days=1)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.ark_name)
            .last_update(issued_at)
            .next_update(until or self.now + timedelta(days=365))
        )
        for certificate in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(issued_at)
                .build()
            )
        key = self.ask_key if forged else self.ark_key
        return builder.sign(key, SHA384(), rsa_padding=_PSS).public_bytes(Encoding.DER)

    def _authority(
        self, name: x509.Name, key: rsa.RSAPrivateKey, *, serial: int, path_length: int
    ) -> x509.Certificate:
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        years = timedelta(days=3650)
        return (
            self._builder(name, self.ark_name, self.now - years, self.now + years)
            .serial_number(serial)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.ark_key, SHA384(), rsa_padding=_PSS)
        )

    def _builder(
        self, name: x509.Name, issuer: x509.Name, not_before: datetime, not_after: datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .not_valid_before(not_before)
            .not_valid_after(not_after)
        )


def encode(fields: Mapping[str, int | bytes | None]) -> bytes:
    """A report without signature: `fields` by name, all else zero."""
    report = bytearray(REPORT_BYTES)
    for name, value in fields.items():
        offset, size = _OFFSETS[name]
        data = value.to_bytes(size, "little") if isinstance(value, int) else value or b""
        report[offset : offset + size] = data.ljust(size, b"\0")
    return bytes(report)


def sign(report: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """`report` with the signature of `key` in the place of its own."""
    r, s = decode_dss_signature(key.sign(report[:SIGNED_BYTES], ec.ECDSA(SHA384())))
    signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
    return report[:SIGNED_BYTES] + signature.ljust(REPORT_BYTES - SIGNED_BYTES, b"\0")


def certificate_table(entries: Mapping[CertificateKind, bytes], *, pad_to: int = 0) -> bytes:
    """The table that a host hands over with an extended report, filled up to `pad_to` bytes."""
    offset = 24 * (len(entries) + 1)
    head = b""
    for kind, data in entries.items():
        head += kind.value.bytes + offset.to_bytes(4, "little") + len(data).to_bytes(4, "little")
        offset += len(data)
    return (head + bytes(24) + b"".join(entries.values())).ljust(pad_to, b"\0")


def amd_name(common_name: str) -> x509.Name:
    """A name that says who made it up."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Simulated Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _extensions(product: Product, tcb: bytes, product_name: str) -> dict[str, bytes | None]:
    turin = product is Product.TURIN
    values: dict[str, bytes | None] = {
        "1": _integer(1 if turin else 0),
        "2": _der(0x16, product_name.encode()),
    }
    parts = zip(_TURIN_TCB_OIDS if turin else _TCB_OIDS, tcb, strict=True)
    return values | {oid: _integer(part) for oid, part in parts}


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(1 + (value > 0x7F), "big"))


def _der(tag: int, content: bytes) -> bytes:
    return bytes([tag, len(content)]) + content


def _without_serial(builder: x509.CertificateBuilder, key: rsa.RSAPrivateKey) -> bytes:
    """Sign with serial number 0, as AMD does: the library's builder refuses to."""
    certificate = builder.serial_number(1).sign(key, SHA384(), rsa_padding=_PSS)
    signed = certificate.tbs_certificate_bytes
    serial = signed.index(b"\x02\x01\x01")  # behind the version, which is 02 01 02
    zero = signed[:serial] + b"\x02\x01\x00" + signed[serial + 3 :]
    der = certificate.public_bytes(Encoding.DER).replace(signed, zero)
    return der[: -key.key_size // 8] + key.sign(zero, _PSS, SHA384())
