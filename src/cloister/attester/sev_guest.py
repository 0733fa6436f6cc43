"""SNP reports by ``/dev/sev-guest``, for kernels before 6.7, which lack configfs-tsm.

Source: ``linux/sev-guest.h``; AMD 56860 (SNP firmware ABI), MSG_REPORT_REQ and MSG_REPORT_RSP;
AMD 56421 (GHCB), "SNP Extended Guest Request". Native byte order and alignment, which on the
only machines that have this device means little-endian and these sizes::

    snp_guest_request_ioctl   u8 msg_version, 7 B gap, u64 req_data, u64 resp_data,
                              u32 fw_error, u32 vmm_error                           32 B
    snp_report_req            u8 user_data[64], u32 vmpl, u8 rsvd[28]               96 B
    snp_ext_report_req        snp_report_req, u64 certs_address, u32 certs_len      112 B
    snp_report_resp           u8 data[4000]: u32 status, u32 report_size, 24 B zero, report
"""

from __future__ import annotations

import ctypes
import errno
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cloister.attester.devices import (
    Ioctl,
    answer_error,
    busy,
    failed,
    iowr,
    opened,
    report_data,
    system_ioctl,
)
from cloister.attester.snp_items import REPORT_SIZE, snp_items
from cloister.errors import FetchError
from cloister.evidence.report import EvidenceItem

SEV_GUEST: Final = Path("/dev/sev-guest")

REQUEST: Final = struct.Struct("=B7xQQII")
REPORT_REQUEST: Final = struct.Struct("=64sI28x")
EXTENDED_REQUEST: Final = struct.Struct("=64sI28xQI4x")
RESPONSE_SIZE: Final = 4000
_RESPONSE_HEADER: Final = struct.Struct("=II24s")

SNP_GET_REPORT: Final = iowr(ord("S"), 0x0, REQUEST.size)
SNP_GET_EXT_REPORT: Final = iowr(ord("S"), 0x2, REQUEST.size)

MESSAGE_VERSION: Final = 1
TABLE_SIZE: Final = 0x4000
"""``SEV_FW_BLOB_MAX_SIZE``: the most that the driver accepts, in whole pages."""

VMM_INVALID_LENGTH: Final = 1
VMM_BUSY: Final = 2

MAX_ATTEMPTS: Final = 20
PAUSE_S: Final = 0.1
"""A host that limits requests (``SNP_GUEST_VMM_ERR_BUSY``) opens up within two seconds."""

_AGAIN: Final = frozenset({errno.EINTR, errno.EAGAIN, errno.EBUSY})


class _RefusedByHostError(Exception):
    def __init__(self, argument: bytearray, error: OSError) -> None:
        super().__init__()
        _, _, _, self.fw_error, self.vmm_error = REQUEST.unpack(argument)
        self.error = error


class SevGuest:
    """The guest device, opened for each report."""

    def __init__(
        self,
        *,
        vmpl: int = 0,
        ioctl: Ioctl = system_ioctl,
        device: Path = SEV_GUEST,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`vmpl` is the privilege level that reports name; 0 unless a service module runs."""
        self._vmpl = vmpl
        self._ioctl = ioctl
        self._device = device
        self._pause = pause

    def report(self, user_data: bytes) -> tuple[bytes, bytes]:
        """A report over `user_data` (64 bytes) and the host's certificate table, if any.

        Raises:
            UnsupportedError: the device is absent or not for this user.
            FetchError: the host or the firmware refuses, or the answer is no report.
        """
        if len(user_data) != 64:
            raise ValueError("user data has 64 bytes")
        with opened(self._device) as descriptor:
            try:
                return self._extended(descriptor, user_data)
            except _RefusedByHostError as refused:
                if refused.vmm_error != VMM_INVALID_LENGTH and refused.error.errno != errno.ENOTTY:
                    raise _failed(refused) from None
            # More certificates than fit, or a driver before extended reports: do without them.
            try:
                return self._plain(descriptor, user_data), b""
            except _RefusedByHostError as refused:
                raise _failed(refused) from None

    def _plain(self, descriptor: int, user_data: bytes) -> bytes:
        request = ctypes.create_string_buffer(REPORT_REQUEST.pack(user_data, self._vmpl))
        return self._call(descriptor, SNP_GET_REPORT, request)

    def _extended(self, descriptor: int, user_data: bytes) -> tuple[bytes, bytes]:
        table = ctypes.create_string_buffer(TABLE_SIZE)
        packed = EXTENDED_REQUEST.pack(
            user_data, self._vmpl, ctypes.addressof(table), ctypes.sizeof(table)
        )
        request = ctypes.create_string_buffer(packed)
        return self._call(descriptor, SNP_GET_EXT_REPORT, request), table.raw

    def _call(self, descriptor: int, number: int, request: ctypes.Array[ctypes.c_char]) -> bytes:
        response = ctypes.create_string_buffer(RESPONSE_SIZE)
        for _ in range(MAX_ATTEMPTS):
            argument = bytearray(
                REQUEST.pack(
                    MESSAGE_VERSION, ctypes.addressof(request), ctypes.addressof(response), 0, 0
                )
            )
            try:
                self._ioctl(descriptor, number, argument)
            except OSError as error:
                refused = _RefusedByHostError(argument, error)
                if error.errno not in _AGAIN and refused.vmm_error != VMM_BUSY:
                    raise refused from None
            else:
                return _report(response.raw)
            self._pause(PAUSE_S)
        raise busy(str(SEV_GUEST))


class SevGuestAttester:
    """Turns statement digests into SNP reports through ``/dev/sev-guest``. One at a time."""

    def __init__(self, device: SevGuest | None = None) -> None:
        self._device = SevGuest() if device is None else device
        self._lock = threading.Lock()

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """A report over `statement_digest` (32 bytes) in REPORT_DATA; raises as `SevGuest`."""
        user_data = report_data(statement_digest)
        with self._lock:
            report, table = self._device.report(user_data)
        return snp_items(report, table)


def _report(response: bytes) -> bytes:
    status, size, reserved = _RESPONSE_HEADER.unpack_from(response)
    if status:
        raise answer_error("the secure processor", f"says that it failed (status 0x{status:x})")
    if size != REPORT_SIZE or any(reserved):
        raise answer_error("the secure processor", f"is no report of {REPORT_SIZE} bytes")
    return response[_RESPONSE_HEADER.size : _RESPONSE_HEADER.size + size]


def _failed(refused: _RefusedByHostError) -> FetchError:
    error = failed(str(SEV_GUEST), refused.error)
    return FetchError(
        f"{error} (firmware 0x{refused.fw_error:x}, host 0x{refused.vmm_error:x})", code=error.code
    )
