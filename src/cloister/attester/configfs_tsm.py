"""Reports from the kernel's common interface for TEEs: configfs-tsm.

Source: Linux, ``Documentation/ABI/testing/configfs-tsm-report`` (6.7 and later) and
``drivers/virt/coco/guest/report.c``. One entry is one request: make a directory, write
``inblob`` (at most 64 bytes), read ``outblob``, remove the directory. The kernel counts every
write in ``generation``; a count other than expected means that somebody else wrote into the
entry, and that the report may answer their question. The entries here have random names, so
this happens only if somebody means it to.

``inblob`` is handed to the kernel when its file is closed, where an error gets lost: the count
also shows that it arrived.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from cloister.attester.devices import (
    absent,
    answer_error,
    busy,
    failed,
    read_all,
    report_data,
)
from cloister.attester.snp_items import snp_items
from cloister.errors import CloisterError, FetchError, UnsupportedError
from cloister.evidence.items import (
    ITEM_SNP_SVSM_MANIFEST,
    ITEM_TDX_EVENT_LOG,
    ITEM_TDX_QUOTE,
    MEDIA_TYPE_SVSM_MANIFEST,
    MEDIA_TYPE_TDX_QUOTE,
)
from cloister.evidence.report import MEDIA_TYPE_EVENT_LOG, EvidenceItem

REPORTS: Final = Path("/sys/kernel/config/tsm/report")
GIVEN: Final = "cloister"
"""The entry that a sealed image's init makes, and gives to the user the worker runs as: the kernel
lets nobody but root make one."""

PROVIDER_SNP: Final = "sev_guest"
PROVIDER_TDX: Final = "tdx_guest"

MAX_OUTBLOB_BYTES: Final = 256 * 1024
"""A TDX quote has 5 KB, in the kernel's buffer 8 KB to 16 KB; quotes with post-quantum
signatures will have several times that."""
MAX_AUXBLOB_BYTES: Final = 256 * 1024
MAX_ATTRIBUTE_BYTES: Final = 4096
MAX_PRIVLEVEL: Final = 3

MAX_ATTEMPTS: Final = 20
"""Per file operation, with `PAUSE_S` between: a second in all. A report takes 5 to 50 ms."""
PAUSE_S: Final = 0.05

_AGAIN: Final = frozenset({errno.EBUSY, errno.EINTR, errno.EAGAIN})
_GONE: Final = frozenset({errno.ENXIO, errno.EOPNOTSUPP, errno.ENODEV})

T = TypeVar("T")


class ReportEntries(Protocol):
    """The directory of report entries: what is needed of a file system, and no more."""

    def make(self, name: str) -> None:
        """Make the entry; OSError."""

    def remove(self, name: str) -> None:
        """Remove the entry; OSError."""

    def write(self, name: str, attribute: str, data: bytes) -> None:
        """Write `data` at once and close; OSError."""

    def read(self, name: str, attribute: str, *, limit: int) -> bytes:
        """Read to the end; OSError, or FetchError beyond `limit` bytes."""


class KernelEntries:
    """The entries of the running kernel."""

    def __init__(self, directory: Path = REPORTS) -> None:
        self._directory = directory

    def make(self, name: str) -> None:
        """See `ReportEntries.make`."""
        (self._directory / name).mkdir(mode=0o700)

    def remove(self, name: str) -> None:
        """See `ReportEntries.remove`."""
        (self._directory / name).rmdir()

    def write(self, name: str, attribute: str, data: bytes) -> None:
        """See `ReportEntries.write`; never creates a file."""
        descriptor = os.open(self._directory / name / attribute, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(descriptor, data)
        finally:
            os.close(descriptor)
        if written != len(data):
            raise OSError(errno.EIO, "short write")

    def read(self, name: str, attribute: str, *, limit: int) -> bytes:
        """See `ReportEntries.read`."""
        descriptor = os.open(self._directory / name / attribute, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return read_all(descriptor, limit=limit, what=f"{self._directory}/{attribute}")
        finally:
            os.close(descriptor)


class GivenEntry(KernelEntries):
    """The one entry of `GIVEN`, used again for every request and by nobody else."""

    def make(self, name: str) -> None:
        """Nothing to make."""

    def remove(self, name: str) -> None:
        """It stays for the next request."""

    def write(self, name: str, attribute: str, data: bytes) -> None:
        """See `ReportEntries.write`."""
        super().write(GIVEN, attribute, data)

    def read(self, name: str, attribute: str, *, limit: int) -> bytes:
        """See `ReportEntries.read`."""
        return super().read(GIVEN, attribute, limit=limit)


def kernel_entries(directory: Path = REPORTS) -> ReportEntries:
    """The given entry where there is one; otherwise each request makes its own."""
    given = (directory / GIVEN).is_dir()
    return GivenEntry(directory) if given else KernelEntries(directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class TsmReport:
    """What one entry gave."""

    provider: str
    """The kernel module behind it: ``sev_guest`` or ``tdx_guest``."""
    outblob: bytes
    auxblob: bytes = b""
    """With `PROVIDER_SNP` the host's certificate table, or nothing."""
    manifestblob: bytes = b""
    """With a service provider its manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TsmOptions:
    """What may be asked beyond the user data. Each option given is one more write."""

    privlevel: int | None = None
    """VMPL that the report shall name; the kernel's own without it. Not below the floor."""
    service_provider: str | None = None
    """``svsm`` asks the secure VM service module instead. Its REPORT_DATA is then a hash over
    user data and manifest, no longer the user data."""
    service_guid: str | None = None
    service_manifest_version: int | None = None

    def writes(self) -> Iterator[tuple[str, bytes]]:
        """Attribute and content of each write, the service before what refines it."""
        values = (
            ("privlevel", self.privlevel),
            ("service_provider", self.service_provider),
            ("service_guid", self.service_guid),
            ("service_manifest_version", self.service_manifest_version),
        )
        for attribute, value in values:
            if value is not None:
                yield attribute, str(value).encode("ascii")


