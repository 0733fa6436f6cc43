"""What platforms start from, made out of an image's files; a target appears whole or not at all."""

from __future__ import annotations

import gzip
import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final

from cloister.deploy.kernel_parts import read_parts
from cloister.deploy.vhd import write_vhd
from cloister.errors import BuildError
from cloister.image.boot_disk import write_boot_disk

GIBIBYTE: Final = 1 << 30
_PIECE: Final = 1 << 20


def convert(kind: str, sources: Sequence[Path], target: Path) -> None:
    """Make `target` out of `sources`; `kind` is a key of `FORMATS`.

    Raises:
        BuildError: the sources cannot be made into that, or a file cannot be read or written
            (codes ``deploy.disk``, ``deploy.file``).
        ConfigurationError, MalformedError, UnsupportedError: a UKI cannot be taken apart
            (`cloister.deploy.kernel_parts`).
    """
    if kind not in FORMATS:
        raise BuildError(f"a format is one of {', '.join(FORMATS)}", code="deploy.disk")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(descriptor)
        unfinished = Path(name)
        try:
            FORMATS[kind](sources, unfinished)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(
            f"{error.filename or target} cannot be read or written: {error.strerror}",
            code="deploy.file",
        ) from None


def _disk(sources: Sequence[Path], target: Path) -> None:
    if not sources:
        raise BuildError("a disk is made of esp.img and the disks behind it", code="deploy.disk")
    write_boot_disk(sources[0], sources[1:], target)


def _vhd(sources: Sequence[Path], target: Path) -> None:
    write_vhd(_only(sources), target)


def _google(sources: Sequence[Path], target: Path) -> None:
    """A gzipped tar with one member, ``disk.raw``, of whole gibibytes (Google, "Manually import
    boot disks": GNU format, that very name). Nothing of time, owner or machine is in it."""
    source = _only(sources)
    size = source.stat().st_size
    if not size:
        raise BuildError("the disk is empty", code="deploy.disk")
    member = tarfile.TarInfo("disk.raw")
    member.size = -(-size // GIBIBYTE) * GIBIBYTE
    member.mode = 0o644
    with (
        target.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
        source.open("rb") as raw,
    ):
        archive.addfile(member, _Padded(raw))


def _kernel(sources: Sequence[Path], target: Path) -> None:
    target.write_bytes(read_parts(_only(sources)).kernel)


def _initrd(sources: Sequence[Path], target: Path) -> None:
    target.write_bytes(read_parts(_only(sources)).initrd)


class _Padded:
    """A file that goes on with zeros."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        """The next `size` bytes."""
        return self._file.read(size).ljust(size, b"\0")


def _only(sources: Sequence[Path]) -> Path:
    if len(sources) != 1:
        raise BuildError("this format is made of one file", code="deploy.disk")
    return sources[0]


FORMATS: Final[Mapping[str, Callable[[Sequence[Path], Path], None]]] = MappingProxyType(
    {"disk": _disk, "vhd": _vhd, "google": _google, "kernel": _kernel, "initrd": _initrd}
)
