"""What a unified kernel image (UKI) holds, and what its systemd-stub measures of it.

Sources: UAPI Group specification "Unified Kernel Image" (sections); systemd's "TPM2 PCR
Measurements Made by systemd" (PCR 11: for every section that is present, in the stub's own order,
its name with a terminating NUL, then its content). Which sections a release measures was compared
with boots for 252, and for 254's PCR 11 in an earlier trial; 253 and 255 follow systemd's sources.

From release 256 on the stub puts files of its own into the initrd that it hands to the kernel, so
that PCR 9 depends on how that release writes an archive. Such stubs are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cloister.errors import MalformedError, UnsupportedError
from cloister.image.authenticode import PeFile, parse_pe

UNSUPPORTED: Final = "image.stub"
MALFORMED: Final = "image.uki"

ORDER: Final = (
    ".linux",
    ".osrel",
    ".cmdline",
    ".initrd",
    ".splash",
    ".dtb",
    ".uname",
    ".sbat",
    ".pcrpkey",
)
"""Sections that are measured, in the stub's order."""

NEWER_SECTIONS: Final = frozenset(
    {".ucode", ".profile", ".dtbauto", ".hwids", ".efifw", ".initrd_addon"}
)
"""Sections that only later stubs know; with them, nothing here could be right."""

OLDEST_STUB: Final = 252
NEWEST_STUB: Final = 255
SBAT_SINCE: Final = 254
UNAME_SINCE: Final = 253

_MAGIC: Final = re.compile(rb"#### LoaderInfo: systemd-stub (\d{1,4})([^#]{0,64}) ####")
_REQUIRED: Final = (".linux", ".osrel", ".cmdline", ".initrd")
_MAX_CMDLINE: Final = 2047
"""Linux' COMMAND_LINE_SIZE on x86-64 and arm64 without its NUL: the kernel cuts off the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnifiedKernel:
    """A decoded UKI: the file, what it boots, and the release of its stub."""

    file: PeFile
    kernel: PeFile
    command_line: str
    initrd: bytes
    stub_release: int

    def measured_sections(self) -> tuple[tuple[str, bytes], ...]:
        """Names and contents of the sections that the stub measures into PCR 11, in order."""
        known = [name for name in ORDER if self._measures(name)]
        found = [(name, self.file.content(name)) for name in known]
        return tuple((name, content) for name, content in found if content is not None)

    def _measures(self, name: str) -> bool:
        if name == ".sbat":
            return self.stub_release >= SBAT_SINCE
        return name != ".uname" or self.stub_release >= UNAME_SINCE


def parse_uki(data: bytes) -> UnifiedKernel:
    """Decode a UKI that begins with a systemd-stub whose measurements are known.

    Raises:
        MalformedError: no UKI, or a part of it does not decode (codes ``image.uki``,
            ``image.pe``).
        UnsupportedError: a stub, section or command line whose measurements cannot be predicted
            (code ``image.stub``).
    """
    file = parse_pe(data, what="the unified kernel image")
    parts = {name: file.content(name) for name in _REQUIRED}
    missing = [name for name, content in parts.items() if not content]
    if missing:
        raise MalformedError(f"the unified kernel image lacks {', '.join(missing)}", code=MALFORMED)
    unknown = sorted({section.name for section in file.sections} & NEWER_SECTIONS)
    if unknown:
        raise _unsupported(f"has sections of a newer kind: {', '.join(unknown)}")
    return UnifiedKernel(
        file=file,
        kernel=parse_pe(parts[".linux"] or b"", what="the kernel in the unified kernel image"),
        command_line=_command_line(parts[".cmdline"] or b""),
        initrd=parts[".initrd"] or b"",
        stub_release=_release(file),
    )


def _release(file: PeFile) -> int:
    found = _MAGIC.fullmatch((file.content(".sdmagic") or b"").rstrip(b"\0"))
    if found is None:
        raise _unsupported("was not made with a systemd-stub that says its release")
    release = int(found[1])
    if not OLDEST_STUB <= release <= NEWEST_STUB:
        raise _unsupported(
            f"was made with systemd-stub {release}; what it measures is known for"
            f" {OLDEST_STUB} to {NEWEST_STUB}"
        )
    return release


def _command_line(data: bytes) -> str:
    """Stubs rewrite blanks and characters beyond ASCII; without them all releases agree."""
    if len(data) > _MAX_CMDLINE:
        raise _unsupported(f"has a command line of {len(data)} bytes; the kernel reads fewer")
    text = data.decode("latin-1")
    if not text.isascii() or not text.isprintable() or text != text.strip():
        raise _unsupported(
            "has a command line that is not plain printable ASCII, or begins or ends with a blank"
        )
    return text


def _unsupported(why: str) -> UnsupportedError:
    return UnsupportedError(f"the unified kernel image {why}", code=UNSUPPORTED)
