"""What quotes of TDX guests and SGX enclaves share: from the bytes to Intel's word on the platform.

A platform's module (`tdx`, `sgx`) promises its claims in the order of `claims_before`, its own,
`claims_after`; has the quote judged by `judge_quote`; and adds what only it asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeAlias

from cryptography import x509

from cloister.endorsements.certificates import serial_number
from cloister.endorsements.intel import Collateral, parse_collateral
from cloister.endorsements.roots import Roots, fingerprints
from cloister.errors import MalformedError
from cloister.evidence.dcap import (
    UNSUPPORTED,
    Quote,
    Tee,
    parse_pem_certificates,
    parse_quote,
)
from cloister.evidence.tdx import TdReport
from cloister.strictjson import Json, JsonObject
from cloister.verifier.appraise.intel_tcb import TcbJudgement, collateral_claims, judge_tcb
from cloister.verifier.authenticate.dcap import (
    PARSE,
    QUOTING_ENCLAVE,
    PckReading,
    SignedQuote,
    authenticate_quote,
    check_quoting_enclave,
    quote_claims,
    read_pck,
)
from cloister.verifier.authenticate.intel_collateral import TIME as COLLATERAL_TIME
from cloister.verifier.authenticate.intel_collateral import (
    SignedCollateral,
    authenticate_signed,
    check_signatures,
    refuse_malformed,
)
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, Unchecked

COLLATERAL: Final = "collateral"
"""Claimed only where collateral is required and missing."""
TIME: Final = "time"
ALLOWED_CHIP: Final = "allowed_chip"
DENIED: Final = "denied"

OF_THE_PLATFORM: Final = ("fmspc_match", "qe_identity_match", "pck_revoked")
"""Claims on collateral that say whether a quote is authentic, not how well it is patched."""

CollateralInput: TypeAlias = bytes | Collateral | SignedCollateral
"""Collateral as one JSON document, decoded, or with its signatures checked once for many quotes
(`cloister.verifier.authenticate.intel_collateral.check_signatures`)."""

NOT_FRESH: Final = (
    "A quote has no time of its own: only a nonce of yours in it shows that it is new."
)
NO_COLLATERAL: Final = (
    "Without Intel's collateral nothing shows that the platform's microcode, its TDX module and its"
    " quoting enclave are up to date, or that its certificate was not revoked."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedQuote:
    """What became of a quote that decodes."""

    quote: Quote
    authenticated: Authenticated[SignedQuote] | None
    """Set where the quote leads to a pinned root, whatever collateral says."""
    proven: bool
    """Whether everything about authenticity held, collateral included where there is some."""
    development: bool
    facts: JsonObject = field(repr=False)
    not_proven: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What became of the collateral."""

    holds: bool
    signed: SignedCollateral | None = None
    judgement: TcbJudgement | None = None

    @property
    def development(self) -> bool:
        return self.signed is not None and self.signed.development

    @property
    def certificates(self) -> tuple[x509.Certificate, ...]:
        """Those that vouch for the collateral."""
        if self.signed is None:
            return ()
        members = self.signed.collateral
        return (*members.tcb_info_chain, *members.qe_identity_chain, *members.pck_crl_chain)


def claims_before(prefix: str) -> tuple[str, ...]:
    """Names of the claims about a quote itself, in order."""
    return quote_claims(prefix)


def claims_after(
    tee: Tee, prefix: str, *, collateral: CollateralInput | None, policy: AppraisalPolicy
) -> tuple[str, ...]:
    """Names of the claims about the platform that a quote comes from, in order."""
    names: list[str] = []
    if collateral is not None:
        names += collateral_claims(tee, prefix)
    else:
        names += [prefix + COLLATERAL] if policy.require_endorsements else []
        names.append(prefix + QUOTING_ENCLAVE)
    names.append(prefix + TIME)
    if not isinstance(policy.chip_ids, Unchecked):
        names.append(prefix + ALLOWED_CHIP)
    if not isinstance(policy.denied, Unchecked):
        names.append(prefix + DENIED)
    return tuple(names)


