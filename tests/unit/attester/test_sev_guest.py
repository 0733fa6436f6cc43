"""``/dev/sev-guest`` against a simulated driver that writes where the pointers say."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.attester import sev_guest
from cloister.attester.sev_guest import (
    SNP_GET_EXT_REPORT,
    SNP_GET_REPORT,
    SevGuest,
    SevGuestAttester,
)
from cloister.errors import FetchError, UnsupportedError
from cloister.evidence.items import ITEM_SNP_REPORT

DIGEST = bytes(range(32))


class Driver:
    """Answers both requests; each of `refusals` (errno, firmware, host) is given once."""

    def __init__(self, *refusals: tuple[int, int, int]) -> None:
        self.refusals = list(refusals)
        self.requests: list[int] = []
        self.status = 0
        self.size = 1184
        self.reserved = bytes(24)
        self.vmpl = -1
        self.table = b"certificates"

    def __call__(self, descriptor: int, request: int, argument: bytearray, /) -> int:
        assert descriptor >= 0
        self.requests.append(request)
        version, asked, answer, fw_error, vmm_error = sev_guest.REQUEST.unpack(argument)
        assert (version, fw_error, vmm_error) == (1, 0, 0)
        if self.refusals:
            code, fw_error, vmm_error = self.refusals.pop(0)
            argument[24:32] = fw_error.to_bytes(4, "little") + vmm_error.to_bytes(4, "little")
            raise OSError(code, "simulated")
        user_data = self._read(request, asked)
        report = (bytes(0x50) + user_data).ljust(1184, b"\0")
        head = self.status.to_bytes(4, "little") + self.size.to_bytes(4, "little") + self.reserved
        ctypes.memmove(answer, head + report, 32 + 1184)
        return 0

    def _read(self, request: int, asked: int) -> bytes:
        if request == SNP_GET_REPORT:
            user_data, self.vmpl = sev_guest.REPORT_REQUEST.unpack(
                ctypes.string_at(asked, sev_guest.REPORT_REQUEST.size)
            )
        else:
            assert request == SNP_GET_EXT_REPORT
            user_data, self.vmpl, where, size = sev_guest.EXTENDED_REQUEST.unpack(
                ctypes.string_at(asked, sev_guest.EXTENDED_REQUEST.size)
            )
            assert size % 4096 == 0
            ctypes.memmove(where, self.table, len(self.table))
        assert isinstance(user_data, bytes)
        return user_data


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[Driver], SevGuest]:
    (tmp_path / "sev-guest").touch()
    return lambda driver: SevGuest(
        vmpl=2, ioctl=driver, device=tmp_path / "sev-guest", pause=lambda _: None
    )


Open = Callable[[Driver], SevGuest]


def test_numbers_and_sizes_are_those_of_the_header() -> None:
    # Checked against <linux/sev-guest.h> with a C compiler.
    assert (SNP_GET_REPORT, SNP_GET_EXT_REPORT) == (0xC0205300, 0xC0205302)
    assert sev_guest.REQUEST.size == 32
    assert sev_guest.REPORT_REQUEST.size == 96
    assert sev_guest.EXTENDED_REQUEST.size == 112


def test_an_extended_report_brings_the_certificates(opened: Open) -> None:
    driver = Driver()
    report, table = opened(driver).report(DIGEST + bytes(32))
    assert report[0x50:0x90] == DIGEST + bytes(32)
    assert table.rstrip(b"\0") == driver.table
    assert driver.requests == [SNP_GET_EXT_REPORT]
    assert driver.vmpl == 2


@pytest.mark.parametrize("refusal", [(errno.EIO, 0, 1), (errno.ENOTTY, 0, 0)])
def test_without_room_or_support_for_certificates_the_report_is_enough(
    opened: Open, refusal: tuple[int, int, int]
) -> None:
    driver = Driver(refusal)
    report, table = opened(driver).report(DIGEST + bytes(32))
    assert report[0x50:0x70] == DIGEST
    assert table == b""
    assert driver.requests == [SNP_GET_EXT_REPORT, SNP_GET_REPORT]


@pytest.mark.parametrize("refusal", [(errno.EIO, 0, 2), (errno.EINTR, 0, 0), (errno.EBUSY, 0, 0)])
def test_a_busy_host_is_asked_again(opened: Open, refusal: tuple[int, int, int]) -> None:
    driver = Driver(refusal, refusal)
    assert opened(driver).report(bytes(64))
    assert len(driver.requests) == 3


def test_a_host_that_stays_busy_is_given_up(opened: Open) -> None:
    driver = Driver(*[(errno.EIO, 0, 2)] * 1000)
    with pytest.raises(FetchError) as caught:
        opened(driver).report(bytes(64))
    assert caught.value.code == "device.busy"
    assert len(driver.requests) == sev_guest.MAX_ATTEMPTS


def test_a_refusal_names_both_errors(opened: Open) -> None:
    with pytest.raises(FetchError, match=r"firmware 0x16, host 0x0") as caught:
        opened(Driver((errno.EIO, 0x16, 0))).report(bytes(64))
    assert caught.value.code == "device.io"


def test_a_refusal_of_the_plain_report_is_one_too(opened: Open) -> None:
    with pytest.raises(FetchError, match="firmware 0x16"):
        opened(Driver((errno.EIO, 0, 1), (errno.EIO, 0x16, 0))).report(bytes(64))


@pytest.mark.parametrize(
    ("name", "value"), [("status", 0x16), ("size", 1183), ("reserved", b"\x01" + bytes(23))]
)
def test_an_answer_that_is_no_report_is_refused(opened: Open, name: str, value: object) -> None:
    driver = Driver()
    assert opened(driver).report(bytes(64))
    setattr(driver, name, value)
    with pytest.raises(FetchError) as caught:
        opened(driver).report(bytes(64))
    assert caught.value.code == "device.answer"


def test_evidence_binds_the_digest(opened: Open) -> None:
    items = SevGuestAttester(opened(Driver())).quote(DIGEST)
    assert items[ITEM_SNP_REPORT].data[0x50:0x90] == DIGEST + bytes(32)


def test_no_device_is_not_on_this_machine(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not on this machine"):
        SevGuest(device=tmp_path / "absent", ioctl=Driver()).report(bytes(64))


def test_user_data_has_64_bytes(opened: Open) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        opened(Driver()).report(DIGEST)
