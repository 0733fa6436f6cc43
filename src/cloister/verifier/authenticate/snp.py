"""Authenticates an SEV-SNP report: that genuine AMD firmware on a genuine AMD chip made it.

Steps, each with one claim:

1. ``snp.signature``: the endorsement key in the leaf certificate signed the report.
2. ``snp.chain``: AMD certified that key: ARK (pinned) → ASK or ASVK → VCEK or VLEK.
3. ``snp.time``: all certificates, and revocation lists, are current.
4. ``snp.revocation``, where lists are given or required: none of them is revoked.
5. ``snp.certificate``: the leaf's extensions are well-formed, and leaf, issuer, root and report
   agree on the product.
6. ``snp.signing_key``: the report names the kind of key that signed it.
7. ``snp.certificate_tcb``: the leaf is for the REPORTED_TCB (the key was derived by it).
8. ``snp.chip_id``: the leaf is for the CHIP_ID.
9. ``snp.version``: the report's version is known, so that nothing in it was misread.

AMD revokes ASKs and ASVKs by lists that the ARK signs. A leaf, whose serial number is 0, cannot
be listed: AMD retires them by TCB, which is for the policy to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from cloister.endorsements.amd import (
    EndorsementKey,
    common_name,
    kind_of,
    parse_endorsement_key,
)
from cloister.endorsements.roots import Roots, Vendor
from cloister.errors import MalformedError
from cloister.evidence.snp import ECDSA_P384_SHA384, Product, SigningKey, SnpReport
from cloister.verifier.authenticated import Authenticated, _grant
from cloister.verifier.chain import Chain, ChainFault, authenticate_chain
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, Unchecked
from cloister.verifier.result import Source

SIGNATURE: Final = "snp.signature"
CHAIN: Final = "snp.chain"
TIME: Final = "snp.time"
REVOCATION: Final = "snp.revocation"
CERTIFICATE: Final = "snp.certificate"
SIGNING_KEY: Final = "snp.signing_key"
CERTIFICATE_TCB: Final = "snp.certificate_tcb"
CHIP_ID: Final = "snp.chip_id"
VERSION: Final = "snp.version"

NOT_APPLICABLE: Final = "not_applicable"
MASKED: Final = "masked"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpEndorsements:
    """Certificates and revocation lists that came with a report, in any order."""

    certificates: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...] = ()
    malformed: str | None = None
    """Why one that came does not decode, if one does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpAttestation:
    """A report and what vouches for it, as far as it was found."""

    report: SnpReport
    chain: Chain | None = None
    """From the leaf up; ``None`` where no leaf came."""
    key: EndorsementKey | None = None
    """What the leaf says; ``None`` where it does not decode."""

    @property
    def product(self) -> Product | None:
        """The product line: that of the leaf, or else the report's own word."""
        return self.report.product if self.key is None else self.key.product

    @property
    def development(self) -> bool:
        """Whether it leads to the root of a simulated vendor."""
        anchor = None if self.chain is None else self.chain.anchor
        return anchor is not None and anchor.development


def claims(policy: AppraisalPolicy, *, crls: bool) -> tuple[str, ...]:
    """Names of the claims made, in order; `crls` says whether revocation lists came."""
    names = [SIGNATURE, CHAIN, TIME]
    if crls or policy.require_endorsements:
        names.append(REVOCATION)
    return (*names, CERTIFICATE, SIGNING_KEY, CERTIFICATE_TCB, CHIP_ID, VERSION)


def authenticate_snp(
    report: SnpReport,
    endorsements: SnpEndorsements,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    ledger: Ledger,
) -> tuple[SnpAttestation, Authenticated[SnpAttestation] | None]:
    """Add every claim of `claims` to `ledger`; the second value is set if all of them hold."""
    leaf = find_leaf(endorsements.certificates, report.signing_key)
    _version(report, ledger)
    if leaf is None:
        _no_leaf(endorsements, ledger)
        return SnpAttestation(report=report), None
    chain = authenticate_chain(
        leaf,
        (*endorsements.certificates, *roots.intermediates),
        anchors=roots.vendor(Vendor.AMD),
        at=at,
        crls=endorsements.crls,
    )
    _signature(report, leaf, ledger)
    _chain(chain, ledger)
    if endorsements.crls or policy.require_endorsements:
        _revocation(chain, endorsements.crls, policy, at, ledger)
    key = _key(report, chain, endorsements.malformed, ledger)
    attestation = SnpAttestation(report=report, chain=chain, key=key)
    names = claims(policy, crls=bool(endorsements.crls))
    return attestation, _grant(attestation) if ledger.holds(*names) else None


def find_leaf(
    certificates: Sequence[x509.Certificate], kind: SigningKey
) -> x509.Certificate | None:
    """The certificate of the endorsement key: of `kind` if there is one, or else of the other.

    Found by its subject, for sources of certificates do not agree on an order.
    """
    leaves = [certificate for certificate in certificates if kind_of(certificate) is not None]
    return next((leaf for leaf in leaves if kind_of(leaf) is kind), leaves[0] if leaves else None)


def _version(report: SnpReport, ledger: Ledger) -> None:
    ledger.check(
        VERSION,
        holds=report.version_known,
        affirmed=f"The report is of version {report.version}.",
        code="malformed",
        refused=f"The report claims to be of version {report.version}, which is not known.",
    )


def _no_leaf(endorsements: SnpEndorsements, ledger: Ledger) -> None:
    if endorsements.malformed is not None:
        ledger.refuse(CERTIFICATE, "malformed", endorsements.malformed)
    else:
        ledger.refuse(
            CERTIFICATE,
            "endorsements_missing",
            "No certificate of the key that signed the report (VCEK or VLEK) came with it.",
        )


