"""dstack guests on a simulated Intel: each fault beside the unaltered guest, same policy."""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest

from cloister.endorsements.intel_tcb_info import TDX
from cloister.endorsements.roots import Roots
from cloister.errors import ConfigurationError
from cloister.evidence.dstack import compose_hash, config_id
from cloister.testing.simulated_dcap import SimulatedIntel
from cloister.verifier.evidence import run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms.dstack import (
    NO_COMPOSE,
    NO_LOG,
    NOT_READY,
    OTHER_CONFIG_ID,
    DstackEvidence,
    verify_dstack,
)
from cloister.verifier.platforms.tdx import TdxEvidence
from cloister.verifier.policy import AppraisalPolicy, as_captured, development
from cloister.verifier.result import AttestationResult, Finding
from support.tdx_logs import (
    COMPOSE,
    dstack_events,
    dstack_log,
    dstack_rtmrs,
    firmware_event,
    measured,
    runtime_event,
)

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
INTEL = SimulatedIntel(now=NOW)
PLATFORM = INTEL.platform()
POLICY = development()
REPORT_DATA = bytes(range(64))

Events = list[dict[str, Any]]


def guest(
    events: Events | None = None,
    *,
    told: Events | None = None,
    app_compose: bytes | None = COMPOSE,
    mr_config_id: bytes = bytes(48),
) -> DstackEvidence:
    """A guest that measured `events` and tells `told`."""
    measured_events = dstack_events() if events is None else events
    rtmrs = dstack_rtmrs(measured_events)
    quote = PLATFORM.tdx_quote(
        report_data=REPORT_DATA,
        mr_config_id=mr_config_id,
        rtmr0=rtmrs[0],
        rtmr1=rtmrs[1],
        rtmr2=rtmrs[2],
        rtmr3=rtmrs[3],
    )
    return DstackEvidence(
        tdx=TdxEvidence(quote=quote, collateral=INTEL.collateral(TDX)),
        event_log=dstack_log(measured_events if told is None else told),
        app_compose=app_compose,
    )


def verify(
    evidence: DstackEvidence,
    *,
    roots: Roots = INTEL.roots,
    policy: AppraisalPolicy = POLICY,
    expected: Expected = NOTHING_EXPECTED,
) -> AttestationResult:
    return run(verify_dstack, evidence, policy=policy, roots=roots, at=NOW, expected=expected)


def outcome(evidence: DstackEvidence, roots: Roots = INTEL.roots) -> Outcome:
    return verify_dstack(
        evidence,
        policy=POLICY,
        roots=roots,
        at=NOW,
        expected=NOTHING_EXPECTED,
        ledger=Ledger(),
    )


def codes(result: AttestationResult) -> dict[str, str | None]:
    return {
        claim.name: claim.code
        for claim in result.claims
        if claim.finding is Finding.CONTRAINDICATED
    }


def finding(result: AttestationResult, name: str) -> Finding:
    return next(claim.finding for claim in result.claims if claim.name == name)


def names(result: AttestationResult) -> list[str]:
    return [claim.name for claim in result.claims if claim.name.startswith("dstack.")]


@pytest.fixture(autouse=True)
def affirmed() -> AttestationResult:
    """The unaltered guest, before each test that alters it."""
    result = verify(guest())
    assert result.verdict is Finding.AFFIRMING, codes(result)
    return result


def test_affirmed(affirmed: AttestationResult) -> None:
    assert affirmed.platform == "development (dstack on Intel TDX)"
    assert names(affirmed) == [
        "dstack.eventlog",
        "dstack.eventlog_payloads",
        "dstack.events",
        "dstack.compose",
    ]
    assert OTHER_CONFIG_ID in affirmed.not_proven
    assert affirmed.facts["compose_hash_matches"] is True
    assert affirmed.facts["rtmr_replay"] == dict.fromkeys("0123", True)
    runtime = affirmed.facts["runtime_events"]
    assert isinstance(runtime, dict)
    assert runtime["key-provider"] == '{"name":"kms","id":"00"}'
    assert runtime["of the application"] == "55"


