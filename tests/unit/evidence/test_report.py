"""Reports of aci/1 as bytes and records."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from cloister.errors import MalformedError
from cloister.evidence.report import (
    AttestationReport,
    Endorsement,
    EvidenceItem,
    parse_attestation_report,
)

REPORT = AttestationReport(
    api_version="aci/1",
    keyset_digest="sha256:" + "0" * 64,
    tee_type="tpm",
    keyset={"subject": None, "not_after": 1},
    report_data=bytes(range(32)),
    evidence={
        "tpm.quote": EvidenceItem(
            media_type="application/octet-stream",
            data=b"quote",
            endorsements=(Endorsement(media_type="application/pkix-cert", data=b"cert"),),
        ),
        "claims": EvidenceItem(media_type="application/json", data=b""),
    },
    source_provenance={"repo_url": None},
    service_capabilities={"serving": "direct", "later": [1]},
)


def test_there_and_back() -> None:
    assert parse_attestation_report(REPORT.encode()) == REPORT


def test_members_of_other_extensions_are_ignored() -> None:
    document = json.loads(REPORT.encode())
    document["signing_address"] = "0x"
    document["attestation"]["vm_config"] = {"cpus": 2}
    document["attestation"]["evidence"]["claims"]["note"] = "x"
    assert parse_attestation_report(json.dumps(document).encode()) == REPORT


def test_provenance_and_capabilities_may_be_absent() -> None:
    document = json.loads(REPORT.encode())
    del document["attestation"]["source_provenance"]
    del document["service_capabilities"]
    report = parse_attestation_report(json.dumps(document).encode())
    assert report.source_provenance is None
    assert report.service_capabilities == {}


def with_quote(**changes: Any) -> dict[str, Any]:
    quote = json.loads(REPORT.encode())["attestation"]["evidence"]["tpm.quote"]
    return {"evidence": {"tpm.quote": {**quote, **changes}}}


TOP: dict[str, dict[str, Any]] = {
    "version that is no text": {"api_version": 1},
    "digest that is none": {"workload_keyset_digest": "sha256:00"},
    "capabilities that are no object": {"service_capabilities": []},
    "attestation that is no object": {"attestation": None},
}
INNER: dict[str, dict[str, Any]] = {
    "type that is no text": {"tee_type": None},
    "keyset that is no object": {"workload_keyset": []},
    "short report data": {"report_data": "00" * 31},
    "padded report data": {"report_data": "00" * 64},
    "report data in capitals": {"report_data": "AA" * 32},
    "evidence that is no object": {"evidence": []},
    "too much evidence": {"evidence": {str(number): {} for number in range(65)}},
    "evidence item that is no object": {"evidence": {"claims": "e30="}},
    "provenance that is no object": {"source_provenance": "git"},
    "item without media type": with_quote(media_type=None),
    "item without data": with_quote(data_b64=None),
    "data with a line end": with_quote(data_b64="cXVvdGU=\n"),
    "data without padding": with_quote(data_b64="cXVvdGU"),
    "data with spare bits": with_quote(data_b64="cXVvdGV="),
    "data in the other alphabet": with_quote(data_b64="__8="),
    "data that is not ASCII": with_quote(data_b64="ä" * 4),
    "data beyond the bound": with_quote(
        data_b64=base64.b64encode(bytes(4 * 1024 * 1024 + 1)).decode()
    ),
    "endorsements that are no list": with_quote(endorsements={}),
    "too many endorsements": with_quote(endorsements=[{"media_type": "a", "data_b64": ""}] * 17),
    "endorsement that is no object": with_quote(endorsements=["AA=="]),
    "long media type": with_quote(media_type="a" * 257),
}


def refused(document: dict[str, Any]) -> None:
    parse_attestation_report(REPORT.encode())
    with pytest.raises(MalformedError) as raised:
        parse_attestation_report(json.dumps(document).encode())
    assert raised.value.code == "report_malformed"


@pytest.mark.parametrize("name", TOP)
def test_malformed_members(name: str) -> None:
    refused({**json.loads(REPORT.encode()), **TOP[name]})


@pytest.mark.parametrize("name", INNER)
def test_malformed_members_of_the_attestation(name: str) -> None:
    document = json.loads(REPORT.encode())
    document["attestation"] = {**document["attestation"], **INNER[name]}
    refused(document)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"{}",
        b"{" * 100_000,
        b"[" * 100_000,
        REPORT.encode() + b"x",
        REPORT.encode().replace(b'"not_after":1', b'"not_after":1.0'),
        REPORT.encode().replace(b'"not_after":1', b'"not_after":NaN'),
        REPORT.encode().replace(b'"not_after":1', b'"not_after":9007199254740992'),
        REPORT.encode().replace(b'"not_after":1', b'"not_after":' + b"9" * 100_000),
        REPORT.encode().replace(b'"not_after":1', b'"not_after":1,"not_after":1'),
        REPORT.encode().replace(b'"subject":null', b'"subject":"\\uD800"'),
        REPORT.encode().replace(b'"subject":null', b'"subject":"\\udfff"'),
    ],
)
def test_other_bytes_are_no_report(data: bytes) -> None:
    with pytest.raises(MalformedError) as raised:
        parse_attestation_report(data)
    assert raised.value.code == "report_malformed"


def test_a_whole_surrogate_pair_is_text() -> None:
    data = REPORT.encode().replace(b'"subject":null', b'"subject":"\\ud83d\\ude00"')
    assert parse_attestation_report(data).keyset["subject"] == "😀"
