"""Status: what an operator is told, and when."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography.x509 import ocsp

from cloister.endorsements.artefact import Artefact, nvidia_ocsp
from cloister.endorsements.contents import make_artefact
from cloister.endorsements.freshness import Freshness
from cloister.endorsements.status import USABLE, State, report, status_of
from support.ocsp import DEVICE, ISSUER, answer
from support.published import NOW, ROOT_CRL, TCB_INFO, Issue, amd_artefacts

DAY = timedelta(days=1)
NEWS = Issue(issued=NOW).artefact(TCB_INFO)


def told(artefact: Artefact, at: datetime) -> tuple[State, str]:
    found = status_of(artefact, at=at, freshness=Freshness())
    return found.state, found.sentence


@pytest.mark.parametrize(
    ("after", "state", "sentence"),
    [
        (timedelta(0), State.CURRENT, "It expires in 30 days, on 2026-07-01 00:00 UTC."),
        (DAY, State.DUE, "It expires in 29 days"),
        (7 * DAY, State.DUE, "`cloister endorsements fetch`"),
        (7 * DAY + DAY / 24, State.TOO_OLD, "It was fetched 7 days ago, longer than is accepted"),
        (30 * DAY + DAY / 12, State.EXPIRED, "It expired 2 hours ago, on 2026-07-01 00:00 UTC."),
        (-DAY, State.FUTURE, "check the clock"),
    ],
)
def test_news(after: timedelta, state: State, sentence: str) -> None:
    found = told(NEWS, NOW + after)
    assert found[0] is state
    assert sentence in found[1]


def test_certificates_do_not_age() -> None:
    vcek = amd_artefacts()[0]
    assert told(vcek, NOW + 300 * DAY)[0] is State.CURRENT
    assert told(vcek, NOW + 360 * DAY)[0] is State.DUE
    assert told(vcek, NOW + 366 * DAY)[0] is State.EXPIRED


def test_a_service_that_hands_out_old_copies() -> None:
    old = Issue(issued=NOW - 8 * DAY)
    state, sentence = told(old.artefact(TCB_INFO), NOW)
    assert state is State.STALLED
    assert "8 days old when simulated gave it out" in sentence
    # A revocation list is not issued anew for whoever asks.
    assert told(old.artefact(ROOT_CRL), NOW)[0] is State.CURRENT


def test_without_an_end() -> None:
    state, sentence = told(replace(NEWS, valid_until=None), NOW)
    assert (state, sentence) == (State.CURRENT, "It bears no date of expiry.")


def test_revoked() -> None:
    request = nvidia_ocsp(DEVICE.certificate, ISSUER.certificate)
    states = []
    for status in ocsp.OCSPCertStatus:
        data = answer(status=status)
        states.append(told(make_artefact(request, data, source="x", fetched_at=NOW), NOW)[0])
    assert states == [State.CURRENT, State.REVOKED, State.REVOKED]


def test_a_report_keeps_the_order() -> None:
    artefacts = [NEWS, *amd_artefacts()]
    found = report(artefacts, at=NOW, freshness=Freshness())
    assert [one.artefact for one in found] == artefacts
    assert all(one.state in USABLE for one in found)


def test_a_grace_beyond_the_end_of_time() -> None:
    """Certificates without a well-defined end bear one in the year 9999 (RFC 5280)."""
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=NOW.tzinfo)
    artefact = replace(Issue().artefact(TCB_INFO), fetched_at=NOW, valid_until=last)
    for grace in (timedelta(0), timedelta(days=1)):
        assert Freshness(grace=grace).is_usable(artefact, NOW)
    ended = replace(artefact, valid_until=NOW - timedelta(days=2))
    assert not Freshness(grace=timedelta(days=1)).is_usable(ended, NOW)
