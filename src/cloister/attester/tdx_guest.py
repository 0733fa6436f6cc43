"""TDX quotes on kernels before 6.7: a TD report by ioctl, signed by a quoting service.

``/dev/tdx_guest`` only gives a TDREPORT, whose MAC no one outside the machine can check. The
host's quote generation service (QGS) has a quoting enclave turn it into a quote, and is reached
over vsock where the host offers it. From 6.7 on the kernel asks the host itself: prefer
`cloister.attester.configfs_tsm`.

Sources: ``linux/tdx-guest.h`` (``TDX_CMD_GET_REPORT0``: 64 bytes of REPORTDATA in, 1024 bytes
of TDREPORT out, one structure); Intel DCAP, ``qgs_msg_lib.h``, version 1.0. A QGS message goes
behind its length in four big-endian bytes; inside everything is little-endian::

    header    u16 major, u16 minor, u32 type, u32 size of the message, u32 error   16 B
    request   header, u32 report size, u32 size of the key list (0), report        1048 B
    response  header, u32 size of the key id, u32 size of the quote, key id, quote
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from cloister.attester.devices import (
    Ioctl,
    absent,
    answer_error,
    busy,
    failed,
    iowr,
    opened,
    report_data,
    system_ioctl,
)
from cloister.errors import FetchError
from cloister.evidence.items import (
    ITEM_TDX_EVENT_LOG,
    ITEM_TDX_QUOTE,
    MEDIA_TYPE_TDX_QUOTE,
)
from cloister.evidence.report import MEDIA_TYPE_EVENT_LOG, EvidenceItem

TDX_GUEST: Final = Path("/dev/tdx_guest")
TDX_ATTEST_CONF: Final = Path("/etc/tdx-attest.conf")

REPORT_SIZE: Final = 1024
TDX_CMD_GET_REPORT0: Final = iowr(ord("T"), 1, 64 + REPORT_SIZE)

HOST_CID: Final = 2
QGS_PORT: Final = 4050
QGS_TIMEOUT_S: Final = 30.0
"""The quoting enclave may have to be started first, which takes seconds."""

MAX_MESSAGE_BYTES: Final = 256 * 1024
MAX_ATTEMPTS: Final = 5

_HEADER: Final = struct.Struct("<HHIII")
_SIZES: Final = struct.Struct("<II")
_MAJOR: Final = 1
_GET_QUOTE_REQUEST: Final = 0
_GET_QUOTE_RESPONSE: Final = 1


class Stream(Protocol):
    """A connected byte stream, such as a socket with a timeout."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of `data`; OSError."""

    def recv(self, size: int, /) -> bytes:
        """Receive at most `size` bytes, none at the end; OSError."""

    def close(self) -> None:
        """End the connection."""


def connect_qgs(port: int = QGS_PORT) -> Stream:
    """Connect to the host's quote generation service over vsock; OSError if nobody listens."""
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    connection.settimeout(QGS_TIMEOUT_S)
    try:
        connection.connect((HOST_CID, port))
    except BaseException:
        connection.close()
        raise
    return connection


def qgs_port(configuration: Path = TDX_ATTEST_CONF) -> int:
    """The port that Intel's own configuration file names (``port=4050``), or its default."""
    try:
        lines = configuration.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return QGS_PORT
    for line in lines[:100]:
        name, _, value = line.partition("=")
        if name.strip() == "port" and value.strip().isdigit():
            port = int(value)
            return port if port < 1 << 32 else QGS_PORT
    return QGS_PORT


def td_report(descriptor: int, user_data: bytes, *, ioctl: Ioctl = system_ioctl) -> bytes:
    """The 1024-byte TDREPORT over `user_data` (64 bytes).

    Raises:
        FetchError: the TDX module refuses, or answers over other data.
    """
    if len(user_data) != 64:
        raise ValueError("user data has 64 bytes")
    for _ in range(MAX_ATTEMPTS):
        argument = bytearray(user_data + bytes(REPORT_SIZE))
        try:
            ioctl(descriptor, TDX_CMD_GET_REPORT0, argument)
        except OSError as error:
            if error.errno in {errno.EINTR, errno.EAGAIN, errno.EBUSY}:
                continue
            raise failed(str(TDX_GUEST), error) from None
        report = bytes(argument[64:])
        # REPORTDATA stands at byte 128 of REPORTMACSTRUCT (TDX module ABI, "REPORTMACSTRUCT").
        if report[128:192] != user_data:
            raise answer_error(str(TDX_GUEST), "is no report over the data given")
        return report
    raise busy(str(TDX_GUEST))


