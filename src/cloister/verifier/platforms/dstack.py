"""Verifies evidence of a dstack guest: a TDX quote, the guest's event log, its application.

Steps: those of `cloister.verifier.platforms.tdx`, then `cloister.verifier.appraise.dstack`, then
what the caller expects of the events.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cloister.endorsements.roots import Roots
from cloister.errors import MalformedError
from cloister.evidence.ccel import RTMR_COUNT
from cloister.evidence.dstack import DstackEvent, DstackLog, compose_hash, parse_dstack_log
from cloister.strictjson import JsonObject
from cloister.verifier.appraise import dstack as appraise
from cloister.verifier.appraise.tdx_log import unlike_registers
from cloister.verifier.expected import Expected, compare
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms import tdx
from cloister.verifier.platforms.tdx import TdxEvidence, verify_tdx
from cloister.verifier.policy import AppraisalPolicy

PLATFORM: Final = "dstack on Intel TDX"

EVENT_FIELDS: Final = {
    "app_id": "app-id",
    "compose_hash": appraise.COMPOSE_HASH,
    "instance_id": "instance-id",
    "key_provider": "key-provider",
    "os_image_hash": "os-image-hash",
    "rootfs_hash": "rootfs-hash",
}
"""Fields that runtime events give, by the events' names."""

FIELD_NAMES: Final = (*tdx.FIELD_NAMES, *EVENT_FIELDS)
"""What a caller may expect something of."""

NOT_PROVEN: Final = (
    "dstack's events are the word of its image: which image ran shows only where you compare MRTD"
    " and RTMR0 to RTMR2 with reference values.",
    f"Events after {appraise.READY} are the application's own words.",
)
NO_LOG: Final = "Without the guest's event log nothing shows which application it runs."
NO_COMPOSE: Final = (
    "Without the application's document nothing but its hash is known of what runs in the guest."
)
NOT_READY: Final = f"The guest had not reported {appraise.READY} when the quote was made."
OTHER_CONFIG_ID: Final = (
    "MRCONFIGID was not compared: it is none of the kind that names a document."
)

_TEXTS: Final = ("key-provider", "storage-fs")
"""Events whose payload is text; it is shown as that among the facts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DstackEvidence:
    """What a dstack guest hands out."""

    tdx: TdxEvidence
    event_log: bytes | None = field(default=None, repr=False)
    """JSON; ``None`` where only the quote came."""
    app_compose: bytes | None = field(default=None, repr=False)
    """``app-compose.json``, byte for byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quoted:
    """What the quote said; authenticated only if `proven`."""

    rtmrs: tuple[bytes, ...]
    mr_config_id: bytes
    proven: bool


