"""Certificate chains to pinned vendor roots (RFC 5280 section 6.1), by one set of rules.

By hand rather than with `cryptography.x509.verification`: AMD's chain is signed with RSA-PSS,
which does not pass there, vendors' leaves lack extensions that it demands, and its one error
cannot tell a forged signature from an expired certificate, which people need to know
(docs/adr/0005-one-chain-verifier.md).

What is checked of every certificate but the leaf: it may sign certificates (basic constraints,
path length, key usage). Of every certificate: name chaining, the issuer's signature, no critical
extension that nobody looks at, validity at the time of verification, and revocation where
lists are given. A pinned root is recognised by name and public key, for roots are
reissued with the same key; its own dates are checked, its own signature is not.
What a leaf may be used for is for the caller to check.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from cloister.endorsements.certificates import serial_number
from cloister.endorsements.roots import Anchor, name_of

MAX_DEPTH: Final = 8
"""Longest chain, leaf and root included; the longest in use are NVIDIA's and Nitro's, with 5."""

MAX_CANDIDATES: Final = 32
"""Certificates looked through for issuers, so that a heap of namesakes costs nothing."""

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
MAX_RSA_EXPONENT: Final = (1 << 32) - 1
"""Vendors' keys have 2048 or 4096 bits and the exponent 65537. Checking one signature by a key that
somebody made up with an exponent as long as its modulus takes a hundred times as long."""

REMEMBERED: Final = 256
"""Signatures of CAs on CAs that are remembered; all vendors' together are some dozens."""

_UNDERSTOOD: Final = frozenset({ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE})
_HASHES: Final = (SHA256, SHA384, SHA512)


class ChainFault(enum.StrEnum):
    """Why a chain is refused; the words are codes of claims."""

    BAD_CHAIN = "bad_chain"
    """It leads to no pinned root, a signature in it is forged, or a CA is none."""
    EXPIRED = "expired"
    """A certificate, or a revocation list, is not valid at the time of verification."""
    REVOKED = "revoked"
    CRL_SIGNATURE = "crl_signature"
    """A revocation list was not signed by the CA that it names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What became of one chain. `anchor` is set if signatures lead to a pinned root.

    Dates and revocation are apart, for a person wants to know that a chain is genuine
    and expired: only where `faults` is empty may the leaf be believed.
    """

    certificates: tuple[x509.Certificate, ...]
    """Leaf first, the pinned root last; the leaf alone where no chain was found."""
    anchor: Anchor | None
    faults: tuple[tuple[ChainFault, str], ...]
    """Each with a sentence for people."""

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate the chain begins with."""
        return self.certificates[0]

    @property
    def holds(self) -> bool:
        """Whether nothing at all is wrong with it."""
        return self.anchor is not None and not self.faults

    def fault(self, *kinds: ChainFault) -> tuple[ChainFault, str] | None:
        """The first fault of one of `kinds`."""
        return next((fault for fault in self.faults if fault[0] in kinds), None)


def authenticate_chain(
    leaf: x509.Certificate,
    candidates: Iterable[x509.Certificate],
    *,
    anchors: Sequence[Anchor],
    at: datetime,
    crls: Sequence[x509.CertificateRevocationList] = (),
    require_crls: bool = False,
    understood: Iterable[x509.ObjectIdentifier] = (),
) -> Chain:
    """Lead `leaf` through `candidates` to one of `anchors`, and look at dates and revocation.

    `understood` are critical extensions of the leaf that the caller checks. With `require_crls`,
    a certificate for whose issuer there is no list is a fault; otherwise only those lists that
    are given are looked at.
    """
    pool = list(candidates)
    if len(pool) > MAX_CANDIDATES:  # few do no harm twice, and hashing them takes its time
        pool = list(dict.fromkeys(pool))[:MAX_CANDIDATES]
    path, anchor = _path(leaf, pool, anchors, frozenset(understood))
    if anchor is None:
        sentence = f"The certificate {name_of(leaf)!r} leads to no root that is pinned."
        faults = [(ChainFault.BAD_CHAIN, sentence), *_dates((leaf,), at)]
        return Chain(certificates=(leaf,), anchor=None, faults=tuple(faults))
    faults = [*_dates(path, at), *_revocation(path, crls, at, required=require_crls)]
    return Chain(certificates=path, anchor=anchor, faults=tuple(faults))


def issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `issuer` signed `certificate` and is named in it, with an algorithm still in use."""
    if certificate.issuer != issuer.subject or not _strong(certificate, issuer):
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


