"""What of a Python package goes into a root, and where."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from cloister.errors import BuildError
from cloister.image.lock import Wheel
from cloister.image.python_tree import add_wheel, site_packages, source_files
from cloister.image.tree import Tree

WHEEL = Wheel(name="tool", version="1", filename="tool-1-py3-none-any.whl", sha256="00" * 32)
SITE = site_packages("3.11")


def unpacked(path: Path, names: Iterable[str]) -> set[str]:
    """The files of a root, of a wheel with these."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    tree = Tree()
    add_wheel(tree, path, WHEEL, "3.11")
    assert all(item.origin == "tool" for item in tree.items.values())
    return set(tree.items)


def test_modules_go_where_python_looks_and_scripts_stay_out(tmp_path: Path) -> None:
    names = [
        *("tool/__init__.py", "tool/", "tool/tests/test_it.py", "tool/it.pyi", "tool/fast.c"),
        *("tool-1.data/purelib/pure.py", "tool-1.data/platlib/fast.so", "tool-1.data/scripts/run"),
        *("tool-1.data/data/etc/profile", "tool-1.data/headers/it.h", "tool/a..b.py"),
    ]
    assert unpacked(tmp_path / "wheel", names) == {
        f"{SITE}/{name}" for name in ("tool/__init__.py", "pure.py", "fast.so", "tool/a..b.py")
    }


@pytest.mark.parametrize(
    "name",
    [
        *("../tool.py", "tool/../../tool.py", "/etc/passwd", "tool/.."),
        *("tool-1.data/purelib/../../tool.py", "tool-1.data/scripts/../x"),
    ],
)
def test_a_package_cannot_lead_outside(tmp_path: Path, name: str) -> None:
    assert unpacked(tmp_path / "good", ["tool.py"]) == {f"{SITE}/tool.py"}
    with pytest.raises(BuildError) as caught:
        unpacked(tmp_path / "bad", ["tool.py", name])
    assert caught.value.code == "image.wheel"


def test_what_is_no_wheel(tmp_path: Path) -> None:
    (tmp_path / "wheel").write_bytes(b"no archive")
    for path in (tmp_path / "wheel", tmp_path / "missing"):
        with pytest.raises(BuildError) as caught:
            add_wheel(Tree(), path, WHEEL, "3.11")
        assert caught.value.code == "image.wheel"


def test_of_these_sources_no_simulated_vendor_goes_along(tmp_path: Path) -> None:
    kept = ["worker/server.py", "image/lock.py"]
    left_out = ["testing/simulated_tpm.py", "image/locks/bookworm.json", "x/__pycache__/x.pyc"]
    for name in (*kept, *left_out):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert list(source_files(tmp_path)) == sorted(kept)
