"""What NVIDIA's GPUs and NVSwitches say of themselves beside their measurements.

The types of the opaque fields are those of NVIDIA's published attestation SDK (Apache-2.0,
``gpu_opaque_data_parser`` and ``switch_opaque_data_parser``); there is no other specification.

Also here: how evidence of several devices travels (a list in JSON, as NVIDIA's tools write it),
and how it is tied to a worker (`gpu_nonce`, `evidence_digest`).
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.spdm import MAX_REPORT_BYTES, MeasurementsReport, parse_report
from cloister.strictjson import (
    decode_base64,
    expect_hex,
    expect_list,
    expect_object,
    expect_str,
    parse_json,
)

MAX_DEVICES: Final = 128
"""A rack of 72 GPUs has 18 switches besides."""
MAX_LIST_BYTES: Final = 4 * 1024 * 1024
MAX_CHAIN_BYTES: Final = 32 * 1024
MAX_CERTIFICATES: Final = 8
RECEIPT_KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 48
"""Firmware ids and measurements are SHA-384."""

NONCE_LABEL: Final = b"cloister.gpu.v1"
DIGEST_LABEL: Final = b"cloister.gpu-evidence.v1"

_CODE: Final = "malformed"


class OpaqueField(enum.IntEnum):
    """Types of opaque fields that this module knows; others are kept and not looked at."""

    DRIVER_VERSION = 3
    GPU_INFO = 4
    VBIOS_VERSION = 6
    NVDEC0_STATUS = 11
    BOARD_ID = 14
    CHIP_SKU = 15
    CHIP_SKU_MOD = 16
    PROJECT = 17
    PROJECT_SKU = 18
    PROJECT_SKU_MOD = 19
    FWID = 20
    PROTECTED_PCIE_STATUS = 21
    SWITCH_PDI = 22
    """Of a GPU: the switches it is wired to, 8 bytes each. Of a switch: its own identity."""
    DISABLED_PORTS = 23
    POSITION_ID = 24
    LOCK_SWITCH_STATUS = 25
    GPU_PDIS = 26
    """Of a switch: the GPUs it is wired to, 8 bytes each."""
    OPAQUE_DATA_VERSION = 34
    CHIP_INFO = 35
    FEATURE_FLAG = 36


class GpuMode(enum.StrEnum):
    """Modes that a report with a feature flag names; all of them are confidential ones."""

    MULTI_GPU = "mpt"
    """One of several GPUs in one guest."""
    SINGLE_GPU = "spt"
    """The only GPU in a guest."""
    PROTECTED_PCIE = "ppcie"
    """Traffic between GPUs over NVLink is not encrypted."""


_MODES: Final = {0: GpuMode.MULTI_GPU, 1: GpuMode.SINGLE_GPU, 2: GpuMode.PROTECTED_PCIE}

ENABLED: Final = 0xAA
DISABLED: Final = 0x55

_TOLD: Final = (
    OpaqueField.VBIOS_VERSION,
    OpaqueField.BOARD_ID,
    OpaqueField.CHIP_SKU,
    OpaqueField.CHIP_SKU_MOD,
    OpaqueField.PROJECT,
    OpaqueField.PROJECT_SKU,
    OpaqueField.PROJECT_SKU_MOD,
    OpaqueField.DRIVER_VERSION,
    OpaqueField.GPU_INFO,
    OpaqueField.NVDEC0_STATUS,
    OpaqueField.FWID,
    OpaqueField.PROTECTED_PCIE_STATUS,
    OpaqueField.SWITCH_PDI,
    OpaqueField.POSITION_ID,
    OpaqueField.LOCK_SWITCH_STATUS,
    OpaqueField.OPAQUE_DATA_VERSION,
)
_BINARY: Final = (
    OpaqueField.GPU_INFO,
    OpaqueField.BOARD_ID,
    OpaqueField.FWID,
    OpaqueField.SWITCH_PDI,
)
_HEX_REPORT: Final = "11e0"
"""How a report begins in hexadecimal; in base64, it begins with ``EeA``."""
_PACKED_VERSION_BYTES: Final = 8
_VERSION: Final = re.compile(r"[0-9A-Fa-f]{2}(?:\.[0-9A-Fa-f]{2}){4}")
_DRIVER: Final = re.compile(r"[0-9]{1,8}(?:\.[0-9A-Za-z]{1,8}){1,4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDevice:
    """The evidence of one device, as it arrived."""

    report: bytes
    """An SPDM request and its signed response (`cloister.evidence.spdm`)."""
    chain: tuple[bytes, ...]
    """Certificates in DER, that of the reporting key first; the root may be there or not."""
    arch: str = ""
    """What an evidence list calls the device. A label: nothing is decided by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """A report with the opaque fields that verification needs, decoded."""

    spdm: MeasurementsReport
    driver_version: str | None
    """``550.90.07``; switches name none."""
    vbios_version: str
    """``96.00.9f.00.01``, in lower case."""
    fwid: bytes | None
    """SHA-384 of the device's first mutable firmware; early drivers leave it out."""
    nvdec0: int | None
    """`ENABLED` or `DISABLED`; switches say nothing."""
    protected_pcie: bool | None
    mode: GpuMode | None
    """``None`` where the report is of a version that does not say."""

    @property
    def nonce(self) -> bytes:
        """The 32 bytes that the device was asked with."""
        return self.spdm.nonce

    @property
    def opaque(self) -> dict[str, str]:
        """The fields for people: text where a field is text, otherwise hexadecimal."""
        told: dict[str, str] = {}
        for kind in _TOLD:
            value = self.spdm.opaque.get(kind)
            if value is not None:
                told[kind.name.lower()] = _plain(kind, value)
        told["vbios_version"] = self.vbios_version
        return told


