"""Writes boot entries into OVMF's variables, as whoever runs a machine can.

Source: EDK2, ``MdeModulePkg/Include/Guid/VariableFormat.h`` (authenticated variable store); UEFI
specification 2.10 sections 3.1.3 (load options) and 10.3.5 (media device paths).
"""

from __future__ import annotations

import struct
import uuid

from cloister.image.esp import FIRST_SECTOR, PARTITION_ID, EspLayout

STORE_GUID = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792")
GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_ADDED, _ALL_ATTRIBUTES = 0x3F, 7
_HEADER = struct.Struct("<HBBIQ16sIII16s")


def with_boot_entry(variables: bytes, layout: EspLayout, options: str) -> bytes:
    """The flash chip with one boot entry: the image on the ESP, and `options` for it."""
    path = "\\EFI\\BOOT\\BOOTX64.EFI".encode("utf-16-le") + b"\0\0"
    partition = struct.pack(
        "<BBHIQQ16sBB",
        *(4, 1, 42, 1, FIRST_SECTOR, layout.partition_sectors),
        PARTITION_ID.bytes_le,
        *(2, 2),
    )
    device = partition + struct.pack("<BBH", 4, 4, 4 + len(path)) + path + b"\x7f\xff\x04\x00"
    name = "x".encode("utf-16-le") + b"\0\0"
    entry = struct.pack("<IH", 1, len(device)) + name + device
    entry += options.encode("utf-16-le") + b"\0\0"
    written = _with_variable(variables, "Boot0042", entry)
    return _with_variable(written, "BootOrder", struct.pack("<H", 0x42))


def _with_variable(variables: bytes, name: str, data: bytes) -> bytes:
    (start,) = struct.unpack_from("<H", variables, 48)  # of the volume's header
    assert variables[start : start + 16] == STORE_GUID.bytes_le
    at = start + 28
    while variables[at : at + 2] == b"\xaa\x55":
        fields = _HEADER.unpack_from(variables, at)
        at += _HEADER.size + fields[7] + fields[8]
        at += -at % 4
    encoded = name.encode("utf-16-le") + b"\0\0"
    header = _HEADER.pack(
        *(0x55AA, _ADDED, 0, _ALL_ATTRIBUTES, 0, bytes(16), 0),
        *(len(encoded), len(data), GLOBAL.bytes_le),
    )
    record = header + encoded + data
    assert not variables[at : at + len(record)].strip(b"\xff")
    return variables[:at] + record + variables[at + len(record) :]
