"""Authenticates Intel's collateral: signatures, chains, revocation of signers, and dates.

Source: Intel "Provisioning Certification Service" API version 4; the steps are those of Intel's
quote verification library for its TCB info, enclave identity and revocation lists. Claims, in
order, each with the prefix of the platform (``tdx.`` or ``sgx.``):

1. ``collateral_format``: every member decodes.
2. ``tcb_signer_chain``: the signers of the TCB info and the QE identity are Intel's TCB signing
   certificate, issued by a pinned root of Intel itself and not revoked by its list.
3. ``tcb_info_sig`` and ``qe_identity_sig``: they signed exactly these texts (ECDSA, P-256,
   SHA-256).
4. ``root_crl_sig``: the one pinned root that all of them lead to signed its revocation list.
5. ``pck_crl_sig``: the list of PCK certificates is signed by a PCK CA which chains to a
   pinned root and is not revoked.
6. ``collateral_time``: all of it is current at the time of verification.

The first five do not depend on time, and collateral serves every platform of a family for weeks.
Whoever verifies many quotes therefore reads it once and keeps the result::

    signed = check_signatures(parse_collateral(data), roots=roots)  # once: MalformedError
    ...
    authenticated = authenticate_signed(
        signed, roots=roots, at=at, ledger=ledger, prefix="tdx."
    )

`authenticate_collateral` does both, and claims the same. Nothing is cached out of sight.

What the caller still owes: that the collateral belongs to the platform, that the PCK certificate
is not listed, and what TCB level follows (`cloister.verifier.appraise.intel_tcb`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID

from cloister.endorsements.certificates import serial_number
from cloister.endorsements.intel import (
    SIGNATURE_BYTES,
    Collateral,
    IntelCollateral,
    parse_members,
)
from cloister.endorsements.roots import Anchor, Roots, Vendor, name_of
from cloister.errors import MalformedError
from cloister.verifier.authenticated import Authenticated, _grant
from cloister.verifier.chain import Chain, authenticate_chain, same_key, signed_crl
from cloister.verifier.ledger import FAIL, PASS, Ledger

FORMAT: Final = "collateral_format"
SIGNER_CHAIN: Final = "tcb_signer_chain"
TCB_INFO_SIG: Final = "tcb_info_sig"
QE_IDENTITY_SIG: Final = "qe_identity_sig"
ROOT_CRL_SIG: Final = "root_crl_sig"
PCK_CRL_SIG: Final = "pck_crl_sig"
TIME: Final = "collateral_time"

CLAIMS: Final = (
    FORMAT,
    SIGNER_CHAIN,
    TCB_INFO_SIG,
    QE_IDENTITY_SIG,
    ROOT_CRL_SIG,
    PCK_CRL_SIG,
    TIME,
)
"""Names of the claims made here, in order, without their prefix."""

TCB_SIGNING_NAME: Final = "Intel SGX TCB Signing"
PCK_CA_NAMES: Final = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")

_SIGNER_CHAIN_LENGTH: Final = 2
"""Signer and root: Intel's root issues both the TCB signing certificate and the PCK CAs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fault:
    """What is wrong: a claim's code, and a sentence."""

    code: str
    refused: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """One claim that does not depend on time."""

    name: str
    fault: _Fault | None
    affirmed: str
    anchors: tuple[Anchor, ...] = ()
    """Roots it rests on."""


_Window: TypeAlias = tuple[str, datetime, datetime | None]
"""A part of the collateral, from when and until when it is current."""

_TOKEN: Final = object()


class SignedCollateral:
    """Collateral whose signatures and chains were checked, with what was found.

    Only `check_signatures` makes one. It may be kept and used for any number of quotes; dates are
    compared at each use. It says nothing by itself: signatures may have been found false.
    """

    __slots__ = ("_findings", "_windows", "collateral")

    collateral: IntelCollateral
    """The decoded collateral, authentic or not."""

    def __init__(
        self,
        collateral: IntelCollateral,
        findings: tuple[_Finding, ...],
        windows: tuple[_Window, ...],
        token: object = None,
    ) -> None:
        if token is not _TOKEN:
            raise TypeError("only check_signatures makes SignedCollateral")
        self.collateral = collateral
        self._findings = findings
        self._windows = windows

    @property
    def development(self) -> bool:
        """Whether any of it comes from a simulated Intel: such collateral proves nothing."""
        return any(anchor.development for found in self._findings for anchor in found.anchors)


