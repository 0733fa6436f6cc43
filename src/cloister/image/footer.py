"""The last block of a disk, by which the guest's init finds it, checks it and measures it.

A disk (root, application, model) is one file::

    file system, padded to 4096 bytes | dm-verity hash tree | footer, 4096 bytes

and its footer one line of ASCII, padded with zeros::

    cloister-disk/1 KIND FS DATA_BLOCKS HASH_START ROOT_HASH SALT

Sizes count blocks of 4096 bytes; digests are SHA-256 in lower-case hexadecimal. These are all of
dm-verity's parameters (Linux ``Documentation/admin-guide/device-mapper/verity.rst``; version 1, no
superblock), so whoever knows the line knows every byte that the guest will read.

The root's values stand on the measured command line, and its footer only says which disk they are
meant for. The line of an application or model disk, newline included, is what its register is
extended with, before anything else on the disk is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cloister.errors import BuildError, MalformedError

BLOCK: Final = 4096
KINDS: Final = ("root", "application", "model")
FILE_SYSTEMS: Final = ("squashfs", "erofs")
MAX_BLOCKS: Final = 1 << 40

_PREFIX: Final = "cloister-disk/1"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFooter:
    """What a disk is, and the parameters under which dm-verity opens it.

    Raises:
        BuildError: a field is not what the init accepts (code ``image.disk``).
    """

    kind: str
    """One of `KINDS`."""
    fs: str
    """One of `FILE_SYSTEMS`."""
    data_blocks: int
    hash_start: int
    """Block at which the hash tree begins; at least `data_blocks`."""
    root_hash: str
    salt: str

    def __post_init__(self) -> None:
        """Refuse what the init would refuse, where it can still be mended."""
        fault = _fault(self)
        if fault:
            raise BuildError(f"a disk of an image {fault}", code="image.disk")

    def line(self) -> bytes:
        """The line, newline included: what is measured."""
        return f"{_PREFIX} {self.kind} {' '.join(self._fields())}\n".encode("ascii")

    def encode(self) -> bytes:
        """The block that ends the disk."""
        return self.line().ljust(BLOCK, b"\0")

    def argument(self) -> str:
        """The same values as one argument of the kernel's command line, without the kind."""
        return ":".join(self._fields())

    def _fields(self) -> tuple[str, ...]:
        return (
            self.fs,
            str(self.data_blocks),
            str(self.hash_start),
            self.root_hash,
            self.salt,
        )


def parse_footer(block: bytes) -> DiskFooter:
    """Decode the last 4096 bytes of a disk.

    Raises MalformedError (code ``image.footer``), and nothing else.
    """
    line, newline, padding = block.partition(b"\n")
    fields = line.decode("ascii", "replace").split(" ")
    if len(block) != BLOCK or not newline or any(padding):
        raise _malformed("is not one line and zeros")
    if len(fields) != 7 or fields[0] != _PREFIX:
        raise _malformed("is not of a version that is known")
    _, kind, fs, data_blocks, hash_start, root_hash, salt = fields
    if not (_NUMBER.fullmatch(data_blocks) and _NUMBER.fullmatch(hash_start)):
        raise _malformed("has a size that is no number")
    try:
        return DiskFooter(
            kind=kind,
            fs=fs,
            data_blocks=int(data_blocks),
            hash_start=int(hash_start),
            root_hash=root_hash,
            salt=salt,
        )
    except BuildError as error:
        raise MalformedError(str(error), code="image.footer") from None


def _fault(footer: DiskFooter) -> str:
    if footer.kind not in KINDS:
        return f"is none of {', '.join(KINDS)}"
    if footer.fs not in FILE_SYSTEMS:
        return f"has a file system that is none of {', '.join(FILE_SYSTEMS)}"
    if not 0 < footer.data_blocks <= footer.hash_start <= MAX_BLOCKS:
        return "has no data, or a hash tree inside its data"
    if not (_DIGEST.fullmatch(footer.root_hash) and _DIGEST.fullmatch(footer.salt)):
        return "has a root hash or a salt that is not 64 lower-case hexadecimal digits"
    return ""


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the footer of a disk {why}", code="image.footer")