@lru_cache(maxsize=REMEMBERED)
def _issued_a_ca(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """`issued`, remembered: the same few CAs stand above every leaf, and a signature on P-384
    takes longer to check than everything else about a report. Depends on the two alone."""
    return issued(certificate, issuer)


def _path(
    leaf: x509.Certificate,
    pool: list[x509.Certificate],
    anchors: Sequence[Anchor],
    understood: frozenset[x509.ObjectIdentifier],
) -> tuple[tuple[x509.Certificate, ...], Anchor | None]:
    """The first way from `leaf` to an anchor. Each certificate is tried once: no cycles."""
    path = [leaf]
    if not _knows_all_critical(leaf, understood):
        return (leaf,), None
    while len(path) < MAX_DEPTH:
        last = path[-1]
        signed = issued if last is leaf else _issued_a_ca
        for anchor in anchors:
            root = anchor.certificate
            if _may_sign(root, below=len(path) - 1) and signed(last, root):
                return (*path, root), anchor
        issuer = next(
            (
                candidate
                for candidate in pool
                if candidate not in path
                and _may_sign(candidate, below=len(path) - 1)
                and _knows_all_critical(candidate, frozenset())
                and signed(last, candidate)
            ),
            None,
        )
        if issuer is None:
            break
        path.append(issuer)
    return (leaf,), None


def same_key(one: x509.Certificate, other: x509.Certificate) -> bool:
    """Whether two certificates are for one name and one public key, which can be read."""
    try:
        return one.subject == other.subject and _spki(one) == _spki(other)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _may_sign(certificate: x509.Certificate, *, below: int) -> bool:
    """RFC 5280 section 6.1.4, steps k to n, for a CA with `below` CAs under it in the path."""
    constraints = usage = None
    for extension in certificate.extensions:
        if extension.oid not in _UNDERSTOOD:  # asking a class of theirs takes ten times as long
            continue
        if isinstance(extension.value, x509.BasicConstraints):
            constraints = extension.value
        elif isinstance(extension.value, x509.KeyUsage):
            usage = extension.value
    if constraints is None or not constraints.ca:
        return False
    if constraints.path_length is not None and constraints.path_length < below:
        return False
    return usage is None or usage.key_cert_sign


def _knows_all_critical(
    certificate: x509.Certificate, understood: frozenset[x509.ObjectIdentifier]
) -> bool:
    return all(
        not extension.critical or extension.oid in _UNDERSTOOD or extension.oid in understood
        for extension in certificate.extensions
    )


def _strong(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Neither SHA-1 nor a short key, nor one that takes long to use; kinds of keys other than RSA
    and ECDSA sign no chain here."""
    try:
        key, algorithm = issuer.public_key(), certificate.signature_hash_algorithm
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    if not isinstance(algorithm, _HASHES):
        return False
    if isinstance(key, rsa.RSAPublicKey):
        fits = MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS
        return fits and key.public_numbers().e <= MAX_RSA_EXPONENT
    return isinstance(key, ec.EllipticCurvePublicKey)


def _dates(path: Sequence[x509.Certificate], at: datetime) -> Iterable[tuple[ChainFault, str]]:
    for certificate in path:
        if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
            yield (
                ChainFault.EXPIRED,
                f"The certificate {name_of(certificate)!r} is valid from"
                f" {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to"
                f" {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and not at the time of"
                " verification.",
            )


def _revocation(
    path: tuple[x509.Certificate, ...],
    crls: Sequence[x509.CertificateRevocationList],
    at: datetime,
    *,
    required: bool,
) -> Iterable[tuple[ChainFault, str]]:
    """RFC 5280 section 6.3, for complete lists that the certificates' own issuers sign."""
    for certificate, issuer in pairwise(path):
        own = [crl for crl in crls if crl.issuer == issuer.subject]
        if not own and required:
            yield (
                ChainFault.REVOKED,
                f"There is no revocation list of {name_of(issuer)!r}, and the policy requires one.",
            )
        for crl in own:
            yield from _listed(certificate, issuer, crl, at)


def _listed(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    crl: x509.CertificateRevocationList,
    at: datetime,
) -> Iterable[tuple[ChainFault, str]]:
    if not signed_crl(crl, issuer):
        yield (
            ChainFault.CRL_SIGNATURE,
            f"The revocation list of {name_of(issuer)!r} was not signed by that CA.",
        )
        return
    until = crl.next_update_utc
    if until is None or not crl.last_update_utc <= at <= until:
        yield (
            ChainFault.EXPIRED,
            f"The revocation list of {name_of(issuer)!r} is not current at the time of"
            " verification.",
        )
    if crl.get_revoked_certificate_by_serial_number(serial_number(certificate)) is not None:
        yield ChainFault.REVOKED, f"The certificate {name_of(certificate)!r} was revoked."


def signed_crl(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Whether `issuer` signed `crl`, is allowed to, and nothing critical in it is unknown."""
    try:
        key = issuer.public_key()
        usages = [
            extension.value.crl_sign
            for extension in issuer.extensions
            if isinstance(extension.value, x509.KeyUsage)
        ]
        if not all(usages) or any(extension.critical for extension in crl.extensions):
            return False
        if not isinstance(crl.signature_hash_algorithm, _HASHES):
            return False
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            return False
        return crl.is_signature_valid(key)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        return False
