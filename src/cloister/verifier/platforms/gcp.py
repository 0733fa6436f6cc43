"""Verifies quotes of a Google Cloud virtual TPM: one for each bank of registers, by one key.

Steps: the attestation key and its certificate (`cloister.verifier.authenticate.ak`, with Google's
roots), the quote of the strongest bank (`cloister.verifier.authenticate.tpm_quote`), then

- ``gcp.all_banks``: the quotes of the other banks hold as well, and belong to the first one;
- ``gcp.instance``: the certificate's word on which instance this is decodes, and is Google's
  production environment's;

the event log (`cloister.verifier.authenticate.tpm_log`), and what the caller expects.

Google's attestation keys are signing keys of its virtual TPMs; their certificates bear the usage of
endorsement keys (2.23.133.8.1), those of a newer CA the one of attestation keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from cloister.endorsements.ak import (
    TCG_KP_AIK_CERTIFICATE,
    TCG_KP_EK_CERTIFICATE,
    AkKey,
    GoogleInstance,
    google_instance,
)
from cloister.endorsements.roots import Roots, Vendor
from cloister.errors import MalformedError
from cloister.evidence.tpm import HASH_NAMES, Alg, parse_quote
from cloister.strictjson import Json, JsonObject
from cloister.verifier.appraise.tpm_quote import FIELD_NAMES
from cloister.verifier.authenticate import tpm_log, tpm_quote
from cloister.verifier.authenticate.ak import AkEvidence, AkFindings
from cloister.verifier.authenticate.tpm_log import LogFindings
from cloister.verifier.authenticate.tpm_quote import QuoteEvidence, QuoteFindings, SignedQuote
from cloister.verifier.expected import Expected, check_names
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms import tpm
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.result import Finding

ALL_BANKS: Final = "gcp.all_banks"
INSTANCE: Final = "gcp.instance"
QUOTES: Final = "gcp.quotes"
"""Claimed only where there is no quote, or there are too many."""

PLATFORM: Final = "Google Cloud vTPM"
UNCERTIFIED: Final = "Google Cloud vTPM (key not certified)"

MAX_QUOTES: Final = len(HASH_NAMES)

USAGES: Final = (TCG_KP_AIK_CERTIFICATE, TCG_KP_EK_CERTIFICATE)

NOT_PROVEN: Final = (
    "Google stays trusted: its virtual TPM is a program outside the virtual machine, and signs"
    " what Google lets it sign.",
    *tpm.NOT_PROVEN,
    "Revocation of the attestation key's certificate is not checked.",
)

_STRENGTH: Final = (Alg.SHA256, Alg.SHA384, Alg.SHA512, Alg.SHA1)
"""Which bank's quote leads: the one that registers are named by, then others, SHA-1 last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GcpEvidence:
    """What `go-tpm-tools` and the like fetch from a virtual machine."""

    quotes: tuple[QuoteEvidence, ...]
    """One for each bank; any order."""
    ak_public: bytes | None = None
    """``TPMT_PUBLIC`` of the attestation key; the certificate alone will do."""
    ak: AkEvidence | None = None
    event_log: bytes | None = None


def claim_names(
    evidence: GcpEvidence, policy: AppraisalPolicy, expected: Expected
) -> tuple[str, ...]:
    """Names of all claims about `evidence`, in order."""
    count = len(evidence.quotes)
    return (
        *(() if 1 <= count <= MAX_QUOTES else (QUOTES,)),
        *tpm_quote.CLAIMS,
        *((ALL_BANKS,) if count > 1 else ()),
        *_key_claims(evidence, policy),
        *(() if evidence.event_log is None else tpm_log.CLAIMS),
        *expected.names,
    )


