"""OVMF's variable store: puts an operator's Secure Boot keys into an empty one.

Sources: UEFI Platform Initialization specification 1.8, volume 3, section 3.2.1 (firmware volume
header); EDK2, ``MdeModulePkg/Include/Guid/VariableFormat.h`` (store and variables). Integers are
little-endian; a variable's state byte counts down from 0xFF, as flash memory does.

Sizes and checksums of the volume are left as they are. Timestamps are fixed, so that equal keys
give equal bytes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.efi import GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE
from cloister.image.secure_boot import SecureBoot

CODE: Final = "image.variables"

MAX_STORE_BYTES: Final = 4 << 20

_NV_DATA: Final = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
"""``EFI_SYSTEM_NV_DATA_FV_GUID``."""
_AUTHENTICATED: Final = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")
"""``EFI_AUTHENTICATED_VARIABLE_GUID``."""
SECURE_BOOT_ENABLE: Final = uuid.UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
"""``EFI_SECURE_BOOT_ENABLE_DISABLE_GUID``, EDK2's own."""

_VOLUME: Final = Struct("<16s16sQ4sIHHHBB")
_STORE: Final = Struct("<16sIBBHI")
_VARIABLE: Final = Struct("<HBBIQ16sIII16s")
_FORMATTED: Final = 0x5A
_HEALTHY: Final = 0xFE
_START: Final = 0x55AA
_ADDED: Final = 0x3F
_ERASED: Final = 0xFFFF

_KEYS: Final = 0x27
"""Non-volatile, boot services, runtime, time-based authenticated writes."""
_SETTING: Final = 0x03
"""Non-volatile, boot services."""
_TIME: Final = Struct("<HBBBBBBIhBB").pack(2020, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)
"""``EFI_TIME``: a later update of the keys has to be newer than this."""

_SECURE_BOOT: Final = frozenset({"PK", "KEK", "db", "dbx", "SecureBootEnable"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One live variable of a store."""

    vendor: uuid.UUID
    name: str
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Region:
    """Where variables lie: from `start` to `end`, and from `free` on nothing."""

    free: int
    end: int
    variables: tuple[Variable, ...]


def read_variables(store: bytes) -> tuple[Variable, ...]:
    """The live variables of a store, in order.

    Raises MalformedError (code ``image.variables``), and nothing else.
    """
    return _region(store).variables


def enrol(store: bytes, state: SecureBoot) -> bytes:
    """`store`, a variable store of OVMF without Secure Boot keys, with those of `state`.

    Secure Boot is on from the first start with it. The result has the size of `store`.

    Raises:
        MalformedError: it is no such store, has keys already, or is too small (code
            ``image.variables``).
    """
    region = _region(store)
    if any(variable.name in _SECURE_BOOT for variable in region.variables):
        raise _fail("has Secure Boot keys or settings already")
    added = bytearray()
    for name, vendor, value in (
        ("PK", GLOBAL_VARIABLE, state.pk),
        ("KEK", GLOBAL_VARIABLE, state.kek),
        ("db", IMAGE_SECURITY_DATABASE, state.db),
        ("dbx", IMAGE_SECURITY_DATABASE, state.dbx),
        ("SecureBootEnable", SECURE_BOOT_ENABLE, b"\x01"),
    ):
        if value:
            attributes = _SETTING if name == "SecureBootEnable" else _KEYS
            added += _encode(name, vendor, value, attributes)
    end = region.free + len(added)
    if end > region.end:
        raise _fail("has no room for the keys")
    return store[: region.free] + bytes(added) + store[end:]


def _region(store: bytes) -> _Region:
    if len(store) > MAX_STORE_BYTES:
        raise _fail(f"has {len(store)} bytes; at most {MAX_STORE_BYTES} are accepted")
    if len(store) < _VOLUME.size:
        raise _fail("is cut off")
    _, kind, length, signature, _, header, *_ = _VOLUME.unpack_from(store)
    if signature != b"_FVH" or kind != _NV_DATA.bytes_le or length > len(store):
        raise _fail("is no store of EFI variables")
    if header + _STORE.size > length:
        raise _fail("is cut off")
    kind, size, formatted, healthy, _, _ = _STORE.unpack_from(store, header)
    if (kind, formatted, healthy) != (_AUTHENTICATED.bytes_le, _FORMATTED, _HEALTHY):
        raise _fail("is not one of authenticated variables")
    if not _STORE.size <= size <= length - header:
        raise _fail("is larger than its volume")
    end = header + size
    found: list[Variable] = []
    at = header + _STORE.size
    for variable, behind in _walk(store, at, end):
        at = behind
        found += [] if variable is None else [variable]
    if store[at:end].count(0xFF) != end - at:
        raise _fail("has something behind its last variable")
    return _Region(free=at, end=end, variables=tuple(found))


def _walk(store: bytes, at: int, end: int) -> Iterator[tuple[Variable | None, int]]:
    """Variables, or ``None`` for deleted ones, each with where the next one begins."""
    while at + _VARIABLE.size <= end and store[at : at + 2] != _ERASED.to_bytes(2, "little"):
        start, state, _, _, _, _, _, names, size, vendor = _VARIABLE.unpack_from(store, at)
        begin = at + _VARIABLE.size
        behind = begin + names + size
        if start != _START or names % 2 or names < 2 or behind > end:
            raise _fail("has a variable that does not decode")
        name = store[begin : begin + names - 2].decode("utf-16-le", "replace")
        live = Variable(
            vendor=uuid.UUID(bytes_le=vendor), name=name, value=store[begin + names : behind]
        )
        at = behind + -behind % 4
        yield (live if state == _ADDED else None), at


def _encode(name: str, vendor: uuid.UUID, value: bytes, attributes: int) -> bytes:
    text = name.encode("utf-16-le") + b"\0\0"
    time = _TIME if attributes == _KEYS else bytes(len(_TIME))
    head = _VARIABLE.pack(
        _START, _ADDED, 0, attributes, 0, time, 0, len(text), len(value), vendor.bytes_le
    )
    whole = head + text + value
    return whole + b"\xff" * (-len(whole) % 4)


def _fail(why: str) -> MalformedError:
    return MalformedError(f"the firmware's variable store {why}", code=CODE)
