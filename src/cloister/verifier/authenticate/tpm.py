"""Authenticates a TPM quote over a measured launch.

Steps, in order; each makes one claim:

1. ``tpm.certificate``: the attestation key (AK) is certified, for attestation, by a pinned CA.
2. ``tpm.quote``: the quote decodes, was made inside a TPM, and is a quote.
3. ``tpm.signature``: the certified key, ECDSA on P-256 with SHA-256, signed exactly these bytes.
4. ``tpm.selection``: the signed selection is the SHA-256 bank, registers 0 to 15, and no more.
5. ``eventlog.format``: the event log decodes and every record in it is well-formed.
6. ``eventlog.digests``: the data of every event hashes to the digest that was extended.
7. ``eventlog.launch``: the log tells one launch by our conventions, closed by separators.
8. ``tpm.registers``: the digest of the registers replayed from the log is the signed one. Register
   values are never read from the report.
9. ``quote.fresh`` and ``keyset.bound``: the signed extra data is the digest of the statement
   that the verifier built from its own nonce and the keyset it hashed itself.

What the caller still owes: that the keyset is unexpired and the policy accepts it, and
appraisal of the components (`cloister.verifier.appraise.tpm`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.endorsements.roots import Roots, fingerprint
from cloister.errors import AuthenticationError, MalformedError
from cloister.evidence.component import (
    LAUNCH_REGISTERS,
    QUOTED_REGISTERS,
    Component,
    parse_component,
)
from cloister.evidence.eventlog import (
    SEPARATOR_DATA,
    EventLog,
    EventType,
    parse_event_log,
    replay,
)
from cloister.evidence.report import ITEM_EVENT_LOG, ITEM_QUOTE, ITEM_SIGNATURE, EvidenceItem
from cloister.evidence.tpm import (
    Alg,
    EcdsaSignature,
    PcrSelection,
    Quote,
    Signature,
    parse_quote,
    parse_signature,
    pcr_digest,
)
from cloister.verifier.authenticate.ak_chain import (
    authenticate_chain,
    authenticate_purpose,
    p256_key,
    parse_chain,
)
from cloister.verifier.authenticated import Authenticated, _grant
from cloister.verifier.ledger import Ledger
from cloister.verifier.result import Source

CERTIFICATE: Final = "tpm.certificate"
QUOTE: Final = "tpm.quote"
SIGNATURE: Final = "tpm.signature"
SELECTION: Final = "tpm.selection"
LOG_FORMAT: Final = "eventlog.format"
LOG_DIGESTS: Final = "eventlog.digests"
LOG_LAUNCH: Final = "eventlog.launch"
REGISTERS: Final = "tpm.registers"
FRESH: Final = "quote.fresh"
BOUND: Final = "keyset.bound"

CLAIMS: Final = (
    CERTIFICATE,
    QUOTE,
    SIGNATURE,
    SELECTION,
    FRESH,
    BOUND,
    LOG_FORMAT,
    LOG_DIGESTS,
    LOG_LAUNCH,
    REGISTERS,
)

EXPECTED_SELECTION: Final = (PcrSelection(hash_algorithm=Alg.SHA256, pcrs=QUOTED_REGISTERS),)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementDigests:
    """What the quote's extra data may be: digests that the verifier computed.

    `named` is over the keyset digest that the report names. Where it is not `expected`, the
    report's keyset is not the one that was signed for, and that is the more telling answer.
    """

    expected: bytes
    """SHA-256 of the statement over the recomputed keyset digest and the caller's nonce."""
    named: bytes
    unchallenged: bytes
    """SHA-256 of the statement without a nonce, to tell a cached report from a foreign one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmLaunch:
    """A launch as a TPM signed it."""

    quote: Quote
    components: tuple[Component, ...]
    """What was measured before the registers were closed, in the order of the log."""
    certificate: x509.Certificate
    root: x509.Certificate


def authenticate_tpm(
    items: Mapping[str, EvidenceItem],
    *,
    statements: StatementDigests,
    roots: Roots,
    at: datetime,
    ledger: Ledger,
) -> Authenticated[TpmLaunch] | None:
    """Run every step on a report's evidence, adding `CLAIMS` to `ledger`.

    Returns ``None`` unless all of them hold. A step is left out of `ledger` only when one it
    builds on did not hold.
    """
    certificate, root = _certificate(items, roots, at, ledger)
    quote = _quote(items, ledger)
    signed = (
        quote is not None
        and certificate is not None
        and _signature(items, quote, certificate, ledger)
    )
    log = _log(items, ledger)
    if quote is not None and signed:
        _selection(quote, ledger)
        _binding(quote, statements, ledger)
    components = None if log is None else _launch(log, ledger)
    if quote is not None and log is not None and ledger.holds(SIGNATURE, SELECTION):
        _registers(quote, log.log, ledger)
    if quote is None or certificate is None or root is None or components is None:
        return None
    if not ledger.holds(*CLAIMS):
        return None
    return _grant(TpmLaunch(quote=quote, components=components, certificate=certificate, root=root))


def _certificate(
    items: Mapping[str, EvidenceItem], roots: Roots, at: datetime, ledger: Ledger
) -> tuple[x509.Certificate | None, x509.Certificate | None]:
    """Step 1. Returns the AK's certificate, even if unpinned, and the pinned root or none.

    A quote can be checked against a key that nobody vouches for; that says which of the two is
    wrong, and affirms nothing.
    """
    item = items.get(ITEM_QUOTE)
    certificate = None
    try:
        chain = parse_chain(() if item is None else item.endorsements)
        certificate = chain[0]
        root = authenticate_chain(chain, roots=roots, at=at)
        authenticate_purpose(certificate)
        p256_key(certificate)
    except AuthenticationError as error:
        ledger.refuse(CERTIFICATE, error.code, str(error))
        return certificate, None
    ledger.affirm(
        CERTIFICATE,
        "The TPM's attestation key is certified by an enrolment CA that you pinned"
        f" ({fingerprint(root)}).",
    )
    return certificate, root


def _quote(items: Mapping[str, EvidenceItem], ledger: Ledger) -> Quote | None:
    """Step 2."""
    item = items.get(ITEM_QUOTE)
    if item is None:
        ledger.refuse(QUOTE, "quote_missing", "The report holds no TPM quote.")
        return None
    try:
        quote = parse_quote(item.data)
    except MalformedError as error:
        ledger.refuse(QUOTE, error.code, f"The quote is refused: {error}.")
        return None
    ledger.affirm(QUOTE, "The quote is a structure that a TPM made, about its registers.")
    return quote


def _signature(
    items: Mapping[str, EvidenceItem],
    quote: Quote,
    certificate: x509.Certificate,
    ledger: Ledger,
) -> bool:
    """Step 3."""
    item = items.get(ITEM_SIGNATURE)
    if item is None:
        ledger.refuse(SIGNATURE, "quote_missing", "The report holds no signature of the quote.")
        return False
    try:
        key = p256_key(certificate)
        signature = parse_signature(item.data)
    except AuthenticationError as error:
        ledger.refuse(SIGNATURE, error.code, str(error))
        return False
    except MalformedError as error:
        ledger.refuse(SIGNATURE, error.code, f"The signature is refused: {error}.")
        return False
    if not isinstance(signature, EcdsaSignature) or signature.hash_algorithm != Alg.SHA256:
        ledger.refuse(
            SIGNATURE,
            "quote_algorithm",
            "The quote is not signed with ECDSA and SHA-256, as the certified key signs.",
        )
        return False
    return ledger.check(
        SIGNATURE,
        holds=_signed(key, signature, quote.raw),
        affirmed="The TPM's attestation key signed this quote.",
        code="quote_signature",
        refused="The quote was not signed by the key in the certificate, or was changed since.",
        source=Source.HARDWARE_PROVEN,
    )


def _signed(key: ec.EllipticCurvePublicKey, signature: Signature, message: bytes) -> bool:
    if not isinstance(signature, EcdsaSignature):
        return False
    try:
        key.verify(
            encode_dss_signature(signature.r, signature.s), message, ec.ECDSA(hashes.SHA256())
        )
    except InvalidSignature:
        return False
    return True


def _selection(quote: Quote, ledger: Ledger) -> None:
    """Step 4: the selection that was signed, not one that the report writes beside it."""
    ledger.check(
        SELECTION,
        holds=quote.selections == EXPECTED_SELECTION,
        affirmed="The quote covers registers 0 to 15 of the SHA-256 bank, all of them.",
        code="quote_selection",
        refused="The quote covers other registers than 0 to 15 of the SHA-256 bank alone.",
        source=Source.HARDWARE_PROVEN,
    )


def _binding(quote: Quote, statements: StatementDigests, ledger: Ledger) -> None:
    """Step 9: one value proves freshness and keys; who gets it wrong decides which is blamed."""
    signed = quote.extra_data
    if signed == statements.unchallenged:
        refused = "The quote answers no challenge at all: it may have been made long ago."
    else:
        refused = (
            "The TPM did not sign your challenge for these keys: the quote is an older one, or"
            " somebody else's, or the keys were replaced."
        )
    ledger.check(
        FRESH,
        holds=signed in {statements.expected, statements.named},
        affirmed="The quote was made after, and for, the challenge you sent.",
        code="quote_nonce",
        refused=refused,
        source=Source.HARDWARE_PROVEN,
    )
    ledger.check(
        BOUND,
        holds=signed == statements.expected == statements.named,
        affirmed="The TPM signed for exactly the keys that the report lists.",
        code="keyset_unbound",
        refused="The keys that the report lists are not the ones that the TPM signed for.",
        source=Source.HARDWARE_PROVEN,
    )


_MAX_KEPT_LOG: Final = 256 * 1024
"""Workers of one image bring the same log, byte for byte, and decoding it takes a while: what a log
says by itself is kept under its bytes. Whether a TPM signed for it is asked every time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    """What a log says by itself."""

    log: EventLog
    bad: int | None
    """The first event whose data is not what its digest covers, from 1."""
    components: tuple[Component, ...]
    malformed: tuple[str, str] | None
    """Code and text of the error of a record that does not decode."""
    fault: str | None
    """Why it is no launch of ours."""