def check_signatures(collateral: Collateral, *, roots: Roots) -> SignedCollateral:
    """Decode `collateral` and check every signature in it against the pinned roots.

    Raises:
        MalformedError: a member does not decode. (A false signature is a finding, which
            `authenticate_signed` puts into the ledger.)
    """
    parsed = parse_members(collateral)
    tcb_chain = _chain(parsed.tcb_info_chain, roots)
    same = parsed.qe_identity_chain == parsed.tcb_info_chain
    qe_chain = tcb_chain if same else _chain(parsed.qe_identity_chain, roots)
    crl_chain = _chain(parsed.pck_crl_chain, roots)
    findings = (
        _signer_chain((tcb_chain, qe_chain), parsed),
        _signature(
            TCB_INFO_SIG, tcb_chain.leaf, collateral.tcb_info_signature, collateral.tcb_info
        ),
        _signature(
            QE_IDENTITY_SIG, qe_chain.leaf, collateral.qe_identity_signature, collateral.qe_identity
        ),
        _root_crl(parsed, roots, (tcb_chain, qe_chain, crl_chain)),
        _pck_crl(crl_chain, parsed),
    )
    windows = tuple(_windows(parsed, (tcb_chain, qe_chain, crl_chain)))
    return SignedCollateral(parsed, findings, windows, _TOKEN)


def authenticate_signed(
    signed: SignedCollateral, *, roots: Roots, at: datetime, ledger: Ledger, prefix: str
) -> Authenticated[IntelCollateral] | None:
    """Make every claim of `CLAIMS`, comparing dates with `at`; ``None`` unless all hold.

    `roots` has to pin the roots to which the signatures led, or else they count for nothing.
    """
    ledger.affirm(prefix + FORMAT, "The collateral decodes.")
    pinned = roots.vendor(Vendor.INTEL)
    # A list, so that every claim is made whatever the one before it found.
    held = [_record(found, pinned, ledger, prefix) for found in signed._findings]
    held.append(_time(signed._windows, at, ledger, prefix))
    return _grant(signed.collateral) if all(held) else None


def authenticate_collateral(
    collateral: Collateral, *, roots: Roots, at: datetime, ledger: Ledger, prefix: str
) -> Authenticated[IntelCollateral] | None:
    """Do `check_signatures` and `authenticate_signed`; what does not decode is a claim, too.

    A caller that goes on with collateral that is not authentic, to tell what it would mean, takes
    the two steps itself: `SignedCollateral.collateral` is there in any case.
    """
    try:
        signed = check_signatures(collateral, roots=roots)
    except MalformedError as error:
        refuse_malformed(error, ledger=ledger, prefix=prefix)
        return None
    return authenticate_signed(signed, roots=roots, at=at, ledger=ledger, prefix=prefix)


def refuse_malformed(error: MalformedError, *, ledger: Ledger, prefix: str) -> None:
    """Record that the collateral does not decode; every other claim stays undecided."""
    ledger.refuse(prefix + FORMAT, "malformed", f"The collateral does not decode: {error}.")


def _chain(certificates: Sequence[x509.Certificate], roots: Roots) -> Chain:
    """The way from the first certificate to a pinned root, whatever the date."""
    leaf = certificates[0]
    return authenticate_chain(
        leaf,
        (*certificates[1:], *roots.intermediates),
        anchors=roots.vendor(Vendor.INTEL),
        at=leaf.not_valid_before_utc,  # any date: only the path is used, `_windows` has the dates
    )


def _signer_chain(chains: Sequence[Chain], collateral: IntelCollateral) -> _Finding:
    faults = (
        _ca_fault(chain, (TCB_SIGNING_NAME,), collateral.root_crl, "signer of the collateral")
        for chain in chains
    )
    return _Finding(
        name=SIGNER_CHAIN,
        fault=next((fault for fault in faults if fault is not None), None),
        affirmed="A pinned root of Intel's issued the certificate that signs TCB data.",
        anchors=tuple(chain.anchor for chain in chains if chain.anchor is not None),
    )


def _ca_fault(
    chain: Chain,
    names: Sequence[str],
    root_crl: x509.CertificateRevocationList,
    what: str,
) -> _Fault | None:
    """What is wrong with a certificate that a root has to have issued under one of `names`."""
    if chain.anchor is None or len(chain.certificates) != _SIGNER_CHAIN_LENGTH:
        return _Fault(
            code="bad_chain",
            refused=f"No pinned root of Intel's issued the certificate of the {what}.",
        )
    if _common_name(chain.leaf) not in names:
        # A PCK certificate comes from the same root, and its key signs whatever a machine wants.
        return _Fault(
            code="bad_chain",
            refused=f"The {what} is {name_of(chain.leaf)!r}, which Intel has for other uses.",
        )
    if root_crl.get_revoked_certificate_by_serial_number(serial_number(chain.leaf)) is not None:
        return _Fault(code="revoked", refused=f"The certificate of the {what} was revoked.")
    return None