def judge_quote(
    data: bytes,
    *,
    tee: Tee,
    prefix: str,
    collateral: CollateralInput | None,
    certificates: Iterable[bytes],
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    ledger: Ledger,
) -> JudgedQuote | None:
    """Make the claims of `claims_before` and `claims_after`; ``None`` where nothing decodes.

    `certificates` (DER) are the chain of the platform's key, where it came beside the quote.
    """
    quote = _parse(data, tee, ledger, prefix)
    if quote is None:
        return None
    collateral = _members(collateral)
    given = (*certificates, *_certificates_of(collateral))
    pck = read_pck(quote, given, roots=roots, at=at)
    authenticated = authenticate_quote(quote, pck, ledger=ledger, prefix=prefix)
    stated = ledger if authenticated is not None else ledger.stated()
    if collateral is None:
        judged = _without_collateral(quote, policy, stated, prefix)
    else:
        judged = _with_collateral(
            collateral,
            quote,
            pck,
            authentic=authenticated is not None,
            policy=policy,
            roots=roots,
            at=at,
            ledger=ledger,
            prefix=prefix,
        )
    _time(pck, ledger, prefix)
    _chip(pck, policy, stated, prefix)
    if pck.chain is not None:
        vouching = (*pck.chain.certificates, *judged.certificates)
        _denied(vouching, policy, ledger, prefix)
    return JudgedQuote(
        quote=quote,
        authenticated=authenticated,
        proven=authenticated is not None and judged.holds,
        development=pck.development or judged.development,
        facts=_facts(quote, pck, judged.judgement),
        not_proven=_not_proven(collateral, judged.judgement),
    )


def _parse(data: bytes, tee: Tee, ledger: Ledger, prefix: str) -> Quote | None:
    try:
        quote = parse_quote(data)
    except MalformedError as error:
        claim: Callable[[str, str, str], None] = (
            ledger.undecided if error.code == UNSUPPORTED else ledger.refuse
        )
        claim(prefix + PARSE, error.code, f"The quote is refused: {error}.")
        return None
    holds = ledger.check(
        prefix + PARSE,
        holds=quote.tee == tee,
        affirmed=f"The quote decodes (version {quote.version}).",
        code="quote_kind",
        refused=f"This is a quote of another environment ({quote.tee}).",
    )
    return quote if holds else None


def _members(collateral: CollateralInput | None) -> CollateralInput | None:
    """One document's members; as it came where it is none, which `_signed` tells."""
    if not isinstance(collateral, bytes):
        return collateral
    try:
        return parse_collateral(collateral)
    except MalformedError:
        return collateral


def _certificates_of(collateral: CollateralInput | None) -> tuple[bytes, ...]:
    """The platform's chain, where collateral has it; what does not decode, others tell."""
    raw = collateral.collateral.raw if isinstance(collateral, SignedCollateral) else collateral
    if not isinstance(raw, Collateral) or raw.pck_certificate_chain is None:
        return ()
    try:
        return parse_pem_certificates(raw.pck_certificate_chain)
    except MalformedError:
        return ()


def _without_collateral(
    quote: Quote, policy: AppraisalPolicy, ledger: Ledger, prefix: str
) -> _Judged:
    if policy.require_endorsements:
        ledger.refuse(
            prefix + COLLATERAL,
            "endorsements_missing",
            "The quote comes without Intel's collateral, which your policy requires.",
        )
    check_quoting_enclave(quote, ledger=ledger, prefix=prefix)
    return _Judged(holds=ledger.holds(prefix + QUOTING_ENCLAVE))


def _with_collateral(
    given: CollateralInput,
    quote: Quote,
    pck: PckReading,
    *,
    authentic: bool,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    ledger: Ledger,
    prefix: str,
) -> _Judged:
    signed = _signed(given, roots, ledger, prefix)
    if signed is None:
        return _Judged(holds=False)
    collateral = authenticate_signed(signed, roots=roots, at=at, ledger=ledger, prefix=prefix)
    if pck.chain is None or pck.extensions is None:
        return _Judged(holds=False, signed=signed)
    judgement = judge_tcb(
        signed.collateral,
        authentic and collateral is not None,
        tee=quote.tee,
        pck=pck.extensions,
        pck_chain=pck.chain,
        qe_report=quote.qe_report,
        td_report=quote.body if isinstance(quote.body, TdReport) else None,
        policy=policy,
        at=at,
        ledger=ledger,
        prefix=prefix,
    )
    return _Judged(
        holds=collateral is not None and ledger.holds(*(prefix + n for n in OF_THE_PLATFORM)),
        signed=signed,
        judgement=judgement,
    )


