"""Control groups, on trees of files that look like those of each version."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cloister.engine.control_group import ControlGroup


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


def kernel(monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]) -> None:
    """Make directories come with files in them, as the kernel does."""
    plain = Path.mkdir

    def mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        plain(self, mode, parents, exist_ok)
        if self.name.startswith("cloister-"):
            for name in files:
                (self / name).touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)


V2 = ("cgroup.procs", "memory.max", "memory.swap.max", "pids.max")


def test_version_2_below_ones_own_group(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write_text("0::/service/worker\n")
    place = tmp_path / "root" / "service" / "worker"
    place.mkdir(parents=True)
    (place / "cgroup.procs").touch()
    kernel(monkeypatch, V2)
    group = ControlGroup.make(memory=1000, processes=7, root=tmp_path / "root", own=own)
    assert group is not None
    (folder,) = group.folders
    assert folder.parent == place
    assert (folder / "memory.max").read_text() == "1000"
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "pids.max").read_text() == "7"


def test_version_2_beside_ones_own_group_where_that_hands_nothing_down(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write_text("0::/service/worker\n")
    above = tmp_path / "root" / "service"
    (above / "worker").mkdir(parents=True)
    (above / "cgroup.procs").touch()
    kernel(monkeypatch, V2)
    group = ControlGroup.make(memory=0, processes=7, root=tmp_path / "root", own=own)
    assert group is not None
    assert group.folders[0].parent == above


def test_version_1_has_a_group_for_each_controller(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write_text("3:cpu,cpuacct:/x\n2:memory:/a\n1:pids:/b\n0::/\n")
    for path in ("memory/a", "pids/b"):
        (tmp_path / "root" / path).mkdir(parents=True)
    kernel(monkeypatch, ("cgroup.procs", "memory.limit_in_bytes", "pids.max"))
    group = ControlGroup.make(memory=1000, processes=7, root=tmp_path / "root", own=own)
    assert group is not None
    memory, pids = group.folders
    assert memory.parent == tmp_path / "root" / "memory" / "a"
    assert (memory / "memory.limit_in_bytes").read_text() == "1000"
    assert (pids / "pids.max").read_text() == "7"


def test_where_none_may_be_made_there_is_none(tmp_path: Path, own: Path) -> None:
    assert ControlGroup.make(memory=1, processes=1, root=tmp_path, own=own) is None
    own.write_text("0::/\n1:pids:/b\n")
    (tmp_path / "cgroup.procs").touch()
    # A directory without the kernel's files is none of its groups; nothing is left behind.
    assert ControlGroup.make(memory=1, processes=1, root=tmp_path, own=own) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cgroup.procs", "own"]


def test_what_a_killed_worker_left_is_removed_and_nothing_else(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write_text("1:pids:/b\n")
    place = tmp_path / "root" / "pids" / "b"
    place.mkdir(parents=True)
    left, living, other = (
        place / name for name in ("cloister-4194305-a", f"cloister-{os.getpid()}-b", "other-1-c")
    )
    for folder in (left, living, other):
        folder.mkdir()
    kernel(monkeypatch, ("cgroup.procs", "pids.max"))
    group = ControlGroup.make(memory=0, processes=7, root=tmp_path / "root", own=own)
    assert group is not None
    assert not left.exists()  # above the largest number that a process can have
    assert living.exists()
    assert other.exists()


def test_nothing_is_made_for_no_limit(tmp_path: Path) -> None:
    assert ControlGroup.make(memory=0, processes=0, own=tmp_path / "missing") is None


def test_what_is_started_enters_first(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    group = ControlGroup((tmp_path / "one", tmp_path / "two"))
    done = subprocess.run(group.enter(["/bin/echo", "-n", "ran"]), capture_output=True, check=True)
    assert done.stdout == b"ran"
    for name in ("one", "two"):
        assert (tmp_path / name / "cgroup.procs").read_text() == "0"
        (tmp_path / name / "cgroup.procs").unlink()
    group.remove()
    assert not list(tmp_path.iterdir())