def test_registers_and_bound() -> None:
    found = outcome(guest())
    assert found.bound == REPORT_DATA
    assert found.registers["compose_hash"] == compose_hash(COMPOSE)
    assert found.registers["app_id"] == compose_hash(COMPOSE)[:20]
    assert found.registers["instance_id"] == b"\x33" * 20
    assert found.registers["os_image_hash"] == b"\x44" * 32
    assert "rootfs_hash" not in found.registers
    assert {"mr_td", "rtmr3"} <= found.registers.keys()


@pytest.mark.parametrize("version", [1, 2])
def test_digests_left_out(version: int) -> None:
    events = dstack_events(version=version)
    told = dstack_events(version=version, digest=False)
    assert verify(guest(events)).verdict is Finding.AFFIRMING
    assert verify(guest(events, told=told)).verdict is Finding.AFFIRMING


def test_firmwares_data_may_be_left_out() -> None:
    told = [
        event if event["imr"] == 3 else {**event, "event_payload": ""} for event in dstack_events()
    ]
    assert verify(guest(told=told)).verdict is Finding.AFFIRMING


def test_firmwares_data_may_not_be_made_up() -> None:
    told = dstack_events()
    told[0]["event_payload"] = "01000000"
    assert codes(verify(guest(told=told))) == {
        "dstack.eventlog": "eventlog_payload_mismatch",
        "dstack.eventlog_payloads": "eventlog_payload_mismatch",
    }


def edited(name: str, payload: bytes, *, digest: bool) -> Events:
    """What an unaltered guest tells, but for one payload, with its digest kept or made anew."""
    told = dstack_events()
    for index, event in enumerate(told):
        if event["event"] == name:
            told[index] = runtime_event(name, payload)
            if not digest:
                told[index]["digest"] = event["digest"]
    return told


def test_another_compose_hash_under_the_digest() -> None:
    """Replaying digests alone would not see it."""
    other = b'{"docker_compose_file": "services: {evil: {}}"}'
    told = edited("compose-hash", compose_hash(other), digest=False)
    result = verify(guest(told=told, app_compose=other))
    assert codes(result) == {
        "dstack.eventlog": "eventlog_payload_mismatch",
        "dstack.eventlog_payloads": "eventlog_payload_mismatch",
    }
    assert finding(result, "dstack.compose") is Finding.NONE
    assert "compose_hash" not in outcome(guest(told=told, app_compose=other)).registers
    assert result.facts["rtmr_replay"] == dict.fromkeys("0123", True)


def test_another_compose_hash_with_its_digest() -> None:
    other = b"{}"
    told = edited("compose-hash", compose_hash(other), digest=True)
    result = verify(guest(told=told, app_compose=other))
    assert codes(result) == {"dstack.eventlog": "eventlog_mismatch"}
    assert finding(result, "dstack.compose") is Finding.NONE
    assert result.facts["rtmr_replay"] == {"0": True, "1": True, "2": True, "3": False}


def test_another_document() -> None:
    for other in (COMPOSE + b"\n", b""):
        result = verify(guest(app_compose=other))
        assert codes(result) == {"dstack.compose": "compose_mismatch"}
        assert result.facts["compose_hash_matches"] is False


def test_without_a_document() -> None:
    result = verify(guest(app_compose=None))
    assert result.verdict is Finding.AFFIRMING
    assert NO_COMPOSE in result.not_proven


def opaque(event: dict[str, Any]) -> dict[str, Any]:
    """The same register and digest, told as an event of another kind."""
    return {**event, "event_type": 13, "event": "", "event_payload": ""}


def of(name: str) -> int:
    return next(i for i, event in enumerate(dstack_events()) if event["event"] == name)


READY = of("system-ready")
DIGEST = compose_hash(COMPOSE)


