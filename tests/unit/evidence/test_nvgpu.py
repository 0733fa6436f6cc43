"""NVIDIA's fields, lists of evidence, and what ties a device to a worker."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from cloister.errors import MalformedError
from cloister.evidence.nvgpu import (
    MAX_CHAIN_BYTES,
    GpuDevice,
    GpuMode,
    OpaqueField,
    evidence_digest,
    gpu_nonce,
    parse_device_report,
    parse_evidence_list,
    split_pem,
)
from cloister.evidence.spdm import Measurement, encode_unsigned

HOPPER = {
    3: b"550.90.07\x00",
    6: bytes.fromhex("009f009601000000"),
    11: b"\x55",
    14: bytes.fromhex("b1030000"),
    15: b"882\x00\x00",
    19: b"\x00\x00",
    20: b"\x21" * 48,
    21: b"\xaa",
    34: b"\x01\x00",
    36: b"\x02\x00",
}


def report(fields: dict[int, bytes]) -> bytes:
    measurement = Measurement(index=1, value_type=1, raw=False, value=bytes(48))
    unsigned = encode_unsigned(
        nonce=bytes(32), measurements=[measurement], response_nonce=bytes(32), opaque=fields
    )
    return unsigned + bytes(96)


def test_fields_decode() -> None:
    parsed = parse_device_report(report(HOPPER))
    assert parsed.driver_version == "550.90.07"
    assert parsed.vbios_version == "96.00.9f.00.01"
    assert parsed.fwid == b"\x21" * 48
    assert parsed.nvdec0 == 0x55
    assert parsed.protected_pcie is True
    assert parsed.mode is GpuMode.PROTECTED_PCIE
    assert parsed.opaque == {
        "vbios_version": "96.00.9f.00.01",
        "board_id": "b1030000",
        "chip_sku": "882",
        "project_sku_mod": "0000",
        "driver_version": "550.90.07",
        "nvdec0_status": "U",
        "fwid": "21" * 48,
        "protected_pcie_status": "aa",
        "opaque_data_version": "0100",
    }


def test_switches_write_their_version() -> None:
    parsed = parse_device_report(report({6: b"96.10.55.00.01", 22: b"12345678"}))
    assert parsed.vbios_version == "96.10.55.00.01"
    assert (parsed.driver_version, parsed.fwid, parsed.nvdec0, parsed.mode) == (None,) * 4
    # Eight bytes of an identity are never text, even where they look like it.
    assert parsed.opaque["switch_pdi"] == b"12345678".hex()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (6, None),
        (6, bytes.fromhex("009f009601000001")),
        (6, bytes(5)),
        (6, b"96.10.55.00"),
        (6, b"96.10.55.00.zz"),
        (3, b""),
        (3, b"550.90.07\n"),
        (3, b"550 90"),
        (11, b"\x54"),
        (11, b"\x55\x55"),
        (20, bytes(47)),
        (21, b"\x00"),
        (36, b"\x03\x00"),
        (36, None),
    ],
)
def test_fields_of_another_form_are_refused(kind: int, value: bytes | None) -> None:
    parse_device_report(report(HOPPER))
    fields = dict(HOPPER)
    if value is None:
        del fields[kind]
    else:
        fields[kind] = value
    with pytest.raises(MalformedError):
        parse_device_report(report(fields))


def test_older_reports_name_no_mode() -> None:
    fields = {kind: value for kind, value in HOPPER.items() if kind not in {34, 36}}
    assert parse_device_report(report(fields)).mode is None
    assert parse_device_report(report(fields | {34: b"\x00\x00"})).mode is None
    assert parse_device_report(report(fields | {OpaqueField.FEATURE_FLAG: b"\x01"})).mode == "spt"


PEM = (
    b"-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n"
    b"-----BEGIN CERTIFICATE-----\nBAUG\n-----END CERTIFICATE-----\n"
)


def test_pem_is_split() -> None:
    assert split_pem(PEM) == (b"\x01\x02\x03", b"\x04\x05\x06")
    assert split_pem(PEM + b"\x00") == split_pem(PEM)
    assert split_pem(b"") == ()


@pytest.mark.parametrize(
    "data",
    [
        b"x" + PEM,
        PEM + b"x",
        PEM[:-10],
        PEM.replace(b"AQID", b"AQI"),
        PEM.replace(b"AQID", b"\xff\xff"),
        PEM * 5,
        b" " * (MAX_CHAIN_BYTES + 1),
    ],
    ids=["before", "after", "short", "base64", "bytes", "many", "long"],
)
def test_other_text_is_no_pem(data: bytes) -> None:
    with pytest.raises(MalformedError):
        split_pem(data)


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "arch": "HOPPER",
        "nonce": "00",
        "evidence": base64.b64encode(b"report").decode(),
        "certificate": base64.b64encode(PEM).decode(),
    } | changes


def test_a_list_decodes() -> None:
    devices = parse_evidence_list(json.dumps([entry(), entry(arch="LS10")]).encode())
    assert devices[0] == GpuDevice(report=b"report", chain=split_pem(PEM), arch="HOPPER")
    assert devices[1].arch == "LS10"
    asked = {"nonce": "00", "arch": "HOPPER", "evidence_list": [entry(), entry(arch="LS10")]}
    assert parse_evidence_list(json.dumps(asked).encode()) == devices
    (device,) = parse_evidence_list(json.dumps([entry(evidence="11e001ff")]).encode())
    assert device.report == bytes.fromhex("11e001ff")


@pytest.mark.parametrize(
    "data",
    [
        entry(),
        [entry()] * 129,
        ["report"],
        [entry(evidence=5)],
        [entry(evidence="AQI")],
        [entry(evidence="11e0g")],
        {"evidence_list": 5},
        [entry(), entry(certificate=None)],
        [entry(arch=1)],
    ],
    ids=["object", "many", "text", "number", "base64", "hex", "member", "nothing", "arch"],
)
def test_other_lists_are_refused(data: object) -> None:
    with pytest.raises(MalformedError):
        parse_evidence_list(json.dumps(data).encode())


def test_the_nonce_is_made_of_the_receipt_key() -> None:
    key = bytes(range(32))
    assert gpu_nonce(key) == hashlib.sha256(b"cloister.gpu.v1" + key).digest()
    with pytest.raises(ValueError, match="32"):
        gpu_nonce(key + b"\x00")


def test_the_digest_covers_reports_and_chains_in_order() -> None:
    one = GpuDevice(report=b"one", chain=(b"leaf", b"root"))
    two = GpuDevice(report=b"two", chain=())
    expected = (
        b"cloister.gpu-evidence.v1\x00\x00\x00\x02"
        b"\x00\x00\x00\x03one\x00\x00\x00\x02\x00\x00\x00\x04leaf\x00\x00\x00\x04root"
        b"\x00\x00\x00\x03two\x00\x00\x00\x00"
    )
    assert evidence_digest([one, two]) == hashlib.sha256(expected).digest()
    others = [
        [two, one],
        [one],
        [],
        [GpuDevice(report=b"one", chain=(b"leafroot",)), two],
        [GpuDevice(report=b"onel", chain=(b"eaf", b"root")), two],
    ]
    digests = {evidence_digest(other) for other in others}
    assert len(digests) == len(others)
    assert evidence_digest([one, two]) not in digests