def parse_device_report(data: bytes) -> DeviceReport:
    """Decode a report and NVIDIA's opaque fields. Nothing is authenticated here.

    A field with a known type has to have the form that is known; fields of other types are
    kept, for newer firmware adds some.

    Raises MalformedError, and nothing else.
    """
    spdm = parse_report(data)
    fields = spdm.opaque
    if OpaqueField.VBIOS_VERSION not in fields:
        raise _malformed("names no VBIOS version")
    driver = fields.get(OpaqueField.DRIVER_VERSION)
    protected = _status(fields, OpaqueField.PROTECTED_PCIE_STATUS)
    return DeviceReport(
        spdm=spdm,
        driver_version=None if driver is None else _driver_version(driver),
        vbios_version=_vbios_version(fields[OpaqueField.VBIOS_VERSION]),
        fwid=_fwid(fields.get(OpaqueField.FWID)),
        nvdec0=_status(fields, OpaqueField.NVDEC0_STATUS),
        protected_pcie=None if protected is None else protected == ENABLED,
        mode=_mode(fields),
    )


def parse_evidence_list(data: bytes) -> tuple[GpuDevice, ...]:
    """Decode the evidence of several devices, as NVIDIA's tools serialise it.

    A JSON list of objects with ``evidence`` (the report, which some tools write in hexadecimal)
    and ``certificate`` (the chain in PEM), both in base64, and ``arch`` and ``nonce``; or an
    object that has such a list as ``evidence_list``, as NVIDIA's remote service is asked. ``arch``
    and ``nonce`` only repeat, unsigned, what the report says itself, so ``nonce`` is not even kept.

    Raises MalformedError, and nothing else.
    """
    value = parse_json(data, limit=MAX_LIST_BYTES, what="the evidence list", code=_CODE)
    if isinstance(value, dict):
        value = value.get("evidence_list")
    entries = expect_list(value, "the evidence list", limit=MAX_DEVICES)
    return tuple(_entry(entry) for entry in entries)


def split_pem(data: bytes) -> tuple[bytes, ...]:
    """The DER of each certificate in a PEM text (RFC 7468), in order.

    Raises MalformedError, and nothing else.
    """
    if len(data) > MAX_CHAIN_BYTES:
        raise _malformed(f"brings a chain of more than {MAX_CHAIN_BYTES} bytes")
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    found: list[bytes] = []
    rest = data.strip().rstrip(b"\x00")
    while rest:
        body, marker, tail = rest.removeprefix(begin).partition(end)
        if not rest.startswith(begin) or not marker or len(found) == MAX_CERTIFICATES:
            raise _malformed("brings a chain that is not a short list of PEM certificates")
        text = b"".join(body.split()).decode("ascii", errors="replace")
        found.append(decode_base64(text, limit=MAX_CHAIN_BYTES, what="a certificate", code=_CODE))
        rest = tail.strip()
    return tuple(found)


