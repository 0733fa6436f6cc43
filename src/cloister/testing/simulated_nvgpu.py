"""Simulated NVIDIA GPUs and switches, with a vendor of their own and signed manifests.

Everything real but the hardware: P-384 keys, certificates in the shape of NVIDIA's, SPDM
reports, XML signatures (those need ``cloister[gpu]``). The roots are marked as development, so
that only a policy that names development affirms what they vouch for::

    nvidia = SimulatedNvidia.make(now=datetime.now(UTC))
    gpu = nvidia.device()
    evidence = GpuEvidence(
        devices=(gpu.evidence(nonce),),
        driver_rims=(nvidia.driver_rim(gpu),),
        vbios_rims=(nvidia.vbios_rim(gpu),),
    )
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.endorsements.nvidia import COMPOSITE_DEVICE_ID, TCB_INFO
from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.evidence.nvgpu import DISABLED, ENABLED, GpuDevice, OpaqueField
from cloister.evidence.rim import DIGEST_SHA384, SHA384, SWID
from cloister.evidence.spdm import Measurement, encode_unsigned

MEASUREMENTS: Final = 64
DRIVER_INDICES: Final = (7, *range(21, 41))
"""Active in manifests of drivers, counted from zero; those of VBIOSes have the ones below."""
VBIOS_INDICES: Final = (1, 2, 3, 5, 6, 9, 11)
DEVTOOLS_INDEX: Final = 9
"""Where a device in DevTools mode measures something else."""
RESPONSE_NONCE: Final = bytes(range(32))
LIFETIME: Final = timedelta(days=730)
FOREVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)

_SHA384_DIGEST: Final = bytes.fromhex("06096086480165030402020430")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A key with its certificate, and the certificates above it."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate
    above: tuple[x509.Certificate, ...] = ()
    """Issuers, the root last; empty for a root."""

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Its own certificate, and those above."""
        return (self.certificate, *self.above)

    def issue(
        self,
        name: str,
        *,
        ca: bool = True,
        not_before: datetime | None = None,
        not_after: datetime = FOREVER,
        extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
        key: ec.EllipticCurvePrivateKey | None = None,
        signs: bool | None = None,
    ) -> Signer:
        """Certify a new key, or `key`, under the common name `name`.

        Keys sign reports unless they are a CA's; `signs` says otherwise.
        """
        key = key or ec.generate_private_key(ec.SECP384R1())
        certificate = _certificate(
            key.public_key(),
            _name(name),
            self.certificate.subject,
            self.key,
            ca=ca,
            signs=not ca if signs is None else signs,
            validity=(not_before or self.certificate.not_valid_before_utc, not_after),
            extensions=extensions,
        )
        return Signer(key=key, certificate=certificate, above=self.chain)


