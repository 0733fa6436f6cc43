"""Messages between launcher and worker, and the files a client pins."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path

from cloister.attester import link
from cloister.attester.enrolment import EnrolmentCa
from cloister.attester.kit import ENROLMENT_CA, POLICY, REFERENCE_VALUES, ClientKit
from cloister.endorsements.roots import Roots
from cloister.evidence.component import Component, ComponentKind
from cloister.verifier import policy, reference_values
from cloister.verifier.reference_values import ReferenceValues


def test_messages_arrive_whole_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link.send(ours, {"a": 1})
        link.send(ours, {"b": "x" * 10_000})
        assert link.receive(theirs) == {"a": 1}
        assert link.receive(theirs) == {"b": "x" * 10_000}


def test_end_of_the_other_side_is_none_even_in_the_middle() -> None:
    for sent in (b"", b"\0\0", (10).to_bytes(4, "big") + b"{}", b"\xff\xff\xff\xff{}"):
        ours, theirs = socket.socketpair()
        with theirs:
            with ours:
                ours.sendall(sent)
            assert link.receive(theirs) is None


def test_kit_reads_back_as_what_was_pinned(tmp_path: Path) -> None:
    ca = EnrolmentCa.in_memory(manufacturers=[], at=datetime.now(UTC))
    component = Component(
        kind=ComponentKind.MODEL, name="m", version="", digest="sha256:" + "0" * 64
    )
    kit = ClientKit(
        roots=Roots(enrolment_cas=(ca.certificate,)),
        reference_values=ReferenceValues.from_components([component]),
        policy=policy.development(),
    )
    kit.write(tmp_path / "kit")
    kit.write(tmp_path / "kit")
    assert sorted(path.name for path in (tmp_path / "kit").iterdir()) == sorted(
        (ENROLMENT_CA, REFERENCE_VALUES, POLICY)
    )
    assert Roots.load(tmp_path / "kit" / ENROLMENT_CA) == kit.roots
    read = (tmp_path / "kit" / REFERENCE_VALUES).read_bytes()
    assert reference_values.load_json(read) == kit.reference_values
    assert policy.load_toml((tmp_path / "kit" / POLICY).read_bytes()) == kit.policy
