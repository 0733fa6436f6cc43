"""How each artefact stands, in sentences that an operator can act on."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cloister.endorsements.artefact import Artefact, ArtefactKind
from cloister.endorsements.freshness import SKEW, Freshness
from cloister.endorsements.ocsp import parse_ocsp

_STALLED: Final = timedelta(days=7)
_ISSUED_DAILY: Final = frozenset({ArtefactKind.INTEL_TCB_INFO, ArtefactKind.INTEL_QE_IDENTITY})
"""Intel signs these anew whenever it is asked, so an old date means an old copy."""


class State(enum.StrEnum):
    """From the best to the worst."""

    CURRENT = "current"
    DUE = "due"
    """Of use, and to be renewed."""
    STALLED = "stalled"
    """Of use by its own dates, but the service that gave it hands out old copies."""
    TOO_OLD = "too_old"
    """Past the maximum age: the cache no longer hands it out."""
    FUTURE = "future"
    EXPIRED = "expired"
    REVOKED = "revoked"
    """An OCSP response that says so."""


USABLE: Final = frozenset({State.CURRENT, State.DUE, State.STALLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One line of the report."""

    artefact: Artefact
    state: State
    sentence: str


def status_of(artefact: Artefact, *, at: datetime, freshness: Freshness) -> Status:
    """How `artefact` stands at time `at`, by its own dates and by `freshness`."""
    state = _state(artefact, at, freshness)
    return Status(artefact=artefact, state=state, sentence=_sentence(artefact, state, at))


def report(
    artefacts: Iterable[Artefact], *, at: datetime, freshness: Freshness
) -> tuple[Status, ...]:
    """The status of each, in the order given."""
    return tuple(status_of(one, at=at, freshness=freshness) for one in artefacts)


def _state(artefact: Artefact, at: datetime, freshness: Freshness) -> State:
    if artefact.issued_at > at + SKEW:
        return State.FUTURE
    if artefact.valid_until is not None and at > artefact.valid_until:
        return State.EXPIRED
    if artefact.kind is ArtefactKind.NVIDIA_OCSP and _revoked(artefact):
        return State.REVOKED
    if not freshness.is_usable(artefact, at):
        return State.TOO_OLD
    if artefact.kind in _ISSUED_DAILY and artefact.fetched_at - artefact.issued_at > _STALLED:
        return State.STALLED
    return State.DUE if freshness.is_due(artefact, at) else State.CURRENT


def _sentence(artefact: Artefact, state: State, at: datetime) -> str:
    until = artefact.valid_until
    end = "It bears no date of expiry." if until is None else _end(until, at)
    match state:
        case State.CURRENT:
            return end
        case State.DUE:
            return f"{end} Renew it: `cloister endorsements fetch`, or import a newer bundle."
        case State.STALLED:
            return (
                f"{end} It was {_span(artefact.fetched_at - artefact.issued_at)} old when"
                f" {artefact.source} gave it out: that service does not renew its own copies."
            )
        case State.TOO_OLD:
            return (
                f"It was fetched {_span(at - artefact.fetched_at)} ago, longer than is accepted:"
                " what was revoked since does not show. Fetch it again, or import a newer bundle."
            )
        case State.FUTURE:
            return (
                f"It was issued at {_day(artefact.issued_at)}, which is still to come by this"
                " machine's clock: check the clock."
            )
        case State.EXPIRED:
            return f"{end} Evidence that needs it is refused until it is fetched or imported anew."
        case State.REVOKED:
            return "The certificate it is about was revoked: take the device out of service."


def _end(until: datetime, at: datetime) -> str:
    if at > until:
        return f"It expired {_span(at - until)} ago, on {_day(until)}."
    return f"It expires in {_span(until - at)}, on {_day(until)}."


def _span(length: timedelta) -> str:
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        count = int(length.total_seconds()) // size
        if count >= 2 or (count == 1 and word == "minute"):
            return f"{count} {word}{'' if count == 1 else 's'}"
    return "less than a minute"


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _revoked(artefact: Artefact) -> bool:
    return parse_ocsp(artefact.data).certificate_status.name != "GOOD"
