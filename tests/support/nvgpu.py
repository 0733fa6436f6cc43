"""A simulated GPU with its manifests, and how tests verify it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from cloister.endorsements.roots import Roots
from cloister.testing.simulated_nvgpu import SimulatedGpu, SimulatedNvidia
from cloister.verifier.evidence import run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.platforms.nvgpu import GpuEvidence, NvEvidence, verify_nvgpu
from cloister.verifier.policy import AppraisalPolicy, development
from cloister.verifier.result import AttestationResult, Finding

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NVIDIA = SimulatedNvidia.make(now=NOW)
NONCE = bytes(range(32))
ASKED = Expected(values={"nonce": NONCE})
BARE = dataclasses.replace(development(), require_endorsements=False)
"""For evidence without manifests."""

Failures = dict[tuple[str, str], str | None]


def verify(
    evidence: NvEvidence,
    *,
    policy: AppraisalPolicy | None = None,
    roots: Roots = NVIDIA.roots,
    at: datetime = NOW,
    expected: Expected = NOTHING_EXPECTED,
) -> AttestationResult:
    policy = policy or development()
    return run(verify_nvgpu, evidence, policy=policy, roots=roots, at=at, expected=expected)


def failures(result: AttestationResult) -> Failures:
    return {(claim.device, claim.name): claim.code for claim in result.failures}


def evidence(gpu: SimulatedGpu, *others: SimulatedGpu, nonce: bytes = NONCE) -> GpuEvidence:
    """With manifests for `gpu`; all devices answer one nonce."""
    return GpuEvidence(
        devices=tuple(one.evidence(nonce) for one in (gpu, *others)),
        driver_rims=(NVIDIA.driver_rim(gpu),) if gpu.driver_version else (),
        vbios_rims=(NVIDIA.vbios_rim(gpu),),
    )


def affirmed(made: NvEvidence, policy: AppraisalPolicy | None = None) -> AttestationResult:
    result = verify(made, policy=policy)
    assert result.verdict is Finding.AFFIRMING, failures(result)
    return result


def with_report(made: GpuEvidence, report: bytes) -> GpuEvidence:
    first, *others = made.devices
    devices = (dataclasses.replace(first, report=report), *others)
    return dataclasses.replace(made, devices=devices)


def with_chain(made: GpuEvidence, *chain: bytes) -> GpuEvidence:
    first, *others = made.devices
    return dataclasses.replace(made, devices=(dataclasses.replace(first, chain=chain), *others))


GPU = NVIDIA.device()
GOOD = evidence(GPU)
