"""Reads Debian packages: deb(5), an ``ar`` archive with a compressed tar inside.

Nothing of a package runs: maintainer scripts are in its other member, which is not read. Owners,
times, set-user-ID bits and device nodes do not survive; what is given out is plain files and links.
"""

from __future__ import annotations

import io
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.errors import BuildError

_MAGIC: Final = b"!<arch>\n"
_HEADER: Final = 60
_COMPRESSED: Final = ("data.tar.xz", "data.tar.gz", "data.tar")
MERGED: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
"""Directories that a merged system keeps below ``usr``; packages name either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedFile:
    """A file or link of a package, by its path in a merged system (no leading slash)."""

    path: str
    executable: bool = False
    link: str | None = None
    """Target of a symbolic link."""
    content: bytes = field(default=b"", repr=False)


def files_of(package: Path) -> Iterator[PackagedFile]:
    """Yield a package's files and links, in its order; hard links as copies.

    Raises BuildError for what is no package, or not one that can be read (``image.package``).
    """
    try:
        data = _data_member(package.read_bytes())
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
            for member in archive:
                found = _file(archive, member)
                if found is not None:
                    yield found
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError) as error:
        raise BuildError(
            f"{package.name} is no Debian package that can be read ({type(error).__name__})",
            code="image.package",
        ) from None


def merged(path: str) -> str:
    """``./lib/x`` → ``usr/lib/x``. ValueError for a path that leads outside."""
    parts = posixpath.normpath(path.lstrip("/")).split("/")
    if ".." in parts:
        raise ValueError("a packaged path leads outside")
    if parts[0] in MERGED:
        parts.insert(0, "usr")
    return "/".join(parts)


def _data_member(data: bytes) -> bytes:
    """The member of the ``ar`` archive that holds the files. ValueError if there is none."""
    if not data.startswith(_MAGIC):
        raise ValueError("not an ar archive")
    at = len(_MAGIC)
    while at + _HEADER <= len(data):
        header = data[at : at + _HEADER]
        name, size = header[:16].decode("ascii").rstrip(" /"), int(header[48:58])
        at += _HEADER
        if size < 0:  # int() reads a sign; the next member would be this one again
            raise ValueError("a size below zero")
        if name in _COMPRESSED:
            if at + size > len(data):
                raise ValueError("cut short")
            return data[at : at + size]
        at += size + size % 2
    raise ValueError("no files inside")


def _file(archive: tarfile.TarFile, member: tarfile.TarInfo) -> PackagedFile | None:
    path = merged(member.name)
    if member.issym():
        return PackagedFile(path=path, link=member.linkname)
    if not (member.isfile() or member.islnk()):
        return None
    try:
        opened = archive.extractfile(member)  # follows a hard link
    except KeyError:
        opened = None
    if opened is None:
        raise ValueError("a hard link leads nowhere")
    with opened:
        return PackagedFile(path=path, executable=bool(member.mode & 0o111), content=opened.read())
