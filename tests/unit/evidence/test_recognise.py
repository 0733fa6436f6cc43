"""What a file seems to be: every kind of the recorded evidence, and no surprise on any bytes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.evidence.recognise import MAX_BYTES, Kind, recognise

EVIDENCE = Path(__file__).parents[4] / "shared" / "evidence"
ROLES = {
    "hcl_report": Kind.HCL_REPORT,
    "leaf_cert": Kind.CERTIFICATES,
    "ak_certificate": Kind.CERTIFICATES,
    "cert_chain": Kind.CERTIFICATES,
    "td_quote": Kind.DCAP_QUOTE,
    "collateral": Kind.COLLATERAL,
    "pcs_tcb_info_response": Kind.PCS_RESPONSE,
    "app_compose": Kind.DSTACK_COMPOSE,
    "ak_tpmt_public": Kind.TPM_PUBLIC,
    "ak_tpm2b_public": Kind.TPM_PUBLIC,
    "ak_public": Kind.PUBLIC_KEY,
    "quote_signature": Kind.TPM_SIGNATURE,
    "quote_signature_raw": Kind.RSA_SIGNATURE,
    "document": Kind.NITRO_DOCUMENT,
    "evidence_list": Kind.GPU_EVIDENCE_LIST,
    "vbios_rim": Kind.RIM,
    "ccel_event_log": Kind.EVENT_LOG,
}
REPORTS = {"snp": Kind.SNP_REPORT, "nvidia-gpu": Kind.GPU_REPORT}
QUOTES = {"tpm": Kind.TPM_QUOTE, "az-vtpm": Kind.TPM_QUOTE, "gcp-vtpm": Kind.TPM_QUOTE}
LOGS = {"dstack": Kind.DSTACK_EVENT_LOG}
NOT_A_REPORT = {"snp/neg-truncated", "snp/neg-version-zero"}


def recorded() -> list[tuple[Path, Kind]]:
    found = []
    for case in sorted(EVIDENCE.glob("*/*/case.json")):
        told = json.loads(case.read_text())
        platform = told["platform"]
        for entry in told["files"]:
            kind = {
                "report": REPORTS.get(platform),
                "quote": QUOTES.get(platform, Kind.DCAP_QUOTE),
                "event_log": LOGS.get(platform, Kind.EVENT_LOG),
            }.get(entry["role"], ROLES.get(entry["role"]))
            if kind is not None and told["case"] not in NOT_A_REPORT:
                found.append((case.parent / entry["file"], kind))
    return found


@pytest.mark.evidence
@pytest.mark.skipif(
    not EVIDENCE.is_dir(), reason="REAL EVIDENCE NOT CHECKED: ../shared/evidence is absent"
)
def test_recorded_evidence() -> None:
    files = recorded()
    assert len(files) > 250
    wrong = [
        (path, found)
        for path, kind in files
        if (found := recognise(path.read_bytes()).kind) is not kind
    ]
    assert wrong == []


@pytest.mark.parametrize("newline", [b"", b"\n", b"\r\n"])
def test_text_around_binary_evidence(newline: bytes) -> None:
    report = b"\x02" + bytes(1183)
    assert recognise(report).encoding == "binary"
    for text, encoding in (
        (report.hex().encode(), "hexadecimal"),
        (b"0x" + report.hex().upper().encode(), "hexadecimal"),
        (base64.b64encode(report), "base64"),
        (base64.urlsafe_b64encode(report).rstrip(b"="), "base64"),
    ):
        found = recognise(text + newline)
        assert (found.kind, found.encoding, found.data) == (Kind.SNP_REPORT, encoding, report)


def test_what_nothing_fits() -> None:
    for data in (b"", b"{", b"[]", b"[" * 100_000, b"<html>", b"hello", bytes(1184)):
        found = recognise(data)
        assert (found.kind, found.data) == (Kind.UNKNOWN, data)
    assert recognise(b"\xffTCG\x80\x18" + bytes(MAX_BYTES)).kind is Kind.UNKNOWN


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    assert isinstance(recognise(data).kind, Kind)
