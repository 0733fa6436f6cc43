"""The guest's init, on machines of files, where the kernel refuses what it asks.

It goes on to no worker where that was anything that counts.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from support.init_harness import needs_compiler
from support.init_machine import MACHINES, WORKER, Machine, lines

pytestmark = needs_compiler

MAY_FAIL: Final = (
    # Cannot, or changes nothing.
    r"say |(child: )?umask |child: (close|dup2|setsid)|list /sys/bus/",
    # What the worker would read, which asks nobody there.
    r"child: open /dev/null read",
    # The folder is there already; what is mounted on it fails otherwise.
    r"mkdir (?!/run/cloister)",
    # A second lock: nobody but root may open a disk at all.
    r"read-only ",
    # A disk that could not be read is looked for again.
    r"(open|read) /dev/(vd.|loop0)",
    # The kernel's modules from the initrd: without them there is no dm-verity, or no disk.
    r"(open|read) (/modules/list|/sys/devices/system/cpu/modalias)",
    # What the worker then has no evidence, no operator or no network by.
    r"(open|read) /sys/kernel/security/tpm0/|mount configfs|mkdir /sys/kernel/config/",
    r"list /sys/class/virtio-ports|read /sys/class/virtio-ports/",
    r"read /application/interface.conf|read /sys/class/net/lo/type",
)


def test_the_worker_never_runs_where_the_kernel_refused_what_counts(
    program: Path, machines: Mapping[str, Machine]
) -> None:
    """Every call in turn, on every machine; equal ones of several machines once."""
    tried: set[str] = set()
    went_on: set[str] = set()
    for machine in machines.values():
        for number, line in enumerate(machine.told[: machine.told.index(WORKER) + 1]):
            if line in tried:
                continue
            tried.add(line)
            told = lines(program, machine.root, number, errno.EPERM)
            assert told[number] == line
            if line == WORKER or WORKER not in told[number:]:
                continue
            went_on.add(line)
            assert any(re.match(one, line) for one in MAY_FAIL), line
    for one in MAY_FAIL:
        assert any(re.match(one, line) for line in tried), one
    assert len(tried) > 250
    assert len(went_on) < 120


def test_what_was_written_by_half_was_not_written(
    program: Path, machines: Mapping[str, Machine]
) -> None:
    written = 0
    for machine in machines.values():
        for number, line in enumerate(machine.told):
            if line.startswith("write "):
                assert WORKER not in lines(program, machine.root, number, 0), line
                written += 1
    assert written > 60


def test_a_program_that_does_not_start_is_no_worker(
    program: Path, machines: Mapping[str, Machine]
) -> None:
    machine = machines["measuring"]
    told = lines(program, machine.root, machine.told.index(WORKER), errno.ENOENT)
    assert "child: exit 127" in told
    assert "say the worker ended with status 0x7f00" in told
    assert told[-2].startswith("say power off: the worker ended")


@pytest.mark.parametrize(
    ("call", "error", "why"),
    [
        ("fork", errno.EAGAIN, "no process for the worker"),
        ("wait", errno.ECHILD, "nothing to wait for"),
        ("wait", errno.EINTR, "the worker ended"),
    ],
)
def test_a_worker_that_cannot_be_started_or_waited_for(
    program: Path, machines: Mapping[str, Machine], call: str, error: int, why: str
) -> None:
    machine = machines["measuring"]
    last = max(number for number, line in enumerate(machine.told) if line == call)
    assert last > machine.told.index("say worker")
    told = lines(program, machine.root, last, error)
    assert told[-2].startswith(f"say power off: {why} ")
    assert told.count("wait") == machine.told.count("wait") + {
        errno.EINTR: 1,
        errno.EAGAIN: -1,
    }.get(error, 0)


@pytest.mark.parametrize("kind", MACHINES)
def test_nothing_that_the_init_opens_is_inherited(
    machines: Mapping[str, Machine], kind: str
) -> None:
    opened = [line for line in machines[kind].told if re.match("open|socket", line)]
    assert len(opened) > 20
    assert not [line for line in opened if line.endswith("inherited")]


FORGIVEN: Final = {
    # A kernel may have mounted it itself.
    "mount devtmpfs /dev devtmpfs nosuid,noexec": {errno.EBUSY},
    # One that is built in, or for hardware that is not here.
    "load /modules/01-verity.ko": {errno.EEXIST, errno.ENODEV, errno.ENOENT},
    "give /dev/tpmrm0 990 990": {errno.ENOENT},
    # What the kernel has no capability for.
    "child: prctl 24 40": {errno.EINVAL},
}


def test_each_error_is_forgiven_at_one_place_only(
    program: Path, machines: Mapping[str, Machine]
) -> None:
    machine = machines["measuring"]
    errors = {one for some in FORGIVEN.values() for one in some}
    places = (
        *FORGIVEN,
        "mount proc /proc proc nosuid,nodev,noexec",
        "chroot .",
        "child: prctl 38 1",
    )
    for line in places:
        for error in (*errors, errno.EKEYREJECTED):
            told = lines(program, machine.root, machine.told.index(line), error)
            assert (WORKER in told) == (error in FORGIVEN.get(line, ())), (line, error)


def test_capabilities_that_the_kernel_lacks_are_tried_and_no_mistake(
    machines: Mapping[str, Machine],
) -> None:
    """`init_machine.c` knows 41, as Linux does; the next one that there is goes too."""
    dropped = [line for line in machines["pinning"].told if line.startswith("child: prctl 24 ")]
    assert dropped == [f"child: prctl 24 {number}" for number in range(64)]
