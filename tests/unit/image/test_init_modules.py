"""Which modules the guest's init loads, over a folder in place of the kernel's /sys."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from support.init_harness import compile_harness, needs_compiler

pytestmark = needs_compiler

HARNESS = r"""
#include "init.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#undef open
#undef opendir
#undef syscall
DIR *opendir(const char *name);
int open(const char *path, int flags, ...);
static char *folder; /* stands for the guest's own root */
static char loading[64];
static const char *within(const char *path)
{
	static char file[4096];
	snprintf(file, sizeof file, "%s%s", folder, path);
	return file;
}
DIR *listed(const char *name) { return opendir(within(name)); }
int opened(const char *path, int flags, ...)
{
	if (!strncmp(path, "/modules/", 9))
		snprintf(loading, sizeof loading, "%s", path + 9);
	return open(within(path), flags);
}
/* A module is "loaded" here: the bus among them brings what stands in /late. */
long called(long number, ...)
{
	char late[4096];
	(void)number;
	printf("%s\n", loading);
	snprintf(late, sizeof late, "%s/late", folder);
	if (strstr(loading, "bus") && rename(late, within("/sys/bus/virtio")))
		return -1;
	return 0;
}
void say(const char *format, ...) { (void)format; }
_Noreturn void halt(const char *why) { fputs(why, stderr); exit(3); }
size_t read_text(const char *path, char *text, size_t size)
{
	FILE *file = fopen(within(path), "r");
	size_t got = file ? fread(text, 1, size - 1, file) : 0;
	text[got] = 0;
	return got;
}
void write_text(const char *path, const char *text) { printf("%s=%s\n", path, text); }
int main(int count, char **arguments)
{
	static char names[1 << 20];
	size_t size = count > 2 ? (size_t)atoi(arguments[2]) : 0;
	folder = arguments[1];
	if (count == 2) {
		load_modules();
		return 0;
	}
	if (size > sizeof names)
		return 4;
	list_hardware("/sys", names, size);
	return has_hardware(names, arguments[3]) ? 0 : 1;
}
"""

GOOGLES_CARD = "pci:v00001AE0d00000042sv00001AE0sd00000058bc02sc00i00"
MACHINE = {
    "bus/pci/devices/0000:00:03.0/modalias": GOOGLES_CARD,
    "bus/acpi/devices/VMBUS:00/modalias": "acpi:VMBUS:",
    "bus/virtio/devices/virtio0/modalias": "virtio:d00000001v00001AF4",
    "bus/platform/devices/sev-guest/modalias": "platform:sev-guest",
    "devices/system/cpu/modalias": "cpu:type:x86,ven0002fam0017mod0001:feature:,0000,0089,0116",
}
TDX = "cpu:type:x86,ven*fam*mod*:feature:*0116*"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The init's own choice, with a beginning of its own."""
    return compile_harness(
        tmp_path_factory.mktemp("modules"),
        HARNESS,
        "modules.c",
        instead=("open=opened", "opendir=listed", "syscall=called"),
    )


def sysfs(folder: Path, machine: Mapping[str, str]) -> Path:
    """A root whose /sys names these devices."""
    for name, said in machine.items():
        path = folder / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(said + "\n")
    return folder


def loaded(program: Path, folder: Path, patterns: str, size: int = 1 << 20) -> bool:
    command = [str(program), str(folder), str(size), patterns]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode in {0, 1}, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize(
    ("patterns", "without"),
    [
        ("pci:v00001AE0d00000042sv*sd*bc*sc*i*", "bus/pci/devices/0000:00:03.0/modalias"),
        ("acpi*:VMBUS:*", "bus/acpi/devices/VMBUS:00/modalias"),
        ("virtio:d00000001v*", "bus/virtio/devices/virtio0/modalias"),
        ("platform:sev-guest", "bus/platform/devices/sev-guest/modalias"),
        (TDX, "devices/system/cpu/modalias"),
        ("virtio:d00000008v* acpi*:VMBUS:*", "bus/acpi/devices/VMBUS:00/modalias"),
        ("acpi*:VMBUS:* virtio:d00000008v*", "bus/acpi/devices/VMBUS:00/modalias"),
    ],
)
def test_where_the_device_is(program: Path, tmp_path: Path, patterns: str, without: str) -> None:
    assert loaded(program, sysfs(tmp_path / "there", MACHINE), patterns)
    fewer = {name: said for name, said in MACHINE.items() if name != without}
    assert not loaded(program, sysfs(tmp_path / "not", fewer), patterns)


