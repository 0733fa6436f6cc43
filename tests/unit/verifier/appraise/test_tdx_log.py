"""CCEL logs against registers: what is refused, and what is only stated."""

from __future__ import annotations

import dataclasses

import pytest

from cloister.evidence.ccel import replay_rtmrs
from cloister.evidence.eventlog import Event, EventType
from cloister.evidence.tpm import Alg
from cloister.verifier.appraise.tdx_log import (
    EVENT_LOG,
    LOG_CLAIMS,
    PAYLOADS,
    judge_ccel,
    unlike_registers,
)
from cloister.verifier.ledger import Ledger
from cloister.verifier.result import Claim, Finding
from support.tdx_logs import boot, ccel, measured

RTMRS = replay_rtmrs(boot())


def judged(
    data: bytes, rtmrs: tuple[bytes, ...] = RTMRS, *, authenticated: bool = True
) -> tuple[Claim, Claim]:
    ledger = Ledger()
    ledger.expect(*LOG_CLAIMS)
    judge_ccel(data, rtmrs, authenticated=authenticated, ledger=ledger)
    log, payloads = ledger.close(development=False)
    assert (log.name, payloads.name) == (EVENT_LOG, PAYLOADS)
    return log, payloads


def affirmed() -> list[Event]:
    assert {claim.finding for claim in judged(ccel(boot()))} == {Finding.AFFIRMING}
    return boot()


def test_affirmed() -> None:
    affirmed()
    _, payloads = judged(ccel(boot()))
    assert "3 of 5 events" in payloads.explanation


@pytest.mark.parametrize("number", range(4))
def test_each_register_is_compared(number: int) -> None:
    affirmed()
    rtmrs = tuple(
        bytes(47) + b"\x01" if index == number else value for index, value in enumerate(RTMRS)
    )
    log, payloads = judged(ccel(boot()), rtmrs)
    assert (log.code, log.value) == ("eventlog_mismatch", "fail")
    assert f"quoted RTMR{number}." in log.explanation
    assert payloads.finding is Finding.AFFIRMING


def test_an_event_more_or_less_or_elsewhere() -> None:
    events = affirmed()
    more = measured(3, EventType.EV_EFI_ACTION, b"more")
    for altered in (
        [*events, more],
        events[:-1],
        [events[2], events[1], events[0], *events[3:]],
        [dataclasses.replace(events[0], pcr=3), *events[1:]],
    ):
        assert judged(ccel(altered))[0].code == "eventlog_mismatch"


def test_data_changed_under_a_digest() -> None:
    """The registers still match, and the log tells another story."""
    events = affirmed()
    events[2] = dataclasses.replace(events[2], data=b"Exit Boot Services Failed!!!!")
    log, payloads = judged(ccel(events))
    assert (log.code, log.value) == ("eventlog_payload_mismatch", "fail")
    assert payloads.code == "eventlog_payload_mismatch"
    assert "event 3" in payloads.explanation


def test_data_that_no_digest_covers_may_be_anything() -> None:
    events = affirmed()
    events[1] = dataclasses.replace(events[1], data=b"path of another image")
    assert {claim.finding for claim in judged(ccel(events))} == {Finding.AFFIRMING}


def test_an_event_that_is_never_extended() -> None:
    events = affirmed()
    events[3] = dataclasses.replace(events[3], digests={Alg.SHA384: bytes(48)}, data=b"")
    assert {claim.finding for claim in judged(ccel(events))} == {Finding.AFFIRMING}


def test_malformed() -> None:
    log, payloads = judged(ccel(affirmed())[:-101])
    assert (log.code, log.value) == ("eventlog_malformed", "fail")
    assert payloads.code == "not_checked"


def test_unauthenticated() -> None:
    affirmed()
    for claim in judged(ccel(boot()), authenticated=False):
        assert (claim.finding, claim.code) == (Finding.NONE, "unauthenticated")
    log, _ = judged(ccel(boot()[:-1]), authenticated=False)
    assert (log.finding, log.code) == (Finding.CONTRAINDICATED, "eventlog_mismatch")


@pytest.mark.parametrize("count", [0, 3, 5])
def test_a_quote_has_four(count: int) -> None:
    with pytest.raises(ValueError, match="4 runtime registers"):
        unlike_registers([], (bytes(48),) * count)