@pytest.mark.parametrize(
    ("events", "why"),
    [
        # The true event is hidden, and the application's own takes its place.
        (
            [
                *dstack_events()[: of("compose-hash")],
                opaque(dstack_events()[of("compose-hash")]),
                *dstack_events()[of("compose-hash") + 1 :],
                runtime_event("compose-hash", DIGEST),
            ],
            "another kind",
        ),
        ([*dstack_events(), {**runtime_event("x"), "imr": 2}], "another register"),
        ([*dstack_events(), runtime_event("compose-hash", DIGEST)], "compose-hash comes twice"),
        ([*dstack_events(), runtime_event("boot-mr-done")], "boot-mr-done comes twice"),
        ([*dstack_events(), runtime_event("compose-hash:x", b"y")], "cut"),
        ([*dstack_events(), runtime_event("mr-kms", b"y")], "after system-ready"),
        ([event for event in dstack_events() if event["event"] != "boot-mr-done"], "not all"),
        ([event for event in dstack_events() if event["event"] != "app-id"], "not all"),
        ([event for event in dstack_events() if event["event"] != "instance-id"], "not all"),
        (
            [
                *(event for event in dstack_events()[:READY] if event["event"] != "compose-hash"),
                runtime_event("compose-hash", DIGEST),
                *dstack_events()[READY:],
            ],
            "not all",
        ),
    ],
    ids=range(10),
)
def test_events_in_doubt(events: Events, why: str) -> None:
    """All of these replay, for the guest really extended them."""
    evidence = guest(events)
    result = verify(evidence)
    assert codes(result)["dstack.events"] == "dstack_events"
    assert finding(result, "dstack.eventlog") is Finding.AFFIRMING
    claim = next(claim for claim in result.claims if claim.name == "dstack.events")
    assert why in claim.explanation
    assert finding(result, "dstack.compose") is not Finding.AFFIRMING
    assert "compose_hash" not in outcome(evidence).registers


def test_events_beyond_doubt() -> None:
    """What the application adds under names of its own, and a log of firmware alone before it."""
    events = [*dstack_events(), runtime_event("a:b", b"c"), runtime_event("of the application")]
    result = verify(guest(events))
    assert result.verdict is Finding.AFFIRMING
    claim = next(claim for claim in result.claims if claim.name == "dstack.events")
    assert " 3 events of the application" in claim.explanation


def test_a_quote_from_during_the_boot() -> None:
    result = verify(guest(dstack_events()[:READY]))
    assert result.verdict is Finding.AFFIRMING
    assert NOT_READY in result.not_proven


def test_names_of_the_application_are_not_of_the_boot() -> None:
    """After system-ready, no field is taken from what the application says."""
    events = [event for event in dstack_events() if event["event"] != "os-image-hash"]
    late = [*events, runtime_event("os-image-hash", b"\x66" * 32)]
    assert "os_image_hash" not in outcome(guest(events)).registers
    expected = Expected(values={"os_image_hash": b"\x66" * 32})
    assert codes(verify(guest(late), expected=expected)) == {
        "dstack.events": "dstack_events",
        "expected.os_image_hash": "measurement_mismatch",
    }


def test_mr_config_id() -> None:
    good = config_id(DIGEST)
    result = verify(guest(mr_config_id=good))
    assert result.verdict is Finding.AFFIRMING
    assert names(result)[-1] == "dstack.mr_config_id"
    assert OTHER_CONFIG_ID not in result.not_proven
    for other in (config_id(bytes(32)), good[:-1] + b"\x01"):
        assert codes(verify(guest(mr_config_id=other))) == {
            "dstack.mr_config_id": "mr_config_id_mismatch"
        }
    unknown = verify(guest(mr_config_id=b"\x02" + good[1:]))
    assert unknown.verdict is Finding.AFFIRMING
    assert OTHER_CONFIG_ID in unknown.not_proven


def test_without_a_log() -> None:
    evidence = dataclasses.replace(guest(app_compose=None), event_log=None)
    assert codes(verify(evidence)) == {"dstack.eventlog": "endorsements_missing"}
    result = verify(evidence, policy=as_captured(POLICY))
    assert result.verdict is Finding.AFFIRMING
    assert NO_LOG in result.not_proven
    assert names(result) == []


