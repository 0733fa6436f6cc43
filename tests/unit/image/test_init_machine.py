"""The guest's init on machines that are not as they have to be, or not as others are."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from support.init_harness import needs_compiler
from support.init_machine import (
    AGAIN,
    DISKS,
    FIRST,
    MACHINES,
    OFF,
    RULES,
    WORKER,
    Machine,
    disk,
    enclave,
    ends,
    extended,
    lines,
    measuring,
    pinning,
    reason,
    write_machine,
)

pytestmark = needs_compiler


def line_of(**arguments: str) -> str:
    words = (f"cloister.{name}={value}" for name, value in arguments.items())
    return " ".join((FIRST, *words))


ROOT: Final = DISKS["root"].argument()
MEASURED: Final = {"root": ROOT, "application": "measured", "model": "measured"}
RAMDISK: Final = {"platform": "nitro", "root": ROOT, "application": "ramdisk", "model": "ramdisk"}
BOTH: Final = ("proc/cmdline", "etc/cmdline")
NO_TPM: Final = dict.fromkeys(("dev/tpm0", "dev/tpmrm0"), None)
SECURITY_MODULE: Final = "this machine has no Nitro security module"
UNKNOWN_DISK: Final = "the command line describes a disk in a way that is not known"


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        (
            "pinning",
            {"etc/cmdline": line_of(**MEASURED)},
            "the command line is not the measured one",
        ),
        ("measuring", {"proc/cmdline": FIRST}, "the command line names no root"),
        ("measuring", {"proc/cmdline": line_of(xroot=ROOT)}, "the command line names no root"),
        ("measuring", {"proc/cmdline": line_of(rootx=ROOT)}, "the command line names no root"),
        ("measuring", {"proc/cmdline": f"{FIRST} cloister.root"}, "the command line names no root"),
        ("measuring", {"proc/cmdline": line_of(root="measured")}, UNKNOWN_DISK),
        ("measuring", {"proc/cmdline": line_of(**{**MEASURED, "model": "Measured"})}, UNKNOWN_DISK),
        ("measuring", {"proc/cmdline": line_of(**MEASURED) + " cloister.model=none"}, None),
        ("measuring", {"proc/cmdline": line_of(**MEASURED) + " cloister.root=" + ROOT}, None),
        ("measuring", {"proc/cmdline": line_of(**MEASURED) + " cloister.debug=" + "1" * 256}, None),
        ("measuring", {"proc/cmdline": line_of(**MEASURED) + " x" * 2048}, "a text is too long"),
        (
            "measuring",
            {"proc/cmdline": line_of(**{**MEASURED, "model": "ramdisk"})},
            "a ramdisk's registers are a Nitro enclave's",
        ),
        ("measuring", NO_TPM, "no TPM to measure a disk into, and no disk named"),
        ("measuring", {"dev/vdc": None}, "a disk is missing"),
        ("measuring", {"dev/vdc": disk("application")}, "two disks of one kind"),
        ("measuring", {"dev/vda": disk("model")}, "a disk that the command line names is missing"),
        ("pinning", {"dev/vdc": None}, "a disk that the command line names is missing"),
        (
            "enclave",
            dict.fromkeys(BOTH, line_of(**{**RAMDISK, "platform": "nitrO"})),
            SECURITY_MODULE,
        ),
        ("enclave", {"dev/nsm": None}, SECURITY_MODULE),
        (
            "enclave",
            {"sys/class/misc/hw_random/rng_current": "virtio_rng.0\n"},
            "the random numbers are not the security module's",
        ),
        ("enclave", {"dev/hwrng": bytes(255)}, "the security module gives no random numbers"),
        ("enclave", {"dev/hwrng": None}, "the security module gives no random numbers"),
        ("enclave", {"dev/parent": b"\xb6"}, "the parent does not answer the enclave"),
        ("enclave", {"dev/parent": b""}, "the parent does not answer the enclave"),
        ("enclave", {"ramdisk/root.img": None}, "/ramdisk/root.img"),
        ("enclave", {"dev/loop0": disk("model")}, "a disk that the command line names is missing"),
        ("enclave", {"ramdisk/model/model.gguf": None, "ramdisk/model": ""}, "/ramdisk/model"),
        ("measuring", {"sysroot/refuses": ""}, "the network rules do not load"),
        ("measuring", {"dev/tpm0": "8001 0000000a 00000101"}, "the TPM does not extend a register"),
        ("measuring", {"dev/tpm0": "8001 0000000a 00000100"}, "the TPM does not extend a register"),
        ("measuring", {"dev/tpm0": "8001 0000000a 01000000"}, "the TPM does not extend a register"),
        ("measuring", {"dev/tpm0": "8001 0000000a 00010000"}, "the TPM does not extend a register"),
        ("measuring", {"dev/tpm0": "8001 0000000a 000000"}, "the TPM gives no answer"),
    ],
    ids=range(33),
)
def test_what_a_machine_ends_for(
    program: Path,
    tmp_path: Path,
    kind: str,
    changes: Mapping[str, str | bytes | None],
    why: str | None,
) -> None:
    if isinstance(code := changes.get("dev/tpm0"), str):
        changes = {"dev/tpm0": bytes.fromhex(code)}
    twice = "an argument of the command line is there twice, or too long"
    assert ends(program, tmp_path, kind, changes) == (why or twice)


@pytest.mark.parametrize("kind", MACHINES)
def test_nobody_can_switch_an_enclave_off_so_it_restarts(
    machines: Mapping[str, Machine], kind: str
) -> None:
    assert machines[kind].told[-1] == (AGAIN if kind == "enclave" else OFF)


@pytest.mark.parametrize("code", [0x922, 0x908, 0x90A], ids=hex)
def test_a_tpm_that_is_busy_is_asked_again(program: Path, tmp_path: Path, code: int) -> None:
    answers = struct.pack(">HII", 0x8001, 10, code) * 3
    told = lines(program, write_machine(tmp_path, {**measuring(), "dev/tpm0": answers}))
    assert WORKER in told
    assert told.count(extended(14, DISKS["application"].line())) == 4


def test_a_tpm_that_stays_busy(program: Path, tmp_path: Path) -> None:
    busy = struct.pack(">HII", 0x8001, 10, 0x922)
    why = ends(program, tmp_path, "measuring", {"dev/tpm0": busy * 4000})
    assert why == "the TPM does not extend a register"


def test_an_image_for_trying_things_out_says_so(program: Path, tmp_path: Path) -> None:
    said = "say THIS IS A DEBUG IMAGE: never send it anything that is yours"
    assert said not in lines(program, write_machine(tmp_path, measuring()))
    debug = line_of(**MEASURED, debug="1")
    told = lines(program, write_machine(tmp_path, {"proc/cmdline": debug}))
    assert said in told
    assert told.index(said) < told.index(WORKER)


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("", []),
        ("\n\n", []),
        (
            "address 10.0.2.15/24\ngateway 10.0.2.2\n",
            [
                *("address eth0 020000000a00020f", "mask eth0 02000000ffffff00"),
                # Destination and mask of zeros, then the gateway.
                f"route up through 02{'00' * 15}020000000a000202{'00' * 8}02{'00' * 15}",
            ],
        ),
        ("address 10.0.2.15/0", ["address eth0 020000000a00020f", "mask eth0 0200000000000000"]),
        ("address 10.0.2.15/32", ["address eth0 020000000a00020f", "mask eth0 02000000ffffffff"]),
    ],
    ids=range(5),
)
def test_the_card_has_the_measured_addresses(
    program: Path, tmp_path: Path, written: str, asked: list[str]
) -> None:
    files = {**measuring(), "sysroot/application/interface.conf": written}
    told = lines(program, write_machine(tmp_path, files))
    assert WORKER in told
    assert [line for line in told if re.match("address|mask|route", line)] == asked
    up = [line for line in told if re.match("flags of .* 1", line)]
    assert up == ["flags of lo 1", *(["flags of eth0 1"] if asked else [])]


CARD: Final = "an address needs one network card, no more and no fewer"
UNREAD: Final = "a line of the interface's settings is not known"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"interface.conf": "address"}, "a line of the interface's settings has no value"),
        ({"interface.conf": "address 10.0.2.15"}, UNREAD),
        ({"interface.conf": "addresses 10.0.2.15/24"}, UNREAD),
        ({"interface.conf": "dhcp eth0/"}, UNREAD),
        ({"interface.conf": "address 10.0.2.15/33"}, "a prefix is out of range"),
        ({"interface.conf": "address 10.0.2.15/-1"}, "a prefix is out of range"),
        ({"interface.conf": "address 10.0.2/24"}, "an address does not decode"),
        ({"interface.conf": "address fd00::2/24"}, "an address does not decode"),
        ({"interface.conf": "gateway 10.0.2"}, "an address does not decode"),
        ({"interface.conf": "\n" * 4096}, "a text is too long"),
        ({"eth0": None}, CARD),
        ({"eth0": "772\n"}, CARD),
        ({"eth1": "1\n"}, CARD),
    ],
    ids=range(13),
)
def test_a_network_that_is_not_as_it_was_measured(
    program: Path, tmp_path: Path, changes: Mapping[str, str | None], why: str
) -> None:
    names = {"interface.conf": "sysroot/application/interface.conf"}
    files = {names.get(name, f"sys/class/net/{name}/type"): said for name, said in changes.items()}
    assert ends(program, tmp_path, "measuring", files) == why


PORT: Final = "sys/class/virtio-ports/vport1p{}/name"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "\n",
            ".",
            "..",
            "../tpm0",
            "cloister/operator",
            "Cloister.operator",
            "a b",
            ".hidden",
        ),
        *("cloister.operator\nx", "cloister.operator\x01", "cloister_operator"),
    ],
    ids=range(12),
)
def test_a_port_whose_name_is_no_files_gets_no_link(
    program: Path, tmp_path: Path, name: str
) -> None:
    good = lines(program, write_machine(tmp_path, pinning()))
    assert sum(line.startswith("link ") for line in good) == 1
    told = lines(program, write_machine(tmp_path, {PORT.format(1): name}))
    assert WORKER in told
    assert not any(line.startswith("link ") for line in told)


def test_a_port_without_a_name_is_passed_over(program: Path, tmp_path: Path) -> None:
    files = {**pinning(), "sys/class/virtio-ports/vport0p0/dev": "", "dev/vport0p0": ""}
    told = lines(program, write_machine(tmp_path, files))
    assert WORKER in told
    assert {"give /dev/vport0p0 990 990", "give /dev/vport1p1 990 990"} <= set(told)
    assert sum(line.startswith("link ") for line in told) == 1


def test_two_ports_of_one_name(program: Path, machines: Mapping[str, Machine]) -> None:
    """The second link is refused: which port would be meant is the host's choice."""
    machine = machines["pinning"]
    link = "link /dev/virtio-ports/cloister.operator ../vport1p1"
    told = lines(program, machine.root, machine.told.index(link), errno.EEXIST)
    assert reason(told) == "two ports of one name"


