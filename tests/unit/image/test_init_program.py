"""The guest's init: the same bytes wherever it is compiled, and the same idea of a disk as ours."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cloister.errors import BuildError, MalformedError
from cloister.image.footer import BLOCK, DiskFooter, parse_footer
from cloister.image.init_program import SOURCES, compile_init
from support.init_harness import COMPILER, HEADERS, SOURCE, compile_harness, needs_compiler

pytestmark = needs_compiler

HARNESS = r"""
#include "init.h"
#include <stdio.h>
#include <stdlib.h>
void say(const char *format, ...) { (void)format; }
_Noreturn void halt(const char *why) { fputs(why, stderr); exit(3); }
int main(int count, char **arguments)
{
	struct disk disk;
	(void)count;
	parse_spec("model", arguments[1], &disk);
	printf("%s %s %llu %llu %s %s", disk.kind, disk.fs, disk.data_blocks, disk.hash_start,
		disk.root_hash, disk.salt);
	return 0;
}
"""


def run(command: Sequence[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_equal_bytes_in_any_folder(tmp_path: Path) -> None:
    assert COMPILER is not None
    programs = []
    for name in ("one", "a/longer/way"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        programs.append(compile_init(folder, run=run, compiler=COMPILER))
    assert programs[0] == programs[1]
    assert programs[0].startswith(b"\x7fELF")
    assert str(tmp_path).encode() not in programs[0]


def test_a_compiler_that_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        compile_init(tmp_path, run=lambda command, folder: None)
    assert caught.value.code == "image.init"


def test_every_source_is_compiled() -> None:
    assert set(SOURCES) == {path.name for path in SOURCE.glob("*.c")}


def test_it_is_nobodys_program(tmp_path: Path) -> None:
    """Started by hand it does nothing: it is for process 1."""
    assert COMPILER is not None
    program = compile_init(tmp_path, run=run, compiler=COMPILER)
    assert program
    done = subprocess.run([tmp_path / "init"], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout == done.stderr == b""


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The init's own parser of a disk's description, with a beginning of its own."""
    return compile_harness(tmp_path_factory.mktemp("parser"), HARNESS, "disk.c")


DISK = DiskFooter(
    kind="model", fs="erofs", data_blocks=1536, hash_start=1537, root_hash="ab" * 32, salt="cd" * 32
)
SPEC = DISK.argument()


def told(parser: Path, spec: str) -> str | None:
    done = subprocess.run([parser, spec], capture_output=True, text=True, check=False)
    assert done.returncode in {0, 3}
    return done.stdout if done.returncode == 0 else None


def test_both_read_the_same(parser: Path) -> None:
    assert told(parser, SPEC) == DISK.line().decode().removeprefix("cloister-disk/1 ").strip()


@pytest.mark.parametrize(
    "spec",
    [
        "",
        ":" * 4,
        SPEC + ":more",
        SPEC + ":",
        SPEC.replace("erofs", "ext4"),
        SPEC.replace("erofs", "erofs "),
        SPEC.replace(":1536:", ":0:"),
        SPEC.replace(":1536:", ":-1536:"),
        SPEC.replace(":1536:", ":+1536:"),
        SPEC.replace(":1536:", ": 1536:"),
        SPEC.replace(":1536:", ":01536:"),
        SPEC.replace(":1536:", ":0x600:"),
        SPEC.replace(":1536:", ":1538:"),
        SPEC.replace(":1537:", ":99999999999999999999999:"),
        SPEC.replace(":1537:", f":{(1 << 40) + 1}:"),
        SPEC.replace("ab" * 32, "AB" * 32),
        SPEC.replace("ab" * 32, "ab" * 31),
        SPEC.replace("ab" * 32, "ab" * 33),
        SPEC.replace("cd" * 32, "cg" * 32),
        SPEC.replace("cd" * 32, "1 panic " + "cd" * 28),
        "x" * 300,
    ],
)
def test_neither_takes_anything_else(parser: Path, spec: str) -> None:
    assert told(parser, SPEC) is not None
    assert told(parser, spec) is None


