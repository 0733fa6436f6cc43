"""Devices asked in a child: limits, errors, and what a child gets to see."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.attester.background import BackgroundDevice
from cloister.errors import FetchError, UnsupportedError

HANDLER = "support.device_handlers:handle"


@pytest.fixture
def device() -> Iterator[BackgroundDevice]:
    made = BackgroundDevice(HANDLER, limit_s=30)
    yield made
    made.close()


def gone(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return False
    return True


def pid_of(device: BackgroundDevice) -> int:
    pid = device.ask({"do": "echo", "say": 1})["pid"]
    assert isinstance(pid, int)
    return pid


def test_one_child_answers_request_after_request(device: BackgroundDevice) -> None:
    answers = [device.ask({"do": "echo", "say": text}) for text in ("a", "b" * 300_000)]
    assert [answer["said"] for answer in answers] == ["a", "b" * 300_000]
    assert {answer["pid"] for answer in answers} != {os.getpid()}
    assert len({answer["pid"] for answer in answers}) == 1


def test_a_device_that_hangs_is_given_up_and_its_child_ended(device: BackgroundDevice) -> None:
    pid = pid_of(device)
    device._limit_s = 0.2
    with pytest.raises(FetchError, match=r"within 0\.2 seconds") as caught:
        device.ask({"do": "hang"})
    assert caught.value.code == "device.timeout"
    assert gone(pid)


def test_after_a_hang_another_child_answers(device: BackgroundDevice) -> None:
    pid = pid_of(device)
    device._limit_s = 0.2
    with pytest.raises(FetchError):
        device.ask({"do": "hang"})
    device._limit_s = 30
    assert pid_of(device) != pid


def test_a_child_that_ends_is_noticed_and_replaced(device: BackgroundDevice) -> None:
    pid = pid_of(device)
    with pytest.raises(FetchError, match="has ended") as caught:
        device.ask({"do": "stop"})
    assert caught.value.code == "device.io"
    assert pid_of(device) != pid


def test_errors_come_back_as_what_they_were(device: BackgroundDevice) -> None:
    pid = pid_of(device)
    with pytest.raises(UnsupportedError, match="not on this machine: a device") as absent:
        device.ask({"do": "absent"})
    assert absent.value.code == "device.absent"
    with pytest.raises(FetchError, match="the device failed") as failed:
        device.ask({"do": "fail"})
    assert failed.value.code == "device.io"
    assert pid_of(device) == pid


def test_a_mistake_in_the_child_is_told_without_details(device: BackgroundDevice) -> None:
    with pytest.raises(FetchError, match=r"failed \(RuntimeError\)") as caught:
        device.ask({"do": "anything else"})
    assert "details" not in str(caught.value)


def test_the_child_gets_nothing_of_its_parents(
    device: BackgroundDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    with Path("/dev/null").open() as kept:
        os.set_inheritable(kept.fileno(), True)
        seen = device.ask({"do": "environment"})
    assert seen["names"] in (["LANG", "PATH"], ["LANG", "LC_CTYPE", "PATH"])
    assert seen["directory"] == "/"
    assert seen["flags"] == [1, 1, 1]
    assert seen["descriptors"] == 5  # the standard three, the connection, and /proc itself


def test_closing_ends_the_child(device: BackgroundDevice) -> None:
    pid = pid_of(device)
    device.close()
    device.close()
    assert gone(pid)


def test_threads_take_turns(device: BackgroundDevice) -> None:
    said: list[object] = []

    def ask(text: str) -> None:
        said.append(device.ask({"do": "echo", "say": text})["said"])

    threads = [threading.Thread(target=ask, args=(str(index),)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, said)) == [str(index) for index in range(8)]