def verify_gcp(
    evidence: GcpEvidence,
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
    key, ak = _key(evidence, policy, roots, at, ledger)
    instance = None if ak is None else _instance(ak.certificate, ledger)
    quotes = _quotes(evidence, key, ledger)
    authenticated = ledger.holds(*_key_claims(evidence, policy)) and _all_hold(quotes, ledger)
    log = tpm.judge_log(evidence.event_log, quotes, authenticated=authenticated, ledger=ledger)
    tpm.appraise_all(quotes, authenticated=authenticated, expected=expected, ledger=ledger)
    proven = authenticated and ak is not None  # anybody signs well, with their own key
    return Outcome(
        platform=UNCERTIFIED if ak is None else PLATFORM,
        memory_confidentiality=tpm.NO_MEMORY,
        facts=_facts(quotes, log, ak, instance),
        development=ak is not None and ak.development,
        bound=tpm.bound(quotes) if proven else None,
        registers=tpm.registers(quotes) if proven else {},
        not_proven=(
            *NOT_PROVEN,
            *(() if ak is not None else (tpm.NOT_CERTIFIED,)),
            *(tpm.unsaid(quotes, log) if quotes else ()),
        ),
    )


def _key_claims(evidence: GcpEvidence, policy: AppraisalPolicy) -> tuple[str, ...]:
    names = tpm.key_claims(evidence.ak_public, evidence.ak, policy)
    return names if evidence.ak is None else (*names, INSTANCE)


def _key(
    evidence: GcpEvidence, policy: AppraisalPolicy, roots: Roots, at: datetime, ledger: Ledger
) -> tuple[AkKey | None, AkFindings | None]:
    return tpm.read_key(
        evidence.ak_public,
        evidence.ak,
        vendor=Vendor.GOOGLE_VTPM,
        usages=USAGES,
        policy=policy,
        roots=roots,
        at=at,
        ledger=ledger,
    )


def _instance(certificate: x509.Certificate | None, ledger: Ledger) -> GoogleInstance | None:
    if certificate is None:
        return None
    try:
        instance = google_instance(certificate)
    except MalformedError as error:
        ledger.refuse(INSTANCE, "malformed", f"The certificate is refused: {error}.")
        return None
    ledger.check(
        INSTANCE,
        holds=instance is None or instance.production is not False,
        affirmed=(
            "The certificate does not say which instance the key belongs to."
            if instance is None
            else f"The key belongs to the instance {instance.instance_id} of {instance.project_id}."
        ),
        code="not_production",
        refused="The key is of an environment for Google's own tests.",
        value="not_present" if instance is None else None,
    )
    return instance


def _quotes(evidence: GcpEvidence, key: AkKey | None, ledger: Ledger) -> tuple[QuoteFindings, ...]:
    """Findings about each quote, the leading one first; claims of the others are one claim."""
    count = len(evidence.quotes)
    if not 1 <= count <= MAX_QUOTES:
        ledger.refuse(QUOTES, "malformed", f"The evidence holds {count} quotes.")
        return ()
    first, *others = sorted(evidence.quotes, key=_rank)
    leading = tpm_quote.authenticate_quote(first, key, ledger)
    apart = Ledger()
    found = [
        tpm_quote.authenticate_quote(quote, key, apart.on(f"bank{number}"))
        for number, quote in enumerate(others)
    ]
    if others:
        _all_banks(leading, found, apart, ledger)
    return (leading, *found)


def _rank(evidence: QuoteEvidence) -> int:
    try:
        selections = parse_quote(evidence.quote).selections
    except MalformedError:
        return len(_STRENGTH)
    banks = [choice.hash_algorithm for choice in selections]
    return min((_STRENGTH.index(bank) for bank in banks if bank in _STRENGTH), default=9)


def _all_banks(
    leading: QuoteFindings, others: Sequence[QuoteFindings], apart: Ledger, ledger: Ledger
) -> None:
    """Every bank once, and all quotes for one challenge since one start of the machine."""
    for number in range(len(others)):
        apart.on(f"bank{number}").expect(*tpm_quote.CLAIMS)
    claims = [c for c in apart.close(development=False) if c.finding is not Finding.AFFIRMING]
    # What was refused says more than what was not checked because of it.
    failed = min(claims, key=lambda c: c.finding is not Finding.CONTRAINDICATED, default=None)
    stated = [quote.stated for quote in (leading, *others) if quote.stated is not None]
    belong = len({_occasion(quote) for quote in stated}) == 1
    banks = [bank for quote in stated for bank in quote.pcrs]
    if failed is not None:
        ledger.refuse(ALL_BANKS, failed.code or "malformed", failed.explanation)
    else:
        ledger.check(
            ALL_BANKS,
            holds=belong and len(set(banks)) == len(banks),
            affirmed=f"The quotes of all {len(stated)} banks hold, and belong together.",
            code="quotes_differ",
            refused="The quotes were made for different challenges or at different times.",
        )


def _occasion(stated: SignedQuote) -> tuple[bytes, bytes, int, int]:
    quote = stated.quote
    clock = quote.clock_info
    return quote.extra_data, quote.qualified_signer, clock.reset_count, clock.restart_count


def _all_hold(quotes: Sequence[QuoteFindings], ledger: Ledger) -> bool:
    together = ledger.holds(ALL_BANKS) if len(quotes) > 1 else True
    return bool(quotes) and together and all(quote.authenticated for quote in quotes)


def _facts(
    quotes: Sequence[QuoteFindings],
    log: LogFindings | None,
    ak: AkFindings | None,
    instance: GoogleInstance | None,
) -> JsonObject:
    facts: JsonObject = tpm.facts(quotes[0], log) if quotes else {}
    facts["per_bank"] = {
        HASH_NAMES[bank]: {
            "signature": quote.signed,
            "pcr_digest": quote.digest_matches,
            **({} if log is None else {"eventlog_replay": log.replays(bank)}),
        }
        for quote in quotes
        if quote.stated is not None
        for bank in sorted(quote.stated.pcrs)
    }
    if ak is not None and ak.certificate is not None:
        facts["ak_certificate"] = certificate_facts(ak.certificate)
    if instance is not None:
        facts["instance"] = {
            "zone": instance.zone,
            "project_number": instance.project_number,
            "project_id": instance.project_id,
            # JSON numbers lose digits beyond 2**53.
            "instance_id": str(instance.instance_id),
            "instance_name": instance.instance_name,
            "production": instance.production,
        }
    return facts


def certificate_facts(certificate: x509.Certificate) -> JsonObject:
    """Names and extensions of a certificate."""
    extensions: list[Json] = [extension.oid.dotted_string for extension in certificate.extensions]
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "extensions": extensions,
    }
