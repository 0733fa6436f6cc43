"""What firmware measures of its Secure Boot state into PCR 7.

Sources: UEFI specification 2.10, section 32.4 (the variables and ``EFI_SIGNATURE_LIST``); TCG "PC
Client Platform Firmware Profile Specification", version 1.06, sections 3.3.4.8 (their order) and
10.4.3. Sizes are in bytes, integers little-endian.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from struct import Struct
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.efi import GLOBAL_VARIABLE, IMAGE_SECURITY_DATABASE, variable_data

CODE: Final = "image.signature_list"

CERT_X509: Final = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
"""``EFI_CERT_X509_GUID``."""

MAX_DATABASE_BYTES: Final = 1 << 20

_LIST: Final = Struct("<16sIII")
"""Type, size of the list, of its header, and of each signature."""
_OWNER_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureBoot:
    """The state of the variables when the firmware starts a boot loader.

    Each database is the whole variable: signature lists one after the other, empty where the
    variable is absent.
    """

    enabled: bool = False
    supported: bool = True
    """Firmware that was built without Secure Boot has no variable of this name, and measures that
    it is empty."""
    pk: bytes = b""
    kek: bytes = b""
    db: bytes = b""
    dbx: bytes = b""
    authority: bytes = b""
    """The entry of `db` (owner and certificate) by which the boot loader was accepted."""

    def __post_init__(self) -> None:
        """Refuse a state that no firmware is in."""
        if self.enabled != bool(self.authority):
            raise ValueError("a boot loader is accepted by an authority where Secure Boot is on")
        if self.enabled and not self.supported:
            raise ValueError("Secure Boot is on in firmware that has none")
        if self.authority and self.authority not in list_entries(self.db):
            raise ValueError("the authority is no entry of db")

    def variables(self) -> tuple[tuple[str, bytes], ...]:
        """Names and ``UEFI_VARIABLE_DATA`` as measured before the register is closed."""
        state = bytes([self.enabled]) if self.supported else b""
        return (
            ("SecureBoot", variable_data(GLOBAL_VARIABLE, "SecureBoot", state)),
            ("PK", variable_data(GLOBAL_VARIABLE, "PK", self.pk)),
            ("KEK", variable_data(GLOBAL_VARIABLE, "KEK", self.kek)),
            ("db", variable_data(IMAGE_SECURITY_DATABASE, "db", self.db)),
            ("dbx", variable_data(IMAGE_SECURITY_DATABASE, "dbx", self.dbx)),
        )

    def authority_data(self) -> bytes:
        """``UEFI_VARIABLE_DATA`` of the authority, measured when it accepted the boot loader."""
        return variable_data(IMAGE_SECURITY_DATABASE, "db", self.authority)


SECURE_BOOT_OFF: Final = SecureBoot()
"""Secure Boot off and no key enrolled: what OVMF's empty variable store gives."""

SECURE_BOOT_ABSENT: Final = SecureBoot(supported=False)
"""The same in firmware that was built without Secure Boot."""


def signature_entry(owner: uuid.UUID, certificate: bytes) -> bytes:
    """``EFI_SIGNATURE_DATA``: who put it there, and a certificate (DER)."""
    return owner.bytes_le + certificate


def signature_list(owner: uuid.UUID, certificate: bytes) -> bytes:
    """``EFI_SIGNATURE_LIST`` with one X.509 `certificate` (DER)."""
    entry = signature_entry(owner, certificate)
    return _LIST.pack(CERT_X509.bytes_le, _LIST.size + len(entry), 0, len(entry)) + entry


def list_entries(database: bytes) -> tuple[bytes, ...]:
    """``EFI_SIGNATURE_DATA`` of every X.509 certificate in a database, in order.

    Entries of other types are checked for their sizes and left out.

    Raises MalformedError (code ``image.signature_list``), and nothing else.
    """
    if len(database) > MAX_DATABASE_BYTES:
        raise _fail(f"has {len(database)} bytes; at most {MAX_DATABASE_BYTES} are accepted")
    entries: list[bytes] = []
    at = 0
    while at < len(database):
        if len(database) - at < _LIST.size:
            raise _fail("ends within a list's header")
        kind, size, header, each = _LIST.unpack_from(database, at)
        body = size - _LIST.size - header
        if at + size > len(database) or body < 0 or each <= _OWNER_BYTES or body % each:
            raise _fail("has a list whose sizes contradict each other")
        start = at + _LIST.size + header
        if kind == CERT_X509.bytes_le:
            entries += [database[n : n + each] for n in range(start, at + size, each)]
        at += size
    return tuple(entries)


def _fail(why: str) -> MalformedError:
    return MalformedError(f"the signature database {why}", code=CODE)
