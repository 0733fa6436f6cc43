"""The key of attested TLS: made in memory, named in every keyset, from start to stop the same.

Two certificates go with it, made anew with every keyset and good for as long as that is:

- the *pin*, a CA certificate that the key signs for itself: what a client pins;
- the *leaf*, which the same key signs under the pin's name: what the listener shows.

The pin's name and key never change, so a leaf of today satisfies a pin of an hour ago; its dates
do, so tools that know nothing of keysets stop trusting a pin when its keyset ends (`aci/1` section
3.1, ``not_after``). One self-signed certificate for both would do neither, and strict clients
refuse a CA certificate as a server's.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_BACKDATED_S: Final = 300
"""Clients' clocks may be behind by this much, as for sealed requests (`Limits.date_window_s`)."""
_NOBODY: Final = "none.invalid"
_NOWHERE: Final = ipaddress.ip_address("0.0.0.0")  # noqa: S104 - nobody's address, bound nowhere

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """The two certificates of one keyset, in PEM."""

    pin: bytes
    leaf: bytes


class TlsKey:
    """An ECDSA key on P-256 for `names`: DNS names and IP addresses."""

    def __init__(self, names: Sequence[str], *, random: Callable[[int], bytes]) -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())
        public = self._private.public_key()
        spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.spki_sha256 = hashlib.sha256(spki).digest()
        self.names = tuple(names)
        self._random = random
        self._key_id = x509.SubjectKeyIdentifier.from_public_key(public)

    def __repr__(self) -> str:
        return f"TlsKey(spki_sha256={self.spki_sha256.hex()!r}, names={self.names!r})"

    def certificates(self, *, now: float, not_after: int) -> Certificates:
        """The two certificates, good until `not_after` (Unix times)."""
        dates = (_utc(int(now) - _BACKDATED_S), _utc(not_after))
        return Certificates(pin=self._pin(*dates), leaf=self._leaf(*dates))

    def load(self, context: ssl.SSLContext, leaf: bytes) -> None:
        """Have `context` show `leaf` in every handshake from now on. OSError when it cannot.

        The module `ssl` takes keys from files only: this one exists in memory, for a moment,
        without a name.
        """
        key = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file = os.memfd_create("tls", os.MFD_CLOEXEC)
        with contextlib.closing(os.fdopen(file, "wb", buffering=0)) as memory:
            memory.write(leaf + key)
            context.load_cert_chain(f"/proc/self/fd/{file}")

    def _pin(self, since: datetime, until: datetime) -> bytes:
        dns, addresses = _sorted(self.names)
        # Some tools add what they are given to the roots they have: there, too, it shall vouch
        # for nobody else. A kind of name that is not constrained would be free.
        permitted: list[x509.GeneralName] = [x509.DNSName(name) for name in dns or (_NOBODY,)]
        permitted += [
            x509.IPAddress(ipaddress.ip_network(address)) for address in addresses or (_NOWHERE,)
        ]
        return self._signed(
            self._name(),
            since,
            until,
            critical=(
                x509.BasicConstraints(ca=True, path_length=0),
                _usage(signs_certificates=True),
                x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None),
            ),
            others=(self._key_id,),
        )

    def _leaf(self, since: datetime, until: datetime) -> bytes:
        dns, addresses = _sorted(self.names)
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns]
        names += [x509.IPAddress(address) for address in addresses]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Cloister worker")])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._key_id)
        return self._signed(
            subject,
            since,
            until,
            critical=(
                x509.BasicConstraints(ca=False, path_length=None),
                _usage(signs_certificates=False),
            ),
            others=(self._key_id, issuer, x509.SubjectAlternativeName(names)),
        )

    def _name(self) -> x509.Name:
        text = f"Cloister worker {self.spki_sha256.hex()[:32]}"
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def _signed(
        self,
        subject: x509.Name,
        since: datetime,
        until: datetime,
        *,
        critical: Sequence[x509.ExtensionType],
        others: Sequence[x509.ExtensionType],
    ) -> bytes:
        # 20 octets, positive and not zero (RFC 5280 section 4.1.2.2).
        serial = int.from_bytes(self._random(20)) >> 1 | 1
        builder = x509.CertificateBuilder(
            issuer_name=self._name(),
            subject_name=subject,
            public_key=self._private.public_key(),
            serial_number=serial,
            not_valid_before=since,
            not_valid_after=until,
        )
        for extension in critical:
            builder = builder.add_extension(extension, critical=True)
        for extension in (*others, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])):
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self._private, hashes.SHA256()).public_bytes(Encoding.PEM)


def server_context() -> ssl.SSLContext:
    """TLS 1.3 and nothing older, without tickets and early data, for HTTP/1.1.

    Without tickets every connection is a handshake of its own, with a key agreement of its own:
    nothing from before opens it, and nobody is let in by what an earlier one left behind.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    context.set_alpn_protocols(["http/1.1"])
    return context


def _sorted(names: Sequence[str]) -> tuple[list[str], list[_Address]]:
    dns: list[str] = []
    addresses: list[_Address] = []
    for name in names:
        try:
            addresses.append(ipaddress.ip_address(name))
        except ValueError:
            dns.append(name)
    return dns, addresses


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _utc(at: int) -> datetime:
    return datetime.fromtimestamp(at, UTC)
