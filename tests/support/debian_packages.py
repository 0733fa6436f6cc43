"""Debian packages made by hand."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path


def deb(
    path: Path, files: dict[str, bytes], links: dict[str, str] | None = None, data: str = "xz"
) -> Path:
    """A package with these files, made by hand."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid = len(content), 0o4755, 1234
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
        device = tarfile.TarInfo("./dev/mem")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(b"maintainer scripts"),
        f"data.tar.{data}": lzma.compress(packed.getvalue()),
    }
    written = b"!<arch>\n"
    for name, content in members.items():
        written += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        written += content + b"\n" * (len(content) % 2)
    path.write_bytes(written)
    return path
