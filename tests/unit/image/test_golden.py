"""What an operator records of a machine's firmware, from a report, and for which machines."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from cloister.errors import MalformedError
from cloister.evidence import items
from cloister.evidence.report import ITEM_EVENT_LOG, AttestationReport, EvidenceItem
from cloister.image.golden import Golden, golden_from_report
from cloister.image.image_files import ImageName
from cloister.image.pcrs import Prediction
from cloister.image.references import google_tdx_references, tpm_references
from support.dcap_platform import quoted

VECTOR: Final = json.loads(
    (Path(__file__).parents[2] / "vectors/measured_boot/default.json").read_text()
)
LOG: Final = base64.b64decode(VECTOR["event_log_b64"])
ITEMS: Final = {
    ITEM_EVENT_LOG: LOG,
    items.ITEM_TPM_PCRS: json.dumps(VECTOR["pcrs"]).encode(),
}


def report(evidence: Mapping[str, bytes]) -> bytes:
    return AttestationReport(
        api_version="cloister/v1",
        keyset_digest="sha256:" + "00" * 32,
        tee_type="gcp-tdx",
        keyset={},
        report_data=bytes(32),
        evidence={
            name: EvidenceItem(media_type="application/octet-stream", data=data)
            for name, data in evidence.items()
        },
    ).encode()


def golden(evidence: Mapping[str, bytes]) -> Golden:
    return golden_from_report(report(evidence), firmware="OVMF", machine="q35")


def test_firmware_as_registers_and_log_tell_it_alike() -> None:
    found = golden(ITEMS)
    assert found.pcr0.hex() == VECTOR["pcrs"]["sha256"]["0"]
    assert found.pcr1.hex() == VECTOR["pcrs"]["sha256"]["1"]
    assert (found.platform, found.hardware, found.secure_boot) == ("gcp-tdx", (), False)
    with_quote = golden({**ITEMS, items.ITEM_TDX_QUOTE: quoted("tdx")})
    assert [name for name, _ in with_quote.hardware] == ["mr_td", "rtmr0"]


def other(register: int) -> bytes:
    pcrs = json.loads(ITEMS[items.ITEM_TPM_PCRS])
    pcrs["sha256"][str(register)] = "ab" * 32
    return json.dumps(pcrs).encode()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({ITEM_EVENT_LOG: None}, "no event log"),
        ({items.ITEM_TPM_PCRS: None}, "other registers"),
        ({items.ITEM_TPM_PCRS: other(0)}, "other registers"),
        ({items.ITEM_TPM_PCRS: other(1)}, "other registers"),
        ({ITEM_EVENT_LOG: b"no log"}, "crypto-agile"),
        ({items.ITEM_TDX_QUOTE: "sgx"}, "not one of a trust domain"),
    ],
    ids=range(6),
)
def test_a_report_that_is_not_one_of_a_measured_boot(
    changes: Mapping[str, bytes | str | None], said: str
) -> None:
    golden(ITEMS)
    quote = quoted("sgx")
    changed = {
        name: quote if data == "sgx" else data
        for name, data in {**ITEMS, **changes}.items()
        if data is not None
    }
    with pytest.raises(MalformedError, match=said):
        golden({name: data for name, data in changed.items() if isinstance(data, bytes)})


IMAGE: Final = ImageName(name="demo", version="1", debug=False)
RECORDED: Final = Golden(
    firmware="cloud",
    machine="small",
    secure_boot=False,
    pcr0=bytes(32),
    pcr1=bytes(32),
    hardware=(("measurement", bytes(48)), ("mr_td", bytes(48)), ("rtmr0", bytes(48))),
)


def made(entry: Golden, platform: str, *, secure_boot: bool) -> int:
    """For how many machines there are references."""
    prediction = Prediction(
        registers={pcr: bytes(32) for pcr in range(24)},
        events=(),
    )
    if platform == "gcp-tdx":
        rtmrs = {f"rtmr{number}": (bytes(48),) for number in (1, 2, 3)}
        return len(
            google_tdx_references(prediction, rtmrs, [entry], IMAGE, secure_boot=secure_boot)
        )
    return len(
        tpm_references(prediction, [entry], IMAGE, secure_boot=secure_boot, platform=platform)
    )


@pytest.mark.parametrize("platform", ["tpm", "gcp-vtpm", "gcp-snp", "gcp-tdx", "azure-snp"])
def test_firmware_counts_for_the_state_that_it_was_recorded_in(platform: str) -> None:
    assert made(RECORDED, platform, secure_boot=False) == 1
    assert made(RECORDED, platform, secure_boot=True) == 0
    assert made(replace(RECORDED, secure_boot=True), platform, secure_boot=False) == 0


@pytest.mark.parametrize(
    ("platform", "needed"),
    [
        *(("gcp-snp", "measurement"), ("azure-snp", "measurement"), ("azure-tdx", "mr_td")),
        *(("gcp-tdx", "mr_td"), ("gcp-tdx", "rtmr0")),
    ],
)
def test_without_what_the_processor_measured_it_counts_for_none(platform: str, needed: str) -> None:
    assert made(RECORDED, platform, secure_boot=False) == 1
    less = tuple(pair for pair in RECORDED.hardware if pair[0] != needed)
    assert made(replace(RECORDED, hardware=less), platform, secure_boot=False) == 0
