"""What ways to devices share: which error stands for what, and how much is read."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cloister.attester.devices import iowr, open_error, opened, read_file, report_data
from cloister.errors import FetchError, UnsupportedError


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOENT, UnsupportedError, "device.absent"),
        (errno.ENODEV, UnsupportedError, "device.absent"),
        (errno.ENXIO, UnsupportedError, "device.absent"),
        (errno.EACCES, UnsupportedError, "device.permission"),
        (errno.EPERM, UnsupportedError, "device.permission"),
        (errno.EIO, FetchError, "device.io"),
        (errno.EBUSY, FetchError, "device.io"),
    ],
)
def test_errors_say_who_must_act(number: int, kind: type[Exception], code: str) -> None:
    error = open_error(Path("/dev/x"), OSError(number, "simulated"))
    assert isinstance(error, kind)
    assert error.code == code


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    assert read_file(path, limit=100_000) == b"x" * 100_000
    with pytest.raises(FetchError) as caught:
        read_file(path, limit=99_999)
    assert caught.value.code == "device.answer"
    with pytest.raises(UnsupportedError, match="not on this machine"):
        read_file(tmp_path / "absent", limit=1)
    with pytest.raises(FetchError) as failed:
        read_file(tmp_path, limit=1)  # a directory opens and does not read
    assert failed.value.code == "device.io"


def test_a_device_is_closed_again(tmp_path: Path) -> None:
    import os

    (tmp_path / "device").touch()
    with opened(tmp_path / "device") as descriptor:
        assert os.get_inheritable(descriptor) is False
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


def test_report_data_is_padded() -> None:
    assert report_data(b"d" * 32) == b"d" * 32 + bytes(32)


def test_request_numbers_are_those_of_the_kernel() -> None:
    assert iowr(ord("T"), 1, 1088) == 0xC4405401