def _signature(report: SnpReport, leaf: x509.Certificate, ledger: Ledger) -> None:
    """Step 1: ECDSA on P-384 with SHA-384 over the report's first 672 bytes."""
    ledger.check(
        SIGNATURE,
        holds=_signed_by(report, leaf),
        affirmed="The key in the leaf certificate signed the report.",
        code="bad_signature",
        refused="The report was altered, or another key than the certified one signed it.",
        source=Source.HARDWARE_PROVEN,
    )


def _signed_by(report: SnpReport, leaf: x509.Certificate) -> bool:
    if report.signature_algorithm != ECDSA_P384_SHA384:
        return False
    try:
        key = leaf.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != ec.SECP384R1.name:
            return False
        signature = encode_dss_signature(report.signature_r, report.signature_s)
        key.verify(signature, report.signed, ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _chain(chain: Chain, ledger: Ledger) -> None:
    """Steps 2 and 3."""
    broken = chain.fault(ChainFault.BAD_CHAIN)
    if broken is None:
        ledger.affirm(CHAIN, "AMD's pinned root certified the key that signed the report.")
    else:
        ledger.refuse(CHAIN, broken[0], broken[1])
    expired = chain.fault(ChainFault.EXPIRED)
    if expired is None:
        ledger.affirm(
            TIME,
            "No certificate that was followed is outside its dates.",
        )
    else:
        ledger.refuse(TIME, expired[0], expired[1])


def _revocation(
    chain: Chain,
    crls: tuple[x509.CertificateRevocationList, ...],
    policy: AppraisalPolicy,
    at: datetime,
    ledger: Ledger,
) -> None:
    """Step 4, by the lists of the root: those under it sign none."""
    if chain.anchor is None:
        return
    own = [crl for crl in crls if crl.issuer == chain.anchor.certificate.subject]
    fault = chain.fault(ChainFault.REVOKED, ChainFault.CRL_SIGNATURE)
    age = policy.max_collateral_age_s
    if not own:
        ledger.refuse(
            REVOCATION,
            "endorsements_missing",
            "No revocation list of AMD's root for this product came with the report.",
        )
    elif fault is not None:
        ledger.refuse(REVOCATION, fault[0], fault[1])
    elif not isinstance(age, Unchecked) and any(
        at - crl.last_update_utc > timedelta(seconds=age) for crl in own
    ):
        ledger.refuse(
            REVOCATION,
            "collateral_too_old",
            f"AMD's revocation list is older than the {age} seconds that the policy accepts.",
        )
    else:
        ledger.affirm(REVOCATION, "AMD has revoked none of the certificates.")


def _key(
    report: SnpReport, chain: Chain, malformed: str | None, ledger: Ledger
) -> EndorsementKey | None:
    """Steps 5 to 8."""
    try:
        key = parse_endorsement_key(chain.leaf)
    except MalformedError as error:
        ledger.refuse(CERTIFICATE, error.code, f"The key's certificate is refused: {error}.")
        return None
    if malformed is not None:
        ledger.refuse(CERTIFICATE, "malformed", malformed)
    else:
        _product(report, chain, key, ledger)
    _kind(report, key, ledger)
    ledger.check(
        CERTIFICATE_TCB,
        holds=key.tcb == report.reported_tcb,
        affirmed="The key is certified for the TCB that the report names.",
        code="cert_mismatch",
        refused="The key is certified for another TCB than the report names.",
    )
    _chip(report, key, ledger)
    return key


def _product(report: SnpReport, chain: Chain, key: EndorsementKey, ledger: Ledger) -> None:
    """Step 5. A report of version 2 names no processor: there the leaf's word stands alone."""
    root = key.root_name if chain.anchor is None else common_name(chain.certificates[-1].subject)
    if report.cpuid is not None and report.product is None:
        ledger.undecided(
            CERTIFICATE,
            "platform_unsupported",
            "The report comes from a processor that this verifier does not know.",
        )
        return
    ledger.check(
        CERTIFICATE,
        holds=(
            root == key.root_name
            and common_name(key.certificate.issuer) == key.issuer_name
            and report.product in (None, key.product)
        ),
        affirmed=f"Report and certificates are all for {key.product.label} processors.",
        code="cert_mismatch",
        refused="The report and its certificates are for processors of different products.",
    )


def _kind(report: SnpReport, key: EndorsementKey, ledger: Ledger) -> None:
    """Step 6."""
    if report.signing_key is SigningKey.NONE:
        ledger.refuse(
            SIGNING_KEY,
            "unsigned",
            "The report says that it is not signed.",
            source=Source.HARDWARE_PROVEN,
        )
        return
    ledger.check(
        SIGNING_KEY,
        holds=report.signing_key is key.kind,
        affirmed=f"The report was signed by the {key.kind.name}, as it says.",
        code="cert_mismatch",
        refused=(
            f"The report says that the {report.signing_key.name} signed it, but comes with the"
            f" certificate of a {key.kind.name}."
        ),
    )


def _chip(report: SnpReport, key: EndorsementKey, ledger: Ledger) -> None:
    """Step 8. A VLEK is its provider's, for all of its chips; a host may mask the id."""
    if key.chip_id is None:
        ledger.affirm(
            CHIP_ID,
            f"The key belongs to the provider {key.csp_id}, not to one chip.",
            value=NOT_APPLICABLE,
        )
    elif not any(report.chip_id):
        ledger.affirm(
            CHIP_ID,
            "The host masks the chip's id; the key that signed is the certified chip's.",
            value=MASKED,
        )
    else:
        ledger.check(
            CHIP_ID,
            holds=key.chip_id == report.chip_id,
            affirmed="The key is certified for the chip that the report names.",
            code="cert_mismatch",
            refused="The key is certified for another chip than the report names.",
        )
