"""What verifying evidence costs, platform by platform: CPU time of the verifier alone.

Evidence recorded on hardware is used where it is at hand, simulated evidence elsewhere. “Verify” is
a verification after the first: Intel's collateral and NVIDIA's manifests were authenticated before
and are handed in as such; CAs' certificates, and signatures on them, are remembered, as in a client
that asks many workers. “Cold” is the first: collateral and manifests are bytes, and no CA is
remembered. “Signatures” is what cannot be avoided when warm: as many signatures of the same kinds,
checked by the cryptography package with keys that are loaded already, and nothing else: no parsing,
no hashing of logs, no policy. “dcap-qvl” is `dcap_qvl.verify`, a verifier of Intel's quotes written
in Rust, on the same quote and collateral (decoded before); it checks the collateral's signatures at
each call.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import dcap_qvl  # type: ignore[import-untyped]  # its stubs are not marked as such
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.context import Context
from benchmarks.harness import (
    MICROSECONDS,
    MILLISECONDS,
    Arm,
    Figure,
    Report,
    Rounds,
    Sample,
    at_most,
    beside,
    measure,
    ratio,
)
from benchmarks.primitives import Signature, cpu_of_signatures, listed
from benchmarks.simulated_subjects import subjects
from benchmarks.statistics import median
from benchmarks.subjects import ABSENT, RECORDINGS, Subject
from cloister.endorsements.roots import Vendor
from cloister.verifier.result import AttestationResult, Finding

VERIFY = "verify"
COLD = "cold"
SIGNATURES = "signatures"
PEER = "dcap-qvl"

TARGET_MS = 3.0
TARGET_TO_PEER = 2.0

# Not measured here. Those of the first line were taken as single numbers when Cloister was planned.
ELSEWHERE = (
    "From elsewhere, without an arm beside it: medians of about 0.7 ms for an SNP report with its"
    " chain, 2.1 ms for a Nitro document and 2.1 ms for an NVIDIA report with five certificates,"
    " each with bare calls of the cryptography package, and 0.55 ms for a TDX quote with dcap-qvl"
    " 0.7.0 (scripts of a few lines, with no policy, no claims and no checks of what it says).",
    "From elsewhere, as claimed by its README: teep (a verifier that runs as a proxy) adds 200 to"
    " 500 ms to the first verified request, network included, and less than 1 ms to those of the"
    " next ten minutes.",
)


def run(context: Context) -> Report:
    """Measure every subject with all of its arms."""
    count = context.count(30, 2)
    given = subjects()
    failures = [one for one in map(_failure, given) if one is not None]
    if not RECORDINGS.is_dir():
        print(ABSENT, file=sys.stderr)
    raw = {one.name: measure(arms(one, count), context.plan(10)) for one in given}
    kinds = measure(
        [Arm(name=kind, run=_signatures((kind,), count)) for kind in Signature], context.plan(10)
    )
    return Report(
        title="Verifying evidence",
        method=" ".join(__doc__.partition("\n\n")[2].split()),
        figures=(
            *(figure for one in given for figure in figures(one, raw[one.name])),
            *_kinds(kinds),
        ),
        remarks=(
            *(() if RECORDINGS.is_dir() else (ABSENT,)),
            above_the_floor(given, raw),
            *ELSEWHERE,
        ),
        failures=tuple(failures),
        raw={**raw, "signatures": kinds},
    )


def arms(subject: Subject, count: int) -> list[Arm]:
    """Everything that `subject` is measured by; each sample is the mean of `count` calls."""
    found = [
        Arm(name=VERIFY, run=_cpu(subject.warm, count)),
        Arm(name=COLD, run=_cpu(subject.cold, count)),
        Arm(name=SIGNATURES, run=_signatures(subject.signatures, count)),
    ]
    peer = _peer(subject)
    return found if peer is None else [*found, Arm(name=PEER, run=_cpu(peer, count))]


def figures(subject: Subject, rounds: Rounds) -> list[Figure]:
    """The lines of the table about `subject`."""
    name = subject.name
    found = [
        beside(
            f"{name}: after the first",
            rounds,
            VERIFY,
            SIGNATURES,
            "cpu",
            scale=MILLISECONDS,
            target=at_most(TARGET_MS),
        ),
        beside(f"{name}: the first", rounds, COLD, VERIFY, "cpu", scale=MILLISECONDS),
    ]
    if PEER in rounds.rounds[0]:
        target = at_most(TARGET_TO_PEER) if subject.platform == "TDX" else None
        title = f"{name}: beside dcap-qvl"
        found.append(ratio(title, rounds, VERIFY, PEER, "cpu", scale=MILLISECONDS, target=target))
        found.append(ratio(f"{title}, the first", rounds, COLD, PEER, "cpu", scale=MILLISECONDS))
    return found


def above_the_floor(given: list[Subject], raw: dict[str, Rounds]) -> str:
    """How many times the signatures' own time each verification takes."""
    times = (
        f"{one.name} {median(raw[one.name].ratios(VERIFY, SIGNATURES, 'cpu')):.1f} times"
        f" ({listed(one.signatures)})"
        for one in given
    )
    return f"Verify, over the signatures that cannot be avoided: {'; '.join(times)}."


def _kinds(rounds: Rounds) -> list[Figure]:
    """What one signature takes, each beside that on P-256."""
    others = [kind for kind in Signature if kind is not Signature.P256]
    return [
        ratio(f"One signature of {kind}", rounds, kind, Signature.P256, "cpu", scale=MICROSECONDS)
        for kind in others
    ]


def _cpu(call: Callable[[], object], count: int) -> Callable[[], Sample]:
    def run() -> Sample:
        # Caches of this arm, after those of the others: one call is not measured.
        call()
        began = time.process_time()
        for _ in range(count):
            call()
        return {"cpu": (time.process_time() - began) / count}

    return run


def _signatures(kinds: tuple[Signature, ...], count: int) -> Callable[[], Sample]:
    return lambda: {"cpu": cpu_of_signatures(kinds, count)}


def _peer(subject: Subject) -> Callable[[], object] | None:
    """What dcap-qvl does with the same evidence, if it is a quote with collateral."""
    quote, collateral = subject.quote, subject.collateral
    if quote is None or collateral is None:
        return None
    decoded = dcap_qvl.QuoteCollateralV3.from_json(collateral.decode())
    roots = subject.roots.vendor(Vendor.INTEL)
    now = int(subject.at.timestamp())
    if not roots[0].development:
        return lambda: dcap_qvl.verify(quote, decoded, now)
    root = roots[0].certificate.public_bytes(Encoding.DER)
    return lambda: dcap_qvl.verify_with_root_ca(quote, decoded, root, now)


def _failure(subject: Subject) -> str | None:
    """Evidence that is refused takes another way through the verifier than evidence that is not."""
    results: tuple[AttestationResult, ...] = (subject.warm(), subject.cold())
    if all(result.verdict is Finding.AFFIRMING for result in results):
        return None
    return f"{subject.name} is not affirmed: its numbers say nothing"