@pytest.mark.parametrize(
    "patterns",
    [
        "",
        " ",
        "pci:v00001AE0d00000043sv*sd*bc*sc*i*",
        "virtio:d0000000v*",
        "irtio:d00000001v*",
        "virtio:d00000001v",
        "platform:sev",
        "cpu:type:x86,ven*fam*mod*:feature:*0117*",
    ],
)
def test_no_other_device_will_do(program: Path, tmp_path: Path, patterns: str) -> None:
    machine = sysfs(tmp_path, MACHINE)
    assert loaded(program, machine, "virtio:d00000001v*")
    assert not loaded(program, machine, patterns)


def test_a_machine_without_any_of_the_buses(program: Path, tmp_path: Path) -> None:
    assert not loaded(program, tmp_path, "virtio:d00000001v*")


def test_devices_without_names_are_passed_over(program: Path, tmp_path: Path) -> None:
    machine = sysfs(tmp_path, {"bus/pci/devices/0/modalias": "", **MACHINE})
    (machine / "sys/bus/pci/devices/1").mkdir()
    assert loaded(program, machine, TDX)


def test_more_devices_than_there_is_room_for(program: Path, tmp_path: Path) -> None:
    """Half a list would leave a driver out in silence: the machine powers off instead."""
    machine = sysfs(tmp_path, MACHINE)
    room = sum(len(said) + 1 for said in MACHINE.values())
    assert loaded(program, machine, TDX, size=room + 2)
    for size in (room + 1, room - 20, 2):
        done = subprocess.run(
            [str(program), str(machine), str(size), TDX], capture_output=True, check=False
        )
        assert done.returncode == 3
        assert b"more devices" in done.stderr


BUS = "00-bus.ko virtio:d00000099v* pci:v00001AF4*"
LIST = ("01-always.ko", "02-card.ko virtio:d00000001v*", "03-scsi.ko virtio:d00000008v*")
DOOR = "/proc/sys/kernel/modules_disabled=1"


def loads(program: Path, root: Path, lines: Sequence[str], *, without: str = "") -> list[str]:
    """What is loaded, in order, and what is written after it."""
    (root / "modules").mkdir(exist_ok=True)
    (root / "modules/list").write_text("".join(line + "\n" for line in lines))
    for line in lines:
        (root / "modules" / line.split()[0]).write_bytes(b"module")
    if without:
        (root / "modules" / without).unlink()
    done = subprocess.run([program, root], capture_output=True, text=True, check=False)
    assert done.returncode in {0, 3}, done.stderr
    return done.stdout.splitlines() if done.returncode == 0 else []


def test_only_what_is_here_is_loaded_and_then_the_door_is_shut(
    program: Path, tmp_path: Path
) -> None:
    found = loads(program, sysfs(tmp_path, MACHINE), LIST)
    assert found == ["01-always.ko", "02-card.ko", DOOR]


def test_a_bus_that_is_loaded_brings_its_devices(program: Path, tmp_path: Path) -> None:
    """Where the driver of virtio's bus is a module too."""
    machine = dict(MACHINE)
    card = machine.pop("bus/virtio/devices/virtio0/modalias")
    machine["bus/pci/devices/0000:00:04.0/modalias"] = "pci:v00001AF4d00001041sv*"
    root = sysfs(tmp_path, machine)
    (root / "late/devices/virtio0").mkdir(parents=True)
    (root / "late/devices/virtio0/modalias").write_text(card + "\n")
    assert loads(program, root, LIST) == ["01-always.ko", DOOR]
    assert loads(program, root, (BUS, *LIST)) == ["00-bus.ko", "01-always.ko", "02-card.ko", DOOR]


def test_a_module_that_is_listed_and_not_there(program: Path, tmp_path: Path) -> None:
    """The machine powers off, and the door is not even reached."""
    assert loads(program, sysfs(tmp_path, MACHINE), LIST)
    assert loads(program, tmp_path, LIST, without="02-card.ko") == []
    assert loads(program, tmp_path, LIST, without="03-scsi.ko")
