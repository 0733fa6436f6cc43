"""Parsers of evidence take any bytes, and know one error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import MalformedError
from cloister.evidence.component import Component, ComponentKind, parse_component
from cloister.evidence.eventlog import encode_event_log, parse_event_log, replay
from cloister.evidence.report import parse_attestation_report
from cloister.evidence.tpm import (
    parse_public,
    parse_quote,
    parse_signature,
    parse_tpm2b_public,
)
from cloister.testing.simulated_tpm import SimulatedAttester
from cloister.verifier import policy
from cloister.verifier.report import claim_names, verify_report
from cloister.verifier.result import Finding

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
NONCE = bytes(range(32))
ATTESTER = SimulatedAttester.make(now=NOW)
REPORT = ATTESTER.report(NONCE)
GOOD: dict[Callable[[bytes], object], bytes] = {
    parse_quote: ATTESTER.attestation_report(NONCE).evidence["tpm.quote"].data,
    parse_signature: ATTESTER.attestation_report(NONCE).evidence["tpm.signature"].data,
    parse_event_log: ATTESTER.attestation_report(NONCE).evidence["tpm.event_log"].data,
    parse_component: ATTESTER.components[0].encode(),
    parse_attestation_report: REPORT,
    parse_public: bytes.fromhex("0023000b00050072 0000 0010 0018 000b 0003 0010 0000 0000"),
    parse_tpm2b_public: bytes.fromhex(
        "0018 0023000b00050072 0000 0010 0018 000b 0003 0010 0000 0000"
    ),
}


@pytest.mark.parametrize("parse", GOOD, ids=lambda parse: parse.__name__)
def test_the_examples_are_good(parse: Callable[[bytes], object]) -> None:
    parse(GOOD[parse])


@pytest.mark.parametrize("parse", GOOD, ids=lambda parse: parse.__name__)
@given(data=st.binary(max_size=512))
def test_any_bytes(parse: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        parse(data)


@pytest.mark.parametrize("parse", GOOD, ids=lambda parse: parse.__name__)
@given(data=st.data())
def test_good_bytes_with_a_few_changed(
    parse: Callable[[bytes], object], data: st.DataObject
) -> None:
    changed = bytearray(GOOD[parse])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(changed)))
    with contextlib.suppress(MalformedError):
        parse(bytes(changed[:end]) if data.draw(st.booleans()) else bytes(changed))


@given(data=st.data())
def test_a_log_that_reads_replays(data: st.DataObject) -> None:
    log = bytearray(GOOD[parse_event_log])
    log[data.draw(st.integers(0, len(log) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(MalformedError):
        parsed = parse_event_log(bytes(log))
        assert encode_event_log(parsed.events)[-64:] == bytes(log)[-64:]
        replay(parsed)


TEXT = st.text(max_size=40)


@given(
    kind=st.sampled_from([*ComponentKind, "driver"]),
    name=TEXT,
    version=TEXT,
    canonical=st.booleans(),
)
def test_a_record_is_read_in_one_way_or_not_at_all(
    kind: str, name: str, version: str, canonical: bool
) -> None:
    """The short cut for plain records agrees with the decoder, and accepts canonical form only."""
    members = {"digest": "sha256:" + "0" * 64, "kind": str(kind), "name": name, "version": version}
    try:
        data = rfc8785.dumps(members) if canonical else json.dumps(members).encode()
    except UnicodeEncodeError:
        return
    try:
        component = parse_component(data)
    except MalformedError:
        return
    assert component == Component(
        kind=ComponentKind(kind), name=name, version=version, digest="sha256:" + "0" * 64
    )
    assert rfc8785.dumps(json.loads(data)) == data == component.encode()


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_no_changed_report_is_affirmed_and_no_report_raises(data: st.DataObject) -> None:
    """Any change of the bytes is refused, unless it left the same report in other clothes."""
    changed = bytearray(REPORT)
    at = data.draw(st.integers(0, len(changed) - 1))
    changed[at] ^= data.draw(st.integers(1, 255))
    result = verify_report(
        bytes(changed),
        nonce=NONCE,
        policy=policy.development(),
        reference_values=ATTESTER.reference_values,
        roots=ATTESTER.roots,
        at=NOW,
    )
    assert tuple(claim.name for claim in result.claims) == claim_names(policy.development())
    if result.verdict is Finding.AFFIRMING:
        before, after = parse_attestation_report(REPORT), parse_attestation_report(bytes(changed))
        # The rest of a report is a hint, a label or an extension, which nothing binds.
        assert after.keyset == before.keyset
        assert {name: item.data for name, item in after.evidence.items()} == {
            name: item.data for name, item in before.evidence.items()
        }