def _signature(name: str, signer: x509.Certificate, signature: bytes, text: bytes) -> _Finding:
    what = "TCB info" if name == TCB_INFO_SIG else "QE identity"
    fault = _Fault(
        code="collateral_signature", refused=f"The {what} is not what its signer signed."
    )
    return _Finding(
        name=name,
        fault=None if _signed(signer, signature, text) else fault,
        affirmed=f"The {what} is word for word what its signer signed.",
    )


def _signed(signer: x509.Certificate, signature: bytes, text: bytes) -> bool:
    """ECDSA on P-256 with SHA-256; `signature` is r ‖ s, big-endian, 64 bytes."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    half = SIGNATURE_BYTES // 2
    r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
    try:
        key = signer.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
            key.curve, ec.SECP256R1
        ):
            return False
        key.verify(encode_dss_signature(r, s), text, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False
    return True


def _root_crl(collateral: IntelCollateral, roots: Roots, chains: Sequence[Chain]) -> _Finding:
    """Where several roots are pinned, the list of one says nothing of what another issued."""
    crl = collateral.root_crl
    used = [chain.anchor.certificate for chain in chains if chain.anchor is not None]
    anchors = (
        anchor
        for anchor in roots.vendor(Vendor.INTEL)
        if all(same_key(anchor.certificate, root) for root in used)
        and crl.issuer == anchor.certificate.subject
        and signed_crl(crl, anchor.certificate)
    )
    anchor = next(anchors, None)
    fault = _Fault(
        code="crl_signature",
        refused="No one pinned root of Intel's issued the signers' certificates and signed the"
        " root's revocation list.",
    )
    return _Finding(
        name=ROOT_CRL_SIG,
        fault=fault if anchor is None else None,
        affirmed="A pinned root of Intel's signed its revocation list.",
        anchors=() if anchor is None else (anchor,),
    )


def _pck_crl(chain: Chain, collateral: IntelCollateral) -> _Finding:
    crl, signer = collateral.pck_crl, chain.leaf
    fault = _ca_fault(chain, PCK_CA_NAMES, collateral.root_crl, "CA of the revocation list")
    if fault is None and not (crl.issuer == signer.subject and signed_crl(crl, signer)):
        fault = _Fault(
            code="crl_signature",
            refused="The revocation list of PCK certificates was not signed by its CA.",
        )
    return _Finding(
        name=PCK_CRL_SIG,
        fault=fault,
        affirmed="A PCK CA of Intel's signed the revocation list of PCK certificates.",
        anchors=() if chain.anchor is None else (chain.anchor,),
    )


def _windows(collateral: IntelCollateral, chains: Sequence[Chain]) -> Iterator[_Window]:
    for name, document in (
        ("tcb_info", collateral.tcb_info),
        ("qe_identity", collateral.qe_identity),
    ):
        yield name, document.issue_date, document.next_update
    for name, crl in (("pck_crl", collateral.pck_crl), ("root_crl", collateral.root_crl)):
        yield name, crl.last_update_utc, crl.next_update_utc
    names = ("tcb_info_issuer_chain", "qe_identity_issuer_chain", "pck_crl_issuer_chain")
    for name, chain in zip(names, chains, strict=True):
        for certificate in chain.certificates:
            yield name, certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _record(found: _Finding, pinned: Sequence[Anchor], ledger: Ledger, prefix: str) -> bool:
    fault = found.fault
    if fault is None and not all(anchor in pinned for anchor in found.anchors):
        fault = _Fault(
            code="bad_chain",
            refused="The collateral was checked against a root that is not pinned here.",
        )
    if fault is None:
        ledger.affirm(prefix + found.name, found.affirmed)
        return True
    ledger.refuse(prefix + found.name, fault.code, fault.refused)
    return False


def _time(windows: Sequence[_Window], at: datetime, ledger: Ledger, prefix: str) -> bool:
    stale = tuple(
        dict.fromkeys(name for name, start, end in windows if end is None or not start <= at <= end)
    )
    return ledger.check(
        prefix + TIME,
        holds=not stale,
        affirmed="All of the collateral is current at the time of verification.",
        code="expired",
        refused=f"Not current at the time of verification: {', '.join(stale)}.",
        value=f"{FAIL} ({','.join(stale)})" if stale else PASS,
    )


def _common_name(certificate: x509.Certificate) -> str | None:
    """The subject's common name, unless it has several."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else None
