"""Several devices together."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import pytest

from cloister.evidence.nvgpu import GpuDevice, OpaqueField
from cloister.testing.simulated_nvgpu import VBIOS_INDICES, Signer, SimulatedGpu, digest
from cloister.verifier.platforms.nvgpu import NOT_ATTACHED, GpuEvidence
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy, development
from cloister.verifier.result import Finding
from support.nvgpu import (
    BARE,
    GOOD,
    GPU,
    NONCE,
    NVIDIA,
    affirmed,
    evidence,
    failures,
    verify,
)


def test_many_devices_are_affirmed() -> None:
    gpus = [NVIDIA.device() for _ in range(4)]
    result = affirmed(evidence(*gpus))
    assert {claim.device for claim in result.claims} >= {"gpu0", "gpu1", "gpu2", "gpu3"}
    lines = result.facts["devices"]
    assert isinstance(lines, list)
    assert len(lines) == 4


def test_one_bad_device_is_enough() -> None:
    good, bad = NVIDIA.device(), NVIDIA.device()
    affirmed(evidence(good, bad))
    bad.measurements[VBIOS_INDICES[0] + 1] = digest("evil")
    assert failures(verify(evidence(good, bad))) == {
        ("gpu1", "nvgpu.vbios_rim_measurements"): "measurement_mismatch",
        ("gpu1", "nvgpu.mode"): "not_checked",
        ("gpu1", "nvgpu.debug"): "not_checked",
    }


def test_one_device_does_not_stand_for_two() -> None:
    affirmed(evidence(GPU, NVIDIA.device()))
    assert failures(verify(evidence(GPU, GPU))) == {("gpus", "nvgpu.distinct"): "device_repeated"}


def test_one_device_with_two_keys_does_not_either() -> None:
    """A device has another reporting key for each firmware, but one of its own."""
    own = NVIDIA.provisioner.issue("GH100 A01 GSP BROM")

    def started(key_of: Signer, firmware: str) -> SimulatedGpu:
        fwid = digest(firmware)
        leaf = NVIDIA.firmware_key(key_of, "GH100", fwid)
        return dataclasses.replace(NVIDIA.device(), leaf=leaf, fwid=fwid)

    other = NVIDIA.provisioner.issue("GH100 A01 GSP BROM")
    affirmed(evidence(started(own, "one"), started(other, "two")))
    assert failures(verify(evidence(started(own, "one"), started(own, "two")))) == {
        ("gpus", "nvgpu.distinct"): "device_repeated"
    }


def test_devices_answer_one_nonce() -> None:
    one, two = NVIDIA.device(), NVIDIA.device()
    made = evidence(one, two)
    affirmed(made)
    mixed = dataclasses.replace(made, devices=(made.devices[0], two.evidence(bytes(32))))
    assert failures(verify(mixed)) == {("gpus", "nvgpu.one_nonce"): "nonce_mismatch"}


def test_no_device_is_no_evidence() -> None:
    affirmed(GOOD)
    result = verify(GpuEvidence(devices=()))
    assert result.verdict is Finding.CONTRAINDICATED
    assert failures(result)["gpus", "nvgpu.all_devices"] == "evidence_missing"


@pytest.mark.parametrize(
    ("name", "count"),
    [("devices", 129), ("driver_rims", 128), ("vbios_rims", 128), ("crls", 1025), ("ocsp", 1025)],
)
def test_heaps_are_refused_unread(name: str, count: int) -> None:
    affirmed(GOOD)
    entry: object = GOOD.devices[0] if name == "devices" else b""
    fields: dict[str, Any] = {name: (entry,) * count}
    result = verify(dataclasses.replace(GOOD, **fields))
    assert failures(result) == {("gpus", "nvgpu.all_devices"): "malformed"}
    assert NOT_ATTACHED in result.not_proven


def test_a_number_of_gpus_can_be_required() -> None:
    switch = NVIDIA.device("LS10")
    both = evidence(GPU, switch)
    pdi = b"\x01\x02\x03\x04\x05\x06\x07\x08"
    gpu = dataclasses.replace(GPU, opaque={OpaqueField.SWITCH_PDI: pdi})
    switch.opaque = {OpaqueField.SWITCH_PDI: pdi[::-1]}
    both = dataclasses.replace(
        evidence(gpu, switch), vbios_rims=(NVIDIA.vbios_rim(gpu), NVIDIA.vbios_rim(switch))
    )

    def requiring(count: int) -> AppraisalPolicy:
        return dataclasses.replace(development(), required_gpus=count)

    assert development().required_gpus is UNCHECKED
    affirmed(both, requiring(1))
    assert failures(verify(both, policy=requiring(2))) == {
        ("gpus", "nvgpu.required"): "gpus_missing"
    }
    # One device that reports twice is one device.
    found = failures(verify(evidence(GPU, GPU), policy=requiring(2)))
    assert found["gpus", "nvgpu.required"] == "gpus_missing"


def test_gpus_are_wired_to_the_switches_presented() -> None:
    pdi, other = b"\x01\x02\x03\x04\x05\x06\x07\x08", b"\x11\x12\x13\x14\x15\x16\x17\x18"
    gpu, switch = NVIDIA.device(), NVIDIA.device("LS10")

    def wired(seen: bytes, own: bytes) -> GpuEvidence:
        gpu.opaque = {OpaqueField.SWITCH_PDI: seen}
        switch.opaque = {OpaqueField.SWITCH_PDI: own}
        rims = (NVIDIA.vbios_rim(gpu), NVIDIA.vbios_rim(switch))
        return dataclasses.replace(evidence(gpu, switch), vbios_rims=rims)

    affirmed(wired(pdi * 2 + bytes(8) + b"\xff" * 8, pdi[::-1]))
    for made in (wired(pdi, pdi), wired(pdi + other, pdi[::-1]), wired(b"", pdi[::-1])):
        assert failures(verify(made)) == {("gpus", "nvgpu.topology"): "topology_mismatch"}


def test_a_list_in_json_is_read() -> None:
    device = GOOD.devices[0]
    pem = "".join(
        f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(one).decode()}\n"
        "-----END CERTIFICATE-----\n"
        for one in device.chain
    )
    entry = {
        "arch": "HOPPER",
        "nonce": NONCE.hex(),
        "evidence": base64.b64encode(device.report).decode(),
        "certificate": base64.b64encode(pem.encode()).decode(),
    }
    made = GpuEvidence.from_json(json.dumps([entry]).encode())
    assert made.devices == (GpuDevice(report=device.report, chain=device.chain, arch="HOPPER"),)
    affirmed(made, BARE)
    assert made.digest == GOOD.digest
