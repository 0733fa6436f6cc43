"""Verifies a quote of a TPM, a boot's event log, or both.

Steps: the attestation key (`cloister.verifier.authenticate.ak` where it is certified; otherwise
``ak.public``), `cloister.verifier.authenticate.tpm_quote`,
`cloister.verifier.authenticate.tpm_log`, and what the caller expects.

A key without a certificate may be anybody's, and a log without a quote is a story: both are judged
on what they contain unless the policy requires endorsements, and the result says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from cloister.endorsements.ak import TCG_KP_AIK_CERTIFICATE, AkKey, parse_ak_public
from cloister.endorsements.roots import Roots, Vendor
from cloister.errors import MalformedError
from cloister.evidence.tpm import Alg
from cloister.strictjson import JsonObject
from cloister.verifier.appraise import tpm_quote as appraise
from cloister.verifier.appraise.tpm_quote import FIELD_NAMES
from cloister.verifier.authenticate import ak as ak_chain
from cloister.verifier.authenticate import tpm_log, tpm_quote
from cloister.verifier.authenticate.ak import AkEvidence, AkFindings
from cloister.verifier.authenticate.tpm_log import LogFindings
from cloister.verifier.authenticate.tpm_quote import QuoteEvidence, QuoteFindings
from cloister.verifier.expected import Expected, check_names
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.policy import AppraisalPolicy

PUBLIC: Final = "ak.public"
ATTRIBUTES: Final = "ak.attributes"
CERTIFICATE: Final = "ak.certificate"
"""Claimed only where a certificate is required and missing."""
QUOTE: Final = "tpm.quote"
"""Claimed only where a quote is missing that the policy or an expectation requires."""

CERTIFIED: Final = "TPM"
UNCERTIFIED: Final = "TPM (key not certified)"
LOG_ALONE: Final = "TPM event log (not signed)"

NO_MEMORY: Final = "none"

NOT_PROVEN: Final = (
    "Memory is not encrypted: a TPM measures software, and whoever runs the machine can read it.",
    "What the registers should hold is only known where you compare them with reference values.",
)
NOT_CERTIFIED: Final = (
    "Nobody vouches for the key that signed the quote: that it lives in a TPM is not shown."
)
NO_LOG: Final = "No event log says what was measured into the registers."
NOT_SIGNED: Final = "No quote covers the event log: that any of it happened is not shown."
NOT_QUOTED: Final = "Registers that the event log tells of, but that were not signed: {}."
WEAK_BANK: Final = "Registers of SHA-1 can be forged: two softwares may be measured alike."


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmEvidence:
    """A quote with its register values and key, an event log, or both."""

    quote: QuoteEvidence | None
    ak_public: bytes | None = None
    """``TPM2B_PUBLIC``, ``TPMT_PUBLIC`` or SubjectPublicKeyInfo (DER or PEM)."""
    ak: AkEvidence | None = None
    event_log: bytes | None = None


def claim_names(
    evidence: TpmEvidence, policy: AppraisalPolicy, expected: Expected
) -> tuple[str, ...]:
    """Names of all claims about `evidence`, in order."""
    names: list[str] = []
    if evidence.quote is not None:
        names += key_claims(evidence.ak_public, evidence.ak, policy)
        names += tpm_quote.CLAIMS
    elif _needs_quote(evidence, policy, expected):
        names.append(QUOTE)
    if evidence.event_log is not None:
        names += tpm_log.CLAIMS
    return (*names, *expected.names)


def verify_tpm(
    evidence: TpmEvidence,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    """Verify `evidence` at time `at`; whatever is wrong with it is a claim in `ledger`.

    Raises:
        ConfigurationError: `expected` names a field that no quote has.
    """
    check_names(expected, FIELD_NAMES)
    ledger.expect(*claim_names(evidence, policy, expected))
    if evidence.quote is None:
        missing = _needs_quote(evidence, policy, expected)
        return _log_alone(evidence.event_log, ledger, missing=missing)
    key, ak = read_key(
        evidence.ak_public,
        evidence.ak,
        vendor=Vendor.TPM_MANUFACTURER,
        usages=(TCG_KP_AIK_CERTIFICATE,),
        policy=policy,
        roots=roots,
        at=at,
        ledger=ledger,
    )
    genuine = ledger.holds(*key_claims(evidence.ak_public, evidence.ak, policy))
    found = tpm_quote.authenticate_quote(evidence.quote, key, ledger)
    authenticated = genuine and found.authenticated is not None
    log = judge_log(evidence.event_log, (found,), authenticated=authenticated, ledger=ledger)
    appraise_all((found,), authenticated=authenticated, expected=expected, ledger=ledger)
    proven = authenticated and evidence.ak is not None  # anybody signs well, with their own key
    return Outcome(
        platform=CERTIFIED if evidence.ak is not None else UNCERTIFIED,
        memory_confidentiality=NO_MEMORY,
        facts=facts(found, log),
        development=ak is not None and ak.development,
        bound=bound((found,)) if proven else None,
        registers=registers((found,)) if proven else {},
        not_proven=(
            *NOT_PROVEN,
            *(() if evidence.ak is not None else (NOT_CERTIFIED,)),
            *unsaid((found,), log),
        ),
    )


def judge_log(
    data: bytes | None,
    quotes: Sequence[QuoteFindings],
    *,
    authenticated: bool,
    ledger: Ledger,
) -> LogFindings | None:
    """Check an event log, if there is one, against the registers of `quotes`."""
    if data is None:
        return None
    stated = [quote.stated for quote in quotes if quote.stated is not None]
    signed = (
        {bank: values for quote in stated for bank, values in quote.pcrs.items()}
        if stated
        else None  # nothing decodes that the log could be compared with
    )
    return tpm_log.authenticate_log(data, signed, ledger if authenticated else ledger.stated())


def appraise_all(
    quotes: Sequence[QuoteFindings], *, authenticated: bool, expected: Expected, ledger: Ledger
) -> None:
    """Compare `quotes` with `expected`, as authenticated ones only where everything held."""
    held = [quote.authenticated for quote in quotes if quote.authenticated is not None]
    if authenticated and len(held) == len(quotes):
        appraise.appraise_quotes(held, expected=expected, ledger=ledger)
    else:
        stated = [quote.stated for quote in quotes if quote.stated is not None]
        if stated:
            appraise.appraise_stated(stated, expected=expected, ledger=ledger)


def bound(quotes: Sequence[QuoteFindings]) -> bytes | None:
    """The extra data of the first quote."""
    first = quotes[0].authenticated if quotes else None
    return None if first is None else first.value.quote.extra_data


def registers(quotes: Sequence[QuoteFindings]) -> dict[str, bytes]:
    """Registers of authenticated quotes, by name."""
    return {
        name: value
        for quote in quotes
        if quote.authenticated is not None
        for name, value in appraise.registers(quote.authenticated.value).items()
    }


def unsaid(quotes: Sequence[QuoteFindings], log: LogFindings | None) -> tuple[str, ...]:
    """What quotes and an event log leave unproven."""
    sentences = []
    if log is None:
        sentences.append(NO_LOG)
    elif log.unsigned:
        sentences.append(NOT_QUOTED.format(", ".join(map(str, log.unsigned))))
    signed = {
        (bank, pcr)
        for quote in quotes
        if quote.stated is not None
        for bank, values in quote.stated.pcrs.items()
        for pcr in values
    }
    strong = {pcr for bank, pcr in signed if bank != Alg.SHA1}
    if any(pcr not in strong for _bank, pcr in signed) or _weak(log):
        sentences.append(WEAK_BANK)
    return tuple(sentences)


def _weak(log: LogFindings | None) -> bool:
    """Whether a log has digests of SHA-1 alone."""
    return log is not None and set(log.banks) == {Alg.SHA1}


def key_claims(
    public: bytes | None, ak: AkEvidence | None, policy: AppraisalPolicy
) -> tuple[str, ...]:
    """Names of the claims that `read_key` makes, in order."""
    names: tuple[str, ...] = ()
    if public is not None:
        names += (PUBLIC, ATTRIBUTES) if _in_tpm_form(public) else (PUBLIC,)
    if ak is not None:
        return (*names, *ak_chain.claim_names(policy))
    if policy.require_endorsements or public is None:
        return (*names, CERTIFICATE)
    return names


def read_key(
    public: bytes | None,
    ak: AkEvidence | None,
    *,
    vendor: Vendor,
    usages: Sequence[x509.ObjectIdentifier],
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    ledger: Ledger,
) -> tuple[AkKey | None, AkFindings | None]:
    """The key to check a quote with, and what became of its certificate, if there is one.

    The key counts for nothing unless every claim of `key_claims` holds.
    """
    key = None if public is None else _read_public(public, ledger)
    if ak is None:
        if policy.require_endorsements or public is None:
            ledger.refuse(
                CERTIFICATE,
                "endorsements_missing",
                "No certificate vouches for the key that signed the quote.",
            )
        return key, None
    found = ak_chain.authenticate_ak(
        ak,
        key,
        alone=public is None,
        vendor=vendor,
        usages=usages,
        policy=policy,
        roots=roots,
        at=at,
        ledger=ledger,
    )
    return (found.key if public is None else key), found


def _in_tpm_form(public: bytes) -> bool:
    """Whether the key came with the TPM's attributes; not whether it decodes."""
    return not public.startswith((b"-----BEGIN", b"\x30"))


