"""Authenticates Intel's collateral: signatures, chains, revocation of signers, and dates.

Source: Intel "Provisioning Certification Service" API version 4; the steps are those of Intel's
quote verification library for its TCB info, enclave identity and revocation lists. Claims, in
order, each with the prefix of the platform (``tdx.`` or ``sgx.``):

1. ``collateral_format``: every member decodes.
2. ``tcb_signer_chain``: the signers of the TCB info and the QE identity are Intel's TCB signing
   certificate, issued by a pinned root of Intel itself and not revoked by its list.
3. ``tcb_info_sig`` and ``qe_identity_sig``: they signed exactly these texts (ECDSA, P-256,
   SHA-256).
4. ``root_crl_sig``: a pinned root signed its revocation list.
5. ``pck_crl_sig``: the list of PCK certificates is signed by a PCK CA which chains to a
   pinned root and is not revoked.
6. ``collateral_time``: all of it is current at the time of verification.

The first five do not depend on time, and collateral serves every platform of a family for weeks.
Whoever verifies many quotes therefore reads it once and keeps the result::

    signed = check_signatures(parse_collateral(data), roots=roots)  # once: MalformedError
    ...
    authenticated = authenticate_signed(signed, roots=roots, at=at, ledger=ledger, prefix="tdx.")

`authenticate_collateral` does both, and claims the same. Nothing is cached out of sight.

What the caller still owes: that the collateral belongs to the platform, that the PCK certificate
is not listed, and what TCB level follows (`cloister.verifier.appraise.intel_tcb`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID

from cloister.endorsements.intel import Collateral, IntelCollateral, parse_members
from cloister.endorsements.roots import Anchor, Roots, Vendor, name_of
from cloister.errors import MalformedError
from cloister.verifier.authenticated import Authenticated, _grant
from cloister.verifier.chain import Chain, authenticate_chain, signed_crl
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
class _Finding:
    """One claim that does not depend on time."""

    name: str
    holds: bool
    affirmed: str
    code: str
    refused: str


_TOKEN: Final = object()


class SignedCollateral:
    """Collateral whose signatures and chains were checked, with what was found.

    Only `check_signatures` makes one. It may be kept and used for any number of quotes; dates are
    compared at each use. It says nothing by itself: signatures may have been found false.
    """

    __slots__ = ("_anchors", "_chains", "_findings", "collateral")

    collateral: IntelCollateral
    """The decoded collateral, authentic or not."""

    def __init__(
        self,
        collateral: IntelCollateral,
        chains: Sequence[tuple[str, Chain]],
        findings: Sequence[_Finding],
        anchors: Iterable[Anchor],
        token: object = None,
    ) -> None:
        if token is not _TOKEN:
            raise TypeError("only check_signatures makes SignedCollateral")
        self.collateral = collateral
        self._chains = tuple(chains)
        self._findings = tuple(findings)
        self._anchors = tuple(dict.fromkeys(anchors))

    @property
    def development(self) -> bool:
        """Whether any of it comes from a simulated Intel: such collateral proves nothing."""
        return any(anchor.development for anchor in self._anchors)


def check_signatures(collateral: Collateral, *, roots: Roots) -> SignedCollateral:
    """Decode `collateral` and check every signature in it against the pinned roots.

    Raises:
        MalformedError: a member does not decode. (A false signature is a finding, which
            `authenticate_signed` puts into the ledger.)
    """
    raise NotImplementedError


def authenticate_signed(
    signed: SignedCollateral, *, roots: Roots, at: datetime, ledger: Ledger, prefix: str
) -> Authenticated[IntelCollateral] | None:
    """Make every claim of `CLAIMS`, comparing dates with `at`; ``None`` unless all hold.

    `roots` has to pin the root to which the signatures led, or else they count for nothing.
    """
    raise NotImplementedError


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
    ledger.refuse(
        prefix + FORMAT, MalformedError.default_code, f"The collateral does not decode: {error}."
    )
