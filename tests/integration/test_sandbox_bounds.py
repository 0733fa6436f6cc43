"""What an engine could take from the whole machine, and where it is stopped."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.engine import sandbox, warden
from cloister.engine.confined import Confined, Program
from cloister.engine.sandbox import Sandbox
from cloister.errors import EngineError
from support.processes import processes

pytestmark = pytest.mark.sandbox

GLUTTON = Path(__file__).parent / "sandbox_glutton.py"
PROBE = Path(__file__).parent / "sandbox_probe.py"
SOURCE = Path(sandbox.__file__).parents[2]


def outside(way: str, limit: int, directory: Path) -> list[Any]:
    """How much the program gets without a sandbox."""
    done = subprocess.run(
        [sys.executable, "-B", str(GLUTTON), "print", way, str(limit)],
        env={"TMPDIR": str(directory)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    found: list[Any] = json.loads(done.stdout)
    return found


async def inside(way: str, limit: int, **bounds: int) -> list[Any] | None:
    """How much it gets in the sandbox; None if it was ended."""
    bare = Program(script=GLUTTON, arguments=(way, str(limit)))
    program = replace(bare, **bounds)  # type: ignore[arg-type]  # names of its bounds only
    confined = await Sandbox().spawn(program)
    try:
        if await _ready(confined):
            reader, writer = await asyncio.open_unix_connection(confined.open_socket("engine.sock"))
            data = await reader.read()
            writer.close()
            return json.loads(data) if data else None
        return None
    finally:
        await confined.aclose()
        assert not confined.alive


async def _ready(confined: Confined) -> bool:
    try:
        return await confined.word() == b"ready"
    except EngineError:
        return False


@pytest.mark.parametrize(
    ("way", "limit", "bounds", "most"),
    [
        ("memory", 300, {"memory": 100 << 20}, 100),
        ("addresses", 40, {"addresses": 10 << 30}, 10),
        ("descriptors", 400, {"descriptors": 200}, 200),
    ],
)
async def test_the_kernel_refuses_more_than_its_bound(
    tmp_path: Path, way: str, limit: int, bounds: dict[str, int], most: int
) -> None:
    assert outside(way, limit, tmp_path) == [limit, "limit"]
    unbounded = dict.fromkeys(bounds, 0)
    assert await inside(way, limit, **unbounded) == [limit, "limit"]
    found = await inside(way, limit, **bounds)
    assert found is not None
    assert 0 < found[0] <= most
    assert found[1] in ("ENOMEM", "EMFILE")


async def test_a_bomb_of_threads_is_stopped(tmp_path: Path) -> None:
    """By the kernel for an ordinary user's engine, by the warden for root's."""
    assert outside("threads", 1_500, tmp_path) == [1_500, "limit"]
    assert await inside("threads", 50, threads=100) == [50, "limit"]
    found = await inside("threads", 30_000, threads=100)
    if os.geteuid() == 0:
        assert found is None
    else:
        assert found is not None
        assert found[1] == "EAGAIN"
        assert found[0] <= 100


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """Cloister and the program where every user may read them."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        shutil.copytree(SOURCE / "cloister", directory / "cloister")
        shutil.copy(GLUTTON, directory)
        for path in directory.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield directory


