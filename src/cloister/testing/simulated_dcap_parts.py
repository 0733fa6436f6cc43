"""What a simulated Intel puts together: reports, JSON documents, certificate extensions.

Everything is as its format has it, and nothing is signed; `cloister.testing.simulated_dcap` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.intel_tcb_info import TDX
from cloister.evidence.dcap import INTEL_QE_VENDOR
from cloister.evidence.sgx import SgxAttribute
from cloister.evidence.tdx import TdAttribute
from cloister.strictjson import Json, JsonObject

FieldValue: TypeAlias = bytes | int
"""A field of a report: bytes as they stand there, or a number, little-endian."""

SGX_SVNS: Final = (3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0)
"""Security versions of the default platform, and of the default TCB level."""
TEE_TCB_SVN: Final = bytes([5, 1, 3]) + bytes(13)
"""The default guest's: TDX module 1 with security version 5."""
TDX_SVNS: Final = (5, 0, 3, *([0] * 13))
PCESVN: Final = 13
FMSPC: Final = bytes.fromhex("90c06f000000")
EVALUATION_NUMBER: Final = 19
QE_ISVSVN: Final = 6

_ECDSA: Final = ec.ECDSA(hashes.SHA256())

SGX_LAYOUT: Final = (
    ("cpusvn", 16),
    ("miscselect", 4),
    ("reserved1", 12),
    ("isvextprodid", 16),
    ("attributes", 16),
    ("mrenclave", 32),
    ("reserved2", 32),
    ("mrsigner", 32),
    ("reserved3", 32),
    ("config_id", 64),
    ("isvprodid", 2),
    ("isvsvn", 2),
    ("config_svn", 2),
    ("reserved4", 42),
    ("isvfamilyid", 16),
    ("report_data", 64),
)
TD10_LAYOUT: Final = (
    ("tee_tcb_svn", 16),
    ("mr_seam", 48),
    ("mrsigner_seam", 48),
    ("seam_attributes", 8),
    ("td_attributes", 8),
    ("xfam", 8),
    ("mr_td", 48),
    ("mr_config_id", 48),
    ("mr_owner", 48),
    ("mr_owner_config", 48),
    ("rtmr0", 48),
    ("rtmr1", 48),
    ("rtmr2", 48),
    ("rtmr3", 48),
    ("report_data", 64),
)
TD15_LAYOUT: Final = (*TD10_LAYOUT, ("tee_tcb_svn2", 16), ("mr_service_td", 48))

_ENCLAVE_ATTRIBUTES: Final = (
    int(SgxAttribute.INIT | SgxAttribute.MODE64BIT).to_bytes(8, "little") + b"\xe7" + bytes(7)
)
QE_ATTRIBUTES: Final = (
    int(SgxAttribute.INIT | SgxAttribute.MODE64BIT | SgxAttribute.PROVISIONKEY).to_bytes(
        8, "little"
    )
    + b"\xe7"
    + bytes(7)
)
ENCLAVE: Final[Mapping[str, FieldValue]] = {
    "attributes": _ENCLAVE_ATTRIBUTES,
    "mrenclave": hashlib.sha256(b"simulated enclave").digest(),
    "mrsigner": hashlib.sha256(b"simulated enclave's signer").digest(),
    "isvprodid": 1,
    "isvsvn": 1,
}
GUEST: Final[Mapping[str, FieldValue]] = {
    "tee_tcb_svn": TEE_TCB_SVN,
    "mr_seam": hashlib.sha384(b"simulated TDX module").digest(),
    "td_attributes": int(TdAttribute.SEPT_VE_DISABLE),
    "xfam": 0x0602E7,
    "mr_td": hashlib.sha384(b"simulated guest").digest(),
    "tee_tcb_svn2": TEE_TCB_SVN,
}


def tcb_level(
    tee: str = TDX,
    status: str = "UpToDate",
    *,
    sgx_svns: Sequence[int] = SGX_SVNS,
    tdx_svns: Sequence[int] = TDX_SVNS,
    pcesvn: int = PCESVN,
    dated: str = "2025-05-14T00:00:00Z",
    advisories: Sequence[str] = (),
) -> JsonObject:
    """One TCB level of a platform, with the components' names as on servers."""
    names = {
        0: ("BIOS", "Early Microcode Update"),
        1: ("OS/VMM", "SGX Late Microcode Update"),
        2: ("OS/VMM", "TXT SINIT"),
        7: ("OS/VMM", "SEAMLDR ACM"),
    }
    tcb: JsonObject = {"sgxtcbcomponents": _components(sgx_svns, names), "pcesvn": pcesvn}
    if tee == TDX:
        module = ("OS/VMM", "TDX Module")
        late = ("OS/VMM", "TDX Late Microcode Update")
        tcb["tdxtcbcomponents"] = _components(tdx_svns, {0: module, 1: module, 2: late})
    return _with_status(tcb, status, dated, advisories)


def isv_level(
    isvsvn: int,
    status: str = "UpToDate",
    *,
    dated: str = "2025-05-14T00:00:00Z",
    advisories: Sequence[str] = (),
) -> JsonObject:
    """One level of a quoting enclave or a TDX module."""
    return _with_status({"isvsvn": isvsvn}, status, dated, advisories)


