"""A simulated TPM with several banks, the boot of a machine, and CAs that certify quoting keys.

For tests of verifiers of plain quotes and of cloud providers' virtual TPMs. Structures are byte for
byte those of a TPM 2.0 and of PC firmware; keys live in this process, and every root is marked as
development: only a policy that names development affirms what chains to it::

    vtpm = SimulatedVtpm()
    vtpm.boot()
    vendor = SimulatedAkVendor(Vendor.GOOGLE_VTPM, now=now)
    evidence = GcpEvidence(
        quotes=(vtpm.quote(nonce),),
        ak=AkEvidence(certificate=vendor.certify(vtpm.key.public_key())),
        event_log=vtpm.event_log(),
    )
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.endorsements.ak import AK_ATTRIBUTES, TCG_KP_AIK_CERTIFICATE
from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.evidence.efi import GLOBAL_VARIABLE, variable_data
from cloister.evidence.eventlog import PCR_COUNT, Event, EventType, encode_event_log
from cloister.evidence.pcrs import PcrValues
from cloister.evidence.tpm import (
    HASH_NAMES,
    Alg,
    ClockInfo,
    Curve,
    EcdsaSignature,
    ObjectAttribute,
    PcrSelection,
    encode_ecdsa_signature,
    encode_quote,
    pcr_digest,
    sized,
)
from cloister.verifier.authenticate.tpm_quote import QuoteEvidence

SIMULATED_FIRMWARE: Final = 0x5349_4D55_4C41_5445
"""Firmware version in simulated quotes: the letters ``SIMULATE``."""

DEFAULT_BANKS: Final = (Alg.SHA1, Alg.SHA256, Alg.SHA384)

DEFAULT_REGISTERS: Final = tuple(range(PCR_COUNT))

_HASHES: Final = {
    Alg.SHA1: hashes.SHA1(),  # noqa: S303 - to make the signatures that verifiers must refuse
    Alg.SHA256: hashes.SHA256(),
    Alg.SHA384: hashes.SHA384(),
    Alg.SHA512: hashes.SHA512(),
}

QuotingKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def simulated_rsa_key(name: str = "AK") -> rsa.RSAPrivateKey:
    """The RSA key called `name`, the same for the life of the process: making one is slow."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class SimulatedVtpm:
    """Registers in several banks, a quoting key, and the log of what was measured."""

    def __init__(
        self,
        *,
        key: QuotingKey | None = None,
        banks: Sequence[int] = DEFAULT_BANKS,
        clock_info: ClockInfo | None = None,
    ) -> None:
        self.key: QuotingKey = key or simulated_rsa_key()
        self.banks = tuple(banks)
        self.registers = {
            bank: {
                pcr: (b"\xff" if 17 <= pcr <= 22 else b"\0") * _size(bank)
                for pcr in range(PCR_COUNT)
            }
            for bank in self.banks
        }
        self.events: list[Event] = []
        self.clock_info = clock_info or ClockInfo(
            clock=60_000, reset_count=1, restart_count=0, safe=True
        )

    def measure(self, pcr: int, kind: int, data: bytes, covered: bytes | None = None) -> Event:
        """Measure `covered` (by default `data`), extend `pcr` by it, and log `data` beside it."""
        measured = data if covered is None else covered
        digests = {int(bank): _digest(bank, measured) for bank in self.banks}
        event = Event(pcr=pcr, type=kind, digests=digests, data=data)
        self.extend(event)
        self.events.append(event)
        return event

    def extend(self, event: Event) -> None:
        """Extend an event's digests into its register, in every bank (Part 3 section 22.2)."""
        for bank, registers in self.registers.items():
            registers[event.pcr] = _digest(bank, registers[event.pcr] + event.digests[bank])

    def boot(
        self, *, secure_boot: bool = True, command_line: str = "/vmlinuz root=/dev/vda ro"
    ) -> None:
        """Measure an ordinary boot: firmware, boot loader, kernel, the end of boot services."""
        self.measure(0, EventType.EV_S_CRTM_VERSION, "SIMULATED".encode("utf-16-le"))
        state = variable_data(GLOBAL_VARIABLE, "SecureBoot", bytes([secure_boot]))
        self.measure(7, EventType.EV_EFI_VARIABLE_DRIVER_CONFIG, state)
        self.measure(7, EventType.EV_SEPARATOR, bytes(4))
        for pcr in range(7):
            self.measure(pcr, EventType.EV_SEPARATOR, bytes(4))
        self.measure(4, EventType.EV_EFI_BOOT_SERVICES_APPLICATION, b"a device path", b"GRUB")
        text = f"kernel_cmdline: {command_line}\0".encode()
        self.measure(8, EventType.EV_IPL, text, command_line.encode())
        self.measure(4, EventType.EV_EFI_BOOT_SERVICES_APPLICATION, b"a device path", b"Linux")
        for action in (
            b"Exit Boot Services Invocation",
            b"Exit Boot Services Returned with Success",
        ):
            self.measure(5, EventType.EV_EFI_ACTION, action)

    def event_log(self) -> bytes:
        """The log, in the crypto-agile format."""
        return encode_event_log(self.events, banks=self.banks)

    def pcrs(self, *selections: PcrSelection) -> PcrValues:
        """Values of the selected registers."""
        return {
            choice.hash_algorithm: {
                pcr: self.registers[choice.hash_algorithm][pcr] for pcr in choice.pcrs
            }
            for choice in selections
        }

    def quote(
        self,
        extra_data: bytes = b"",
        *,
        bank: int = Alg.SHA256,
        pcrs: Sequence[int] = DEFAULT_REGISTERS,
        scheme: int = Alg.RSASSA,
        hash_algorithm: int = Alg.SHA256,
        bare: bool = False,
    ) -> QuoteEvidence:
        """A quote over `pcrs` of `bank`, with their values.

        `scheme` is for RSA keys. `bare` leaves out the header of the signature, as Azure does.
        """
        selection = PcrSelection(hash_algorithm=int(bank), pcrs=tuple(pcrs))
        values = self.pcrs(selection)
        quote = encode_quote(
            qualified_signer=b"\x00\x0b" + hashlib.sha256(b"simulated").digest(),
            extra_data=extra_data,
            clock_info=self.clock_info,
            firmware_version=SIMULATED_FIRMWARE,
            selections=(selection,),
            pcr_digest=pcr_digest(
                (selection,),
                {(int(bank), pcr): value for pcr, value in values[int(bank)].items()},
                hash_algorithm=hash_algorithm,
            ),
        )
        return QuoteEvidence(
            quote=quote,
            signature=self.sign(quote, scheme=scheme, hash_algorithm=hash_algorithm, bare=bare),
            pcrs=values,
            bare_signature=bare,
        )

    def sign(
        self,
        message: bytes,
        *,
        scheme: int = Alg.RSASSA,
        hash_algorithm: int = Alg.SHA256,
        bare: bool = False,
    ) -> bytes:
        """Sign anything at all with the quoting key, which no real TPM would do."""
        algorithm = _HASHES[Alg(hash_algorithm)]
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(algorithm)))
            size = (self.key.key_size + 7) // 8
            pair = EcdsaSignature(hash_algorithm=hash_algorithm, r=r, s=s)
            return encode_ecdsa_signature(pair, size=size)
        mode: padding.AsymmetricPadding = padding.PKCS1v15()
        if scheme == Alg.RSAPSS:
            salt = padding.PSS.DIGEST_LENGTH
            mode = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=salt)
        signature = self.key.sign(message, mode, algorithm)
        head = scheme.to_bytes(2, "big") + hash_algorithm.to_bytes(2, "big")
        return signature if bare else head + sized(signature)

    def public(self, *, attributes: int = AK_ATTRIBUTES | ObjectAttribute.USER_WITH_AUTH) -> bytes:
        """``TPMT_PUBLIC`` of the quoting key."""
        numbers = self.key.public_key().public_numbers()
        if isinstance(numbers, rsa.RSAPublicNumbers):
            kind, scheme = Alg.RSA, Alg.RSASSA
            size = (self.key.key_size + 7) // 8
            key = self.key.key_size.to_bytes(2, "big") + bytes(4)
            key += sized(numbers.n.to_bytes(size, "big"))
        else:
            kind, scheme = Alg.ECC, Alg.ECDSA
            size = (self.key.key_size + 7) // 8
            key = _CURVES[numbers.curve.name].to_bytes(2, "big") + Alg.NULL.to_bytes(2, "big")
            key += sized(numbers.x.to_bytes(size, "big")) + sized(numbers.y.to_bytes(size, "big"))
        return b"".join(
            (
                kind.to_bytes(2, "big"),
                Alg.SHA256.to_bytes(2, "big"),
                int(attributes).to_bytes(4, "big"),
                sized(b""),
                Alg.NULL.to_bytes(2, "big"),
                scheme.to_bytes(2, "big") + Alg.SHA256.to_bytes(2, "big"),
                key,
            )
        )