FINDER = r"""
#include "init.h"
#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#undef open
#undef opendir
DIR *opendir(const char *name);
int open(const char *path, int flags, ...);
static const char *folder;
void say(const char *format, ...) { (void)format; }
_Noreturn void halt(const char *why) { fputs(why, stderr); exit(3); }
/* The files of a folder in the place of block devices; BLKROSET goes unheard. */
DIR *listed(const char *name) { (void)name; return opendir(folder); }
int opened(const char *path, int flags, ...)
{
	char file[4096];
	snprintf(file, sizeof file, "%s/%s", folder, strrchr(path, '/') + 1);
	return open(file, flags);
}
int sized(int file, unsigned long request, ...)
{
	struct stat found;
	va_list rest;
	(void)request;
	va_start(rest, request);
	void *size = va_arg(rest, void *);
	va_end(rest);
	if (fstat(file, &found))
		return -1;
	unsigned long long bytes = (unsigned long long)found.st_size;
	if ((unsigned)request == BLKGETSIZE64)
		memcpy(size, &bytes, sizeof bytes);
	return 0;
}
int main(int count, char **arguments)
{
	struct disk disk;
	char line[SPEC_TEXT], device[64];
	if (count != 4)
		return 9;
	folder = arguments[2];
	if (!strcmp(arguments[1], "only")) {
		find_only(arguments[3], &disk, line, device, sizeof device);
		printf("%s", line);
	} else if (footer_of(arguments[3], &disk, line, sizeof line)) {
		printf("%scloister-disk/1 %s %s %llu %llu %s %s\n", line, disk.kind, disk.fs,
			disk.data_blocks, disk.hash_start, disk.root_hash, disk.salt);
	} else {
		return 4;
	}
	return 0;
}
"""


@pytest.fixture(scope="module")
def finder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The init's own search for disks, over files in the place of devices."""
    return compile_harness(
        tmp_path_factory.mktemp("finder"),
        FINDER,
        "disk.c",
        instead=("open=opened", "opendir=listed", "ioctl=sized"),
    )


LINE = DISK.line()


def footer_told(finder: Path, folder: Path, disk: bytes) -> bytes | None:
    """The line that the init would measure, if `disk` ends with one that it takes."""
    (folder / "disk").write_bytes(disk)
    command = (str(finder), "footer", str(folder), "/dev/disk")
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode in {0, 4}
    if done.returncode:
        return None
    measured, used = done.stdout.splitlines(keepends=True)
    assert measured == used, "what is measured says all that is used"
    return measured


@pytest.mark.parametrize(
    "block",
    [
        LINE[:-1],
        LINE + b"x",
        LINE.ljust(BLOCK - 1, b"\0") + b"x",
        LINE + LINE,
        LINE[:-1] + b"\0\n",
        LINE[:-1] + b" \n",
        LINE[:-1] + b" more\n",
        b"\0" + LINE,
        LINE.replace(b"/1 ", b"/2 "),
        LINE.replace(b"model", b"m" * 16),
        LINE.replace(b"model", b"m" * 300),
        LINE.replace(b" erofs", b"  erofs"),
        LINE.replace(b"erofs", b"ext4"),
        LINE.replace(b"1536", b"01536"),
        LINE.replace(b"1537", b"1535"),
        LINE.replace(b"ab" * 32, b"AB" * 32),
        LINE.replace(b"cd" * 32, b"cd" * 31 + b"\0d"),
        b"x" * BLOCK,
    ],
)
def test_both_read_the_same_footers(finder: Path, tmp_path: Path, block: bytes) -> None:
    good = bytes(BLOCK) + DISK.encode()
    assert footer_told(finder, tmp_path, good) == LINE
    changed = block.ljust(BLOCK, b"\0")
    with pytest.raises(MalformedError):
        parse_footer(changed)
    assert footer_told(finder, tmp_path, bytes(BLOCK) + changed) is None


@pytest.mark.parametrize("size", [0, 1, BLOCK, 2 * BLOCK - 1])
def test_a_device_without_room_for_a_disk_is_none(finder: Path, tmp_path: Path, size: int) -> None:
    good = bytes(BLOCK) + DISK.encode()
    assert footer_told(finder, tmp_path, good) == LINE
    assert footer_told(finder, tmp_path, good[len(good) - size :]) is None


def test_two_disks_of_one_kind_are_none(finder: Path, tmp_path: Path) -> None:
    """Which of them would be measured is nobody's to choose; equal ones are two as well."""
    devices = tmp_path / "devices"
    devices.mkdir()
    command = (str(finder), "only", str(devices), "model")
    (devices / "vda").write_bytes(bytes(BLOCK) + DISK.encode())
    (devices / "vdb").write_bytes(
        bytes(BLOCK) + dataclasses.replace(DISK, kind="application").encode()
    )
    alone = subprocess.run(command, capture_output=True, check=False)
    assert (alone.returncode, alone.stdout) == (0, LINE)
    (devices / "vda1").write_bytes((devices / "vda").read_bytes())
    both = subprocess.run(command, capture_output=True, check=False)
    assert (both.returncode, both.stderr) == (3, b"two disks of one kind")