def verify_dstack(
    evidence: DstackEvidence,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    """Verify `evidence` at time `at`; whatever is wrong with it is a claim in `ledger`.

    Raises:
        ConfigurationError: `expected` names a field that neither quote nor events have.
    """
    of_events, of_quote = _split(expected)
    outcome = verify_tdx(
        evidence.tdx, policy=policy, roots=roots, at=at, expected=of_quote, ledger=ledger
    )
    quoted = _quoted(outcome)
    ledger.expect(*_claim_names(evidence, quoted, policy), *of_events.names)
    log = _log(evidence, policy, ledger)
    stated = ledger if quoted is not None and quoted.proven else ledger.stated()
    if log is not None and quoted is not None:
        appraise.judge_log(log, quoted.rtmrs, ledger=stated)
    believed = ledger.holds(appraise.EVENT_LOG, appraise.EVENTS)
    of_log = ledger if believed else ledger.stated()
    events = {} if log is None else appraise.boot_events(log)
    _compose(evidence, events, quoted, ledger=of_log if log is not None else stated)
    fields = {name: events.get(event) for name, event in EVENT_FIELDS.items()}
    compare(of_events, fields, of_log)
    measured = {name: value for name, value in fields.items() if value is not None}
    return dataclasses.replace(
        outcome,
        platform=PLATFORM,
        facts=outcome.facts | _facts(evidence, log, quoted),
        registers={**outcome.registers, **measured} if believed else outcome.registers,
        not_proven=(*outcome.not_proven, *_not_proven(evidence, events, quoted)),
    )


def _split(expected: Expected) -> tuple[Expected, Expected]:
    """What is expected of events, and what of the quote."""

    def part(*, of_events: bool) -> Expected:
        values, prefixes = (
            {name: value for name, value in wanted.items() if (name in EVENT_FIELDS) == of_events}
            for wanted in (expected.values, expected.prefixes)
        )
        return Expected(values=values, prefixes=prefixes)

    return part(of_events=True), part(of_events=False)


def _quoted(outcome: Outcome) -> _Quoted | None:
    """The registers that the quote states, from its facts: these are there unauthenticated too."""
    names = ("mr_config_id", *(f"rtmr{number}" for number in range(RTMR_COUNT)))
    values = [value for name in names if isinstance(value := outcome.facts.get(name), str)]
    if len(values) != len(names):
        return None
    config_id, *rtmrs = map(bytes.fromhex, values)
    return _Quoted(rtmrs=tuple(rtmrs), mr_config_id=config_id, proven=bool(outcome.registers))


def _claim_names(
    evidence: DstackEvidence, quoted: _Quoted | None, policy: AppraisalPolicy
) -> tuple[str, ...]:
    """Names of the claims beyond those about the quote, in order."""
    names: list[str] = []
    if evidence.event_log is not None:
        names += [appraise.EVENT_LOG, appraise.PAYLOADS, appraise.EVENTS]
    elif policy.require_endorsements:
        names.append(appraise.EVENT_LOG)
    if evidence.app_compose is not None:
        names.append(appraise.COMPOSE)
    if evidence.event_log is not None and quoted is not None:
        names += [appraise.CONFIG_ID] if appraise.names_compose(quoted.mr_config_id) else []
    return tuple(names)


def _log(evidence: DstackEvidence, policy: AppraisalPolicy, ledger: Ledger) -> DstackLog | None:
    if evidence.event_log is None:
        if policy.require_endorsements:
            ledger.refuse(
                appraise.EVENT_LOG,
                "endorsements_missing",
                "The guest's event log is missing, and the policy requires it.",
            )
        return None
    try:
        return parse_dstack_log(evidence.event_log)
    except MalformedError as error:
        ledger.refuse(
            appraise.EVENT_LOG, error.code, f"The guest's event log does not decode: {error}."
        )
        return None


def _compose(
    evidence: DstackEvidence,
    events: Mapping[str, bytes],
    quoted: _Quoted | None,
    *,
    ledger: Ledger,
) -> None:
    """Compare document, event and MRCONFIGID, as far as they are there."""
    measured = events.get(appraise.COMPOSE_HASH)
    config_id = b"" if quoted is None else quoted.mr_config_id
    if measured is not None and appraise.names_compose(config_id):
        appraise.judge_config_id(config_id, measured, ledger=ledger)
    if evidence.app_compose is None:
        return
    if evidence.event_log is None and appraise.names_compose(config_id):
        measured = config_id[1:33]
    appraise.judge_compose(evidence.app_compose, measured, ledger=ledger)


def _not_proven(
    evidence: DstackEvidence, events: Mapping[str, bytes], quoted: _Quoted | None
) -> tuple[str, ...]:
    sentences = [*NOT_PROVEN]
    if evidence.event_log is None:
        sentences.append(NO_LOG)
    elif appraise.READY not in events:
        sentences.append(NOT_READY)
    if evidence.app_compose is None:
        sentences.append(NO_COMPOSE)
    if quoted is not None and not appraise.names_compose(quoted.mr_config_id):
        sentences.append(OTHER_CONFIG_ID)
    return tuple(sentences)


def _facts(evidence: DstackEvidence, log: DstackLog | None, quoted: _Quoted | None) -> JsonObject:
    facts: JsonObject = {}
    measured = None
    if log is not None:
        facts["runtime_events"] = {event.name: _payload(event) for event in log.runtime}
        measured = appraise.boot_events(log).get(appraise.COMPOSE_HASH)
        if quoted is not None:
            unlike = unlike_registers([event.as_event() for event in log.events], quoted.rtmrs)
            facts["rtmr_replay"] = {
                str(number): number not in unlike for number in range(RTMR_COUNT)
            }
    if evidence.app_compose is not None and measured is not None:
        document = compose_hash(evidence.app_compose)
        facts["compose_hash_event"] = measured.hex()
        facts["sha256_of_app_compose"] = document.hex()
        facts["compose_hash_matches"] = measured == document
    return facts


def _payload(event: DstackEvent) -> str:
    if event.name in _TEXTS:
        with contextlib.suppress(UnicodeDecodeError):
            return event.payload.decode()
    return event.payload.hex()
