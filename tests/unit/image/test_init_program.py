"""The guest's init: the same bytes wherever it is compiled, and the same idea of a disk as ours."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cloister.errors import BuildError
from cloister.image.footer import DiskFooter
from cloister.image.init_program import COMPILERS, SOURCES, compile_init

COMPILER = next((name for name in COMPILERS if shutil.which(name)), None)
SOURCE = Path(compile_init.__code__.co_filename).parent / "init"

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="no C compiler (musl-tools or gcc) is installed"
)

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
    folder = tmp_path_factory.mktemp("parser")
    (folder / "harness.c").write_text(HARNESS)
    assert COMPILER is not None
    headers = ("-idirafter", "/usr/include", "-idirafter", "/usr/include/x86_64-linux-gnu")
    sources = ("harness.c", str(SOURCE / "disk.c"))
    flags = ("-std=c11", "-static", f"-I{SOURCE}", *headers)
    run((COMPILER, *flags, "-o", "parser", *sources), folder)
    return folder / "parser"


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
