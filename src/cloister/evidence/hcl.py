"""Reports of Azure's paravisor (HCL), which holds the virtual TPM of a confidential VM.

The guest reads them from NV index 0x01400001 of its virtual TPM. Little-endian:

- header of 32 bytes: ``HCLA``, then each of 4 bytes: version (1 or 2), size of everything that is
  used, request type (2), status (0), three reserved (0);
- 1184 bytes of hardware report: an SNP attestation report, or a TDREPORT of 1024 bytes and zeros;
- runtime data: each of 4 bytes: size of this part, version (1), type of the report (2 SNP, 4 TDX),
  hash of the JSON (1 SHA-256, 2 SHA-384, 3 SHA-512), size of the JSON; then the JSON;
- zeros up to the size of the NV index.

Sources: Microsoft "Azure confidential VMs: virtual TPMs" (guest attestation design), and the
structures of OpenHCL (``IGVM_ATTEST_REQUEST``); Intel "TDX Module ABI Specification" (348551),
TDREPORT_STRUCT. Nothing here is authenticated.
"""

from __future__ import annotations

import base64
import binascii
import enum
from dataclasses import dataclass, field
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.reader import ByteReader
from cloister.strictjson import (
    JsonObject,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)

MAGIC: Final = b"HCLA"
VERSIONS: Final = (1, 2)
HEADER_BYTES: Final = 32
HARDWARE_REPORT_BYTES: Final = 1184
TD_REPORT_BYTES: Final = 1024
RUNTIME_HEADER_BYTES: Final = 20
MAX_REPORT_BYTES: Final = 16 * 1024
"""Longest report accepted, padding included; the NV index has 2600 bytes."""

AK_NAME: Final = "HCLAkPub"
EK_NAME: Final = "HCLEkPub"
MAX_KEYS: Final = 8

_REQUEST_TYPE: Final = 2
_RUNTIME_VERSION: Final = 1
_CODE: Final = "malformed"

_TD_REPORT_TYPE: Final = 0x81
_REPORT_DATA: Final = slice(128, 192)
_TCB_INFO: Final = slice(256 + 8, 256 + 8 + 120)  # behind ``VALID``
_TD_INFO: Final = slice(512, 512 + 400)


class HardwareType(enum.IntEnum):
    """Whose hardware report is inside."""

    SNP = 2
    TDX = 4


