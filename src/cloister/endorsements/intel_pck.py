"""What Intel's PCK certificate says about the platform: the SGX extensions.

Source: Intel "SGX PCK Certificate and Certificate Revocation List Profile Specification",
revision 1.5, section 1.3.5. The extension is read by hand, as DER (ITU-T X.690 sections 8 to 11)
with every length minimal: what two readers could take for different numbers is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from cloister.errors import MalformedError

SGX_EXTENSIONS: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")

SVN_COMPONENTS: Final = 16
"""Security version numbers that make up a CPUSVN, and likewise a TEE TCB SVN."""

MAX_EXTENSION_BYTES: Final = 4096
"""Longest extension accepted; those of platforms with two packages have about 560 bytes."""

_ARC: Final = bytes.fromhex("2a864886f84d010d01")
_INTEGER: Final = 0x02
_OCTETS: Final = 0x04
_OID: Final = 0x06
_BOOLEAN: Final = 0x01
_ENUMERATED: Final = 0x0A
_SEQUENCE: Final = 0x30

_PPID, _TCB, _PCEID, _FMSPC, _SGX_TYPE, _INSTANCE, _CONFIGURATION = range(1, 8)
_PCESVN, _CPUSVN = 17, 18
_DYNAMIC, _CACHED, _SMT = range(1, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class PckExtensions:
    """The SGX extensions of a PCK certificate."""

    ppid: bytes
    """16 bytes (PPID): names this one processor, or the platform of several."""
    tcb_components: tuple[int, ...]
    """16 numbers from 0 to 255, in the order in which TCB information lists them."""
    pcesvn: int
    cpusvn: bytes
    """16 bytes as the processor reports them; `tcb_components` are what counts."""
    pceid: bytes
    """2 bytes."""
    fmspc: bytes
    """6 bytes: family, model, stepping, platform and custom SKU; names the TCB information."""
    sgx_type: int
    """0 standard, 1 scalable (no integrity of memory), 2 scalable with integrity."""
    platform_instance_id: bytes | None
    """16 bytes that name a multi-package platform; certificates of the Platform CA only."""
    dynamic_platform: bool | None
    """Whether packages may be added to the platform; Platform CA only."""
    cached_keys: bool | None
    """Whether Intel keeps the platform's root keys; Platform CA only."""
    smt_enabled: bool | None
    """Whether simultaneous multithreading is on; Platform CA only."""


def parse_pck_extensions(certificate: x509.Certificate) -> PckExtensions:
    """Decode the SGX extensions of `certificate`, which nothing here authenticates.

    Raises MalformedError, and nothing else: the extension is absent, incomplete, repeats a
    field, has one that the profile does not know, or is not DER.
    """
    try:
        extension = certificate.extensions.get_extension_for_oid(SGX_EXTENSIONS).value
    except x509.ExtensionNotFound:
        raise MalformedError("the PCK certificate has no SGX extensions") from None
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise MalformedError("the SGX extensions do not decode")
    if len(extension.value) > MAX_EXTENSION_BYTES:
        raise MalformedError("the SGX extensions are longer than any processor's")
    content, end = _one(extension.value, 0, _SEQUENCE)
    if end != len(extension.value):
        raise _fail("have bytes behind them")
    return _extensions(_fields(content, _ARC))


def _extensions(fields: Mapping[int, tuple[int, bytes]]) -> PckExtensions:
    _only(fields, required=range(_PPID, _SGX_TYPE + 1), optional=(_INSTANCE, _CONFIGURATION))
    tcb = _fields(_typed(fields, _TCB, _SEQUENCE), _ARC + bytes([_TCB]))
    _only(tcb, required=range(1, _CPUSVN + 1))
    switches: Mapping[int, tuple[int, bytes]] = {}
    if _CONFIGURATION in fields:
        content = _typed(fields, _CONFIGURATION, _SEQUENCE)
        switches = _fields(content, _ARC + bytes([_CONFIGURATION]))
        _only(switches, required=(), optional=(_DYNAMIC, _CACHED, _SMT))
    return PckExtensions(
        ppid=_octets(fields, _PPID, 16),
        tcb_components=tuple(_number(tcb, index, 0xFF) for index in range(1, SVN_COMPONENTS + 1)),
        pcesvn=_number(tcb, _PCESVN, 0xFFFF),
        cpusvn=_octets(tcb, _CPUSVN, 16),
        pceid=_octets(fields, _PCEID, 2),
        fmspc=_octets(fields, _FMSPC, 6),
        sgx_type=_number(fields, _SGX_TYPE, 0xFF, tag=_ENUMERATED),
        platform_instance_id=_octets(fields, _INSTANCE, 16) if _INSTANCE in fields else None,
        dynamic_platform=_switch(switches, _DYNAMIC),
        cached_keys=_switch(switches, _CACHED),
        smt_enabled=_switch(switches, _SMT),
    )


