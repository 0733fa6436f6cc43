"""Nothing runs but what was measured: no old bytecode, no start-up hooks, no environment."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
from pathlib import Path

import pytest

from cloister.attester.bytecode import KEPT, bytecode_directory, interpreter_flags
from cloister.attester.measure import Measured, Subject, measure
from support.installation import install, make_environment, site_packages


@pytest.fixture
def python(tmp_path: Path) -> Path:
    python = make_environment(tmp_path / "venv")
    install(python, "victim", {"victim.py": "print('measured')\n"})
    return python


def poison(source: Path) -> None:
    """Put bytecode of other code beside `source`, which has the source's own size and time."""
    original, status = source.read_text(), source.stat()
    for content in (original.replace("measured", "poisoned"), original):
        source.write_text(content)
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
        if content != original:
            py_compile.compile(str(source), doraise=True)


def run(python: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(python), *arguments], capture_output=True, text=True, check=True, env=env or {}
    )
    return done.stdout + done.stderr


def look(python: Path) -> Measured:
    return measure(Subject(python=python, configuration={}))


def test_poisoned_bytecode_runs_only_without_our_flags(python: Path, tmp_path: Path) -> None:
    site = site_packages(python)
    before = look(python).components
    poison(site / "victim.py")
    code = f"import sys; sys.path.append({str(site)!r}); import victim"
    assert run(python, "-B", "-c", code) == "poisoned\n"
    assert run(python, *interpreter_flags(tmp_path / "empty"), "-c", code) == "measured\n"
    # It does not show in the digests either: that is why the flags are needed.
    assert look(python).components == before


def test_the_interpreter_reads_no_bytecode_of_its_own_library(python: Path, tmp_path: Path) -> None:
    told = run(python, *interpreter_flags(tmp_path / "empty"), "-v", "-c", "import json, asyncio")
    assert "import 'asyncio'" in told
    read = [line for line in told.splitlines() if "code object from" in line and "pyc" in line]
    assert read == []
    assert any("pyc" in line for line in run(python, "-v", "-c", "import json").splitlines())


def test_start_up_hooks_and_environment_do_nothing(python: Path, tmp_path: Path) -> None:
    site = site_packages(python)
    (site / "sitecustomize.py").write_text("print('hooked')\n")
    (site / "hook.pth").write_text("import sys; print('hooked')\n")
    startup = {"PYTHONPATH": str(site), "PYTHONVERBOSE": "1", "PYTHONSTARTUP": str(site / "x")}
    assert "hooked" in run(python, "-c", "pass", env=startup)
    flags = interpreter_flags(tmp_path / "empty")
    assert run(python, *flags, "-c", "pass", env=startup) == ""
    assert run(python, *flags, "-c", "import sys; print(len(sys.path))") < "5"


def test_compiled_modules_are_used_and_belong_to_one_set_of_sources(
    python: Path, tmp_path: Path
) -> None:
    site = site_packages(python)
    cache = tmp_path / "cache"

    def directory() -> Path:
        found = look(python)
        return bytecode_directory(cache, found.installation, found.components, modules=["victim"])

    first = directory()
    compiled = Path(importlib.util.cache_from_source(str(site / "victim.py")))
    name = str(site.relative_to("/") / compiled.name)
    assert (first / name).is_file()
    assert directory() == first
    status = (site / "victim.py").stat()
    (site / "victim.py").write_text("print('different')")
    os.utime(site / "victim.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    second = directory()
    assert second != first
    code = f"import sys; sys.path.append({str(site)!r}); import victim"
    assert run(python, *interpreter_flags(second), "-c", code) == "different\n"


def test_unimportable_module_leaves_an_empty_directory(python: Path, tmp_path: Path) -> None:
    found = look(python)
    made = bytecode_directory(
        tmp_path / "cache", found.installation, found.components, modules=["no_such_module"]
    )
    assert made.is_dir()


def test_old_directories_are_removed(python: Path, tmp_path: Path) -> None:
    found = look(python)
    for number in range(KEPT + 2):
        last = bytecode_directory(
            tmp_path, found.installation, found.components, modules=[f"missing{number}"]
        )
    kept = [path for path in tmp_path.iterdir() if path.name != "venv"]
    assert len(kept) <= KEPT
    assert last in kept
