"""GUID partition tables, as far as firmware measures them into PCR 5.

Sources: UEFI specification 2.10, section 5.3 (the table); TCG "PC Client Platform Firmware Profile
Specification", version 1.06, section 10.4.4 (``UEFI_GPT_DATA``: the header of 92 bytes, the number
of used entries in eight, then those entries). All integers are little-endian.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import Final

from cloister.errors import MalformedError

CODE: Final = "image.partition_table"

BLOCK: Final = 512
ENTRY_BYTES: Final = 128
MAX_ENTRIES: Final = 128
HEADER_BYTES: Final = 92
PREFIX_BYTES: Final = 2 * BLOCK + MAX_ENTRIES * ENTRY_BYTES
"""How much of a disk's beginning `measured_table` needs."""

_HEADER: Final = Struct("<8sIIIIQQQQ16sQIII")
"""Signature, revision, size, CRC-32, reserved, own block, backup's, first and last usable block,
GUID, block of the entries, their number and size, CRC-32 over them."""


def measured_table(disk: bytes) -> bytes:
    """``UEFI_GPT_DATA`` of a disk, from its first `PREFIX_BYTES` (more may follow).

    Both checksums are checked, as firmware does before it uses the table. Blocks have 512 bytes.

    Raises MalformedError (code ``image.partition_table``), and nothing else.
    """
    if len(disk) < PREFIX_BYTES:
        raise _fail("is cut off")
    header = disk[BLOCK : BLOCK + HEADER_BYTES]
    fields = _HEADER.unpack(header)
    signature, revision, size, crc, reserved, own = fields[:6]
    entries_at, count, entry_size, entries_crc = fields[10:]
    if (signature, revision, size) != (b"EFI PART", 0x10000, HEADER_BYTES):
        raise _fail("is missing or of another version")
    if reserved or (own, entries_at) != (1, 2):
        raise _fail("does not lie at the disk's beginning")
    if zlib.crc32(header[:16] + bytes(4) + header[20:]) != crc:
        raise _fail("has a header whose checksum differs")
    if not 1 <= count <= MAX_ENTRIES or entry_size != ENTRY_BYTES:
        raise _fail(f"has {count} entries of {entry_size} bytes")
    table = disk[2 * BLOCK : 2 * BLOCK + count * ENTRY_BYTES]
    if zlib.crc32(table) != entries_crc:
        raise _fail("has entries whose checksum differs")
    entries = [table[at : at + ENTRY_BYTES] for at in range(0, len(table), ENTRY_BYTES)]
    used = [entry for entry in entries if entry[:16] != bytes(16)]
    return header + len(used).to_bytes(8, "little") + b"".join(used)


def _fail(why: str) -> MalformedError:
    return MalformedError(f"the partition table {why}", code=CODE)
