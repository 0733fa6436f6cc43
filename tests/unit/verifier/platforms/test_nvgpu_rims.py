"""Manifests of GPUs, and the modes that only measurements show."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from cloister.endorsements.roots import Roots
from cloister.evidence.nvgpu import OpaqueField
from cloister.testing.simulated_nvgpu import (
    DRIVER_INDICES,
    VBIOS_INDICES,
    SimulatedNvidia,
    digest,
    golden,
    rim_text,
)
from cloister.verifier.authenticate.rim import authenticate_rim
from cloister.verifier.policy import development
from support.nvgpu import (
    BARE,
    GOOD,
    GPU,
    NONCE,
    NOW,
    NVIDIA,
    affirmed,
    evidence,
    failures,
    verify,
    with_report,
)


def test_a_manifest_for_another_version_is_refused() -> None:
    affirmed(GOOD)
    driver = dataclasses.replace(GOOD, driver_rims=(NVIDIA.driver_rim(GPU, version="550.90.08"),))
    assert failures(verify(driver)) == {
        ("gpu0", "nvgpu.driver_rim"): "rim_mismatch",
        ("gpu0", "nvgpu.rims_apart"): "not_checked",
        ("gpu0", "nvgpu.mode"): "not_checked",
        ("gpu0", "nvgpu.debug"): "not_checked",
    }
    vbios = dataclasses.replace(GOOD, vbios_rims=(NVIDIA.vbios_rim(GPU, version="96.00.9F.00.02"),))
    assert failures(verify(vbios))["gpu0", "nvgpu.vbios_rim"] == "rim_mismatch"
    swapped = dataclasses.replace(GOOD, driver_rims=GOOD.vbios_rims, vbios_rims=GOOD.driver_rims)
    found = failures(verify(swapped))
    assert found["gpu0", "nvgpu.driver_rim"] == found["gpu0", "nvgpu.vbios_rim"] == "rim_mismatch"


@pytest.mark.parametrize("change", [{"product": "GB100"}, {"edition": "SWITCH"}], ids=str)
def test_a_manifest_for_another_model_is_refused(change: dict[str, str]) -> None:
    affirmed(GOOD)
    text = rim_text(golden(GPU, DRIVER_INDICES), version="550.90.07", **change)  # type: ignore[arg-type]
    made = dataclasses.replace(GOOD, driver_rims=(NVIDIA.sign(text),))
    assert failures(verify(made))["gpu0", "nvgpu.driver_rim"] == "rim_mismatch"


def test_devtools_change_a_measurement() -> None:
    gpu = NVIDIA.device()
    made = evidence(gpu)
    affirmed(made)
    gpu.devtools()
    accepting = dataclasses.replace(development(), accept_devtools=True, accept_debug=True)
    for policy in (development(), accepting):
        found = failures(verify(with_report(made, gpu.report(NONCE)), policy=policy))
        assert found["gpu0", "nvgpu.vbios_rim_measurements"] == "measurement_mismatch"
        assert (("gpu0", "nvgpu.debug") in found) is (policy is not accepting)


@pytest.mark.parametrize("index", [DRIVER_INDICES[0], DRIVER_INDICES[-1], VBIOS_INDICES[-1]])
def test_every_active_measurement_is_compared(index: int) -> None:
    gpu = NVIDIA.device()
    made = evidence(gpu)
    affirmed(made)
    changed, missing = dict(gpu.measurements), dict(gpu.measurements)
    changed[index + 1] = digest("evil")
    del missing[index + 1]
    for measurements in (changed, missing):
        gpu.measurements = measurements
        found = failures(verify(with_report(made, gpu.report(NONCE))))
        assert "measurement_mismatch" in found.values()
        assert found["gpu0", "nvgpu.debug"] == "not_checked"


def test_either_of_debugging_and_devtools_is_asked_about() -> None:
    def asks(**accepted: bool) -> bool:
        policy = dataclasses.replace(development(), **accepted)  # type: ignore[arg-type]
        return "nvgpu.debug" in {claim.name for claim in affirmed(GOOD, policy).claims}

    assert asks()
    assert asks(accept_debug=True)
    assert asks(accept_devtools=True)
    assert not asks(accept_debug=True, accept_devtools=True)


def test_a_raw_value_is_no_digest() -> None:
    affirmed(GOOD)
    unsigned = bytearray(GPU.unsigned(NONCE))
    block = 45 + 55 * VBIOS_INDICES[0]
    assert unsigned[block] == VBIOS_INDICES[0] + 1
    unsigned[block + 4] |= 0x80
    found = failures(verify(with_report(GOOD, GPU.sign(bytes(unsigned)))))
    assert found["gpu0", "nvgpu.vbios_rim_measurements"] == "measurement_mismatch"


def test_a_decoder_that_is_off_is_not_compared() -> None:
    """Index 35 alone, and only where the signed report says so."""
    gpu = NVIDIA.device()
    made = evidence(gpu)
    gpu.measurements[36] = bytes(48)
    gpu.opaque = {OpaqueField.NVDEC0_STATUS: b"\x55"}
    affirmed(with_report(made, gpu.report(NONCE)))
    gpu.opaque = {OpaqueField.NVDEC0_STATUS: b"\xaa"}
    found = failures(verify(with_report(made, gpu.report(NONCE))))
    assert found["gpu0", "nvgpu.driver_rim_measurements"] == "measurement_mismatch"
    gpu.opaque = {OpaqueField.NVDEC0_STATUS: b"\x55"}
    gpu.measurements[37] = bytes(48)
    found = failures(verify(with_report(made, gpu.report(NONCE))))
    assert found["gpu0", "nvgpu.driver_rim_measurements"] == "measurement_mismatch"


def test_manifests_do_not_speak_for_one_measurement() -> None:
    affirmed(GOOD)
    both = golden(GPU, (*VBIOS_INDICES, DRIVER_INDICES[0]))
    text = rim_text(both, version=GPU.vbios_version)
    made = dataclasses.replace(GOOD, vbios_rims=(NVIDIA.sign(text),))
    assert failures(verify(made)) == {("gpu0", "nvgpu.rims_apart"): "rim_conflict"}


def test_manifests_are_required_or_named_as_missing() -> None:
    bare = dataclasses.replace(GOOD, driver_rims=(), vbios_rims=())
    result = affirmed(bare, BARE)
    assert any("golden measurements" in sentence for sentence in result.not_proven)
    assert any("confidential mode" in sentence for sentence in result.not_proven)
    assert not {claim.name for claim in result.claims} & {"nvgpu.debug", "nvgpu.mode"}
    found = failures(verify(bare))
    assert found["gpu0", "nvgpu.driver_rim"] == "endorsements_missing"
    assert found["gpu0", "nvgpu.vbios_rim"] == "endorsements_missing"
    assert found["gpu0", "nvgpu.debug"] == "not_checked"


def test_manifests_may_come_in_one_heap() -> None:
    rims = (*GOOD.vbios_rims, *GOOD.driver_rims)
    heap = dataclasses.replace(GOOD, driver_rims=(), vbios_rims=(), rims=rims)
    affirmed(heap)
    found = failures(verify(dataclasses.replace(heap, rims=rims[:1])))
    assert found["gpu0", "nvgpu.driver_rim"] == "endorsements_missing"
    # Of a heap, what fits nothing is not looked at.
    affirmed(dataclasses.replace(heap, rims=(b"<a/>", *rims)))
    result = affirmed(dataclasses.replace(heap, rims=rims[:1]), BARE)
    assert ("gpu0", "nvgpu.vbios_rim") in {(one.device, one.name) for one in result.claims}


def test_a_forged_manifest_is_refused() -> None:
    affirmed(GOOD)
    (rim,) = GOOD.driver_rims
    assert isinstance(rim, bytes)
    other = GPU.measurements[DRIVER_INDICES[0] + 1].hex().encode()
    forged = dataclasses.replace(
        GOOD, driver_rims=(rim.replace(other, digest("evil").hex().encode()),)
    )
    found = failures(verify(forged))
    assert found["gpu0", "nvgpu.driver_rim_signature"] == "rim_bad_signature"
    assert found["gpu0", "nvgpu.driver_rim_measurements"] == "measurement_mismatch"
    malformed = dataclasses.replace(GOOD, driver_rims=(b"<a/>",))
    assert failures(verify(malformed))["gpu0", "nvgpu.driver_rim"] == "malformed"
    # An authentic one beside it is taken.
    affirmed(dataclasses.replace(forged, driver_rims=(*forged.driver_rims, rim)))


def test_an_expired_manifest_is_refused() -> None:
    affirmed(GOOD)
    result = verify(GOOD, at=NOW + timedelta(days=800))
    found = failures(result)
    assert found["gpu0", "nvgpu.driver_rim_validity"] == "rim_expired"
    assert found["gpu0", "nvgpu.driver_rim_measurements"] == "unauthenticated"
    assert found["gpu0", "nvgpu.debug"] == "not_checked"
    assert ("gpu0", "nvgpu.driver_rim_signature") not in found


def test_an_authenticated_manifest_serves_many_reports() -> None:
    def authentic(*rims: object) -> tuple[object, ...]:
        return tuple(
            authenticate_rim(rim, roots=NVIDIA.roots, at=NOW)
            for rim in rims
            if isinstance(rim, bytes)
        )

    warm = dataclasses.replace(
        GOOD,
        driver_rims=authentic(*GOOD.driver_rims),  # type: ignore[arg-type]
        vbios_rims=authentic(*GOOD.vbios_rims),  # type: ignore[arg-type]
    )
    affirmed(warm)
    late = failures(verify(warm, at=NOW + timedelta(days=800)))
    assert late["gpu0", "nvgpu.driver_rim_validity"] == "rim_expired"
    assert late["gpu0", "nvgpu.driver_rim_measurements"] == "unauthenticated"
    device, _ = NVIDIA.roots.anchors
    assert device.vendor == "nvidia_device"
    unpinned = failures(verify(warm, roots=Roots(anchors=(device,))))
    assert unpinned["gpu0", "nvgpu.driver_rim_chain"] == "rim_bad_chain"
    other = SimulatedNvidia.make(now=NOW).roots.anchors[1]
    unpinned = failures(verify(warm, roots=Roots(anchors=(device, other))))
    assert unpinned["gpu0", "nvgpu.driver_rim_chain"] == "rim_bad_chain"


def test_the_mode_is_stated_or_follows_from_measurements() -> None:
    gpu = NVIDIA.device()
    stated = {OpaqueField.OPAQUE_DATA_VERSION: b"\x01\x00", OpaqueField.FEATURE_FLAG: b"\x01\x00"}
    values = {claim.name: claim.value for claim in affirmed(evidence(gpu)).claims}
    assert values["nvgpu.mode"] == "not_stated"
    gpu.opaque = {int(kind): value for kind, value in stated.items()}
    values = {claim.name: claim.value for claim in affirmed(evidence(gpu)).claims}
    assert values["nvgpu.mode"] == "spt"
    gpu.opaque[OpaqueField.FEATURE_FLAG] = b"\x09"
    assert failures(verify(evidence(gpu)))["gpu0", "nvgpu.report"] == "malformed"
    del gpu.opaque[OpaqueField.FEATURE_FLAG]
    assert failures(verify(evidence(gpu)))["gpu0", "nvgpu.report"] == "malformed"
    anything = dataclasses.replace(development(), require_cc_gpu=False)
    names = {claim.name for claim in affirmed(GOOD, anything).claims}
    assert "nvgpu.mode" not in names


def test_open_links_are_named() -> None:
    gpu = NVIDIA.device()
    assert not any("not encrypted" in one for one in affirmed(evidence(gpu)).not_proven)
    gpu.opaque = {OpaqueField.PROTECTED_PCIE_STATUS: b"\xaa"}
    assert any("not encrypted" in one for one in affirmed(evidence(gpu)).not_proven)