class RuntimeHash(enum.IntEnum):
    """Which hash of the JSON is in the hardware report's data."""

    SHA256 = 1
    SHA384 = 2
    SHA512 = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RsaJwk:
    """An RSA public key of the runtime data."""

    modulus: int
    exponent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeData:
    """What the paravisor states, in JSON."""

    attestation_key: RsaJwk
    """``HCLAkPub``: the key that the virtual TPM signs quotes with."""
    endorsement_key: RsaJwk | None
    """``HCLEkPub``: the virtual TPM's own key, to encrypt to."""
    vm_configuration: JsonObject
    user_data: str
    """What the guest wrote to NV index 0x01400002, up to 64 bytes, in hexadecimal of any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HclReport:
    """One report of the paravisor."""

    version: int
    hardware_type: HardwareType
    hardware_report: bytes = field(repr=False)
    """1184 bytes for SNP, 1024 for TDX."""
    hash: RuntimeHash
    runtime_bytes: bytes = field(repr=False)
    """The JSON as it came: its hash is what the hardware vouches for."""
    runtime: RuntimeData


def parse_hcl_report(data: bytes) -> HclReport:
    """Decode a report; only zeros may follow it.

    Raises MalformedError (code ``malformed``), and nothing else.
    """
    reader = ByteReader(data, what="the HCL report", code=_CODE, byteorder="little")
    if len(data) > MAX_REPORT_BYTES:
        raise reader.fail(f"has {len(data)} bytes; at most {MAX_REPORT_BYTES} are accepted")
    if reader.take(4) != MAGIC:
        raise reader.fail("does not begin with HCLA")
    version, size, request = reader.integer(4), reader.integer(4), reader.integer(4)
    if version not in VERSIONS or request != _REQUEST_TYPE or any(reader.take(16)):
        raise reader.fail(f"has a header that is not known (version {version}, type {request})")
    hardware = reader.take(HARDWARE_REPORT_BYTES)
    part, part_version = reader.integer(4), reader.integer(4)
    kind, algorithm, length = reader.integer(4), reader.integer(4), reader.integer(4)
    runtime = reader.take(length)
    used = HEADER_BYTES + HARDWARE_REPORT_BYTES + RUNTIME_HEADER_BYTES + length
    if part_version != _RUNTIME_VERSION or part != RUNTIME_HEADER_BYTES + length or size != used:
        raise reader.fail("has sizes that do not fit each other")
    if any(reader.take(reader.remaining)):
        raise reader.fail("is followed by something else than zeros")
    return HclReport(
        version=version,
        hardware_type=_hardware_type(kind, reader),
        hardware_report=_hardware(hardware, kind, reader),
        hash=_hash(algorithm, reader),
        runtime_bytes=runtime,
        runtime=parse_runtime_data(runtime),
    )


def parse_runtime_data(data: bytes) -> RuntimeData:
    """Decode the JSON of a report: strictly, but for members that are not known.

    Raises MalformedError (code ``malformed``), and nothing else.
    """
    try:
        members = parse_json_object(data, limit=MAX_REPORT_BYTES, what="the runtime data")
        keys = [
            expect_object(key, "a key")
            for key in expect_list(members.get("keys"), "keys", limit=MAX_KEYS)
        ]
        attestation_key = _key(keys, AK_NAME)
        if attestation_key is None:
            raise MalformedError(f"the runtime data holds no {AK_NAME}")
        user_data = expect_str(members.get("user-data"), "user-data", limit=128)
        bytes.fromhex(user_data)
        return RuntimeData(
            attestation_key=attestation_key,
            endorsement_key=_key(keys, EK_NAME),
            vm_configuration=expect_object(members.get("vm-configuration"), "vm-configuration"),
            user_data=user_data,
        )
    except MalformedError as error:
        raise MalformedError(str(error), code=_CODE) from None
    except ValueError:
        raise MalformedError("user-data is not hexadecimal", code=_CODE) from None


def td_report_data(td_report: bytes) -> bytes:
    """REPORTDATA (64 bytes) of a TDREPORT of 1024 bytes."""
    return td_report[_REPORT_DATA]


def quoted_td_report(td_report: bytes) -> bytes:
    """The 584 bytes of a TDREPORT that a quote of it holds, in the quote's order.

    From TEE_TCB_INFO: TEE_TCB_SVN, MRSEAM, MRSIGNERSEAM, ATTRIBUTES; from TDINFO: all up to RTMR3;
    then REPORTDATA. The report's MAC can be checked on the same machine only.
    """
    return td_report[_TCB_INFO] + td_report[_TD_INFO] + td_report[_REPORT_DATA]


def _hardware_type(kind: int, reader: ByteReader) -> HardwareType:
    try:
        return HardwareType(kind)
    except ValueError:
        raise reader.fail(f"holds a hardware report of type {kind}, which is not known") from None


def _hash(algorithm: int, reader: ByteReader) -> RuntimeHash:
    try:
        return RuntimeHash(algorithm)
    except ValueError:
        raise reader.fail(f"names hash {algorithm}, which is not known") from None


def _hardware(data: bytes, kind: int, reader: ByteReader) -> bytes:
    if kind != HardwareType.TDX:
        return data
    if data[0] != _TD_REPORT_TYPE or any(data[TD_REPORT_BYTES:]):
        raise reader.fail("holds no TDREPORT, or something behind it")
    return data[:TD_REPORT_BYTES]


def _key(keys: list[JsonObject], name: str) -> RsaJwk | None:
    """The one RSA key of that name (RFC 7517, RFC 7518 section 6.3.1)."""
    found = [key for key in keys if key.get("kid") == name]
    if not found:
        return None
    (key,) = found if len(found) == 1 else (None,)
    if key is None or key.get("kty") != "RSA":
        raise MalformedError(f"the runtime data holds {name} twice, or not as an RSA key")
    return RsaJwk(modulus=_number(key.get("n")), exponent=_number(key.get("e")))


def _number(value: object) -> int:
    """A ``Base64urlUInt``: no padding, one encoding for each number of bytes."""
    text = expect_str(value, "a number of a key", limit=1024)
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError("a number of a key is not base64url") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != text or not data:
        raise MalformedError("a number of a key is not base64url")
    return int.from_bytes(data, "big")
