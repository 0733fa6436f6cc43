"""The guest's init from its first instruction to the worker's, on machines of files.

In which order it asks what of the kernel, with which rights the worker runs, and that it goes on to
no worker where the kernel refuses anything that counts, or the machine is not as it has to be.
"""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from support.init_harness import needs_compiler
from support.init_machine import (
    DISKS,
    FIRST,
    ROOT_ARGUMENT,
    compile_machine,
    disk,
    enclave,
    lines,
    measuring,
    pinning,
    write_machine,
)

pytestmark = needs_compiler

MACHINES: Final = {"measuring": measuring, "pinning": pinning, "enclave": enclave}
WORKER: Final = (
    "child: exec /opt/cloister/bin/python /opt/cloister/bin/python -I /application/start.py |"
    " PATH=/usr/bin:/usr/sbin LANG=C.UTF-8 HOME=/run/cloister TMPDIR=/run/cloister"
)
BOOT_LOG: Final = b"the firmware's log"
RULES: Final = (
    "child: exec /usr/sbin/nft /usr/sbin/nft -f /application/nftables.conf |"
    " PATH=/usr/sbin:/usr/bin"
)
OFF: Final = "reboot 4321fedc"
AGAIN: Final = "reboot 1234567"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_machine(tmp_path_factory.mktemp("init"))


@dataclass(frozen=True, slots=True)
class Machine:
    root: Path
    told: list[str]
    """What the init asks of it where all goes well."""


@pytest.fixture(scope="module")
def machines(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Machine]:
    made = {}
    for name, files in MACHINES.items():
        root = write_machine(tmp_path_factory.mktemp(name), files())
        told = lines(program, root)
        assert WORKER in told
        made[name] = Machine(root, told)
    return made


def reason(told: list[str]) -> str:
    """Why a machine ended that never came to its worker."""
    assert WORKER not in told
    ((why,),) = [re.findall(r"say power off: (.*) \(errno", line) for line in told[-2:-1]]
    return str(why)


def ends(
    program: Path,
    folder: Path,
    kind: str,
    changes: Mapping[str, str | bytes | None],
) -> str:
    """Why a machine with other files ends; None is a file that is not there."""
    files = MACHINES[kind]()
    (folder / "good").mkdir()
    assert WORKER in lines(program, write_machine(folder / "good", files))
    changed = {name: said for name, said in {**files, **changes}.items() if said is not None}
    (folder / "changed").mkdir()
    return reason(lines(program, write_machine(folder / "changed", changed)))


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


KERNEL: Final = [
    "mount proc /proc proc nosuid,nodev,noexec",
    "mount sysfs /sys sysfs nosuid,nodev,noexec",
    "mount devtmpfs /dev devtmpfs nosuid,noexec",
    "mount securityfs /sys/kernel/security securityfs nosuid,nodev,noexec",
    "mount tmpfs /run tmpfs nosuid,nodev mode=0755,size=25%",
]
NO_MORE_MODULES: Final = [
    "load /modules/01-verity.ko",
    "write /proc/sys/kernel/modules_disabled 1",
]
MOVED: Final = [
    *(f"mount {one} /sysroot{one} - move" for one in ("/proc", "/sys", "/dev", "/run")),
    *("chdir /sysroot", "mount . / - move", "chroot .", "chdir /"),
]
LAST: Final = [RULES, "mount configfs /sys/kernel/config configfs nosuid,nodev,noexec", WORKER]
ORDERED: Final = (
    r"mount |verity |load |write /dev/tpm0|chdir|chroot|child: exec|entropy|loop|write socket"
    r"|write /proc/sys/kernel/modules_disabled"
)


def ordered(machine: Machine) -> list[str]:
    return [line for line in machine.told if re.match(ORDERED, line)]