def quote_request(report: bytes) -> bytes:
    """The framed request for a quote over `report`, by whichever key the service has."""
    size = _HEADER.size + _SIZES.size + len(report)
    message = b"".join(
        (
            _HEADER.pack(_MAJOR, 0, _GET_QUOTE_REQUEST, size, 0),
            _SIZES.pack(len(report), 0),
            report,
        )
    )
    return size.to_bytes(4, "big") + message


def parse_quote_response(message: bytes) -> bytes:
    """The quote in a response, its frame already taken off.

    Raises:
        FetchError: the service failed, or this is no such response.
    """
    what = "the quote generation service"
    if len(message) < _HEADER.size + _SIZES.size:
        raise answer_error(what, "is too short")
    major, _, kind, size, error = _HEADER.unpack_from(message)
    if error:
        raise FetchError(f"{what} failed with error 0x{error:x}", code="device.io")
    if major != _MAJOR or kind != _GET_QUOTE_RESPONSE or size != len(message):
        raise answer_error(what, "is no quote response of version 1")
    id_size, quote_size = _SIZES.unpack_from(message, _HEADER.size)
    start = _HEADER.size + _SIZES.size + id_size
    if not quote_size or start + quote_size != len(message):
        raise answer_error(what, "holds lengths that do not add up")
    return message[start:]


def ask_for_quote(connection: Stream, report: bytes) -> bytes:
    """Send `report` over `connection` and return the quote; raises FetchError."""
    what = "the quote generation service"
    try:
        connection.sendall(quote_request(report))
        size = int.from_bytes(_exactly(connection, 4), "big")
        if size > MAX_MESSAGE_BYTES:
            raise answer_error(what, f"is longer than {MAX_MESSAGE_BYTES} bytes")
        return parse_quote_response(_exactly(connection, size))
    except TimeoutError:
        raise FetchError(f"{what} gave no answer in time", code="device.timeout") from None
    except OSError as error:
        raise failed(what, error) from None


def _exactly(connection: Stream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            raise answer_error("the quote generation service", "ends early")
        received += piece
    return bytes(received)


class TdxGuestAttester:
    """Turns statement digests into TDX quotes by device and vsock. One request at a time."""

    def __init__(
        self,
        *,
        ioctl: Ioctl = system_ioctl,
        device: Path = TDX_GUEST,
        connect: Callable[[], Stream] | None = None,
        event_log: bytes | None = None,
    ) -> None:
        self._ioctl = ioctl
        self._device = device
        self._connect = connect if connect is not None else lambda: connect_qgs(qgs_port())
        self._event_log = event_log
        self._lock = threading.Lock()

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """A quote over `statement_digest` (32 bytes) in REPORTDATA.

        Raises:
            UnsupportedError: no such device, or no quoting service on the host.
            FetchError: one of them fails.
        """
        user_data = report_data(statement_digest)
        with self._lock, opened(self._device) as descriptor:
            quote = self._sign(td_report(descriptor, user_data, ioctl=self._ioctl))
        items = {ITEM_TDX_QUOTE: EvidenceItem(media_type=MEDIA_TYPE_TDX_QUOTE, data=quote)}
        if self._event_log is not None:
            items[ITEM_TDX_EVENT_LOG] = EvidenceItem(
                media_type=MEDIA_TYPE_EVENT_LOG, data=self._event_log
            )
        return items

    def _sign(self, report: bytes) -> bytes:
        try:
            connection = self._connect()
        except OSError as error:
            raise absent(
                f"no quote generation service answers over vsock ({error.strerror}); Linux 6.7 or"
                " later asks the host without one"
            ) from None
        try:
            return ask_for_quote(connection, report)
        finally:
            connection.close()
