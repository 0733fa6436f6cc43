"""What is measured of the verifier is what it says: the evidence, its floor, the lines about it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import pytest
from benchmarks import reports, simulated_subjects, subjects
from benchmarks.__main__ import main
from benchmarks.harness import Rounds
from benchmarks.primitives import Signature, cpu_of_signatures, listed
from benchmarks.results import BEGIN, END
from benchmarks.simulated_subjects import simulated
from benchmarks.subjects import RECORDINGS, Subject, recorded
from benchmarks.verification import (
    COLD,
    PEER,
    SIGNATURES,
    VERIFY,
    above_the_floor,
    arms,
    figures,
)
from benchmarks.verifier_imports import cpu_of_process

from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.verifier import policy
from cloister.verifier.authenticate.intel_collateral import SignedCollateral
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.report import verify_report
from cloister.verifier.result import Finding

SIMULATED = simulated()
CHECKS = {"verify", "verify_directly_issued_by", "is_signature_valid"}


def signatures_checked(call: Callable[[], object]) -> int:
    """How many signatures `call` has the cryptography package check."""
    found = 0

    def watch(_frame: FrameType, event: str, what: object) -> None:
        nonlocal found
        name = getattr(what, "__qualname__", "").rpartition(".")[2]
        found += event == "c_call" and name in CHECKS

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def name_of(subject: Subject) -> str:
    return subject.name


def holds(subject: Subject) -> None:
    cold = subject.cold()
    assert cold.verdict is Finding.AFFIRMING, cold.failures
    warm = subject.warm()
    assert warm.verdict is Finding.AFFIRMING, warm.failures
    assert {claim.name for claim in warm.claims} == {claim.name for claim in cold.claims}
    assert signatures_checked(subject.warm) == len(subject.signatures)


@pytest.mark.parametrize("subject", SIMULATED, ids=name_of)
def test_simulated_evidence_is_affirmed_and_its_floor_is_that_of_its_signatures(
    subject: Subject,
) -> None:
    holds(subject)


@pytest.mark.evidence
@pytest.mark.skipif(
    not RECORDINGS.is_dir(), reason="REAL EVIDENCE NOT CHECKED: ../shared/evidence is absent"
)
def test_recorded_evidence_is_affirmed_and_its_floor_is_that_of_its_signatures() -> None:
    found = recorded()
    assert found
    for subject in found:
        holds(subject)


@pytest.mark.parametrize("platform", reports._SIGNATURES)
def test_the_floor_of_reports_is_that_of_their_signatures(platform: str) -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    worker = SimulatedHardware.make(platform, now=now)

    def verify() -> None:
        verify_report(
            worker.report(bytes(32)),
            nonce=bytes(32),
            policy=policy.development(),
            reference_values=worker.reference_values,
            roots=worker.roots,
            at=now,
        ).require_affirming()

    verify()  # from then on, CAs' signatures on CAs are remembered
    issued = signatures_checked(lambda: worker.report(bytes(32)))
    assert signatures_checked(verify) - issued == len(reports._SIGNATURES[platform])


def test_what_is_kept_is_authenticated() -> None:
    by_name = {subject.platform: subject for subject in SIMULATED}
    assert isinstance(by_name["TDX"].evidence.collateral, bytes)  # type: ignore[attr-defined]
    assert isinstance(by_name["TDX"].kept.collateral, SignedCollateral)  # type: ignore[attr-defined]
    gpu = by_name["GPU with both manifests"].kept
    manifests = (*gpu.driver_rims, *gpu.vbios_rims)  # type: ignore[attr-defined]
    assert [isinstance(one, Authenticated) for one in manifests] == [True, True]


def test_cold_forgets_who_signed_the_authorities() -> None:
    subject = next(one for one in SIMULATED if one.platform == "Nitro")
    subject.warm()
    # The document's and the enclave's, then those over the three CAs between that and the root.
    assert [signatures_checked(call) for call in (subject.warm, subject.cold)] == [2, 5]
    assert signatures_checked(subject.warm) == 2


def test_without_recordings_every_platform_is_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recorded(tmp_path / "absent") == []
    monkeypatch.setattr(simulated_subjects, "recorded", list)
    found = {subject.name for subject in simulated_subjects.subjects()}
    assert found == {subject.name for subject in SIMULATED}
    assert "absent" in subjects.ABSENT


def test_recorded_platforms_are_not_simulated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated_subjects, "recorded", lambda: SIMULATED[:1])
    assert len(simulated_subjects.subjects()) == len(SIMULATED)


def rounds_of(**arms: float) -> Rounds:
    return Rounds(
        rounds=({name.replace("_", "-"): {"cpu": value} for name, value in arms.items()},)
    )


def test_lines_hold_a_target_and_quotes_stand_beside_their_peer() -> None:
    tdx = next(one for one in SIMULATED if one.platform == "TDX")
    rounds = rounds_of(verify=0.0015, cold=0.004, signatures=0.00025, dcap_qvl=0.001)
    warm, cold, peer, peer_cold = figures(tdx, rounds)
    assert (warm.met, cold.met, peer.met, peer_cold.met) == (True, None, True, None)
    assert warm.value.median == pytest.approx(1.5)
    assert cold.value.median == pytest.approx(4.0)
    assert (peer.value.median, peer_cold.value.median) == pytest.approx((1.5, 4.0))
    slow = rounds_of(verify=0.0031, cold=0.004, signatures=0.00025, dcap_qvl=0.001)
    assert [figure.met for figure in figures(tdx, slow)] == [False, None, False, None]


def test_other_platforms_have_no_peer() -> None:
    nitro = next(one for one in SIMULATED if one.platform == "Nitro")
    assert [arm.name for arm in arms(nitro, 1)] == [VERIFY, COLD, SIGNATURES]
    assert len(figures(nitro, rounds_of(verify=1.0, cold=1.0, signatures=1.0))) == 2


def test_the_peer_verifies_what_is_verified() -> None:
    tdx = next(one for one in SIMULATED if one.platform == "TDX")
    peer = next(arm for arm in arms(tdx, 1) if arm.name == PEER)
    assert peer.run()["cpu"] > 0


def test_the_floor_is_told_in_words() -> None:
    nitro = next(one for one in SIMULATED if one.platform == "Nitro")
    raw: Mapping[str, Rounds] = {nitro.name: rounds_of(verify=0.002, signatures=0.001)}
    assert above_the_floor([nitro], dict(raw)).endswith("Nitro (simulated) 2.0 times (2 P-384).")


def test_signatures_are_counted_by_kind() -> None:
    assert listed((Signature.P256, Signature.P384, Signature.P256)) == "2 P-256, 1 P-384"
    assert cpu_of_signatures((), 3) >= 0
    assert cpu_of_signatures(Signature, 1) > 0


def test_a_process_that_fails_has_no_cpu_time() -> None:
    assert cpu_of_process("pass") > 0
    with pytest.raises(RuntimeError, match="failed"):
        cpu_of_process("raise SystemExit(3)")


def test_the_page_does_not_lose_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.__main__._run_apart", lambda *_: True)
    page = tmp_path / "page.md"
    told = "Measured on a machine.\n\n- `floor`: 2026-01-01 00:00 UTC, commit abc.\n"
    before = f"{BEGIN}\n\n{told}\n0 of 0 targets met.\n\n### The floor\n\nHow.\n\n{END}\n"
    page.write_text(before)
    given = ["verification", "--write-docs", "--out", str(tmp_path), "--page", str(page)]
    assert main(given) == 0
    assert page.read_text() == before
    page.write_text(before.replace("### The floor", "The floor"))
    with pytest.raises(ValueError, match="shorter"):
        main(given)
    assert "The floor" in page.read_text()
    page.write_text(f"{BEGIN}\n{END}\n")
    assert main(given) == 0
    assert "Nothing was measured." in page.read_text()