@dataclass(slots=True, kw_only=True)
class SimulatedGpu:
    """A device with its key. Every field may be replaced before it is asked for a report."""

    leaf: Signer
    model: str = "GH100"
    driver_version: str | None = "550.90.07"
    vbios_version: str = "96.00.9f.00.01"
    fwid: bytes | None = None
    measurements: dict[int, bytes] = field(default_factory=dict)
    """By SPDM's index, from 1."""
    opaque: dict[int, bytes] = field(default_factory=dict)
    """Fields besides, or instead of, those that are made from the others."""

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The certificates in DER, as evidence carries them."""
        return tuple(one.public_bytes(Encoding.DER) for one in self.leaf.chain)

    def devtools(self) -> None:
        """Switch DevTools on: what is measured changes, and nothing else."""
        self.measurements[DEVTOOLS_INDEX + 1] = digest("DevTools")

    def evidence(self, nonce: bytes) -> GpuDevice:
        """A report that answers `nonce`, with the chain."""
        return GpuDevice(report=self.report(nonce), chain=self.chain)

    def report(self, nonce: bytes) -> bytes:
        """A signed report that answers `nonce`."""
        return self.sign(self.unsigned(nonce))

    def unsigned(self, nonce: bytes) -> bytes:
        """A report up to its signature."""
        return encode_unsigned(
            nonce=nonce,
            measurements=[
                Measurement(index=index, value_type=1, raw=False, value=value)
                for index, value in sorted(self.measurements.items())
            ],
            response_nonce=RESPONSE_NONCE,
            opaque=self._fields() | self.opaque,
        )

    def sign(self, message: bytes) -> bytes:
        """Append the signature of anything at all, which no real device would make."""
        r, s = decode_dss_signature(self.leaf.key.sign(message, ec.ECDSA(hashes.SHA384())))
        return message + r.to_bytes(48) + s.to_bytes(48)

    def _fields(self) -> dict[int, bytes]:
        if self.model == "LS10":
            return {OpaqueField.VBIOS_VERSION: self.vbios_version.encode()}
        fields = {
            OpaqueField.VBIOS_VERSION: _packed(self.vbios_version),
            OpaqueField.PROJECT: b"1010\x00",
            OpaqueField.PROJECT_SKU: b"0200\x00",
            OpaqueField.CHIP_SKU: b"882\x00",
            OpaqueField.NVDEC0_STATUS: bytes((ENABLED,)),
            OpaqueField.PROTECTED_PCIE_STATUS: bytes((DISABLED,)),
        }
        if self.driver_version is not None:
            fields[OpaqueField.DRIVER_VERSION] = self.driver_version.encode() + b"\x00"
        if self.fwid is not None:
            fields[OpaqueField.FWID] = self.fwid
        return {int(kind): value for kind, value in fields.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedNvidia:
    """The vendor: one root for devices, another for manifests."""

    provisioner: Signer
    """Issues devices' own certificates."""
    rim_issuer: Signer
    """Issues the certificates of those who sign manifests."""
    rim_signer: Signer

    @classmethod
    def make(cls, *, now: datetime) -> SimulatedNvidia:
        """Make roots and intermediates; signers of manifests live for two years from `now`."""
        before = now - timedelta(days=1)
        device_root = _root("Simulated NVIDIA Device Identity CA", before)
        rim_issuer = _root("Simulated NVIDIA CoRIM signing Root CA", before).issue(
            "Simulated Reference Value L3"
        )
        return cls(
            provisioner=device_root.issue("Simulated GH100 Identity").issue("Simulated ICA 1"),
            rim_issuer=rim_issuer,
            rim_signer=rim_issuer.issue(
                "Simulated RIM L4 Signer", ca=False, not_after=before + LIFETIME
            ),
        )

    @property
    def roots(self) -> Roots:
        """Pins for both roots, as development."""
        return Roots(
            anchors=(
                Anchor(
                    vendor=Vendor.NVIDIA_DEVICE,
                    certificate=self.provisioner.above[-1],
                    development=True,
                ),
                Anchor(
                    vendor=Vendor.NVIDIA_RIM,
                    certificate=self.rim_issuer.above[-1],
                    development=True,
                ),
            )
        )

    def device(self, model: str = "GH100") -> SimulatedGpu:
        """A new device: ``GH100`` and ``GB100`` are GPUs, ``LS10`` is a switch."""
        fwid = digest(f"firmware of {model}")
        own = self.provisioner.issue(f"{_certified(model)} A01 GSP BROM")
        leaf = self.firmware_key(own, model, fwid)
        if model == "LS10":
            return SimulatedGpu(
                leaf=leaf,
                model=model,
                driver_version=None,
                vbios_version="96.10.55.00.01",
                measurements=_measured(31),
            )
        return SimulatedGpu(leaf=leaf, model=model, fwid=fwid, measurements=_measured(MEASUREMENTS))

    def firmware_key(self, device: Signer, model: str, fwid: bytes) -> Signer:
        """The reporting key of a device that started the firmware `fwid`."""
        key = ec.generate_private_key(ec.SECP384R1())
        extension = (
            x509.UnrecognizedExtension(TCB_INFO, _tcb_info(fwid))
            if model.startswith("GB")
            else x509.UnrecognizedExtension(COMPOSITE_DEVICE_ID, _composite(key, fwid))
        )
        return device.issue(
            f"{_certified(model)} A01 GSP FMC LF",
            ca=False,
            extensions=((extension, False),),
            key=key,
        )

    def driver_rim(self, gpu: SimulatedGpu, *, version: str | None = None) -> bytes:
        """The manifest for a device's driver: its active measurements are those it shows now."""
        version = version or gpu.driver_version or "0.0"
        return self.sign(rim_text(golden(gpu, DRIVER_INDICES), version=version, product=gpu.model))

    def vbios_rim(self, gpu: SimulatedGpu, *, version: str | None = None) -> bytes:
        """The manifest for a device's VBIOS, likewise."""
        return self.sign(
            rim_text(
                golden(gpu, VBIOS_INDICES),
                version=version or gpu.vbios_version.upper(),
                product=gpu.model,
                edition="SWITCH" if gpu.model == "LS10" else "GPU",
            )
        )

    def sign(self, text: str, *, signer: Signer | None = None) -> bytes:
        """Sign a manifest, whatever it says, as NVIDIA signs its own."""
        from lxml import etree  # type: ignore[import-untyped] # it ships no types
        from signxml.algorithms import (
            CanonicalizationMethod,
            DigestAlgorithm,
            SignatureConstructionMethod,
            SignatureMethod,
        )
        from signxml.signer import XMLSigner

        signer = signer or self.rim_signer
        made = XMLSigner(
            method=SignatureConstructionMethod.enveloped,
            signature_algorithm=SignatureMethod.ECDSA_SHA384,
            digest_algorithm=DigestAlgorithm(DIGEST_SHA384),
            c14n_algorithm=CanonicalizationMethod.CANONICAL_XML_1_1,
        ).sign(etree.fromstring(text.encode()), key=signer.key, cert=list(signer.chain))
        written: bytes = etree.tostring(made)
        return written