NO_OPTIONS: Final = TsmOptions()


def _name() -> str:
    return f"cloister-{secrets.token_hex(8)}"


def fetch_report(
    entries: ReportEntries,
    user_data: bytes,
    *,
    options: TsmOptions = NO_OPTIONS,
    name: Callable[[], str] = _name,
    pause: Callable[[float], None] = time.sleep,
) -> TsmReport:
    """Ask for one report over `user_data`, 1 to 64 bytes, and remove the entry that was made.

    Raises:
        UnsupportedError: configfs-tsm is not here, has no provider, not this option, or this
            user may not use it.
        FetchError: it fails, stays busy, or its answer is cut short, too long or somebody
            else's (codes ``device.io``, ``device.busy``, ``device.answer``, ``device.raced``).
    """
    if not 0 < len(user_data) <= 64:
        raise ValueError("user data has 1 to 64 bytes")
    request = _Request(entries, name(), pause)
    request.run(lambda: entries.make(request.name), "place for entries")
    try:
        return _exchange(request, user_data, options)
    finally:
        # Left behind it would only be in the way; the report is what counts.
        with contextlib.suppress(CloisterError):
            request.run(lambda: entries.remove(request.name), "the entry")


@dataclass(frozen=True, slots=True)
class _Request:
    entries: ReportEntries
    name: str
    pause: Callable[[float], None]

    def run(self, operation: Callable[[], T], what: str) -> T:
        """Repeat `operation` while the kernel says busy, and convert other refusals."""
        for _ in range(MAX_ATTEMPTS):
            try:
                return operation()
            except OSError as error:
                if error.errno in _GONE:
                    raise absent("configfs-tsm has no provider (no TEE guest driver)") from None
                if error.errno not in _AGAIN:
                    raise _refused(what, error) from None
            self.pause(PAUSE_S)
        raise busy(f"configfs-tsm ({what})")

    def write(self, attribute: str, data: bytes) -> None:
        self.run(lambda: self.entries.write(self.name, attribute, data), attribute)

    def read(self, attribute: str, limit: int = MAX_ATTRIBUTE_BYTES) -> bytes:
        return self.run(lambda: self.entries.read(self.name, attribute, limit=limit), attribute)

    def optional(self, attribute: str, limit: int) -> bytes:
        """Empty where this provider has no such attribute."""
        try:
            return self.entries.read(self.name, attribute, limit=limit)
        except OSError:
            return b""

    def number(self, attribute: str) -> int:
        text = self.read(attribute).strip()
        if not text.isdigit() or len(text) > 20:
            raise answer_error(f"configfs-tsm ({attribute})", "is no number")
        return int(text)