class SimulatedAkVendor:
    """A root and an intermediate CA of a vendor's, which certify any key as a quoting key."""

    def __init__(self, vendor: Vendor, *, now: datetime) -> None:
        self.vendor = vendor
        self.now = now
        self._root_key = ec.generate_private_key(ec.SECP256R1())
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(f"Simulated {vendor} CA")
        root = _name(f"Simulated {vendor} root")
        self.root = self._authority(root, root, self._root_key.public_key())
        self.intermediate = self._authority(self._name, root, self._key.public_key())

    @property
    def roots(self) -> Roots:
        """The root, marked as development."""
        anchor = Anchor(vendor=self.vendor, certificate=self.root, development=True)
        return Roots(anchors=(anchor,))

    @property
    def intermediates(self) -> tuple[bytes, ...]:
        """The intermediate CA in DER, as evidence brings it."""
        return (self.intermediate.public_bytes(Encoding.DER),)

    def certify(
        self,
        public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
        *,
        usages: Iterable[x509.ObjectIdentifier] = (TCG_KP_AIK_CERTIFICATE,),
        ca: bool = False,
        may_sign: bool = True,
        extensions: Iterable[x509.ExtensionType] = (),
        critical: bool = False,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        padding_bytes: int = 0,
    ) -> bytes:
        """Certify a key in DER, followed by `padding_bytes` zeros as in a TPM's NV memory.

        `critical` is whether those of `extensions` are.
        """
        builder = (
            self._builder(_name("Simulated quoting key"), self._name, not_before, not_after)
            .public_key(public_key)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(_usage(signs=may_sign, certifies=False), critical=True)
        )
        listed = list(usages)
        if listed:
            builder = builder.add_extension(x509.ExtendedKeyUsage(listed), critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=critical)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(Encoding.DER) + bytes(padding_bytes)

    def _authority(
        self, name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.Certificate:
        return (
            self._builder(name, issuer, None, None)
            .public_key(key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs=False, certifies=True), critical=True)
            .sign(self._root_key, hashes.SHA256())
        )

    def _builder(
        self,
        name: x509.Name,
        issuer: x509.Name,
        not_before: datetime | None,
        not_after: datetime | None,
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or self.now - timedelta(days=1))
            .not_valid_after(not_after or self.now + timedelta(days=365))
        )


_CURVES: Final = {
    "secp256r1": Curve.NIST_P256,
    "secp384r1": Curve.NIST_P384,
    "secp521r1": Curve.NIST_P521,
}


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs: bool, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=not signs and not certifies,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certifies,
        crl_sign=certifies,
        encipher_only=False,
        decipher_only=False,
    )


def _digest(bank: int, data: bytes) -> bytes:
    return hashlib.new(HASH_NAMES[bank], data).digest()


def _size(bank: int) -> int:
    return hashlib.new(HASH_NAMES[bank]).digest_size