def opened(kind: str, device: str, mapped: int, options: str) -> list[str]:
    """A disk under dm-verity, of which a wrong block is a panic."""
    one = DISKS[kind]
    where = "/sysroot" if kind == "root" else f"/sysroot/{kind}"
    return [
        f"verity create {kind} ro",
        f"verity load {kind} ro 1 0 {one.data_blocks * 8} verity 1 {device} {device} 4096 4096"
        f" {one.data_blocks} {one.hash_start} sha256 {one.root_hash} {one.salt}"
        " 1 panic_on_corruption",
        f"verity start {kind} ro",
        f"mount /dev/dm-{mapped} {where} {one.fs} {options}",
    ]


def extended(pcr: int, data: bytes) -> str:
    """TPM2_PCR_Event under an empty password (TPM 2.0 Library, Part 3 section 22.3)."""
    session = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
    body = struct.pack(">II", pcr, len(session)) + session + struct.pack(">H", len(data)) + data
    return f"write /dev/tpm0 {(struct.pack('>HII', 0x8002, 10 + len(body), 0x13C) + body).hex()}"


def test_a_disk_is_measured_then_its_register_closed_and_only_then_read(
    machines: Mapping[str, Machine],
) -> None:
    assert ordered(machines["measuring"]) == [
        *KERNEL,
        *NO_MORE_MODULES,
        *opened("root", "/dev/vda", 0, "ro,nosuid,nodev"),
        extended(14, DISKS["application"].line()),
        extended(14, bytes(4)),
        *opened("application", "/dev/vdb", 1, "ro,nosuid,nodev,noexec"),
        extended(15, DISKS["model"].line()),
        extended(15, bytes(4)),
        *opened("model", "/dev/vdc", 2, "ro,nosuid,nodev,noexec"),
        *MOVED,
        *LAST,
    ]


def test_a_line_that_names_each_disk_needs_no_measuring(machines: Mapping[str, Machine]) -> None:
    assert ordered(machines["pinning"]) == [
        *KERNEL,
        *NO_MORE_MODULES,
        *opened("root", "/dev/vda", 0, "ro,nosuid,nodev"),
        *opened("application", "/dev/vdb", 1, "ro,nosuid,nodev,noexec"),
        *opened("model", "/dev/vdc", 2, "ro,nosuid,nodev,noexec"),
        *MOVED,
        *LAST,
    ]


def test_an_enclave_has_random_numbers_before_anything_and_a_ramdisk_for_disks(
    machines: Mapping[str, Machine],
) -> None:
    folders = [
        line
        for kind in ("application", "model")
        for line in (
            f"mount /ramdisk/{kind} /sysroot/{kind} - bind",
            f"mount - /sysroot/{kind} - ro,nosuid,nodev,noexec,bind,remount",
        )
    ]
    assert ordered(machines["enclave"]) == [
        *KERNEL,
        *NO_MORE_MODULES,
        f"entropy 2048 bits {bytes(range(256)).hex()}",
        "write socket b7",
        "loop free",
        "loop /dev/loop0 /ramdisk/root.img ro",
        *opened("root", "/dev/loop0", 0, "ro,nosuid,nodev"),
        *folders,
        *MOVED,
        *LAST,
    ]
    # Family, port 9000 and the parent's address; then for how long it may take to answer.
    assert "connect 28000000282300000300000000000000" in machines["enclave"].told
    assert "socket option 14000000000000000000000000000000" in machines["enclave"].told


def test_a_disk_that_the_line_names_is_measured_where_there_is_a_tpm(
    program: Path, tmp_path: Path
) -> None:
    """The same registers as with `measured`; and closed ones where there is no disk."""
    named = " ".join((FIRST, *(f"cloister.{kind}={one.argument()}" for kind, one in DISKS.items())))
    told = lines(program, write_machine(tmp_path, {**measuring(), "proc/cmdline": named}))
    found = [line for line in told if line.startswith("write /dev/tpm0")]
    assert found == [
        extended(14, DISKS["application"].line()),
        extended(14, bytes(4)),
        extended(15, DISKS["model"].line()),
        extended(15, bytes(4)),
    ]
    for line in (f"{FIRST} {ROOT_ARGUMENT}", f"{FIRST} {ROOT_ARGUMENT} cloister.model=none"):
        told = lines(program, write_machine(tmp_path, {"proc/cmdline": line}))
        found = [line for line in told if line.startswith("write /dev/tpm0")]
        assert found == [extended(14, bytes(4)), extended(15, bytes(4))]
        assert not any("/sysroot/model" in line for line in told)


