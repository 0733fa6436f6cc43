"""Chains to NVIDIA's roots, of devices and of manifests' signers: one set of claims for both.

Three claims, named after a prefix: ``<prefix>chain``, ``<prefix>validity`` and, where revocation
lists are there or have to be, ``<prefix>revocation``.

NVIDIA publishes lists for some of its CAs, and answers questions (OCSP) about others; a
certificate names where. Those that name nothing, such as a device's reporting key, cannot be
revoked. Lists and answers come with the evidence or from a cache; nobody is asked here.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.endorsements.certificates import serial_number
from cloister.endorsements.nvidia import names_revocation
from cloister.endorsements.ocsp import CertificateStatus, check_answer, parse_ocsp
from cloister.endorsements.roots import Anchor, name_of
from cloister.errors import AuthenticationError, MalformedError
from cloister.verifier.chain import Chain, ChainFault
from cloister.verifier.ledger import Ledger

CHAIN: Final = "chain"
VALIDITY: Final = "validity"
REVOCATION: Final = "revocation"

_Fault: TypeAlias = tuple[ChainFault, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """What is known about revocation, and how much has to be."""

    crls: tuple[x509.CertificateRevocationList, ...] = ()
    answers: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict)
    """OCSP responses in DER (RFC 6960), by the serial number they are about (`by_serial`)."""
    authorities: tuple[x509.Certificate, ...] = ()
    """Who besides a certificate's issuer may name the responder for it: the pinned roots."""
    required: bool = False
    """Whether every certificate that can be revoked must be shown not to be."""
    _judged: dict[tuple[x509.Certificate, x509.Certificate, datetime], _Fault | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def asked(self) -> bool:
        """Whether there is anything to claim about it."""
        return self.required or bool(self.crls) or bool(self.answers)

    def apply(self, chain: Chain, at: datetime) -> Chain:
        """`chain` with what the OCSP answers say of it; the lists have been looked at before."""
        faults = [
            fault
            for certificate, issuer in pairwise(chain.certificates)
            if (fault := self._first_fault(certificate, issuer, at)) is not None
        ]
        return dataclasses.replace(chain, faults=(*chain.faults, *faults)) if faults else chain

    def missing(self, chain: Chain) -> tuple[str, ...]:
        """Certificates in `chain` about which there is neither a list nor an answer."""
        listed = {crl.issuer for crl in self.crls}
        return tuple(
            name_of(certificate)
            for certificate, issuer in pairwise(chain.certificates)
            if names_revocation(certificate)
            and issuer.subject not in listed
            and not self._about(certificate)
        )

    def _about(self, certificate: x509.Certificate) -> tuple[bytes, ...]:
        return self.answers.get(serial_number(certificate), ()) if self.answers else ()

    def _first_fault(
        self, certificate: x509.Certificate, issuer: x509.Certificate, at: datetime
    ) -> _Fault | None:
        """What the first answer says that is not good. Evidence may bring a thousand answers, and
        hundreds of chains that they are about: each is looked at once, and none after a bad one."""
        answers = self._about(certificate)
        if not answers:
            return None
        key = (certificate, issuer, at)
        if key not in self._judged:
            judged = (self._fault(answer, certificate, issuer, at) for answer in answers)
            self._judged[key] = next((fault for fault in judged if fault is not None), None)
        return self._judged[key]

    def _fault(
        self,
        answer: bytes,
        certificate: x509.Certificate,
        issuer: x509.Certificate,
        at: datetime,
    ) -> _Fault | None:
        try:
            status = check_answer(
                answer, certificate, issuer, at=at, authorities=self.authorities
            ).status
        except (AuthenticationError, MalformedError) as error:
            return ChainFault.CRL_SIGNATURE, f"An answer about revocation is refused: {error}."
        if status is CertificateStatus.GOOD:
            return None
        return ChainFault.REVOKED, f"NVIDIA answers that {name_of(certificate)!r} is {status}."


def by_serial(answers: Iterable[bytes]) -> dict[int, tuple[bytes, ...]]:
    """OCSP responses, sorted for `Revocation`; those that do not decode answer nothing."""
    found: dict[int, tuple[bytes, ...]] = {}
    for answer in answers:
        with contextlib.suppress(MalformedError):
            serial = parse_ocsp(answer).serial_number
            found[serial] = (*found.get(serial, ()), answer)
    return found


def chain_claims(prefix: str, revocation: Revocation) -> tuple[str, ...]:
    """Names of the claims that `record_chain` makes, in order."""
    names = (CHAIN, VALIDITY, REVOCATION) if revocation.asked else (CHAIN, VALIDITY)
    return tuple(f"{prefix}{name}" for name in names)


def signing_key(leaf: x509.Certificate) -> ec.EllipticCurvePublicKey | None:
    """The P-384 key of a certificate that signs, and issues no certificates; ``None`` otherwise."""
    usages = []
    for extension in leaf.extensions:
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            return None
        if isinstance(extension.value, x509.KeyUsage):
            usages.append(extension.value.digital_signature)
    try:
        key = leaf.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    if usages != [True] or not isinstance(key, ec.EllipticCurvePublicKey):
        return None
    return key if isinstance(key.curve, ec.SECP384R1) else None


def chain_holds(chain: Chain, revocation: Revocation) -> bool:
    """Whether nothing that `record_chain` would say is wrong."""
    if not chain.holds or signing_key(chain.leaf) is None:
        return False
    return not (revocation.required and revocation.missing(chain))


def record_chain(
    prefix: str, chain: Chain, revocation: Revocation, ledger: Ledger, *, codes: str = ""
) -> None:
    """Make the claims of `chain_claims`; `codes` is put before the code of each fault."""
    _record_issuers(f"{prefix}{CHAIN}", chain, ledger, codes)
    expired = chain.fault(ChainFault.EXPIRED)
    if expired is not None:
        ledger.refuse(f"{prefix}{VALIDITY}", f"{codes}{expired[0]}", expired[1])
    elif chain.anchor is not None:
        ledger.affirm(f"{prefix}{VALIDITY}", "Every certificate of the chain is valid at the time.")
    if revocation.asked and chain.anchor is not None:
        _record_revocation(f"{prefix}{REVOCATION}", chain, revocation, ledger, codes)


def redated(chain: Chain, *, anchors: Sequence[Anchor], at: datetime) -> Chain:
    """`chain`, whose signatures held before, as it stands at another time and with other pins."""
    if chain.anchor not in anchors:
        sentence = "The chain was authenticated to a root that is no longer pinned."
        return Chain(
            certificates=chain.certificates,
            anchor=None,
            faults=((ChainFault.BAD_CHAIN, sentence),),
        )
    faults = tuple(
        (ChainFault.EXPIRED, f"The certificate {name_of(certificate)!r} is not valid at the time.")
        for certificate in chain.certificates
        if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc
    )
    return dataclasses.replace(chain, faults=faults)


def _record_issuers(name: str, chain: Chain, ledger: Ledger, codes: str) -> None:
    bad = chain.fault(ChainFault.BAD_CHAIN)
    if bad is not None:
        ledger.refuse(name, f"{codes}{bad[0]}", bad[1])
        return
    ledger.check(
        name,
        holds=signing_key(chain.leaf) is not None,
        affirmed=f"The certificate leads to a root of NVIDIA's that you pinned, over"
        f" {len(chain.certificates) - 2} intermediate ones.",
        code=f"{codes}{ChainFault.BAD_CHAIN}",
        refused="The chain does not begin with the certificate of a P-384 key that signs reports.",
    )


def _record_revocation(
    name: str, chain: Chain, revocation: Revocation, ledger: Ledger, codes: str
) -> None:
    fault = chain.fault(ChainFault.REVOKED, ChainFault.CRL_SIGNATURE)
    missing = revocation.missing(chain) if revocation.required else ()
    if fault is not None:
        ledger.refuse(name, f"{codes}{fault[0]}", fault[1])
    elif missing:
        ledger.refuse(
            name,
            "endorsements_missing",
            f"Whether {missing[0]!r} was revoked is not shown, and the policy requires that it is.",
            value="not_present",
        )
    else:
        ledger.affirm(name, "No certificate of the chain is said to be revoked.")
