"""A real client and a real worker whose evidence is that of a hardware platform, simulated.

Between them stands a proxy that may change every report. Whatever it does, a prompt leaves the
client only for the worker that the client's own policy, reference values and roots affirm.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.client.connect import TrustOptions
from cloister.endorsements.pinned import pinned_roots
from cloister.evidence.items import gpu_item
from cloister.evidence.nvgpu import evidence_digest, gpu_nonce
from cloister.evidence.report import EvidenceItem
from cloister.testing.simulated_hardware import SimulatedHardware, gpu_evidence
from cloister.testing.simulated_nvgpu import SimulatedNvidia
from cloister.verifier import policy as policies
from cloister.verifier.reference_values import ReferenceValues
from cloister.worker.keys import ReceiptKey
from support.lies import delivered, refusal
from support.scene import Scene, answered, launched, scene

PLATFORMS = ("snp", "tdx", "sgx", "nitro", "azure-snp", "gcp-snp")


class HardwareSource:
    """Evidence of a simulated platform, as a worker asks for it."""

    def __init__(self, hardware: SimulatedHardware) -> None:
        self.hardware = hardware

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        return self.hardware.issue(statement_digest)


@contextlib.contextmanager
def on_hardware(platform: str) -> Iterator[tuple[Scene, SimulatedHardware]]:
    hardware = SimulatedHardware.make(platform, now=datetime.now(UTC), worker=launched())
    source = HardwareSource(hardware)
    with scene(source=source, attester=hardware.worker, tee_type=hardware.tee_type) as made:
        yield made, hardware


def believing(hardware: SimulatedHardware) -> TrustOptions:
    return {
        "policy": policies.development(),
        "reference_values": hardware.reference_values,
        "roots": hardware.roots,
    }


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_sealed_answer(platform: str) -> None:
    with on_hardware(platform) as (at, hardware):
        client = at.client(**believing(hardware))
        assert answered(client).json()["choices"]
        result = client.verify()
        assert result.platform.startswith("development (")
        assert result.require_affirming().platform == result.platform


@pytest.mark.parametrize("platform", PLATFORMS)
def test_nobody_believes_a_simulated_platform_by_default(platform: str) -> None:
    with on_hardware(platform) as (at, hardware):
        answered(at.client(**believing(hardware)))
        strict: TrustOptions = {**believing(hardware), "policy": policies.strict()}
        assert refusal(at, strict).code in {"development_refused", "memory_unencrypted"}
        vendors: TrustOptions = {**believing(hardware), "roots": pinned_roots()}
        assert refusal(at, vendors).code == "bad_chain"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_other_software_than_the_client_accepts(platform: str) -> None:
    with on_hardware(platform) as (at, hardware):
        answered(at.client(**believing(hardware)))
        registers = dict.fromkeys(hardware.reference.registers, ("00" * 31 + "01",))
        other = dataclasses.replace(hardware.reference, registers=registers)
        wrong: TrustOptions = {
            **believing(hardware),
            "reference_values": ReferenceValues.from_platforms(other),
        }
        assert refusal(at, wrong).code == "measurement_mismatch"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_evidence_of_another_genuine_worker(platform: str) -> None:
    """The other worker runs the same image, on a machine of the same vendor's."""
    with on_hardware(platform) as (at, hardware):
        trust = believing(hardware)
        answered(at.client(**trust))
        others = dataclasses.replace(hardware, worker=launched())
        at.proxy.on_reply = delivered(
            lambda report, nonce: dataclasses.replace(
                report,
                evidence={
                    **others.attestation_report(nonce).evidence,
                    "claims": report.evidence["claims"],
                },
            )
        )
        assert refusal(at, trust).code == "quote_nonce"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_platforms_name_is_only_a_hint(platform: str) -> None:
    with on_hardware(platform) as (at, hardware):
        trust = believing(hardware)
        answered(at.client(**trust))
        at.proxy.on_reply = delivered(lambda report, _: dataclasses.replace(report, tee_type="tpm"))
        assert refusal(at, trust).code in {"ak_uncertified", "quote_missing"}


@contextlib.contextmanager
def with_a_gpu() -> Iterator[tuple[Scene, EvidenceItem, TrustOptions]]:
    """A worker that asked its GPU at boot, and names the evidence in its claims document."""
    now = datetime.now(UTC)
    nvidia, key = SimulatedNvidia.make(now=now), ReceiptKey(Ed25519PrivateKey.generate())
    gpu = nvidia.device()
    device = gpu.evidence(gpu_nonce(key.public_bytes))
    attester = launched()
    document = dataclasses.replace(
        attester.claims_document, gpu_evidence_sha256=(evidence_digest((device,)).hex(),)
    )
    hardware = SimulatedHardware.make("snp", now=now, worker=attester)
    item = gpu_evidence(nvidia, gpu, device)
    with scene(
        source=HardwareSource(hardware),
        attester=attester,
        tee_type=hardware.tee_type,
        claims=document,
        receipt_key=key,
        boot_evidence={gpu_item(0): item},
    ) as at:
        trust = believing(hardware)
        trust["roots"] = hardware.roots.merged(nvidia.roots)
        trust["policy"] = dataclasses.replace(policies.development(), required_gpus=1)
        yield at, item, trust


def test_a_gpu_that_the_worker_asked() -> None:
    with with_a_gpu() as (at, _, trust):
        client = at.client(**trust)
        answered(client)
        result = client.verify()
        assert {"cpu0", "gpu0", "gpus"} == {claim.device for claim in result.claims}


def test_a_gpu_of_another_worker_spliced_in() -> None:
    with with_a_gpu() as (at, _, trust), with_a_gpu() as (elsewhere, foreign, other):
        answered(at.client(**trust))
        answered(elsewhere.client(**other))
        here, there = trust["roots"], other["roots"]
        assert here is not None
        assert there is not None
        both: TrustOptions = {**trust, "roots": here.merged(there)}
        answered(at.client(**both))
        at.proxy.on_reply = delivered(
            lambda report, _: dataclasses.replace(
                report, evidence={**report.evidence, gpu_item(0): foreign}
            )
        )
        assert refusal(at, both).code in {"gpu_unbound", "nonce_mismatch"}


def test_a_gpu_left_out_on_the_way() -> None:
    with with_a_gpu() as (at, _, trust):
        answered(at.client(**trust))
        at.proxy.on_reply = delivered(
            lambda report, _: dataclasses.replace(
                report,
                evidence={
                    name: item for name, item in report.evidence.items() if name != gpu_item(0)
                },
            )
        )
        assert refusal(at, trust).code == "gpu_unbound"
