"""How the guest's init finds the start disk and what it copies, over files in place of devices."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister.attester.start_disk import BLOCK, MAX_DOCUMENT_BYTES, Start, parse_start
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
#include <time.h>
#undef open
#undef opendir
#undef nanosleep
DIR *opendir(const char *name);
int open(const char *path, int flags, ...);
static const char *folder;
static int looks, late;
void say(const char *format, ...) { (void)format; }
_Noreturn void halt(const char *why) { fputs(why, stderr); exit(3); }
DIR *listed(const char *name) { (void)name; return opendir(folder); }
int opened(const char *path, int flags, ...)
{
	char file[4096];
	if (flags & O_CREAT)
		return open(path, flags, 0400);
	snprintf(file, sizeof file, "%s/%s", folder, strrchr(path, '/') + 1);
	return open(file, flags);
}
int made_read_only(int file, unsigned long request, ...)
{
	(void)file; (void)request;
	return 0;
}
/* Nobody waits here; what comes late is there when the init looks for the third time. */
int slept(const struct timespec *time, struct timespec *rest)
{
	char from[4096], to[4096];
	(void)time; (void)rest;
	if (late && ++looks == 2) {
		snprintf(from, sizeof from, "%s/.late", folder);
		snprintf(to, sizeof to, "%s/vdb", folder);
		if (rename(from, to))
			exit(9);
	}
	return 0;
}
int main(int count, char **arguments)
{
	if (count != 5)
		return 9;
	folder = arguments[1];
	late = !strcmp(arguments[4], "late");
	return copy_start_disk(arguments[2], !strcmp(arguments[3], "port")) ? 0 : 4;
}
"""

START = Start(api_keys=b"table", manifest=b"bundle" * 20000)
DATA = START.encode()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_harness(
        tmp_path_factory.mktemp("start"),
        HARNESS,
        *("disk.c", "start.c"),
        instead=("open=opened", "opendir=listed", "ioctl=made_read_only", "nanosleep=slept"),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """What the init made of a machine's disks."""

    status: int
    reason: str
    copied: bytes | None


def found(program: Path, folder: Path, disks: Mapping[str, bytes], *, port: bool = False) -> Found:
    folder.mkdir()
    (folder / "devices").mkdir()
    for name, data in disks.items():
        (folder / "devices" / name).write_bytes(data)
    copy = folder / "copy"
    words = ["port" if port else "none", "late" if ".late" in disks else "now"]
    done = subprocess.run(
        [program, folder / "devices", copy, *words], capture_output=True, text=True, check=False
    )
    return Found(done.returncode, done.stderr, copy.read_bytes() if copy.exists() else None)


def good(program: Path, folder: Path) -> None:
    assert found(program, folder, {"vda": bytes(9000), "vdb": START.disk()}) == Found(0, "", DATA)


@pytest.mark.parametrize("size", [len(DATA), len(DATA) + 1, 1 << 25])
def test_the_worker_gets_what_is_there_and_nothing_behind_it(
    program: Path, tmp_path: Path, size: int
) -> None:
    disks = {"vda": bytes(9000), "vdb": DATA.ljust(size, b"x")}
    at = found(program, tmp_path / "at", disks)
    assert at == Found(0, "", DATA)
    assert parse_start(at.copied or b"") == START
    assert (tmp_path / "at" / "copy").stat().st_mode & 0o777 == 0o400


def test_a_machine_without_one(program: Path, tmp_path: Path) -> None:
    good(program, tmp_path / "good")
    for name, disks in (("none", {"vda": bytes(9000)}), ("small", {"vda": DATA[: BLOCK - 1]})):
        for port in (False, True):
            at = found(program, tmp_path / f"{name}{port}", disks, port=port)
            assert at == Found(4, "", None)


def test_one_that_comes_late_is_waited_for_where_there_is_no_port(
    program: Path, tmp_path: Path
) -> None:
    late = {"vda": bytes(9000), ".late": START.disk()}
    assert found(program, tmp_path / "none", late) == Found(0, "", DATA)
    assert found(program, tmp_path / "port", late, port=True) == Found(4, "", None)


def test_two_are_none(program: Path, tmp_path: Path) -> None:
    good(program, tmp_path / "good")
    at = found(program, tmp_path / "two", {"vda": START.disk(), "vdb": START.disk()})
    assert at == Found(3, "two start disks", None)


def test_the_largest_and_one_more(program: Path, tmp_path: Path) -> None:
    def of(size: int) -> bytes:
        line = f"cloister-start/1 {size} {'0' * 64}\n".encode()
        return line.ljust(BLOCK, b"\0") + bytes(size)

    largest = of(MAX_DOCUMENT_BYTES)
    assert found(program, tmp_path / "largest", {"vdb": largest}) == Found(0, "", largest)
    at = found(program, tmp_path / "more", {"vdb": of(MAX_DOCUMENT_BYTES + 1)})
    assert at == Found(3, "the start disk says no size that is accepted", None)


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        (DATA[:-1], "the start disk is cut off"),
        (DATA[:BLOCK], "the start disk is cut off"),
        (b"cloister-start/1 ".ljust(BLOCK, b"\0"), "the start disk begins with no header"),
        (b"cloister-start/1 ".ljust(BLOCK, b"1"), "the start disk begins with no header"),
        (b"cloister-start/1 0 x".ljust(BLOCK), "the start disk says no size that is accepted"),
        (b"cloister-start/1 -1 x".ljust(BLOCK), "the start disk says no size that is accepted"),
        (b"cloister-start/1 01 x".ljust(BLOCK), "the start disk says no size that is accepted"),
        (
            b"cloister-start/1 18446744073709551616 x".ljust(BLOCK),
            "the start disk says no size that is accepted",
        ),
    ],
    ids=range(8),
)
def test_one_that_does_not_decode_ends_the_guest_with_that_reason(
    program: Path, tmp_path: Path, disk: bytes, reason: str
) -> None:
    good(program, tmp_path / "good")
    for port in (False, True):
        at = found(program, tmp_path / f"bad{port}", {"vdb": disk}, port=port)
        assert (at.status, at.reason) == (3, reason)
