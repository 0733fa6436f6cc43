"""No forgery passes: a sample of all mutants, and the job that judges them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from cloister.endorsements.roots import Roots
from cloister.testing.simulated_snp import SimulatedAmd
from cloister.verifier.result import AttestationResult
from mutation import __main__ as command
from mutation.job import FORGED, RAISED, REFUSED, SAME, Tally, tasks, work
from mutation.mutants import EXTENSIONS, FILLS, Kind, Plan
from mutation.simulated import NOW, simulated
from mutation.spelling import HEX_TEXT, same_value
from mutation.subjects import EVIDENCE, Subject, affirmed, make_part, recorded
from mutation.unsigned import TABLE

ONE_IN = 4000
"""A sample of about a thousand mutants; ``make mutate`` judges all."""


@cache
def all_simulated() -> tuple[Subject, ...]:
    return tuple(simulated())


@cache
def all_recorded() -> tuple[Subject, ...]:
    return tuple(recorded())


def judged(subjects: Sequence[Subject], turn: int = 0) -> Tally:
    whole = Tally()
    for task in tasks(subjects, ONE_IN, turn):
        whole.add(work(subjects[task.subject], task.part, task.numbers))
    return whole


def snp() -> Subject:
    return next(subject for subject in all_simulated() if subject.name == "simulated/snp")


def test_no_mutant_of_simulated_evidence_is_affirmed() -> None:
    subjects = all_simulated()
    for subject in subjects:
        assert affirmed(subject.judge(subject.parts[0].name, subject.parts[0].plan.data))
    whole = judged(subjects)
    assert whole.total > 250
    assert whole.counts[REFUSED] > 200
    assert whole.examples == []


@pytest.mark.evidence
@pytest.mark.skipif(not EVIDENCE.is_dir(), reason="REAL EVIDENCE NOT MUTATED")
def test_no_mutant_of_recorded_evidence_is_affirmed() -> None:
    subjects = all_recorded()
    assert len(subjects) >= 50
    whole = judged(subjects)
    assert whole.total > 500
    assert whole.examples == []


def test_every_kind_of_mutant_by_number() -> None:
    plan = Plan(data=bytes(range(40)), dense=10, seed="x")
    counts = plan.counts
    assert counts == {
        Kind.FLIP: 8 * 10 + 30,
        Kind.TRUNCATE: 40,
        Kind.EXTEND: len(EXTENSIONS) * len(FILLS),
        Kind.INSERT: 40,
        Kind.DELETE: 40,
    }
    made = [plan[number] for number in range(len(plan))]
    assert made == [plan[number] for number in range(len(plan))]
    flips = [one for one in made if one.kind is Kind.FLIP]
    assert len({one.data for one in flips}) == len(flips)
    assert {one.place for one in flips} == set(range(40))
    assert [len(one.data) for one in made if one.kind is Kind.TRUNCATE] == list(range(40))
    assert {len(one.data) for one in made if one.kind is Kind.DELETE} == {39}
    assert {len(one.data) for one in made if one.kind is Kind.INSERT} == {41}
    assert max(len(one.data) for one in made) == 40 + 4096
    with pytest.raises(IndexError):
        _ = plan[len(plan)]


def test_samples_are_parts_of_the_whole() -> None:
    plan = Plan(data=bytes(1000), dense=100, seed="x")
    assert {*plan.sample(1)} == {*range(len(plan))}
    one = plan.sample(10)
    assert one == plan.sample(10)
    assert len(one) == pytest.approx(len(plan) / 10, abs=1)
    assert any(plan.sample(10, turn) != one for turn in range(1, 9))


def test_places_of_large_parts_are_strided() -> None:
    plan = Plan(data=bytes(262144), seed="x")
    assert plan.counts[Kind.TRUNCATE] == 8192
    assert plan.counts[Kind.FLIP] == 262144


def accepting(result: AttestationResult) -> Subject:
    """A verifier with a hole: it affirms whatever it is given."""
    return Subject(
        name="hole",
        parts=(make_part("hole", "report", b"\x01" * 64),),
        judge=lambda _part, _data: result,
        roots=Roots(),
    )


def test_a_hole_is_found() -> None:
    good = snp().judge("report", snp().part("report").plan.data)
    subject = accepting(good)
    tally = work(subject, "report", range(len(subject.parts[0].plan)))
    assert tally.counts[FORGED] == tally.findings > 800
    assert tally.examples


def test_an_exception_is_a_finding() -> None:
    def judge(_part: str, _data: bytes) -> AttestationResult:
        raise KeyError("x")

    subject = dataclasses.replace(snp(), judge=judge)
    tally = work(subject, "report", range(10))
    assert tally.counts == {RAISED: 10}
    assert "KeyError" in tally.examples[0]


def test_a_bit_of_a_report_is_refused() -> None:
    tally = work(snp(), "report", range(0, 8 * 1184, 512))
    assert tally.counts == {REFUSED: len(range(0, 8 * 1184, 512))}


@pytest.mark.parametrize(
    ("original", "changed", "encoding", "same"),
    [
        (b"00ff", b"00FF\n", HEX_TEXT, True),
        (b"00ff", b"01ff", HEX_TEXT, False),
        (b'{"a": "00ff"}', b'{"a":"00FF"}', "json", True),
        (b'{"a": "00ff"}', b'{"a":"00fe"}', "json", False),
        (b'{"a": "00ff"}', b'{"b":"00ff"}', "json", False),
        (b'{"tcb_info": "00ff"}', b'{"tcb_info":"00FF"}', "json", False),
        (b"<a><b/></a>", b"<a><b></b></a>", "xml", True),
        (b"<a><b/></a>", b"<a> <b/></a>", "xml", False),
        (b"\x01\x02", b"\x01\x03", "binary", False),
    ],
)
def test_spellings(original: bytes, changed: bytes, encoding: str, same: bool) -> None:
    assert same_value(original, changed, encoding=encoding) is same


def test_certificates_are_compared_as_what_they_say() -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    pem = SimulatedAmd(now=NOW).ask.public_bytes(Encoding.PEM)
    assert same_value(pem, b"a word\n" + pem.replace(b"\n", b"\r\n"), encoding="pem")
    other = SimulatedAmd(now=NOW).ark.public_bytes(Encoding.PEM)
    assert not same_value(pem, other, encoding="pem")


def test_every_exception_has_a_name_and_a_reason() -> None:
    assert len({entry.name for entry in TABLE}) == len(TABLE)
    assert all(len(entry.reason) > 80 for entry in TABLE)
    page = (Path(__file__).parents[2] / "docs/reference/mutation.md").read_text()
    text = " ".join(page.split())
    assert [entry.name for entry in TABLE if f"`{entry.name}`" not in text] == []
    assert [entry.name for entry in TABLE if entry.reason not in text] == []


def test_the_command_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, written = tmp_path / "kept", tmp_path / "counts.json"
    options = ["simulated/snp", "--one-in=900", f"--resume={kept}", f"--json={written}"]
    assert command.main([*options, "--processes=1"]) == 0
    first = json.loads(written.read_text())
    assert first["total"] > 20
    assert first["findings"] == 0
    lines = kept.read_text()
    assert command.main([*options, "--processes=1"]) == 0
    assert kept.read_text() == lines
    assert json.loads(written.read_text())["counts"] == first["counts"]
    assert "0 findings" in capsys.readouterr().out


def test_the_same_value_is_told_apart() -> None:
    subject = next(one for one in all_simulated() if one.name == "simulated/tdx-v4")
    part = subject.part("collateral")
    spaced = dataclasses.replace(part, plan=Plan(data=part.plan.data + b" ", seed="spaces"))
    changed = dataclasses.replace(subject, parts=(spaced,))
    last = len(part.plan.data)
    truncation = spaced.plan.counts[Kind.FLIP] + last
    assert spaced.plan[truncation].data == part.plan.data
    assert work(changed, "collateral", [truncation]).counts == {SAME: 1}