SETTINGS: Final = {
    "kernel/kexec_load_disabled": "1",
    "kernel/yama/ptrace_scope": "3",
    "kernel/unprivileged_bpf_disabled": "1",
    "kernel/core_pattern": "|/nonexistent",
    "fs/suid_dumpable": "0",
    "kernel/sysrq": "0",
    "kernel/dmesg_restrict": "1",
    "kernel/printk": "0",
    "kernel/kptr_restrict": "2",
    "kernel/perf_event_paranoid": "3",
    "kernel/panic_on_oops": "1",
    "vm/unprivileged_userfaultfd": "0",
    "net/core/bpf_jit_harden": "2",
    "net/ipv4/ip_forward": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
    "net/ipv4/conf/all/rp_filter": "1",
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
}


@pytest.mark.parametrize("kind", MACHINES)
def test_what_the_kernel_may_no_longer_do_before_anything_comes_in(
    machines: Mapping[str, Machine], kind: str
) -> None:
    told = machines[kind].told
    written = {
        name: (number, value)
        for number, line in enumerate(told)
        for name, value in re.findall(r"^write /proc/sys/(\S+) (.*)", line)
    }
    assert {name: value for name, (_, value) in written.items()} == {
        "kernel/modules_disabled": "1",
        **SETTINGS,
    }
    rules, up = told.index(RULES), told.index("flags of lo 1")
    assert max(number for number, _ in written.values()) < rules < up
    assert told.index("say network rules") < up


@pytest.mark.parametrize("kind", MACHINES)
def test_the_worker_is_an_ordinary_user_without_rights_or_files(
    machines: Mapping[str, Machine], kind: str
) -> None:
    told = machines[kind].told
    rights = [line.removeprefix("child: ") for line in told if line.startswith("child: ")]
    assert rights[rights.index("setsid") :] == [
        *("setsid", "dup2 - 0", "dup2 /dev/console 1", "dup2  2"),
        *(f"close {file}" for file in range(3, 64)),
        "umask 0077",
        *(f"prctl 24 {capability}" for capability in range(64)),
        *("limit 4 1 1", "limit 8 -1 -1", "limit 7 65536 65536"),
        *("setgroups 0", "setresgid 990 990 990", "setresuid 990 990 990", "prctl 38 1"),
        WORKER.removeprefix("child: "),
    ]
    assert "mkdir /run/cloister 0700" in told


def given(told: list[str]) -> list[str]:
    found = [re.findall(r"^give (\S+) 990 990$", line) for line in told if "give" in line]
    return sorted(name for names in found for name in names)


def test_what_the_worker_is_given(machines: Mapping[str, Machine]) -> None:
    """No disk, nothing of the kernel's but what makes evidence, and the ports."""
    assert given(machines["measuring"].told) == [
        *("/dev/tpm0", "/dev/tpmrm0", "/run/cloister", "/run/cloister/start")
    ]
    report = "/sys/kernel/config/tsm/report/cloister"
    assert given(machines["pinning"].told) == [
        *("/dev/sev-guest", "/dev/vport1p1", "/run/cloister"),
        *(f"{report}/inblob", f"{report}/outblob"),
    ]
    assert given(machines["enclave"].told) == ["/dev/nsm", "/run/cloister"]
    copied = machines["measuring"].told
    assert "open /run/cloister/boot-log new 0444" in copied
    assert f"write /run/cloister/boot-log {BOOT_LOG.hex()}" in copied
    assert "open /run/cloister/start new 0400" in copied
    assert "link /dev/virtio-ports/cloister.operator ../vport1p1" in machines["pinning"].told


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
