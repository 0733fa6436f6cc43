"""From inside the guest: nothing leaves, nothing stays, and the kernel gives nothing away.

A probe runs in the worker's place (`guest_probe.py`), and the machine's network card is watched
from outside. The twin of each test is the same probe without the rule that is tested.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloister.image.boot import BootedGuest, BootPlan
from cloister.image.machine import Machine
from support.guests import LIMIT_S, Operator, free_port, machine_for
from support.image_changes import with_application
from support.packets import sent_by
from support.sandbox_table import probes_stopped_by

pytestmark = [pytest.mark.boot, pytest.mark.tpm, pytest.mark.slow, pytest.mark.timeout(2400)]

TESTS = Path(__file__).parents[1]
CARD = bytes.fromhex("525400123456")
"""QEMU's first network card."""
LET_ALL_OUT = b"""table inet cloister {
    chain output { type filter hook output priority 0; policy accept; }
}
"""


@dataclass(frozen=True, slots=True)
class Probed:
    found: dict[str, Any]
    packets: list[bytes]
    """Frames that the guest's card sent."""


def probed(image: Path, folder: Path, operator: Operator, *, rules: bytes | None = None) -> Probed:
    files = {
        "command": b"/opt/cloister/bin/python\n-I\n-B\n/application/guest_probe.py\n",
        "guest_probe.py": (TESTS / "boot/guest_probe.py").read_bytes(),
        "sandbox_probe.py": (TESTS / "integration/sandbox_probe.py").read_bytes(),
        "sandbox_targets.py": (TESTS / "support/sandbox_targets.py").read_bytes(),
    }
    if rules is not None:
        files["nftables.conf"] = rules
    changed = with_application(image, folder / "image", files)
    dump = folder / "packets"
    machine = dataclasses.replace(
        machine_for(changed), more=("-object", f"filter-dump,id=dump,netdev=net,file={dump}")
    )
    console = _run(machine, operator)
    lines = [line for line in console.splitlines() if line.startswith("PROBE ")]
    assert lines, f"the probe said nothing:\n{console}"
    return Probed(json.loads(lines[0].removeprefix("PROBE ")), sent_by(dump.read_bytes(), CARD))


def _run(machine: Machine, operator: Operator) -> str:
    plan = BootPlan(
        machine=dataclasses.replace(machine, port=free_port()), tpm=operator.tpm, ca=operator.ca
    )
    with BootedGuest(plan, progress=print) as guest:
        ends = time.monotonic() + LIMIT_S
        while guest.process.poll() is None and time.monotonic() < ends:
            time.sleep(0.2)
        return guest.console()


@pytest.fixture(scope="module")
def inside(image: Path, operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    return probed(image, tmp_path_factory.mktemp("inside"), operator)


@pytest.fixture(scope="module")
def unruled(
    image: Path, operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Probed]:
    yield probed(image, tmp_path_factory.mktemp("unruled"), operator, rules=LET_ALL_OUT)


def test_no_packet_of_any_family_leaves(inside: Probed, unruled: Probed) -> None:
    assert unruled.packets, "without rules the probe's packets do leave"
    assert inside.packets == []


def test_every_way_to_the_network_is_refused(inside: Probed) -> None:
    network = inside.found["network"]
    # A datagram may be accepted by the socket and dropped by the rules: the card was watched.
    assert {name for name, error in network.items() if error is None} == set()


def test_the_kernel_gives_nothing_away(inside: Probed) -> None:
    assert {name for name, error in inside.found["kernel"].items() if error is None} == set()


def test_nothing_is_written_that_survives(inside: Probed) -> None:
    assert {name for name, error in inside.found["disks"].items() if error is None} == set()
    writable = {
        (where, kind)
        for _, where, kind, options in inside.found["state"]["mounts"]
        if "rw" in options.split(",")
    }
    kernel = {"proc", "sysfs", "securityfs", "configfs", "devtmpfs", "tmpfs", "rootfs"}
    assert {kind for _, kind in writable} <= kernel
    assert inside.found["state"]["swaps"] == []


def test_the_worker_has_no_rights(inside: Probed) -> None:
    state = inside.found["state"]
    assert state["capabilities"] == ["0000000000000000"] * 4
    assert state["no_new_privileges"] == "1"
    assert "0" not in state["user"].split("\t")
    assert "[confidentiality]" in state["lockdown"]
    assert state["modules_disabled"] == "1"
    assert {"sh", "bash", "dash", "busybox", "sshd", "login", "apt", "dpkg"}.isdisjoint(
        state["programs"]
    )


def test_no_card_believes_redirects(inside: Probed) -> None:
    """Linux asks whether all cards together may, or one by itself: each has to say no."""
    found = inside.found["state"]["redirects"]
    assert {"all", "default", "eth0", "lo"} <= found.keys()
    assert set(found.values()) == {"0"}


def test_the_engine_meets_its_sandbox_as_elsewhere(inside: Probed) -> None:
    """Memory of others, their files and sockets: what the sandbox's own tests try."""
    findings = inside.found["engine"]["probes"]
    stopped = set().union(*map(probes_stopped_by, ("namespaces", "seccomp", "landlock")))
    through = {name for name in stopped & findings.keys() if findings[name] is None}
    assert through == set()
    assert {"process_vm_readv", "read_environ", "list_processes"} <= findings.keys()