@pytest.mark.skipif(os.geteuid() != 0, reason="the other test already runs unprivileged")
def test_threads_of_an_ordinary_users_engine_are_bound_by_the_kernel(everybodys: Path) -> None:
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    suits = "import sys; assert sys.version_info >= (3, 11); open(sys._base_executable).close()"
    found = [
        python
        for python in (sys.executable, "/usr/bin/python3")
        if subprocess.run([*drop, python, "-c", suits], capture_output=True, check=False).returncode
        == 0
    ]
    if not found:
        pytest.skip("THREADS OF ORDINARY USERS NOT TRIED: no Python 3.11 that one may run")
    code = (
        "import asyncio\n"
        "from pathlib import Path\n"
        "from cloister.engine.confined import Program\n"
        "from cloister.engine.sandbox import Sandbox\n"
        "async def take(limit):\n"
        f"    program = Program(script=Path({str(everybodys / GLUTTON.name)!r}),\n"
        "        arguments=('threads', str(limit)), threads=100)\n"
        "    confined = await Sandbox().spawn(program)\n"
        "    await confined.word()\n"
        "    path = confined.open_socket('engine.sock')\n"
        "    reader, writer = await asyncio.open_unix_connection(path)\n"
        "    print((await reader.read()).decode())\n"
        "    await confined.aclose()\n"
        "asyncio.run(take(50))\n"
        "asyncio.run(take(1000))\n"
    )
    done = subprocess.run(
        [*drop, found[0], "-B", "-c", code],
        env={"PYTHONPATH": str(everybodys)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    few, many = (json.loads(line) for line in done.stdout.splitlines())
    assert few == [50, "limit"]
    assert many[0] < 100
    assert many[1] == "EAGAIN"


async def test_a_flood_of_sockets_is_stopped_before_it_is_ready(tmp_path: Path) -> None:
    assert outside("sockets", 500, tmp_path) == [500, "limit"]
    assert await inside("sockets-early", 20) == [20, "limit"]
    assert await inside("sockets-early", 10_000_000) is None


async def test_once_it_is_ready_it_can_make_no_other_socket() -> None:
    assert await inside("sockets", 500) == [0, "EACCES"]


async def test_limits_are_those_that_the_kernel_enforces() -> None:
    program = Program(
        script=GLUTTON,
        arguments=("memory", "1"),
        memory=1 << 30,
        addresses=1 << 33,
        threads=77,
        descriptors=99,
    )
    confined = await Sandbox().spawn(program)
    try:
        assert await confined.word() == b"ready"
        inner = max(processes(confined.pid))
        limits = Path(f"/proc/{inner}/limits").read_text()
        for name, value in {
            "Max data size": 1 << 30,
            "Max address space": 1 << 33,
            "Max processes": 77,
            "Max open files": 99,
            "Max locked memory": 0,
            "Max core file size": 0,
            "Max file size": 0,
        }.items():
            line = next(line for line in limits.splitlines() if line.startswith(name))
            assert line[len(name) :].split()[:2] == [str(value)] * 2, line
        assert os.getpriority(os.PRIO_PROCESS, inner) >= min(
            19, os.getpriority(os.PRIO_PROCESS, 0) + 5
        )
        # Who sent the first word is who is watched: the program, not bubblewrap.
        assert confined._program == inner
        assert warden.threads_of(inner) >= 1
    finally:
        await confined.aclose()


def test_the_count_of_a_process_that_is_gone_is_nothing() -> None:
    assert warden.threads_of(os.getpid()) >= 1
    assert warden.threads_of(2**22 + 1) == 0
    assert warden.entries_of(-1) == 0


def test_a_crash_leaves_no_core(tmp_path: Path) -> None:
    """Outside the kernel says that it dumped, where it writes dumps to files."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    if pattern.startswith(("|", "@", "/")):
        pytest.skip("CORE DUMPS NOT TRIED: this machine hands them to a program or another folder")
    crash = (
        "import ctypes, os, resource, sys\n"
        "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))\n"
        "from cloister.engine import confine, seccomp\n"
        "seccomp.install = lambda *_: None\n"
        "if sys.argv[1] == 'confined':\n"
        "    confine.confine('/tmp', (0, 0, 0, 0))\n"
        "ctypes.string_at(8)\n"
    )

    def crashed(way: str) -> list[Path]:
        folder = tmp_path / way
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", crash, way],
            cwd=folder,
            env={"PYTHONPATH": str(SOURCE)},
            check=False,
            timeout=60,
        )
        assert done.returncode == -signal.SIGSEGV
        return list(folder.iterdir())

    if not crashed("free"):
        pytest.skip("CORE DUMPS NOT TRIED: the limit of this machine allows none")
    assert crashed("confined") == []


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="there is no other ABI to call")
def test_a_call_by_the_32_bit_abi_ends_the_program() -> None:
    """``int 0x80`` with getpid's number there, 20, which is writev's here and allowed."""
    code = (
        "import ctypes, mmap, os, sys\n"
        "from cloister.engine import seccomp\n"
        "page = mmap.mmap(-1, 4096, prot=7)\n"
        "page.write(bytes.fromhex('b814000000cd80c3'))\n"
        "call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))\n"
        "if sys.argv[1] == 'filtered':\n"
        "    seccomp.install(seccomp.assemble(seccomp.RUN_RULES, seccomp.Arch.X86_64),"
        " seccomp.Arch.X86_64)\n"
        "    os.write(1, b'%d' % os.getpid())\n"
        "os._exit(0 if call() == os.getpid() else 1)\n"
    )

    def run(way: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", code, way],
            env={"PYTHONPATH": str(SOURCE)},
            capture_output=True,
            check=False,
            timeout=60,
        )

    if run("free").returncode == -signal.SIGSEGV:
        pytest.skip("32-BIT CALLS NOT TRIED: this kernel has none")
    assert run("free").returncode == 0
    filtered = run("filtered")
    assert filtered.stdout
    assert filtered.returncode == -signal.SIGSYS
