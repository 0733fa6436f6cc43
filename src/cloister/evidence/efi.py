"""UEFI variables as firmware measures them, and the names of those that decide Secure Boot.

Source: TCG "PC Client Platform Firmware Profile Specification", family 2.0, version 1.06, section
10.4.3 (``UEFI_VARIABLE_DATA``); UEFI specification 2.10, sections 3.3 and 32.4 (the variables).
"""

from __future__ import annotations

import uuid
from struct import Struct
from typing import Final

GLOBAL_VARIABLE: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
"""``EFI_GLOBAL_VARIABLE``: SecureBoot, PK, KEK, Boot####, BootOrder."""

IMAGE_SECURITY_DATABASE: Final = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
"""``EFI_IMAGE_SECURITY_DATABASE_GUID``: db and dbx."""

VARIABLE_HEAD: Final = Struct("<16sQQ")
"""Start of ``UEFI_VARIABLE_DATA``: vendor GUID, length of the name in characters of two bytes,
size of the data in bytes; all little-endian."""


def variable_data(guid: uuid.UUID, name: str, value: bytes) -> bytes:
    """``UEFI_VARIABLE_DATA`` of one variable; an absent one has an empty `value`."""
    head = VARIABLE_HEAD.pack(guid.bytes_le, len(name), len(value))
    return head + name.encode("utf-16-le") + value