def _refused(what: str, error: OSError) -> CloisterError:
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return absent(f"configfs-tsm has no {what} (Linux 6.7 or later, with configfs mounted)")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return UnsupportedError(
            f"this user may not use configfs-tsm ({what}), which the kernel gives to root",
            code="device.permission",
        )
    return failed(f"configfs-tsm ({what})", error)


def _exchange(request: _Request, user_data: bytes, options: TsmOptions) -> TsmReport:
    provider = request.read("provider").strip().decode("ascii", errors="replace")
    before = request.number("generation")
    if options.privlevel is not None:
        _check_privlevel(request, options.privlevel)
    writes = [*options.writes(), ("inblob", user_data)]
    for attribute, data in writes:
        request.write(attribute, data)
    expected = before + len(writes)
    _check_generation(request, expected)
    report = TsmReport(
        provider=provider,
        outblob=request.read("outblob", MAX_OUTBLOB_BYTES),
        auxblob=request.optional("auxblob", MAX_AUXBLOB_BYTES),
        manifestblob=(
            request.read("manifestblob", MAX_AUXBLOB_BYTES) if options.service_provider else b""
        ),
    )
    _check_generation(request, expected)
    if not report.outblob:
        raise answer_error("configfs-tsm (outblob)", "is empty")
    return report


def _check_generation(request: _Request, expected: int) -> None:
    found = request.number("generation")
    if found < expected:
        raise answer_error("configfs-tsm", "leaves out the user data, which the kernel refused")
    if found > expected:
        raise FetchError(
            "another process wrote into this entry of configfs-tsm, so its report is not ours",
            code="device.raced",
        )


def _check_privlevel(request: _Request, wanted: int) -> None:
    floor = request.number("privlevel_floor")
    if not floor <= wanted <= MAX_PRIVLEVEL:
        raise absent(f"privilege level {wanted}; levels {floor} to {MAX_PRIVLEVEL} are")


class TsmAttester:
    """Turns statement digests into evidence through configfs-tsm. One request at a time."""

    def __init__(
        self,
        entries: ReportEntries | None = None,
        *,
        options: TsmOptions = NO_OPTIONS,
        event_log: bytes | None = None,
    ) -> None:
        """`event_log` is the CCEL area, which goes with TDX quotes."""
        self._entries = kernel_entries() if entries is None else entries
        self._options = options
        self._event_log = event_log
        self._lock = threading.Lock()

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """Evidence over `statement_digest` (32 bytes): see `cloister.evidence.items`.

        Raises what `fetch_report` raises, and UnsupportedError for a provider unknown here.
        """
        user_data = report_data(statement_digest)
        with self._lock:
            report = fetch_report(self._entries, user_data, options=self._options)
        match report.provider:
            case "sev_guest":
                return {**snp_items(report.outblob, report.auxblob), **_manifest(report)}
            case "tdx_guest":
                return self._tdx_items(report.outblob)
            case _:
                raise absent(f"a provider of configfs-tsm that is known here ({report.provider})")

    def _tdx_items(self, quote: bytes) -> dict[str, EvidenceItem]:
        items = {ITEM_TDX_QUOTE: EvidenceItem(media_type=MEDIA_TYPE_TDX_QUOTE, data=quote)}
        if self._event_log is not None:
            items[ITEM_TDX_EVENT_LOG] = EvidenceItem(
                media_type=MEDIA_TYPE_EVENT_LOG, data=self._event_log
            )
        return items


def _manifest(report: TsmReport) -> dict[str, EvidenceItem]:
    if not report.manifestblob:
        return {}
    return {
        ITEM_SNP_SVSM_MANIFEST: EvidenceItem(
            media_type=MEDIA_TYPE_SVSM_MANIFEST, data=report.manifestblob
        )
    }
