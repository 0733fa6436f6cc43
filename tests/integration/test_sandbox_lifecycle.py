"""How a confined program is started, listened to and ended, however it behaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cloister.engine import landlock, sandbox, spawning, status
from cloister.engine.confined import Confined, Program
from cloister.engine.sandbox import Sandbox, UnsafeNoSandbox
from cloister.errors import EngineError, SandboxError
from support.processes import mentioning, processes

pytestmark = pytest.mark.sandbox

PROGRAM = Path(__file__).parent / "misbehave.py"
SOURCE = Path(sandbox.__file__).parents[2]


@contextlib.asynccontextmanager
async def running(way: str, marker: str = "marker") -> AsyncIterator[Confined]:
    confined = await Sandbox().spawn(Program(script=PROGRAM, arguments=(way, marker)))
    try:
        yield confined
    finally:
        await confined.aclose()


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        await asyncio.sleep(0.01)
    return condition()


async def test_the_kernel_confirms_what_the_program_gave_up() -> None:
    async with running("stay") as confined:
        assert await confined.word() == b"ready"
        inner = max(processes(confined.pid))
        given_up = status_of(inner)
        assert {given_up[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {
            "0000000000000000"
        }
        assert (given_up["NoNewPrivs"], given_up["Seccomp"], given_up["Seccomp_filters"]) == (
            "1",
            "2",
            "2",
        )
        limits = Path(f"/proc/{inner}/limits").read_text()
        for line in (
            "Max core file size        0                    0",
            "Max file size             0  ",
        ):
            assert line in limits
        for kind in ("user", "mnt", "pid", "net", "ipc", "uts"):
            assert (
                Path(f"/proc/{inner}/ns/{kind}").readlink()
                != Path(f"/proc/self/ns/{kind}").readlink()
            )


def test_confining_takes_away_dumps_and_files_before_any_filter() -> None:
    code = (
        "import ctypes, tempfile\n"
        "from cloister.engine import confine, landlock, seccomp\n"
        "seccomp.install = lambda *_: None\n"
        "dumpable = lambda: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)\n"
        "assert dumpable() == 1\n"
        "assert open('/etc/passwd').read()\n"
        "confine.confine(tempfile.gettempdir(), (0, 0, 0, 0))\n"
        "assert dumpable() == 0\n"
        "try:\n"
        "    open('/etc/passwd')\n"
        "except PermissionError:\n"
        "    pass\n"
        "else:\n"
        "    assert landlock.abi() == 0\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, check=True, timeout=60
    )


async def test_the_workers_environment_goes_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOISTER_TEST_SECRET", "marker")
    assert b"marker" in (await asyncio.to_thread(subprocess.check_output, ["/usr/bin/env"]))
    async with running("stay", "x") as confined:
        await confined.word()
        for pid in processes(confined.pid):
            assert b"marker" not in Path(f"/proc/{pid}/environ").read_bytes()


async def test_a_program_that_skips_being_confined_is_ended() -> None:
    async with running("stay") as confined:
        # The next word is b"ready" where b"confined-N" is due.
        with pytest.raises(SandboxError, match="not confined as it should be"):
            await spawning.confirm_word(confined, status.CONFINED, landlock.abi())


async def test_output_is_counted_and_appears_nowhere(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    marker = secrets.token_hex(16)
    async with running("flood", marker) as confined:
        assert await confined.word() == b"ready"
        assert await until(lambda: confined.output_bytes == 20 * 2 * 33_000)
        assert confined.early_output == b""
        assert marker not in repr(vars(confined))
    captured = capfd.readouterr()
    assert marker not in caplog.text + captured.out + captured.err


@pytest.mark.parametrize("way", ["unknown-word", "exit", "reason"])
async def test_a_program_that_does_not_get_ready_is_an_error_without_its_text(way: str) -> None:
    marker = secrets.token_hex(16)
    async with running("stay", marker) as twin:
        assert await twin.word() == b"ready"
    async with running(way, marker) as confined:
        with pytest.raises(EngineError) as caught:
            await confined.word()
    assert marker[:20] not in repr(caught.value)
    assert ("cannot load the model" in str(caught.value)) == (way == "reason")


@pytest.mark.parametrize("way", ["late-word", "close-control", "die"])
async def test_a_program_that_leaves_its_protocol_later_is_ended(way: str) -> None:
    async with running("stay") as twin:
        await twin.word()
        watching = asyncio.create_task(twin.watch())
        await asyncio.wait({watching}, timeout=0.5)
        assert twin.alive
        assert not watching.done()
        watching.cancel()
    async with running(way) as confined:
        assert await confined.word() == b"ready"
        async with asyncio.timeout(60):
            await confined.watch()
        assert not confined.alive


async def test_only_a_socket_is_taken_for_a_socket(tmp_path: Path) -> None:
    async with running("no-socket") as confined:
        await confined.word()
        with pytest.raises(EngineError, match="no socket"):
            confined.open_socket("engine.sock")
    async with running("stay") as confined:
        await confined.word()
        assert confined.open_socket("engine.sock").startswith("/proc/")
        # A link to a socket of the host's, where a hostile engine could make one
        stay = os.open(tmp_path, os.O_PATH)
        confined._directory, kept = stay, confined._directory
        (tmp_path / "link").symlink_to("/dev/log")
        (tmp_path / "file").write_bytes(b"")
        for name in ("link", "file"):
            with pytest.raises(EngineError, match="not a socket"):
                confined.open_socket(name)
        confined._directory = kept
        os.close(stay)


@pytest.mark.parametrize("way", ["stay", "deaf"])
async def test_closing_leaves_no_process_and_no_descriptor(way: str) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    async with running(way) as confined:
        await confined.word()
        family = processes(confined.pid)
        assert len(family) >= 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in family)
    # A thread that looked for libraries may still end.
    assert await until(lambda: set(Path("/proc/self/fd").iterdir()) <= before)


async def test_a_start_that_is_cancelled_leaves_no_process_and_no_descriptor() -> None:
    marker = secrets.token_hex(8)
    async with running("stay", marker) as confined:
        await confined.word()
        assert len(mentioning(marker)) >= 2
    before = set(Path("/proc/self/fd").iterdir())
    for turn in range(40):  # bubblewrap forks within the first ten milliseconds or so
        starting = asyncio.create_task(
            Sandbox().spawn(Program(script=PROGRAM, arguments=("stay", marker)))
        )
        await asyncio.sleep(turn * 0.0005)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert await until(lambda: mentioning(marker) == [])
    # A thread that looks for libraries when the start is cancelled ends on its own.
    assert await until(lambda: set(Path("/proc/self/fd").iterdir()) <= before)


async def test_the_sandbox_dies_with_the_worker() -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from cloister.engine.confined import Program\n"
        "from cloister.engine.sandbox import Sandbox\n"
        "async def main():\n"
        f"    program = Program(script=Path({str(PROGRAM)!r}), arguments=('stay', 'x'))\n"
        "    confined = await Sandbox().spawn(program)\n"
        "    await confined.word()\n"
        "    print(confined.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=subprocess.PIPE, env={"PYTHONPATH": str(SOURCE)}
    )
    assert worker.stdout is not None
    outer = int(await worker.stdout.readline())
    family = processes(outer)
    assert len(family) >= 2
    worker.send_signal(signal.SIGKILL)
    await worker.wait()

    def gone(pid: int) -> bool:
        try:
            return status_of(pid)["State"].startswith("Z")
        except OSError:
            return True

    assert await until(lambda: all(gone(pid) for pid in family))


async def test_without_bubblewrap_nothing_starts(tmp_path: Path) -> None:
    program = Program(script=PROGRAM, arguments=("stay", "x"))
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        await Sandbox(bwrap=str(tmp_path / "bwrap")).spawn(program)


@pytest.mark.parametrize(
    ("says", "explained"),
    [
        ("bwrap: No permissions to create new namespace", "refuses user namespaces"),
        ("bwrap: setting up uid map: Permission denied", "user mapping"),
        ("bwrap: Unknown option --size", "too old"),
        ("bwrap: Can not mount proc on /newroot/proc: Operation not permitted", "hides parts"),
        ("SECRET-TEXT", "run bwrap by hand"),
    ],
)
async def test_a_refusal_of_bubblewrap_is_explained_in_our_words(
    tmp_path: Path, says: str, explained: str
) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    with pytest.raises(SandboxError, match=explained) as caught:
        await Sandbox(bwrap=str(bwrap)).spawn(Program(script=PROGRAM, arguments=("stay", "x")))
    assert "SECRET" not in str(caught.value)


async def test_landlock_can_be_required_and_its_level_is_confirmed() -> None:
    program = Program(script=PROGRAM, arguments=("stay", "x"))
    version = landlock.abi()
    confined = await Sandbox(landlock_abi=version).spawn(program)
    await confined.aclose()
    with pytest.raises(SandboxError, match="no Landlock, which the policy requires"):
        await Sandbox(landlock_abi=0, require_landlock=True).spawn(program)
    with pytest.raises(SandboxError, match="did not take hold as expected"):
        await Sandbox(landlock_abi=version + 1).spawn(program)


async def test_the_unsafe_way_says_so(caplog: pytest.LogCaptureFixture) -> None:
    isolation = UnsafeNoSandbox()
    confined = await isolation.spawn(Program(script=PROGRAM, arguments=("stay", "x")))
    assert await confined.word() == b"ready"
    await confined.aclose()
    assert "WITHOUT a sandbox" in caplog.text
    assert isolation.describe() == {"mode": "none (unsafe)", "layers": []}
    assert Sandbox(landlock_abi=0).describe()["mode"] == "sandbox"
    layers = Sandbox(landlock_abi=7).describe()["layers"]
    assert isinstance(layers, list)
    assert "landlock-scope" in layers
    assert "landlock-files" not in str(Sandbox(landlock_abi=0).describe())
