"""Authenticates the certificate of an attestation key (AK) against a vendor's pinned roots.

Steps, each with one claim:

1. ``ak.format``: certificate and intermediates decode.
2. ``ak.chain``: signatures lead to a pinned root of the vendor.
3. ``ak.time``: every certificate is valid at the time of verification.
4. ``ak.purpose``: it was issued for attestation keys, for signing, and to no CA.
5. ``ak.matches``: the certified key is the one that the quote is checked with.
6. ``ak.denied``: the policy denies no certificate of the chain.

Revocation lists of these vendors are not looked at.

Source: RFC 5280; TCG "EK Credential Profile", version 2.5 (extended key usages).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from cloister.endorsements.ak import AkKey, certified_key, parse_ak_certificate, same_key
from cloister.endorsements.roots import Roots, Vendor, fingerprints
from cloister.errors import MalformedError
from cloister.verifier.chain import Chain, ChainFault, authenticate_chain
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, Unchecked

FORMAT: Final = "ak.format"
CHAIN: Final = "ak.chain"
TIME: Final = "ak.time"
PURPOSE: Final = "ak.purpose"
MATCHES: Final = "ak.matches"
DENIED: Final = "ak.denied"

CLAIMS: Final = (FORMAT, CHAIN, TIME, PURPOSE, MATCHES)
"""Every one of these makes the key an attestation key of the vendor's."""

MAX_INTERMEDIATES: Final = 8

_UNDERSTOOD: Final = (
    # Names the TPM's make; nothing is decided by it.
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.EXTENDED_KEY_USAGE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AkEvidence:
    """What vouches for a quoting key: its certificate, and those of CAs above it."""

    certificate: bytes
    """DER, or PEM; padding as in the TPM's NV memory may follow."""
    intermediates: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AkFindings:
    """What became of the certificate."""

    certificate: x509.Certificate | None
    key: AkKey | None
    chain: Chain | None

    @property
    def development(self) -> bool:
        """Whether it leads to the root of a simulated vendor."""
        anchor = None if self.chain is None else self.chain.anchor
        return anchor is not None and anchor.development


def claim_names(policy: AppraisalPolicy) -> tuple[str, ...]:
    """The claims made under `policy`, in order."""
    return CLAIMS if isinstance(policy.denied, Unchecked) else (*CLAIMS, DENIED)


def authenticate_ak(
    evidence: AkEvidence,
    key: AkKey | None,
    *,
    alone: bool = False,
    vendor: Vendor,
    usages: Sequence[x509.ObjectIdentifier],
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    ledger: Ledger,
) -> AkFindings:
    """Run every step, adding `claim_names(policy)` to `ledger`.

    `key` is the quoting key as known from elsewhere; ``None`` if it does not decode, which leaves
    step 5 undecided. With `alone` the certificate alone says which key it is, and step 5 holds of
    itself. One of `usages` must be in the certificate.
    """
    try:
        certificate = parse_ak_certificate(evidence.certificate)
        certified = certified_key(certificate)
        if len(evidence.intermediates) > MAX_INTERMEDIATES:
            raise MalformedError(f"more than {MAX_INTERMEDIATES} intermediates came along")
        candidates = tuple(map(parse_ak_certificate, evidence.intermediates))
    except MalformedError as error:
        ledger.refuse(FORMAT, "malformed", f"The quoting key's certificate is refused: {error}.")
        return AkFindings(certificate=None, key=None, chain=None)
    ledger.affirm(FORMAT, "The quoting key's certificate decodes.")
    chain = authenticate_chain(
        certificate,
        (*candidates, *roots.intermediates),
        anchors=roots.vendor(vendor),
        at=at,
        understood=_UNDERSTOOD,
    )
    _chain(chain, vendor, ledger)
    _purpose(certificate, usages, ledger)
    if alone or key is not None:
        ledger.check(
            MATCHES,
            holds=key is None or same_key(key, certified),
            affirmed="The certified key is the one that quotes.",
            code="bad_ak_binding",
            refused="The certificate is for another key than the one that quotes.",
        )
    _denied(chain, policy, ledger)
    return AkFindings(certificate=certificate, key=certified, chain=chain)


def _chain(chain: Chain, vendor: Vendor, ledger: Ledger) -> None:
    """Steps 2 and 3."""
    bad = chain.fault(ChainFault.BAD_CHAIN, ChainFault.REVOKED, ChainFault.CRL_SIGNATURE)
    ledger.check(
        CHAIN,
        holds=bad is None and chain.anchor is not None,
        affirmed=f"The quoting key's certificate leads to a pinned root of {vendor}.",
        code="bad_chain",
        refused="" if bad is None else bad[1],
    )
    expired = chain.fault(ChainFault.EXPIRED)
    ledger.check(
        TIME,
        holds=expired is None,
        affirmed="Every certificate of the quoting key is valid at this time.",
        code="expired",
        refused="" if expired is None else expired[1],
    )


def _purpose(
    certificate: x509.Certificate, usages: Sequence[x509.ObjectIdentifier], ledger: Ledger
) -> None:
    """Step 4."""
    found: list[x509.ObjectIdentifier] = []
    signs, authority = True, False
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage):
            found += value
        elif isinstance(value, x509.KeyUsage):
            signs = value.digital_signature
        elif isinstance(value, x509.BasicConstraints):
            authority = value.ca
    ledger.check(
        PURPOSE,
        holds=signs and not authority and not set(usages).isdisjoint(found),
        affirmed="The certificate was issued for an attestation key.",
        code="ak_purpose",
        refused="The certificate of the quoting key was not issued for an attestation key.",
    )


def _denied(chain: Chain, policy: AppraisalPolicy, ledger: Ledger) -> None:
    """Step 6."""
    if isinstance(policy.denied, Unchecked):
        return
    denied = policy.denied
    found = sorted(
        digest
        for certificate in (chain.certificates if denied else ())
        for digest in fingerprints(certificate).intersection(denied)
    )
    ledger.check(
        DENIED,
        holds=not found,
        affirmed="No certificate of the quoting key is on your list of denied digests.",
        code="denied",
        refused=f"Your policy denies {', '.join(found)}.",
    )