def gpu_nonce(receipt_public_key: bytes) -> bytes:
    """The nonce that ties devices to a worker: SHA-256 of a label and its receipt key.

    The receipt key is Ed25519, 32 bytes, and lives as long as the machine is up: devices are
    asked once, at boot.
    """
    if len(receipt_public_key) != RECEIPT_KEY_BYTES:
        raise ValueError("a receipt key has 32 bytes")
    return hashlib.sha256(NONCE_LABEL + receipt_public_key).digest()


def evidence_digest(devices: Sequence[GpuDevice]) -> bytes:
    """SHA-256 over all devices' reports and chains, for the claims document.

    What is hashed: the label ``cloister.gpu-evidence.v1``, the number of devices, and for each of
    them its report, the number of its certificates, and these. Numbers have 4 bytes, big-endian;
    reports and certificates are preceded by their length in that form. The order counts.
    """
    digest = hashlib.sha256(DIGEST_LABEL + _number(len(devices)))
    for device in devices:
        digest.update(_number(len(device.report)) + device.report + _number(len(device.chain)))
        for certificate in device.chain:
            digest.update(_number(len(certificate)) + certificate)
    return digest.digest()


def _number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _entry(entry: object) -> GpuDevice:
    members = expect_object(entry, "a device's evidence")
    text = members.get("evidence")
    report = (
        expect_hex(text, "a report", limit=MAX_REPORT_BYTES)
        if isinstance(text, str) and text.startswith(_HEX_REPORT)
        else decode_base64(text, limit=MAX_REPORT_BYTES, what="a report", code=_CODE)
    )
    chain = decode_base64(
        members.get("certificate"), limit=MAX_CHAIN_BYTES, what="a certificate chain", code=_CODE
    )
    return GpuDevice(
        report=report,
        chain=split_pem(chain),
        arch=expect_str(members.get("arch", ""), "an architecture", limit=32),
    )


def _vbios_version(value: bytes) -> str:
    """GPUs pack it: four bytes as a little-endian integer, the fifth, zeros. Switches write it."""
    if len(value) == _PACKED_VERSION_BYTES:
        if any(value[5:]):
            raise _malformed("packs a VBIOS version of more than five bytes")
        return bytes((*value[3::-1], value[4])).hex(".")
    text = _text(value)
    if text is None or not _VERSION.fullmatch(text):
        raise _malformed("names no readable VBIOS version")
    return text.lower()


def _driver_version(value: bytes) -> str:
    text = _text(value)
    if text is None or not _DRIVER.fullmatch(text):
        raise _malformed("names no readable driver version")
    return text


def _fwid(value: bytes | None) -> bytes | None:
    if value is not None and len(value) != DIGEST_BYTES:
        raise _malformed("holds a firmware id that is no SHA-384 digest")
    return value


def _status(fields: Mapping[int, bytes], kind: OpaqueField) -> int | None:
    value = fields.get(kind)
    if value is None:
        return None
    if value not in {bytes((ENABLED,)), bytes((DISABLED,))}:
        raise _malformed(f"says neither on nor off for {kind.name.lower()}")
    return value[0]


def _mode(fields: Mapping[int, bytes]) -> GpuMode | None:
    """Reports say so from version 1 of the opaque data on."""
    value = fields.get(OpaqueField.FEATURE_FLAG)
    if value is None:
        if int.from_bytes(fields.get(OpaqueField.OPAQUE_DATA_VERSION, b""), "little"):
            raise _malformed("names no mode, as its version of the opaque data has to")
        return None
    mode = _MODES.get(int.from_bytes(value, "little"))
    if mode is None:
        raise _malformed("names a mode that is not known")
    return mode


def _plain(kind: OpaqueField, value: bytes) -> str:
    text = None if kind in _BINARY else _text(value)
    return value.hex() if text is None else text


def _text(value: bytes) -> str | None:
    """Printable ASCII, padded with zeros; ``None`` where it is something else."""
    stripped = value.rstrip(b"\x00")
    if stripped and all(0x20 <= byte < 0x7F for byte in stripped):
        return stripped.decode("ascii")
    return None


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the device's report {why}", code=_CODE)
