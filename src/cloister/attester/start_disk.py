"""The start disk: what the operator's port brings, for a guest on a machine that has no such port.

Clouds give a guest disks and no virtio-serial port. A start disk is a data disk without a file
system, in blocks of 4096 bytes::

    header, one block | document | zeros

whose header is one line of ASCII, padded with zeros, and whose document is canonical JSON
(RFC 8785)::

    cloister-start/1 SIZE SHA256
    {"api_keys": "<base64>", "manifest": "<base64>"}

SIZE counts the document's bytes and SHA256 is its digest, in lower-case hexadecimal. ``api_keys``
is the table that `cloister keys` writes, ``manifest`` a manifest's bundle, left out where there is
none. It is found by its first block, for clouds make disks larger than what is put on them.

Whoever writes the disk says what whoever holds the port says, and nothing more: who is served and
under which manifest. Nothing of it is authenticated or measured as it stands; the digest finds
accidents only. The guest's init copies it into memory before anything decodes it, the worker
decodes it as an ordinary user, and what is in it takes the port's way from there
(`cloister.attester.guest`). No key is in it: the table holds keyed hashes.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

from cloister.attester.guest_port import MAX_MESSAGE_BYTES, encoded
from cloister.errors import ConfigurationError, MalformedError
from cloister.strictjson import (
    JsonObject,
    canonical,
    decode_base64,
    expect_keys,
    parse_json_object,
)

CODE: Final = "guest.start_disk"
BLOCK: Final = 4096
MAX_MEMBER_BYTES: Final = (MAX_MESSAGE_BYTES - 1024) // 4 * 3
"""Of the table, and of the bundle: what one message of the port can carry."""
MAX_DOCUMENT_BYTES: Final = 2 * MAX_MESSAGE_BYTES + BLOCK
"""The init copies no more than this (``init/start.c``)."""
DISK_BYTES: Final = 20 * 1024 * 1024
"""Of a disk that is written here, whatever it holds: the smallest that Azure imports. Google's and
Amazon's recipes round up further."""

_PREFIX: Final = "cloister-start/1"
_LINE: Final = re.compile(rb"cloister-start/1 ([1-9][0-9]{0,7}) ([0-9a-f]{64})\n\0*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a guest waits for."""

    api_keys: bytes = field(repr=False)
    """The table of API keys; whether it is one, the worker judges."""
    manifest: bytes | None = None
    """The bundle of the manifest that the worker runs under."""

    def encode(self) -> bytes:
        """Header and document.

        Raises:
            ConfigurationError: it is more than the port could bring (code ``guest.start_disk``).
        """
        members: JsonObject = {"api_keys": encoded(self.api_keys)}
        if self.manifest is not None:
            members["manifest"] = encoded(self.manifest)
        if max(len(self.api_keys), len(self.manifest or b"")) > MAX_MEMBER_BYTES:
            raise ConfigurationError(
                f"API keys, or a manifest's bundle, have more than {MAX_MEMBER_BYTES} bytes",
                code=CODE,
            )
        document = canonical(members)
        line = f"{_PREFIX} {len(document)} {hashlib.sha256(document).hexdigest()}\n"
        return line.encode("ascii").ljust(BLOCK, b"\0") + document

    def disk(self) -> bytes:
        """The whole disk."""
        return self.encode().ljust(DISK_BYTES, b"\0")


def parse_start(data: bytes) -> Start:
    """Decode header and document, and nothing after them: what the init copies.

    Raises MalformedError (code ``guest.start_disk``), and nothing else.
    """
    size, digest = _header(data[:BLOCK])
    document = data[BLOCK:]
    if len(document) != size:
        raise _malformed("is cut off, or goes on behind its document")
    if hashlib.sha256(document).hexdigest() != digest:
        raise _malformed("has a document with another digest than its header says")
    members = parse_json_object(
        document, limit=MAX_DOCUMENT_BYTES, what="the start disk's document", code=CODE
    )
    try:
        expect_keys(
            members, "the start disk's document", required={"api_keys"}, optional={"manifest"}
        )
    except MalformedError as error:
        raise MalformedError(str(error), code=CODE) from None
    if canonical(members) != document:
        raise _malformed("has a document that is not canonical JSON")
    return Start(
        api_keys=_member(members, "api_keys"),
        manifest=_member(members, "manifest") if "manifest" in members else None,
    )


def parse_disk(data: bytes) -> Start:
    """Decode a whole disk, whose rest is zeros.

    Raises MalformedError (code ``guest.start_disk``), and nothing else.
    """
    end = BLOCK + _header(data[:BLOCK])[0]
    if data.count(0, end) != len(data) - end:  # `any` takes ten times as long
        raise _malformed("goes on behind its document")
    return parse_start(data[:end])


def _header(block: bytes) -> tuple[int, str]:
    """The document's size and digest."""
    found = _LINE.fullmatch(block) if len(block) == BLOCK else None
    if found is None:
        raise _malformed("begins with no header of a version that is known")
    return int(found[1]), found[2].decode("ascii")


def _member(members: JsonObject, name: str) -> bytes:
    what = f"`{name}` of the start disk"
    return decode_base64(members[name], limit=MAX_MEMBER_BYTES, what=what, code=CODE)


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the start disk {why}", code=CODE)