def _read_log(data: bytes) -> _Log:
    """Decode a log, its records too; MalformedError if the log itself is none."""
    log = parse_event_log(data)
    if set(log.banks) != {Alg.SHA256}:
        raise MalformedError(
            "the event log has other banks than SHA-256 alone", code="eventlog_bank"
        )
    bad = next(
        (
            number
            for number, event in enumerate(log.events, start=1)
            if hashlib.sha256(event.data).digest() != event.digests[Alg.SHA256]
        ),
        None,
    )
    try:
        components, fault = _read_launch(log)
    except MalformedError as error:
        malformed = (error.code, str(error))
        return _Log(log=log, bad=bad, components=(), malformed=malformed, fault=None)
    return _Log(log=log, bad=bad, components=components, malformed=None, fault=fault)


def _read_launch(log: EventLog) -> tuple[tuple[Component, ...], str | None]:
    """The components, and why this is no launch of ours, if so; MalformedError for a record."""
    components: list[Component] = []
    closed: set[int] = set()
    fault: str | None = None
    for event in log.events:
        if event.pcr not in LAUNCH_REGISTERS:
            fault = fault or f"something was measured into register {event.pcr}"
        elif event.pcr in closed:
            fault = fault or f"register {event.pcr} was extended after it was closed"
        elif event.type == EventType.EV_SEPARATOR and event.data == SEPARATOR_DATA:
            closed.add(event.pcr)
        elif event.type == EventType.EV_IPL:
            component = parse_component(event.data)
            components.append(component)
            if component.register != event.pcr:
                fault = fault or f"a {component.kind} was measured into register {event.pcr}"
        else:
            fault = fault or f"an event of type 0x{event.type:08x} was measured"
    if fault is None and closed != set(LAUNCH_REGISTERS):
        fault = "a register was left open, so that anything could follow"
    return tuple(components), fault