def _read_public(data: bytes, ledger: Ledger) -> AkKey | None:
    """Decode a public key; with claims about it, and about the attributes if it has any."""
    try:
        public = parse_ak_public(data)
    except MalformedError as error:
        ledger.refuse(PUBLIC, "malformed", f"The quoting key is refused: {error}.")
        return None
    ledger.affirm(PUBLIC, "The quoting key decodes.")
    if public.area is not None:
        ledger.check(
            ATTRIBUTES,
            holds=public.may_attest,
            affirmed=(
                "The key was made in its TPM, never leaves it, and signs only what the TPM made."
            ),
            code="ak_purpose",
            refused=(
                "The key may leave its TPM, or sign what others made up: its quotes prove nothing."
            ),
        )
    return public.key


def _needs_quote(evidence: TpmEvidence, policy: AppraisalPolicy, expected: Expected) -> bool:
    return policy.require_endorsements or evidence.event_log is None or bool(expected.names)


def _log_alone(event_log: bytes | None, ledger: Ledger, *, missing: bool) -> Outcome:
    if missing:
        ledger.refuse(QUOTE, "endorsements_missing", "There is no quote by a TPM.")
    log = None if event_log is None else tpm_log.authenticate_log(event_log, None, ledger)
    return Outcome(
        platform=LOG_ALONE,
        memory_confidentiality=NO_MEMORY,
        facts={} if log is None else tpm_log.log_facts(log),
        not_proven=(*NOT_PROVEN, NOT_SIGNED, *((WEAK_BANK,) if _weak(log) else ())),
    )


def facts(quote: QuoteFindings, log: LogFindings | None) -> JsonObject:
    """Decoded fields of a quote and of what its log says."""
    found: JsonObject = {} if quote.stated is None else appraise.quote_facts(quote.stated)
    return found | ({} if log is None else tpm_log.log_facts(log))
