"""The worker's folder in memory: nobody else's, read-only once closed, gone with its process.

Each case runs in a process of its own, because it moves to another mount namespace.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CANARY = b"plaintext-of-the-weights-5d1e"

PROGRAM = """
import os, sys
from pathlib import Path
from cloister.attester.memory import close_memory, make_memory
from cloister.errors import ConfigurationError

folder = Path(sys.argv[1])
if sys.argv[2] == "user":
    # Dropping root clears the flag that an ordinary process has from its start.
    import ctypes
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
swaps = Path(sys.argv[3])
try:
    make_memory(folder, size=1 << 20, files=1, swaps=swaps)
except ConfigurationError as error:
    print(error.code)
    sys.exit()
(folder / "model").write_bytes(sys.argv[4].encode())
print(os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize, flush=True)
sys.stdin.readline()
close_memory(folder)
for attempt in (lambda: (folder / "model").write_bytes(b"x"), lambda: (folder / "new").touch(),
                (folder / "model").unlink):
    try:
        attempt()
        print("written")
    except OSError as error:
        print(error.errno)
print((folder / "model").read_bytes().decode())
"""


def start(folder: Path, *, user: str = "root", swaps: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, str(folder), user, str(swaps), CANARY.decode()]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def let_in(folder: Path) -> None:
    """Let everybody use `folder`, however deep below the machine's own temporary folder it is."""
    for path in (folder, *folder.parents):
        if path == Path(tempfile.gettempdir()):
            break
        if path.stat().st_uid == os.geteuid():
            path.chmod(0o777)


@pytest.fixture
def no_swap(tmp_path: Path) -> Path:
    swaps = tmp_path / "swaps"
    swaps.write_text("Filename\tType\tSize\n")
    return swaps


def users() -> list[str]:
    return ["root", "user"] if os.geteuid() == 0 else ["root"]


@pytest.mark.sandbox
@pytest.mark.parametrize("user", users())
def test_nobody_else_sees_it_and_nobody_writes_to_it_once_closed(
    tmp_path: Path, no_swap: Path, user: str
) -> None:
    parent = tmp_path / "private"
    parent.mkdir()
    let_in(parent)
    folder = parent / "weights"
    with start(folder, user=user, swaps=no_swap) as process:
        assert process.stdout is not None
        size = int(process.stdout.readline())
        assert 1 << 20 <= size <= 5 << 20
        assert list(folder.iterdir()) == []
        assert str(folder) not in Path("/proc/self/mountinfo").read_text()
        out, _ = process.communicate(b"\n")
    assert out.decode().split() == ["30", "30", "30", CANARY.decode()]  # EROFS
    assert list(folder.iterdir()) == []


@pytest.mark.sandbox
def test_nothing_is_left_of_a_killed_process(tmp_path: Path, no_swap: Path) -> None:
    folder = tmp_path / "weights"
    with start(folder, swaps=no_swap) as process:
        assert process.stdout is not None
        process.stdout.readline()
        inside = Path(f"/proc/{process.pid}/root{folder}")
        assert (inside / "model").read_bytes() == CANARY  # it is there, for root to see
        process.send_signal(signal.SIGKILL)
    assert not inside.exists()
    assert list(folder.iterdir()) == []
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="dropping root takes root")
def test_swap_is_refused_where_the_kernel_cannot_avoid_it(tmp_path: Path, no_swap: Path) -> None:
    swaps = tmp_path / "some"
    swaps.write_text("Filename\tType\tSize\n/swapfile file 1\n")
    let_in(tmp_path)
    for file, said in ((no_swap, b""), (swaps, b"weights.memory\n"), (tmp_path / "no", b"w")):
        with start(tmp_path / f"{file.name}-weights", user="user", swaps=file) as one:
            out, _ = one.communicate(b"\n")
        assert out.startswith(said)
        assert (said == b"") == (CANARY in out)