COMPARER = r"""
#include "init.h"
int main(int count, char **arguments)
{
	return count == 3 && same_command_line(arguments[1], arguments[2]) ? 0 : 4;
}
"""


@pytest.fixture(scope="module")
def comparer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The init's own comparison of command lines; all of it but where it begins."""
    folder = tmp_path_factory.mktemp("comparer")
    (folder / "harness.c").write_text(COMPARER)
    assert COMPILER is not None
    flags = ("-std=c11", "-static", f"-I{SOURCE}", *HEADERS)
    run((COMPILER, *flags, "-Dmain=init_main", "-c", str(SOURCE / "init.c")), folder)
    others = [str(SOURCE / name) for name in SOURCES if name != "init.c"]
    run((COMPILER, *flags, "-o", "comparer", "harness.c", "init.o", *others), folder)
    return folder / "comparer"


MEASURED_LINE = "console=ttyS0 panic=-1 cloister.root=a:b"
DEVICE = " virtio_mmio.device=4K@0xd0000000:5"


def compared(comparer: Path, found: str) -> bool:
    done = subprocess.run([comparer, MEASURED_LINE, found], capture_output=True, check=False)
    assert done.returncode in {0, 4}
    return done.returncode == 0


@pytest.mark.parametrize(
    "more",
    [
        *("", DEVICE, DEVICE + " virtio_mmio.device=512@0xfeb00e00:12", " " + DEVICE),
        *(" initrd=initrd", " initrd=initrd" + DEVICE),
    ],
)
def test_a_hypervisor_may_say_where_its_devices_are(comparer: Path, more: str) -> None:
    assert compared(comparer, MEASURED_LINE + more)


@pytest.mark.parametrize(
    "found",
    [
        "",
        MEASURED_LINE[:-1],
        MEASURED_LINE[1:],
        MEASURED_LINE.replace("panic=-1", "panic=-2"),
        MEASURED_LINE.replace("panic=-1", "panic=-2") + DEVICE,
        *(MEASURED_LINE + more for more in ("initrd=initrd", " initrd=other", " initrd=initrdx")),
        *(MEASURED_LINE + more for more in (" initrd=", " initrd=initrd init=/bin/sh")),
        DEVICE[1:] + " " + MEASURED_LINE,
        MEASURED_LINE + "c",
        MEASURED_LINE + " ",
        MEASURED_LINE + DEVICE[1:],
        MEASURED_LINE + " init=/bin/sh",
        MEASURED_LINE + " lockdown=none" + DEVICE,
        MEASURED_LINE + DEVICE + " lockdown=none",
        MEASURED_LINE + DEVICE + ",lockdown=none",
        MEASURED_LINE + DEVICE + "\tlockdown=none",
        MEASURED_LINE + DEVICE + DEVICE[1:],
        MEASURED_LINE + DEVICE + ":6",
        MEASURED_LINE + DEVICE.replace("device=", "devicf="),
        MEASURED_LINE + DEVICE.replace("virtio_mmio.device=", "init=/root/xxxxxxxxx"),
        MEASURED_LINE + DEVICE.replace("@", ":"),
        MEASURED_LINE + DEVICE.replace("@", " "),
        MEASURED_LINE + DEVICE.replace(":", "@"),
        MEASURED_LINE + DEVICE.replace(":", ","),
        MEASURED_LINE + " virtio_mmio.device=@0xd0000000:5",
        MEASURED_LINE + " virtio_mmio.device=4K@:5",
        MEASURED_LINE + " virtio_mmio.device=4K@0xd0000000:",
        MEASURED_LINE + " virtio_mmio.device=4K@0xd0000000",
        MEASURED_LINE + " virtio_mmio.device=4K",
        MEASURED_LINE + ' virtio_mmio.device="4K init=/x"@0xd0000000:5',
    ],
)
def test_any_other_command_line_is_not_the_measured_one(comparer: Path, found: str) -> None:
    assert compared(comparer, MEASURED_LINE)
    assert compared(comparer, MEASURED_LINE + DEVICE)
    assert not compared(comparer, found)