def rim_text(
    active: Mapping[int, Sequence[bytes]],
    *,
    version: str,
    product: str = "GH100",
    edition: str = "GPU",
    size: int = MEASUREMENTS,
) -> str:
    """A manifest without signature; measurements that are not in `active` are not."""
    resources = "".join(
        _resource(index, active.get(index, (bytes(48),)), active=index in active)
        for index in range(size)
    )
    return (
        f'<SoftwareIdentity xmlns="{SWID}" xmlns:ns0="{SWID}" xmlns:ns2="{SHA384}"'
        f' name="{product}" tagId="{digest(product + version).hex()}" version="1.0">\n'
        '  <ns0:Entity name="Simulated" role="softwareCreator tagCreator"/>\n'
        f'  <ns0:Meta colloquialVersion="{version}" edition="{edition}" product="{product}"/>\n'
        f"  <ns0:Payload>{resources}</ns0:Payload>\n</SoftwareIdentity>"
    )


def digest(label: str) -> bytes:
    """SHA-384 of a label: a measurement of something made up."""
    return hashlib.sha384(label.encode()).digest()


def golden(gpu: SimulatedGpu, indices: Iterable[int]) -> dict[int, tuple[bytes, ...]]:
    """What a manifest lists for a device as it is now, with an alternative that it is not."""
    return {
        index: (digest("another accepted one"), gpu.measurements[index + 1])
        for index in indices
        if index + 1 in gpu.measurements
    }


def _resource(index: int, alternatives: Sequence[bytes], *, active: bool) -> str:
    values = "".join(
        f' ns2:Hash{number}="{value.hex()}"' for number, value in enumerate(alternatives)
    )
    return (
        f'<ns0:Resource type="Measurement" index="{index}" active="{active}"'
        f' alternatives="{len(alternatives)}"{values} name="Measurement_{index}" size="48"/>\n'
    )


def _measured(count: int) -> dict[int, bytes]:
    return {index: digest(f"measurement {index}") for index in range(1, count + 1)}


def _certified(model: str) -> str:
    """Switches are ``LS_10`` in certificates, and ``LS10`` elsewhere."""
    return "LS_10" if model == "LS10" else model


def _packed(version: str) -> bytes:
    """A VBIOS version as GPUs report it (`cloister.evidence.nvgpu`)."""
    *four, last = bytes.fromhex(version.replace(".", ""))
    return bytes((*reversed(four), last, 0, 0, 0))


def _composite(key: ec.EllipticCurvePrivateKey, fwid: bytes) -> bytes:
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return _der(0x30, _der(0x02, b"\x01") + spki + _der(0x30, _SHA384_DIGEST + fwid))


def _tcb_info(fwid: bytes) -> bytes:
    lists = b"".join(_der(0x30, _SHA384_DIGEST + one) for one in (fwid, bytes(48)))
    return _der(0x30, _der(0x80, b"NVIDIA") + _der(0xA6, lists))


def _der(tag: int, body: bytes) -> bytes:
    size = bytes((len(body),)) if len(body) < 0x80 else bytes((0x81, len(body)))
    return bytes((tag,)) + size + body


def _root(name: str, not_before: datetime) -> Signer:
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = _certificate(
        key.public_key(), _name(name), _name(name), key, ca=True, validity=(not_before, FOREVER)
    )
    return Signer(key=key, certificate=certificate)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Simulated"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _certificate(
    public_key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
    validity: tuple[datetime, datetime],
    signs: bool = False,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA384())
