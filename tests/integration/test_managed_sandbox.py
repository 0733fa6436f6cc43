"""The managed sandbox against a hostile engine, through the code that starts the real ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.engine import landlock, managed_sandbox, managed_seccomp
from cloister.engine.confined import DESCRIPTORS
from cloister.engine.control_group import ControlGroup
from cloister.engine.managed_sandbox import ManagedProgram, ManagedSandbox
from cloister.errors import EngineError, SandboxError
from support.exchanging_bwrap import exchanging_bwrap
from support.sandbox_targets import host_targets

pytestmark = pytest.mark.sandbox

HERE = Path(__file__).parent
SOURCE = Path(managed_sandbox.__file__).parents[2]
PROBE = "managed_probe.py"
MIB = 1 << 20
SMALL = ManagedSandbox(scratch=16 * MIB, shared=16 * MIB)

#: What an engine of this kind needs, and gets: programs and threads, its own loopback and
#: processes, memory that it writes and runs, calls on its own things, objects that end with it.
GRANTED = {
    "fork", "spawn", "execve", "execveat", "write_and_execute", "write_then_execute",
    "pkey_mprotect", "memfd_create", "shared_memory", "locked_memory", "huge_pages",
    "growing_memory", "mlock", "mincore", "move_pages",
    "tcp6_socket", "udp", "connect", "sendmsg", "sendmmsg", "send_to_address", "socket_pair",
    "socket_filter",
    "kill", "tgkill", "pidfd_open", "pidfd_send_signal", "rt_sigqueueinfo", "setitimer",
    "timer_create", "setpriority", "sched_setscheduler", "sched_setaffinity", "prctl_dumpable",
    "prlimit64", "ioctl", "capset", "setresuid",
    "unlink", "symlink", "link", "rename", "mkdir", "mknod", "chmod", "chown", "setxattr",
    "truncate", "fallocate", "inotify_init", "write_shm",
    "write_here",  # its working directory is its own bounded tmpfs
    "shmget", "semget", "msgget", "mq_open",
    "read_passwd", "read_maps", "read_memory", "read_dev",
}  # fmt: skip
BY_SECCOMP = {
    "ptrace", "process_vm_readv", "process_vm_writev", "io_uring_setup", "userfaultfd", "bpf",
    "perf_event_open", "keyctl", "add_key", "request_key", "mount", "umount2", "mount_setattr",
    "pivot_root", "chroot", "setns", "unshare", "open_by_handle_at", "name_to_handle_at",
    "pidfd_getfd", "seccomp", "fsopen", "open_tree", "fanotify_init", "kcmp", "personality",
    "swapon", "reboot", "syslog", "settimeofday", "finit_module", "clock_settime", "sethostname",
    "new_user_namespace", "netlink_socket", "packet_socket", "vsock_socket", "crypto_socket",
    "interfaces", "tiocsti", "mergeable", "peer_pidfd",
}  # fmt: skip
#: What the namespaces and the root must stop by themselves. (Probes of mounting ask with empty
#: arguments, at which the kernel looks first; `unshare` it answers with another error than most.)
BY_NAMESPACES = {
    "tcp", "dns", "abstract_socket", "unix_datagram", "path_socket", "raw_socket", "packet_socket",
    "read_secret", "list_home", "read_sys", "list_processes", "read_environ", "read_descriptors",
    "write_host_tmp", "write_model", "write_beside_model", "write_usr", "write_installation",
    "write_home", "add_to_dev", "core_pattern", "sysrq", "own_oom_score", "parents_memory",
    "other_device", "make_device", "become_root", "raise_core_limit", "fill_scratch",
    "fill_shared", "new_user_namespace", "pivot_root",
}  # fmt: skip
#: Parts that a kernel may be without: a probe that fails on such a machine proves nothing there.
MAY_BE_ABSENT = {"vsock_socket", "crypto_socket", "sysrq", "finit_module"}
#: The kernel's accounts of the whole machine, of which no kernel has all.
ACCOUNT = "account_"


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    place = tmp_path / "installation"
    place.mkdir()
    for name in (PROBE, "sandbox_probe.py"):
        shutil.copyfile(HERE / name, place / name)
    return place


@pytest.fixture
def targets(tmp_path: Path, installation: Path) -> Iterator[dict[str, Any]]:
    """Things of the host that a hostile engine would want, all of them really there."""
    for name in ("shared", "dev", "usr"):
        (tmp_path / name).mkdir()
    with host_targets(tmp_path) as found:
        yield {
            **found,
            "scratch": found["host_tmp"],
            "shared": str(tmp_path / "shared"),
            "dev": str(tmp_path / "dev"),
            "usr": str(tmp_path / "usr"),
            "installation": str(installation),
            "too_much": 24 * MIB,
        }


INSIDE = {
    "scratch": "/tmp",
    "shared": "/dev/shm",
    "dev": "/dev",
    "usr": "/usr",
    "sockets": "/run/engine",
    "model": "/model/model.gguf",
}


def plain(targets: dict[str, Any], **changed: Any) -> str:
    return json.dumps({k: v for k, v in {**targets, **changed}.items() if k != "udp"})


def outside(targets: dict[str, Any], layer: str = "none") -> dict[str, str | None]:
    """Run the probes on the host, under one layer or none."""
    done = subprocess.run(
        [sys.executable, "-B", str(HERE / PROBE), "print", layer, plain(targets)],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        timeout=100,
        check=True,
    )
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def program(targets: dict[str, Any], installation: Path, **changed: Any) -> ManagedProgram:
    base = Path(sys.base_prefix)
    return ManagedProgram(
        arguments=(
            str(Path(sys._base_executable)),  # type: ignore[attr-defined]
            "-B",
            str(installation / PROBE),
            managed_sandbox.SOCKET,
            plain(targets, **INSIDE, **changed),
        ),
        roots=(installation, *(() if base.is_relative_to("/usr") else (base,))),
        files={"/model/model.gguf": Path(targets["model"])},
    )


async def asked(
    sandbox: ManagedSandbox, targets: dict[str, Any], installation: Path, **changed: Any
) -> dict[str, Any]:
    """Run the hostile program in the sandbox and return what it reports."""
    confined = await sandbox.spawn(program(targets, installation, **changed))
    try:
        assert await confined.word() == b"ready"
        path = confined.open_socket("engine.sock")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"?")
        report = await reader.read()
        writer.close()
        return json.loads(report) if report else {}
    finally:
        await confined.aclose()


async def test_everything_works_outside_and_only_what_is_granted_inside(
    targets: dict[str, Any], installation: Path
) -> None:
    before = await asyncio.to_thread(outside, targets)
    stopped = {name for name, error in before.items() if error is not None}
    if os.geteuid() == 0:
        absent = {name for name in stopped if name.startswith(ACCOUNT)}
        assert stopped <= MAY_BE_ABSENT | absent
        assert not any(Path("/proc", name.removeprefix(ACCOUNT)).exists() for name in absent)
    assert before[f"{ACCOUNT}interrupts"] is None
    assert not stopped & GRANTED
    for place in ("host_tmp", "usr", "dev", "installation", "sockets"):
        shutil.rmtree(Path(targets[place]) / "folder", ignore_errors=True)
        for leaked in ("leak", "device", "copied-program"):
            (Path(targets[place]) / leaked).unlink(missing_ok=True)
    for beside in (targets["model"], targets["secret"]):
        Path(beside).with_name("leak").unlink(missing_ok=True)
    while received(targets["udp"]):
        pass

    inside = await asked(SMALL, targets, installation)
    through = {name for name, error in inside["probes"].items() if error is None}
    assert through == GRANTED
    assert inside["probes"].keys() == before.keys()
    assert not received(targets["udp"])  # it was sent, on a network that leads nowhere
    assert inside["descriptors"] == [0, 1, 2, 3, 4]  # its listener and our connection
    assert set(inside["environment"]) <= {"HOME", "TMPDIR", "LANG", "PATH", "PWD", "LC_CTYPE"}
    # At one byte the kernel hands a core to no program either (core_pattern), at none it does.
    allowed = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert inside["core"] == ([1, 1] if allowed else [0, 0])
    for place in ("host_tmp", "usr", "dev"):
        assert not list(Path(targets[place]).iterdir())
    assert sorted(path.name for path in installation.iterdir()) == sorted(
        [PROBE, "sandbox_probe.py"]
    )


class AllowingLandlock(ManagedSandbox):
    """The same, with a Landlock that allows everything: what is left stands by itself."""

    def _plan(self, program: ManagedProgram, view: Any) -> dict[str, object]:
        return {**super()._plan(program, view), "rights": {"/": landlock.ALL}}


@pytest.mark.skipif(not landlock.abi(), reason="there is no Landlock to leave out")
async def test_without_landlock_nothing_but_copied_programs_gets_through(
    targets: dict[str, Any], installation: Path
) -> None:
    allowing = AllowingLandlock(scratch=16 * MIB, shared=16 * MIB)
    inside = await asked(allowing, targets, installation)
    through = {name for name, error in inside["probes"].items() if error is None}
    assert through - GRANTED == {"run_a_copy"}


async def test_namespaces_and_the_root_stop_by_themselves_what_leads_out(
    targets: dict[str, Any], installation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow = (0x06).to_bytes(2, "little") + bytes(2) + (0x7FFF0000).to_bytes(4, "little")
    monkeypatch.setattr(managed_seccomp, "assemble", lambda *_, **__: allow)
    allowing = AllowingLandlock(scratch=16 * MIB, shared=16 * MIB)
    inside = await asked(allowing, targets, installation)
    through = {name for name, error in inside["probes"].items() if error is None}
    assert "netlink_socket" in through  # so the filter really was wide open
    assert through & BY_NAMESPACES == set()
    assert not any(name.startswith(ACCOUNT) for name in through)
    assert not received(targets["udp"])


def received(listener: socket.socket) -> bool:
    try:
        listener.recv(64)
    except BlockingIOError:
        return False
    return True


def test_the_filter_stops_by_itself_what_it_names(targets: dict[str, Any]) -> None:
    free = outside(targets)
    shutil.rmtree(Path(targets["sockets"]) / "folder", ignore_errors=True)
    (Path(targets["scratch"]) / "device").unlink(missing_ok=True)
    held = outside(targets, "seccomp")
    if os.geteuid() == 0:
        missing = {name for name, error in free.items() if error is not None}
        assert not missing & BY_SECCOMP - MAY_BE_ABSENT
    assert {name for name in BY_SECCOMP if held[name] is None} == set()
    assert held["fork"] is None  # and it is no allow-list
    assert held["tcp"] is None


async def test_processes_are_limited(targets: dict[str, Any], installation: Path) -> None:
    few = ManagedSandbox(scratch=16 * MIB, shared=16 * MIB, processes=40)
    if os.geteuid() == 0 and not _makes_groups(processes=40):
        pytest.skip("root is bound by a control group only, and may make none here")
    assert (await asked(SMALL, targets, installation, breed=120)) == {"bred": 120}
    bred = (await asked(few, targets, installation, breed=120))["bred"]
    assert 0 < bred < 40


async def test_memory_is_limited(targets: dict[str, Any], installation: Path) -> None:
    if not _makes_groups(memory=256 * MIB):
        pytest.skip("no control group for memory may be made here")
    small = ManagedSandbox(scratch=16 * MIB, shared=16 * MIB, memory=192 * MIB)
    assert (await asked(SMALL, targets, installation, swell=320 * MIB)) == {"swollen": 320}
    with contextlib.suppress(EngineError, ConnectionError):
        assert (await asked(small, targets, installation, swell=320 * MIB)) == {}


def _makes_groups(*, memory: int = 0, processes: int = 0) -> bool:
    group = ControlGroup.make(memory=memory, processes=processes)
    if group is not None:
        group.remove()
    return group is not None


async def test_nothing_is_left_when_it_ends(targets: dict[str, Any], installation: Path) -> None:
    before = _groups()
    confined = await SMALL.spawn(program(targets, installation))
    assert await confined.word() == b"ready"
    pids = _descendants(confined.pid)
    assert len(pids) >= 3  # bubblewrap's reaper, our program, the engine
    await confined.aclose()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert _groups() == before


async def test_it_dies_with_the_worker(targets: dict[str, Any], installation: Path) -> None:
    inside = program(targets, installation)
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from cloister.engine.managed_sandbox import ManagedProgram, ManagedSandbox\n"
        f"program = ManagedProgram(arguments={inside.arguments!r}, "
        f"roots=tuple(map(Path, {[str(root) for root in inside.roots]!r})))\n"
        "async def main():\n"
        "    confined = await ManagedSandbox(scratch=1 << 24, shared=1 << 24).spawn(program)\n"
        "    await confined.word()\n"
        "    print(confined.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": str(SOURCE)}
    )
    assert worker.stdout is not None
    outer = int(await worker.stdout.readline())
    pids = _descendants(outer)
    assert len(pids) >= 3
    worker.send_signal(signal.SIGKILL)
    await worker.wait()
    async with asyncio.timeout(60):
        while any(_runs(pid) for pid in pids):
            await asyncio.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a dead process that nobody collects here is dead


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def _groups() -> set[Path]:
    """Those of this process: other tests run at the same time, and take theirs away meanwhile."""
    own = f"cloister-{os.getpid()}-"
    return {
        Path(folder, name)
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if name.startswith(own)
    }


async def test_a_file_exchanged_while_the_sandbox_is_made_ends_it(
    targets: dict[str, Any], installation: Path, tmp_path: Path
) -> None:
    model, other = Path(targets["model"]), tmp_path / "other.gguf"
    other.write_text("exchanged")
    with model.open("rb") as opened:
        inside = replace(
            program(targets, installation),
            files={"/model/model.gguf": DESCRIPTORS / str(opened.fileno())},
            inherited=(opened.fileno(),),
        )
        slow = replace(SMALL, bwrap=exchanging_bwrap(tmp_path / "bwrap", model, None))
        await (await slow.spawn(inside)).aclose()
        late = replace(SMALL, bwrap=exchanging_bwrap(tmp_path / "bwrap", model, other))
        with pytest.raises(SandboxError, match="exchanged"):
            await late.spawn(inside)


async def test_more_files_than_the_kernel_takes_as_one_argument(
    targets: dict[str, Any], installation: Path, tmp_path: Path
) -> None:
    """Of a folder with many files and long names; each is compared inside with what was opened."""
    other = tmp_path / "other.gguf"
    other.write_text("exchanged")
    long = "/".join(("n" * 250, "m" * 250))
    names = [f"/model/{number:03}/{long}" for number in range(300)]
    assert sum(map(len, names)) > 128 * 1024  # MAX_ARG_STRLEN of Linux
    with Path(targets["model"]).open("rb") as opened, other.open("rb") as wrong:
        shown = dict.fromkeys(names, DESCRIPTORS / str(opened.fileno()))
        inside = replace(
            program(targets, installation),
            files={"/model/model.gguf": Path(targets["model"]), **shown},
            inherited=(opened.fileno(), wrong.fileno()),
        )
        confined = await SMALL.spawn(inside)
        try:
            assert await confined.word() == b"ready"
        finally:
            await confined.aclose()
        late = exchanging_bwrap(tmp_path / "bwrap", other, Path(shutil.copy(other, tmp_path / "x")))
        last = replace(inside, files={**inside.files, names[-1]: DESCRIPTORS / str(wrong.fileno())})
        await (await SMALL.spawn(last)).aclose()
        with pytest.raises(SandboxError, match="exchanged"):
            await replace(SMALL, bwrap=late).spawn(last)


async def test_what_is_missing_is_named(targets: dict[str, Any], installation: Path) -> None:
    inside = program(targets, installation)
    gone = ManagedProgram(arguments=inside.arguments, roots=(Path("/nonexistent/engine"),))
    with pytest.raises(SandboxError, match="/nonexistent/engine"):
        await SMALL.spawn(gone)
    gpu = ManagedProgram(arguments=inside.arguments, roots=inside.roots, gpus=(63,))
    with pytest.raises(SandboxError, match=r"/dev/nvidia"):
        await SMALL.spawn(gpu)
    if os.geteuid() == 0:
        several = ManagedProgram(arguments=inside.arguments, roots=inside.roots, gpus=(0, 1))
        with pytest.raises(SandboxError, match="ordinary user"):
            await SMALL.spawn(several)
    with pytest.raises(SandboxError, match="bubblewrap"):
        await ManagedSandbox(bwrap="/nonexistent/bwrap").spawn(inside)
    with pytest.raises(SandboxError, match="Landlock"):
        await ManagedSandbox(landlock_abi=landlock.abi() + 1).spawn(inside)