COMMAND: Final = "sysroot/application/command"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("", "the worker's command is empty, or too long"),
        ("/opt/python\n\n-I", "the worker's command is empty, or too long"),
        ("\n".join("x" * 33), "the worker's command is empty, or too long"),
        ("x" * 4095, "a text is too long"),
        (None, "/application/command"),
    ],
    ids=range(5),
)
def test_a_command_that_starts_nobody(
    program: Path, tmp_path: Path, command: str | None, why: str
) -> None:
    assert ends(program, tmp_path, "pinning", {COMMAND: command}) == why


def test_the_longest_command(program: Path, tmp_path: Path) -> None:
    words = ["/opt/python", *("x" * 31)]
    told = lines(program, write_machine(tmp_path, {**pinning(), COMMAND: "\n".join(words)}))
    assert any(line.startswith(f"child: exec /opt/python {' '.join(words)} |") for line in told)


def test_an_enclave_is_asked_for_no_start_disk(program: Path, tmp_path: Path) -> None:
    """Its disks would be its parent's to choose; who starts it says so on a vsock."""
    looks = "read /dev/vdd"
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert looks in lines(program, write_machine(tmp_path / "one", measuring()))
    files = {**enclave(), "dev/vdd": measuring()["dev/vdd"], "sys/class/block/vdd": ""}
    told = lines(program, write_machine(tmp_path / "two", files))
    assert WORKER in told
    assert looks not in told[told.index(RULES) :]