def module_signer() -> JsonObject:
    """Who signs TDX modules: Intel, which is written as zeros."""
    return {
        "mrsigner": "00" * 48,
        "attributes": "00" * 8,
        "attributesMask": "FF" * 8,
    }


def module_identity(name: str, *levels: JsonObject) -> JsonObject:
    """The identity of one version of the TDX module (``TDX_01``)."""
    return {"id": name, **module_signer(), "tcbLevels": list[Json](levels)}


def document(content: JsonObject | bytes) -> bytes:
    """JSON as Intel writes it before signing; bytes stay as they are."""
    if isinstance(content, bytes):
        return content
    return json.dumps(content, separators=(",", ":")).encode()


def date(at: datetime) -> str:
    """A date as Intel's documents have them."""
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def pem(*certificates: x509.Certificate) -> bytes:
    """Certificates in PEM, one after the other."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA with SHA-256 as r ‖ s, big-endian, 64 bytes."""
    r, s = decode_dss_signature(key.sign(message, _ECDSA))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def sgx_extensions(
    *,
    sgx_svns: Sequence[int] = SGX_SVNS,
    pcesvn: int = PCESVN,
    fmspc: bytes = FMSPC,
    pceid: bytes = bytes(2),
    ppid: bytes = bytes(16),
    multi_package: bool = True,
) -> bytes:
    """The SGX extensions of a PCK certificate (DER); `multi_package` adds the Platform CA's."""
    svns = [_field((2, number), der_integer(svn)) for number, svn in enumerate(sgx_svns, 1)]
    tcb = (
        *svns,
        _field((2, 17), der_integer(pcesvn)),
        _field((2, 18), der(0x04, bytes(sgx_svns))),
    )
    fields = [
        _field((1,), der(0x04, ppid)),
        _field((2,), der(0x30, b"".join(tcb))),
        _field((3,), der(0x04, pceid)),
        _field((4,), der(0x04, fmspc)),
        _field((5,), der(0x0A, b"\x01")),
    ]
    if multi_package:
        switches = (_field((7, number), der(0x01, b"\xff")) for number in (1, 2, 3))
        fields += [
            _field((6,), der(0x04, hashlib.sha256(ppid).digest()[:16])),
            _field((7,), der(0x30, b"".join(switches))),
        ]
    return der(0x30, b"".join(fields))


def der(tag: int, content: bytes) -> bytes:
    """One DER element of less than 64 KiB."""
    size = len(content)
    if size < 0x80:
        length = bytes([size])
    else:
        octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
        length = bytes([0x80 | len(octets)]) + octets
    return bytes([tag]) + length + content


def der_integer(value: int) -> bytes:
    """A DER INTEGER that is not negative."""
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _field(numbers: tuple[int, ...], value: bytes) -> bytes:
    arc = bytes.fromhex("2a864886f84d010d01") + bytes(numbers)
    return der(0x30, der(0x06, arc) + value)


def header(version: int, tee_type: int) -> bytes:
    """A quote's header, 48 bytes; version 3 names no TEE."""
    key_type = (2).to_bytes(2, "little")
    tee = tee_type.to_bytes(4, "little") if version > 3 else bytes(4)
    return version.to_bytes(2, "little") + key_type + tee + bytes(4) + INTEL_QE_VENDOR + bytes(20)


def descriptor(version: int, body_type: int, body: bytes) -> bytes:
    """What stands before the body in version 5: its type and size."""
    if version < 5:
        return b""
    return body_type.to_bytes(2, "little") + len(body).to_bytes(4, "little")


def laid_out(
    layout: Sequence[tuple[str, int]],
    defaults: Mapping[str, FieldValue],
    fields: Mapping[str, FieldValue],
) -> bytes:
    """A report of the fields in `layout`: as given, by default, or zero.

    Raises:
        TypeError: there is no such field.
        ValueError: a value is too long for its field.
    """
    sizes = dict(layout)
    unknown = fields.keys() - sizes.keys()
    if unknown:
        raise TypeError(f"such a report has no field {', '.join(sorted(unknown))}")
    values = {**defaults, **fields}
    return b"".join(_filled(values.get(name, b""), size, name) for name, size in layout)


def _filled(value: FieldValue, size: int, name: str) -> bytes:
    data = value.to_bytes(size, "little") if isinstance(value, int) else value.ljust(size, b"\0")
    if len(data) != size:
        raise ValueError(f"{name} has room for {size} bytes")
    return data


def _components(svns: Sequence[int], names: Mapping[int, tuple[str, str]]) -> Json:
    return [
        {"svn": svn}
        | ({"category": names[index][0], "type": names[index][1]} if index in names else {})
        for index, svn in enumerate(svns)
    ]


def _with_status(tcb: JsonObject, status: str, dated: str, advisories: Sequence[str]) -> JsonObject:
    level: JsonObject = {"tcb": tcb, "tcbDate": dated, "tcbStatus": status}
    return level | ({"advisoryIDs": list[Json](advisories)} if advisories else {})


def sized(data: bytes, prefix: int) -> bytes:
    """Bytes after their length, little-endian, in `prefix` bytes."""
    return len(data).to_bytes(prefix, "little") + data