def _fields(content: bytes, arc: bytes) -> dict[int, tuple[int, bytes]]:
    """Pairs of object identifier and value, by the identifier's last number under `arc`."""
    fields: dict[int, tuple[int, bytes]] = {}
    at = 0
    while at < len(content):
        pair, at = _one(content, at, _SEQUENCE)
        name, after = _one(pair, 0, _OID)
        if len(name) != len(arc) + 1 or not name.startswith(arc) or name[-1] in fields:
            raise _fail("have a field that the profile does not know, or one twice")
        tag, value, end = _element(pair, after)
        if end != len(pair):
            raise _fail("have bytes behind a field")
        fields[name[-1]] = tag, value
    return fields


def _only(
    fields: Mapping[int, object], *, required: Iterable[int], optional: Iterable[int] = ()
) -> None:
    needed = set(required)
    if not needed <= fields.keys() or fields.keys() - needed - set(optional):
        raise MalformedError("the SGX extensions lack a field, or have an unknown one")


def _typed(fields: Mapping[int, tuple[int, bytes]], number: int, tag: int) -> bytes:
    found, content = fields[number]
    if found != tag:
        raise MalformedError("a field of the SGX extensions has another type")
    return content


def _octets(fields: Mapping[int, tuple[int, bytes]], number: int, size: int) -> bytes:
    content = _typed(fields, number, _OCTETS)
    if len(content) != size:
        raise MalformedError(f"a field of the SGX extensions has {len(content)} bytes, not {size}")
    return content


def _number(
    fields: Mapping[int, tuple[int, bytes]], number: int, most: int, *, tag: int = _INTEGER
) -> int:
    content = _typed(fields, number, tag)
    value = int.from_bytes(content, "big", signed=True)
    # In the fewest bytes, one bit of which is the sign (X.690 section 8.3.2).
    if not 0 <= value <= most or len(content) != value.bit_length() // 8 + 1:
        raise MalformedError("a number in the SGX extensions is out of range, or padded")
    return value


def _switch(fields: Mapping[int, tuple[int, bytes]], number: int) -> bool | None:
    if number not in fields:
        return None
    content = _typed(fields, number, _BOOLEAN)
    if content not in (b"\x00", b"\xff"):
        raise MalformedError("a switch in the SGX extensions is neither on nor off")
    return content == b"\xff"


def _one(data: bytes, at: int, tag: int) -> tuple[bytes, int]:
    """Content of the element at `at`, which has `tag`, and where it ends."""
    found, content, end = _element(data, at)
    if found != tag:
        raise _fail("have a field of another type")
    return content, end


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Tag and content of the element at `at`, whose length is in its shortest form; its end.

    Without a `ByteReader`: there are 80 elements, and they were a fifth of verifying a quote.
    """
    start = at + 2
    if start > len(data):
        raise _fail("end early")
    tag, size = data[at], data[at + 1]
    if size & 0x80:
        width = size & 0x7F
        size = int.from_bytes(data[start : start + width], "big") if width in (1, 2) else 0
        start += width
        if size < (0x80 if width == 1 else 0x100):
            raise _fail("have a length that is not in its shortest form")
    end = start + size
    if end > len(data):
        raise _fail("end early")
    return tag, data[start:end], end


def _fail(why: str) -> MalformedError:
    return MalformedError(f"the SGX extensions {why}")
