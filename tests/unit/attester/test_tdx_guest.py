"""``/dev/tdx_guest`` and the quote generation service, both simulated."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from cloister.attester import tdx_guest
from cloister.attester.tdx_guest import (
    TDX_CMD_GET_REPORT0,
    TdxGuestAttester,
    parse_quote_response,
    qgs_port,
    quote_request,
)
from cloister.errors import FetchError, UnsupportedError
from cloister.evidence.items import ITEM_TDX_EVENT_LOG, ITEM_TDX_QUOTE

DIGEST = bytes(range(32))


class Module:
    """The TDX module behind the device."""

    def __init__(self, *refusals: int) -> None:
        self.refusals = list(refusals)
        self.calls = 0
        self.wrong = False

    def __call__(self, descriptor: int, request: int, argument: bytearray, /) -> int:
        assert request == TDX_CMD_GET_REPORT0
        assert len(argument) == 64 + 1024
        self.calls += 1
        if self.refusals:
            raise OSError(self.refusals.pop(0), "simulated")
        user_data = bytes(64) if self.wrong else bytes(argument[:64])
        argument[64:] = (bytes(128) + user_data).ljust(1024, b"\0")
        return 0


def response(quote: bytes, *, key_id: bytes = b"", error: int = 0, kind: int = 1) -> bytes:
    size = 24 + len(key_id) + len(quote)
    head = struct.pack("<HHIIIII", 1, 1, kind, size, error, len(key_id), len(quote))
    return head + key_id + quote


class Service:
    """The quote generation service behind a stream; answers in small pieces."""

    def __init__(self, answer: bytes | None = None, *, frame: int | None = None) -> None:
        self.answer = answer
        self.frame = frame
        self.sent = b""
        self.pending = b""
        self.closed = False

    def sendall(self, data: bytes, /) -> None:
        self.sent += data
        body = response(b"quote over " + data[28:]) if self.answer is None else self.answer
        size = len(body) if self.frame is None else self.frame
        self.pending = size.to_bytes(4, "big") + body

    def recv(self, size: int, /) -> bytes:
        taken, self.pending = self.pending[: min(size, 7)], self.pending[min(size, 7) :]
        return taken

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def device(tmp_path: Path) -> Path:
    (tmp_path / "tdx_guest").touch()
    return tmp_path / "tdx_guest"


def attester(device: Path, module: Module, service: Service) -> TdxGuestAttester:
    return TdxGuestAttester(ioctl=module, device=device, connect=lambda: service)


def test_the_number_is_that_of_the_header() -> None:
    assert TDX_CMD_GET_REPORT0 == 0xC4405401


def test_a_report_becomes_a_quote(device: Path) -> None:
    service = Service()
    items = attester(device, Module(), service).quote(DIGEST)
    assert list(items) == [ITEM_TDX_QUOTE]
    quote = items[ITEM_TDX_QUOTE].data
    assert quote.startswith(b"quote over ")
    assert quote[11 + 128 : 11 + 192] == DIGEST + bytes(32)
    assert service.closed


def test_the_request_is_framed_as_the_service_wants_it() -> None:
    framed = quote_request(b"r" * 1024)
    assert framed.hex() == (
        "00000418" "0100" "0000" "00000000" "18040000" "00000000" "00040000" "00000000"
        + (b"r" * 1024).hex()
    )  # fmt: skip


def test_the_event_log_goes_along(device: Path) -> None:
    made = TdxGuestAttester(ioctl=Module(), device=device, connect=Service, event_log=b"log")
    assert made.quote(DIGEST)[ITEM_TDX_EVENT_LOG].data == b"log"


def test_a_key_id_before_the_quote_is_taken_off() -> None:
    assert parse_quote_response(response(b"quote", key_id=bytes(16))) == b"quote"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        response(b"quote")[:-1],
        response(b"quote") + b"x",
        response(b"quote")[:8] + struct.pack("<I", 30) + response(b"quote")[12:],
        response(b""),
        response(b"quote", kind=0),
        b"\x02" + response(b"quote")[1:],
        response(b"quote")[:16] + struct.pack("<II", 1, 5) + b"quote",
        response(b"quote")[:16] + struct.pack("<II", 0, 4) + b"quote",
    ],
    ids=[
        "empty",
        "short",
        "long",
        "announced",
        "no quote",
        "kind",
        "version",
        "id size",
        "quote size",
    ],
)
def test_what_is_no_response_is_refused(message: bytes) -> None:
    assert parse_quote_response(response(b"quote")) == b"quote"
    with pytest.raises(FetchError) as caught:
        parse_quote_response(message)
    assert caught.value.code == "device.answer"


def test_an_error_of_the_service_is_named() -> None:
    with pytest.raises(FetchError, match="0x12001") as caught:
        parse_quote_response(response(b"", error=0x12001))
    assert caught.value.code == "device.io"


def test_an_announced_length_is_bounded(device: Path) -> None:
    service = Service(b"", frame=tdx_guest.MAX_MESSAGE_BYTES + 1)
    with pytest.raises(FetchError, match="longer than"):
        attester(device, Module(), service).quote(DIGEST)
    assert service.closed


def test_a_service_that_hangs_up_early_is_noticed(device: Path) -> None:
    with pytest.raises(FetchError, match="ends early"):
        attester(device, Module(), Service(response(b"quote"), frame=100)).quote(DIGEST)


@pytest.mark.parametrize(
    ("error", "code"),
    [(TimeoutError(), "device.timeout"), (ConnectionResetError(), "device.io")],
)
def test_a_service_that_fails_is_told_apart(device: Path, error: OSError, code: str) -> None:
    class Failing(Service):
        def recv(self, size: int, /) -> bytes:
            raise error

    with pytest.raises(FetchError) as caught:
        attester(device, Module(), Failing()).quote(DIGEST)
    assert caught.value.code == code


def test_without_a_service_there_is_no_quote(device: Path) -> None:
    def refuse() -> Service:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    made = TdxGuestAttester(ioctl=Module(), device=device, connect=refuse)
    with pytest.raises(UnsupportedError, match="not on this machine: no quote generation service"):
        made.quote(DIGEST)


def test_a_busy_module_is_asked_again_and_given_up(device: Path) -> None:
    assert attester(device, Module(errno.EINTR, errno.EBUSY), Service()).quote(DIGEST)
    module = Module(*[errno.EBUSY] * 100)
    with pytest.raises(FetchError) as caught:
        attester(device, module, Service()).quote(DIGEST)
    assert caught.value.code == "device.busy"
    assert module.calls == tdx_guest.MAX_ATTEMPTS


def test_a_module_that_refuses_is_named(device: Path) -> None:
    with pytest.raises(FetchError) as caught:
        attester(device, Module(errno.EIO), Service()).quote(DIGEST)
    assert caught.value.code == "device.io"


def test_a_report_over_other_data_is_refused(device: Path) -> None:
    module = Module()
    module.wrong = True
    with pytest.raises(FetchError, match="over the data given"):
        attester(device, module, Service()).quote(DIGEST)


@pytest.mark.parametrize(
    ("text", "port"),
    [("port=4050\n", 4050), ("# a\n port = 77 \n", 77), ("port=x\n", 4050), ("", 4050)],
)
def test_the_port_is_that_of_the_configuration(tmp_path: Path, text: str, port: int) -> None:
    (tmp_path / "conf").write_text(text)
    assert qgs_port(tmp_path / "conf") == port
    assert qgs_port(tmp_path / "absent") == 4050


def test_no_device_is_not_on_this_machine(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not on this machine"):
        attester(tmp_path / "absent", Module(), Service()).quote(DIGEST)