def _replayed(log: EventLog) -> bytes:
    """The digest that a quote of the registers has, if they are as the log says."""
    registers = replay(log, bank=Alg.SHA256)
    return pcr_digest(
        EXPECTED_SELECTION,
        {(int(Alg.SHA256), pcr): registers[pcr] for pcr in QUOTED_REGISTERS},
    )


_kept_log = lru_cache(maxsize=8)(_read_log)


@lru_cache(maxsize=8)
def _kept_replay(data: bytes) -> bytes:
    return _replayed(_kept_log(data).log)


def _log(items: Mapping[str, EvidenceItem], ledger: Ledger) -> _Log | None:
    """Steps 5 (the log itself) and 6."""
    item = items.get(ITEM_EVENT_LOG)
    if item is None:
        ledger.refuse(LOG_FORMAT, "eventlog_missing", "The report holds no event log.")
        return None
    try:
        small = len(item.data) <= _MAX_KEPT_LOG
        found = _kept_log(item.data) if small else _read_log(item.data)
    except MalformedError as error:
        ledger.refuse(LOG_FORMAT, error.code, f"The event log is refused: {error}.")
        return None
    ledger.check(
        LOG_DIGESTS,
        holds=found.bad is None,
        affirmed=f"All {len(found.log.events)} events say what their measured digests cover.",
        code="eventlog_digest",
        refused=f"Event {found.bad} of the log says something else than what was measured.",
    )
    return found


def _launch(found: _Log, ledger: Ledger) -> tuple[Component, ...] | None:
    """Steps 5 (the records) and 7."""
    if found.malformed is not None:
        code, why = found.malformed
        ledger.refuse(LOG_FORMAT, code, f"The event log is refused: {why}.")
        return None
    ledger.affirm(LOG_FORMAT, f"The event log decodes: {len(found.log.events)} events.")
    holds = ledger.check(
        LOG_LAUNCH,
        holds=found.fault is None,
        affirmed="The log tells of one launch, and that nothing was measured after it.",
        code="eventlog_replay",
        refused=f"The log is not that of a Cloister launch: {found.fault}.",
    )
    return found.components if holds else None


def _registers(quote: Quote, log: EventLog, ledger: Ledger) -> None:
    """Step 8."""
    small = len(log.raw) <= _MAX_KEPT_LOG
    ledger.check(
        REGISTERS,
        holds=(_kept_replay(log.raw) if small else _replayed(log)) == quote.pcr_digest,
        affirmed="The log replays to the register values that the TPM signed.",
        code="pcr_digest",
        refused=(
            "The log does not replay to the register values that the TPM signed: events were"
            " changed, added or left out."
        ),
        source=Source.HARDWARE_PROVEN,
    )
