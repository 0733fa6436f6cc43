"""The engine's sandbox against a hostile engine, through the code that starts the real one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.engine import landlock, sandbox, seccomp, spawning
from cloister.engine.confined import DESCRIPTORS, Isolation, Program
from cloister.engine.sandbox import Sandbox, UnsafeNoSandbox
from support.sandbox_table import probes_stopped_by, sandbox_probe
from support.sandbox_targets import host_targets

pytestmark = pytest.mark.sandbox

PROBE = Path(__file__).parent / "sandbox_probe.py"
SOURCE = Path(sandbox.__file__).parents[2]

#: What each layer must stop by itself, so that no layer can quietly be lost behind another:
#: what docs/reference/sandbox.md says.
BY_NAMESPACES = probes_stopped_by("namespaces")
BY_SECCOMP = probes_stopped_by("seccomp")
BY_LANDLOCK = probes_stopped_by("landlock")
#: What the kernel refuses to an ordinary user anyway, so that nothing is shown when it fails.
NEEDS_ROOT = {
    "raw_socket", "packet_socket", "fanotify_init", "syslog", "settimeofday", "swapon", "reboot",
    "mount", "umount2", "fsopen", "open_tree", "mount_setattr", "pivot_root", "chroot",
    "open_by_handle_at", "perf_event_open", "bpf", "userfaultfd", "mknod", "tiocsti",
}  # fmt: skip
#: What a filter returns: EPERM, ENOSYS, and that the call goes on (little-endian).
REFUSED, MISSING, ALLOWED = (
    value.to_bytes(4, "little") for value in (0x00050001, 0x00050026, 0x7FFF0000)
)


@pytest.fixture
def targets(tmp_path: Path) -> Iterator[dict[str, Any]]:
    with host_targets(tmp_path) as found:
        yield found


def plain(targets: dict[str, Any], **changed: str) -> str:
    return json.dumps({k: v for k, v in {**targets, **changed}.items() if k != "udp"})


async def findings(isolation: Isolation, targets: dict[str, Any]) -> dict[str, Any]:
    """Run the hostile program under `isolation` and return what it reports."""
    # Opened beforehand, as the real engine's model is: the descriptor must not come along.
    model = os.open(targets["model"], os.O_RDONLY)
    files = {"model.gguf": DESCRIPTORS / str(model)}
    bare = Program(script=PROBE, files=files, inherited=(model,))
    arguments = (plain(targets, model=isolation.path_of(bare, "model.gguf")),)
    try:
        confined = await isolation.spawn(replace(bare, arguments=arguments))
    finally:
        os.close(model)
    try:
        assert await confined.word() == b"ready"
        reader, writer = await asyncio.open_unix_connection(confined.open_socket("engine.sock"))
        report: dict[str, Any] = json.loads(await reader.read())
        writer.close()
        await writer.wait_closed()
        return report
    finally:
        await confined.aclose()


def under_layer(layer: str, targets: dict[str, Any]) -> set[str]:
    """Run the probes in a process confined by one layer only; return those it stopped."""
    done = subprocess.run(
        [sys.executable, "-B", str(PROBE), "print", layer, plain(targets)],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    return {name for name, error in json.loads(done.stdout).items() if error is not None}


def received(listener: socket.socket) -> bool:
    try:
        listener.recv(64)
    except BlockingIOError:
        return False
    return True


async def test_everything_a_hostile_engine_tries_works_outside_and_fails_inside(
    targets: dict[str, Any],
) -> None:
    outside = (await findings(UnsafeNoSandbox(), targets))["probes"]
    stopped = {name for name, error in outside.items() if error is not None}
    # Some calls are the kernel's to refuse to an ordinary user; the rest must work out here.
    assert not stopped - NEEDS_ROOT
    if os.geteuid() == 0:
        assert not stopped
    assert received(targets["udp"])
    for leaked in (Path(targets["host_tmp"]), Path(targets["model"]).parent):
        (leaked / "leak").unlink()

    inside = await findings(Sandbox(), targets)
    assert [name for name, error in inside["probes"].items() if error is None] == []
    assert not received(targets["udp"])
    assert inside["descriptors"] == [0, 1, 2]
    assert set(inside["environment"]) <= {"LD_LIBRARY_PATH", "PWD", "LC_CTYPE"}
    assert not list(Path(targets["host_tmp"]).iterdir())


def test_without_any_layer_the_probes_get_through(targets: dict[str, Any]) -> None:
    assert not under_layer("none", targets) - NEEDS_ROOT


def test_the_system_call_filter_stops_by_itself_all_but_reading(targets: dict[str, Any]) -> None:
    stopped = under_layer("seccomp", targets)
    assert BY_SECCOMP - stopped == set()
    left = sandbox_probe.PROBES.keys() - stopped - {"locked_memory", "second_socket"}
    assert {name for name in left if not name.startswith(("read_", "list_"))} == set()


@pytest.mark.skipif(landlock.abi() < 6, reason="this kernel's Landlock is older")
def test_landlock_stops_by_itself_files_tcp_and_foreign_sockets(targets: dict[str, Any]) -> None:
    stopped = under_layer("landlock", targets)
    assert BY_LANDLOCK - stopped == set()
    assert "read_passwd" not in stopped  # it was told to leave that readable


async def under_namespaces(targets: dict[str, Any]) -> dict[str, str | None]:
    """What the probes find behind the namespaces and the minimal root alone."""
    program = Program(script=PROBE, files={"model.gguf": Path(targets["model"])})
    # bubblewrap's own filter, opened wide: what is left is the namespaces and the root
    arch = seccomp.this_arch(targets["machine"])
    assert arch is not None
    rules = [seccomp.Rule(name=name) for name in seccomp.NUMBERS if name != "clone3"]
    wide = bytearray(seccomp.assemble(rules, arch))
    for at in range(4, len(wide), 8):
        if wide[at : at + 4] in (REFUSED, MISSING):
            wide[at : at + 4] = ALLOWED
    filter_fd = spawning.pipe_with(bytes(wide))
    info, info_end = os.pipe()
    arguments = [
        spawning.find_bwrap(None),
        *sandbox._bwrap_arguments(sandbox._plan_binds(program), filter_fd, info_end),
        *("--", "/python/bin/python3", "-E", "-s", "-S", "-B", "/app/sandbox_probe.py"),
        *("print", "none", plain(targets, model="/data/model.gguf", sockets="/run/engine")),
    ]
    done = await asyncio.to_thread(
        subprocess.run, arguments, pass_fds=(filter_fd, info_end), capture_output=True, timeout=60
    )
    for descriptor in (filter_fd, info, info_end):
        os.close(descriptor)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


async def test_namespaces_stop_by_themselves_network_files_and_processes(
    targets: dict[str, Any],
) -> None:
    probes = await under_namespaces(targets)
    assert {name for name in BY_NAMESPACES if probes.get(name, "") is None} == set()
    assert probes["fork"] is None  # so the filter really was wide open
    assert not received(targets["udp"])