def test_a_document_without_a_log() -> None:
    """MRCONFIGID may name it; otherwise nothing does."""
    policy = as_captured(POLICY)
    named = dataclasses.replace(guest(mr_config_id=config_id(DIGEST)), event_log=None)
    assert verify(named, policy=policy).verdict is Finding.AFFIRMING
    for config in (bytes(48), b"\x02" + config_id(DIGEST)[1:]):
        unnamed = dataclasses.replace(guest(mr_config_id=config), event_log=None)
        assert codes(verify(unnamed, policy=policy)) == {"dstack.compose": "compose_mismatch"}
    other = dataclasses.replace(named, app_compose=b"{}")
    assert codes(verify(other, policy=policy)) == {"dstack.compose": "compose_mismatch"}


def test_a_log_that_does_not_decode() -> None:
    good = guest()
    assert good.event_log is not None
    result = verify(dataclasses.replace(good, event_log=good.event_log[:-1]))
    assert codes(result)["dstack.eventlog"] == "eventlog_malformed"
    assert finding(result, "dstack.events") is Finding.NONE


def test_a_quote_that_does_not_decode() -> None:
    good = guest()
    broken = dataclasses.replace(
        good, tdx=dataclasses.replace(good.tdx, quote=good.tdx.quote[:100])
    )
    result = verify(broken)
    assert result.verdict is Finding.CONTRAINDICATED
    assert finding(result, "dstack.eventlog") is Finding.NONE
    assert finding(result, "dstack.compose") is Finding.NONE
    assert "rtmr_replay" not in result.facts


def test_nothing_is_affirmed_of_an_unauthenticated_guest() -> None:
    evidence = guest(mr_config_id=config_id(DIGEST))
    expected = Expected(values={"compose_hash": DIGEST})
    assert verify(evidence, expected=expected).verdict is Finding.AFFIRMING
    result = verify(evidence, roots=Roots(), expected=expected)
    for name in [*names(result), "expected.compose_hash"]:
        assert finding(result, name) is Finding.NONE
    assert result.facts["rtmr_replay"] == dict.fromkeys("0123", True)
    found = outcome(evidence, Roots())
    assert (found.bound, dict(found.registers)) == (None, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("compose_hash", DIGEST),
        ("app_id", DIGEST[:20]),
        ("instance_id", b"\x33" * 20),
        ("key_provider", b'{"name":"kms","id":"00"}'),
        ("os_image_hash", b"\x44" * 32),
    ],
)
def test_expected_of_events(name: str, value: bytes) -> None:
    good = Expected(values={name: value}, prefixes={"report_data": REPORT_DATA[:8]})
    assert verify(guest(), expected=good).verdict is Finding.AFFIRMING
    bad = Expected(values={name: value[:-1]})
    assert codes(verify(guest(), expected=bad)) == {f"expected.{name}": "measurement_mismatch"}
    prefix = Expected(prefixes={name: value[:-1]})
    assert verify(guest(), expected=prefix).verdict is Finding.AFFIRMING


def test_expected_of_the_quote() -> None:
    good = Expected(values={"report_data": REPORT_DATA})
    assert verify(guest(), expected=good).verdict is Finding.AFFIRMING
    bad = Expected(values={"report_data": bytes(64)})
    assert codes(verify(guest(), expected=bad)) == {"expected.report_data": "report_data_mismatch"}
    with pytest.raises(ConfigurationError):
        verify(guest(), expected=Expected(values={"measurement": b""}))


def test_expected_of_an_event_that_is_not_there() -> None:
    expected = Expected(values={"rootfs_hash": b""})
    assert codes(verify(guest(), expected=expected)) == {
        "expected.rootfs_hash": "measurement_mismatch"
    }


def test_the_register_of_firmware_is_compared() -> None:
    more = firmware_event(measured(2, 13, b"kernel"))
    result = verify(guest([*dstack_events(), more], told=dstack_events()))
    assert codes(result) == {"dstack.eventlog": "eventlog_mismatch"}
    assert hashlib.sha384(b"kernel").hexdigest() == more["digest"]
