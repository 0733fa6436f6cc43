"""Attesters over what real machines answered, as recorded."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from cloister.attester.azure import HCL_REPORT_INDEX, read_hcl_report
from cloister.attester.nvgpu import GpuAttester
from cloister.evidence.hcl import HardwareType
from cloister.strictjson import JsonObject
from support.fake_tpm import FakeTpm

EVIDENCE = Path(__file__).parents[3] / "shared" / "evidence"

pytestmark = [
    pytest.mark.evidence,
    pytest.mark.skipif(not EVIDENCE.is_dir(), reason="no recorded evidence"),
]


def cases(platform: str, pattern: str) -> list[Path]:
    return sorted((EVIDENCE / platform).glob(f"*/{pattern}"))


@pytest.mark.parametrize("file", cases("az-vtpm", "hcl_report.bin"), ids=lambda f: f.parent.name)
def test_reports_of_azures_paravisor_are_read(file: Path) -> None:
    tpm = FakeTpm()
    tpm.nv[HCL_REPORT_INDEX] = file.read_bytes()
    _, report = read_hcl_report(tpm)
    tdx = "tdx" in json.loads((file.parent / "case.json").read_text())["variant"]
    assert report.hardware_type is (HardwareType.TDX if tdx else HardwareType.SNP)


@pytest.mark.parametrize("file", cases("nvidia-gpu", "report_0.bin"), ids=lambda f: f.parent.name)
def test_reports_of_gpus_are_taken_over_their_nonce(file: Path) -> None:
    report, chain = file.read_bytes(), file.with_name("chain_0.pem").read_bytes()

    class Driver:
        def ask(self, request: JsonObject) -> JsonObject:
            gpu: JsonObject = {
                "report": base64.b64encode(report).decode(),
                "chain": base64.b64encode(chain).decode(),
            }
            return {"cc": True, "dev_tools": False, "gpus": [gpu]}

    item = GpuAttester(Driver()).collect(report[4:36])["gpu0.evidence"]
    assert item.data == report
    assert len(item.endorsements) == chain.count(b"-----BEGIN")
