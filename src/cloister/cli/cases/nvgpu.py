"""Cases of NVIDIA GPUs and NVSwitches: reports with chains, lists of them, chains, manifests."""

from __future__ import annotations

from typing import Final

from cloister.cli.cases.folder import CaseFiles, CaseInput, input_bytes
from cloister.errors import MalformedError
from cloister.evidence.nvgpu import GpuDevice, split_pem
from cloister.verifier.expected import Expected
from cloister.verifier.platforms.nvgpu import (
    ALL_DEVICES,
    RIM_DEVICE,
    GpuChain,
    GpuEvidence,
    NvEvidence,
    RimEvidence,
    verify_nvgpu,
)

VERIFY: Final = verify_nvgpu

_DEVICE_LAYERS: Final = {
    "nvgpu.report": "parse",
    "nvgpu.signature": "report_signature",
    "nvgpu.chain": "chain",
    "nvgpu.validity": "time",
    "nvgpu.firmware": "fwid_matches_certificate",
    "expected.nonce": "expectation",
    "nvgpu.driver_rim_signature": "driver_rim_signature",
    "nvgpu.driver_rim_chain": "driver_rim_chain",
    "nvgpu.driver_rim_validity": "driver_rim_time",
    "nvgpu.driver_rim_measurements": "driver_rim_measurements",
    "nvgpu.vbios_rim_signature": "vbios_rim_signature",
    "nvgpu.vbios_rim_chain": "vbios_rim_chain",
    "nvgpu.vbios_rim_validity": "vbios_rim_time",
    "nvgpu.vbios_rim_measurements": "vbios_rim_measurements",
}

LAYERS: Final = {
    **{
        (device, name): layer
        for device in ("gpu0", "nvswitch0")
        for name, layer in _DEVICE_LAYERS.items()
    },
    (ALL_DEVICES, "nvgpu.all_devices"): "all_devices",
    (ALL_DEVICES, "nvgpu.one_nonce"): "nonce",
    (RIM_DEVICE, "rim_signature"): "rim_signature",
    (RIM_DEVICE, "rim_chain"): "rim_chain",
    (RIM_DEVICE, "rim_validity"): "rim_time",
}

FACT_LAYERS: Final = ("links",)
"""Layers that are lists, and so facts rather than claims."""


def read(case: CaseFiles) -> CaseInput:
    """The evidence in a case. What does not decode is handed on, for the verifier to refuse."""
    values = {
        name: value
        for name in ("nonce", "fwid")
        if (value := input_bytes(case, f"expected_{name}")) is not None
    }
    return CaseInput(evidence=_evidence(case), expected=Expected(values=values))


def _evidence(case: CaseFiles) -> NvEvidence:
    if case.variant == "rim":
        return RimEvidence(document=case.one("driver_rim"))
    listed = case.optional("evidence_list")
    if listed is not None:
        return _listed(listed)
    report, chain = case.optional("report"), _chain(case.one("cert_chain"))
    if report is None:
        return GpuChain(chain=chain)
    return GpuEvidence(
        devices=(GpuDevice(report=report, chain=chain),),
        driver_rims=tuple(file.data for file in case.all("driver_rim")),
        vbios_rims=tuple(file.data for file in case.all("vbios_rim")),
    )


def _listed(data: bytes) -> GpuEvidence:
    try:
        return GpuEvidence.from_json(data)
    except MalformedError:
        return GpuEvidence(devices=(GpuDevice(report=data, chain=()),))


def _chain(data: bytes) -> tuple[bytes, ...]:
    try:
        return split_pem(data)
    except MalformedError:
        return (data,)
