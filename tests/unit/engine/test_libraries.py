"""What the sandbox's root is made of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cloister.engine import libraries, llama_child, sandbox
from cloister.engine.confined import Program
from cloister.engine.libraries import find_runtime, parse_ldd, shared_libraries
from cloister.engine.sandbox import Sandbox
from cloister.errors import SandboxError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

LDD = """/opt/x.so:
\tlinux-vdso.so.1 (0x00007f42d5243000)
\tlibgomp.so.1 => /lib/x86_64-linux-gnu/libgomp.so.1 (0x00007f42d37b8000)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f42d321e000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f42d5245000)
/opt/python:
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f42d321e000)
"""


def test_ldd_is_read_into_places_inside() -> None:
    assert parse_ldd(LDD) == (
        (Path("/lib/x86_64-linux-gnu/libc.so.6"), "/lib/libc.so.6"),
        (Path("/lib/x86_64-linux-gnu/libgomp.so.1"), "/lib/libgomp.so.1"),
        (Path("/lib64/ld-linux-x86-64.so.2"), "/lib64/ld-linux-x86-64.so.2"),
    )


def test_a_missing_library_is_named_with_its_package() -> None:
    missing = LDD.replace("/lib/x86_64-linux-gnu/libgomp.so.1 (0x00007f42d37b8000)", "not found")
    with pytest.raises(SandboxError, match=r"libgomp\.so\.1.*apt-get install libgomp1"):
        parse_ldd(missing)
    with pytest.raises(SandboxError, match="dynamic linker"):
        parse_ldd(LDD.replace("/lib64/ld-linux-x86-64.so.2 (", "/lib/ld-musl ("))


def test_the_dynamic_linker_says_the_same_where_there_is_no_shell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = (find_runtime().binds[0][0], *libraries.stdlib_extensions(("_ctypes", "_ssl")))
    told = shared_libraries(files)
    monkeypatch.setattr(libraries, "_LDD", ("/nowhere/ldd",))
    assert shared_libraries(files) == told


def test_ldd_itself_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    executable = find_runtime().binds[0][0]
    assert shared_libraries((executable,))
    monkeypatch.setattr(libraries, "_LDD", ("/nowhere/ldd",))
    monkeypatch.setattr(libraries, "_LOADERS", ("/nowhere/ld.so",))
    with pytest.raises(SandboxError, match="libc-bin"):
        shared_libraries((executable,))


def test_the_runtime_is_the_base_installation_without_its_packages() -> None:
    runtime = find_runtime()
    sources = [path for path, _ in runtime.binds]
    assert all(not path.is_relative_to(sys.prefix) for path in sources) or (
        sys.prefix == sys.base_prefix
    )
    for source, inside in runtime.binds:
        if source.is_dir():
            for name in ("site-packages", "dist-packages"):
                assert not (source / name).is_dir() or f"{inside}/{name}" in runtime.hidden


def test_an_unknown_layout_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_base_executable", "/nowhere/python")
    with pytest.raises(SandboxError, match="interpreter"):
        find_runtime()


def test_everything_bound_is_read_only_and_on_the_list(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    program = Program(script=Path(llama_child.__file__), files={"model.gguf": model})
    plan = sandbox._plan_binds(program)
    options = {argument for argument in plan if argument.startswith("--")}
    assert options <= {"--ro-bind", "--tmpfs", "--size", "--remount-ro"}
    inside = [plan[i + 2] for i, argument in enumerate(plan) if argument == "--ro-bind"]
    assert {path.split("/")[1] for path in inside} <= {"app", "data", "lib", "lib64", "python"}
    assert "/data/model.gguf" in inside
    whole = sandbox._bwrap_arguments(plan, 5, 6)
    for needed in (
        "--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts",
        "--die-with-parent --new-session --cap-drop ALL --clearenv",
        "--remount-ro / --chdir /",
    ):
        assert needed in " ".join(whole)
    assert not {"--bind", "--dev", "--proc", "--share-net", "--dev-bind"} & set(whole)
    assert Sandbox(landlock_abi=0).path_of(program, "model.gguf") == "/data/model.gguf"