def _signed(
    given: CollateralInput, roots: Roots, ledger: Ledger, prefix: str
) -> SignedCollateral | None:
    if isinstance(given, SignedCollateral):
        return given
    try:
        decoded = parse_collateral(given) if isinstance(given, bytes) else given
        return check_signatures(decoded, roots=roots)
    except MalformedError as error:
        refuse_malformed(error, ledger=ledger, prefix=prefix)
        return None


def _time(pck: PckReading, ledger: Ledger, prefix: str) -> None:
    """Everything is within its dates: the platform's chain here, collateral as it was found."""
    if pck.chain is None:
        return
    collateral = prefix + COLLATERAL_TIME
    late = ledger.made(collateral) and not ledger.holds(collateral)
    ledger.check(
        prefix + TIME,
        holds=pck.expired is None and not late,
        affirmed="Nothing that was followed is outside its dates.",
        code="expired",
        refused=pck.expired or "The collateral is not current at the time of verification.",
    )


def _chip(pck: PckReading, policy: AppraisalPolicy, ledger: Ledger, prefix: str) -> None:
    if isinstance(policy.chip_ids, Unchecked) or pck.extensions is None:
        return
    found = pck.extensions.ppid.hex()
    ledger.check(
        prefix + ALLOWED_CHIP,
        holds=found in policy.chip_ids,
        affirmed="The processor is one of those that you accept.",
        code="chip_not_allowed",
        refused=f"The processor (PPID {found}) is none of those that you accept.",
        value=found,
    )


def _denied(
    vouching: Iterable[x509.Certificate], policy: AppraisalPolicy, ledger: Ledger, prefix: str
) -> None:
    if isinstance(policy.denied, Unchecked):
        return
    denied = policy.denied
    names = {digest for one in (vouching if denied else ()) for digest in fingerprints(one)}
    found = sorted(names.intersection(denied))
    ledger.check(
        prefix + DENIED,
        holds=not found,
        affirmed="None of its certificates is on your list of denied digests.",
        code="denied",
        refused=f"Your policy denies {', '.join(found)}.",
    )


def _not_proven(
    collateral: CollateralInput | None, judgement: TcbJudgement | None
) -> tuple[str, ...]:
    missing = () if collateral is not None else (NO_COLLATERAL,)
    return (NOT_FRESH, *missing, *(() if judgement is None else judgement.not_proven))


def _facts(quote: Quote, pck: PckReading, judgement: TcbJudgement | None) -> JsonObject:
    facts: JsonObject = {
        "quote_version": quote.version,
        "tee": quote.tee,
        "body_type": quote.body_type,
        "attestation_key_type": quote.attestation_key_type,
        "quote_length": len(quote.raw),
        "trailing_bytes": quote.trailing_bytes,
        "cert_data_type": int(quote.certification.type),
        "user_data": quote.user_data.hex(),
        "qe_report": {
            "mrsigner": quote.qe_report.mrsigner.hex(),
            "isvprodid": quote.qe_report.isvprodid,
            "isvsvn": quote.qe_report.isvsvn,
            "attributes": quote.qe_report.attributes.hex(),
        },
    }
    if pck.chain is not None and pck.extensions is not None:
        facts["pck"] = {
            "ppid": pck.extensions.ppid.hex(),
            "pcesvn": pck.extensions.pcesvn,
            "cpusvn": pck.extensions.cpusvn.hex(),
            "tcb_components": list[Json](pck.extensions.tcb_components),
            "pceid": pck.extensions.pceid.hex(),
            "fmspc": pck.extensions.fmspc.hex(),
            "not_before": pck.chain.leaf.not_valid_before_utc.isoformat(),
            "serial": f"{serial_number(pck.chain.leaf):x}",
        }
    return facts if judgement is None else facts | judgement.facts
