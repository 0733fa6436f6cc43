"""Tree digests: what changes them, what does not, what is refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.attester.tree import content_paths, hash_files, list_tree, tree_digest
from cloister.errors import BuildError


def digest(root: Path) -> str:
    entries = list_tree(str(root))
    return tree_digest(entries, hash_files(content_paths(entries), threads=2))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "pkg" / "sub").mkdir(parents=True)
    (root / "pkg" / "__init__.py").write_text("a = 1\n")
    (root / "pkg" / "sub" / "data.bin").write_bytes(bytes(range(256)))
    (root / "pkg-b.py").write_text("")
    return root


def test_digest_is_that_of_the_sorted_lines(tree: Path) -> None:
    def line(path: str) -> str:
        return f"{hashlib.sha256((tree / path).read_bytes()).hexdigest()}  {path}\n"

    # "-" sorts before "/": by bytes of the whole path, not directory by directory.
    text = line("pkg-b.py") + line("pkg/__init__.py") + line("pkg/sub/data.bin")
    assert digest(tree) == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "pkg" / "__init__.py").write_text("a = 2\n"),
        lambda root: (root / "pkg" / "new.py").write_text(""),
        lambda root: (root / "pkg-b.py").unlink(),
        lambda root: (root / "pkg-b.py").rename(root / "pkg-c.py"),
        lambda root: (root / "pkg" / "old.pyc").write_bytes(b"sourceless, so it can run"),
        lambda root: (root / "link.py").symlink_to("pkg-b.py"),
    ],
    ids=["content", "added", "removed", "renamed", "bytecode beside sources", "link"],
)
def test_changes_show(tree: Path, change: Callable[[Path], object]) -> None:
    before = digest(tree)
    assert digest(tree) == before
    change(tree)
    assert digest(tree) != before


def test_cached_bytecode_modes_and_times_do_not_count(tree: Path) -> None:
    before = digest(tree)
    cache = tree / "pkg" / "__pycache__"
    cache.mkdir()
    (cache / "__init__.cpython-311.pyc").write_bytes(b"poison")
    (cache / "__init__.cpython-311.pyc.140211").write_bytes(b"left over")
    (tree / "pkg-b.py").chmod(0o777)
    os.utime(tree / "pkg-b.py", (0, 0))
    assert digest(tree) == before
    (cache / "other.pyc.so").write_bytes(b"not bytecode, so it counts")
    assert digest(tree) != before


def test_link_to_a_file_outside_counts_with_its_content(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text("one")
    (tree / "link.py").symlink_to(outside)
    before = digest(tree)
    outside.write_text("two")
    assert digest(tree) != before


def test_link_to_a_directory_outside_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "inside").symlink_to("pkg")
    (tree / "dangling").symlink_to("nowhere")
    digest(tree)
    (tmp_path / "elsewhere").mkdir()
    (tree / "outside").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BuildError) as caught:
        digest(tree)
    assert caught.value.code == "measure.tree"


def test_special_files_are_refused(tree: Path) -> None:
    digest(tree)
    os.mkfifo(tree / "pipe")
    with pytest.raises(BuildError, match="neither a file nor a directory"):
        digest(tree)


@pytest.mark.parametrize("name", ["a\nb", "a  b", os.fsdecode(b"\xff")])
def test_ambiguous_names_are_refused(tree: Path, name: str) -> None:
    digest(tree)
    (tree / name).write_text("")
    with pytest.raises(BuildError):
        digest(tree)


def test_large_files_are_hashed_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"x" * (9 * 1024 * 1024 + 3))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert hash_files([str(path)], threads=1) == {str(path): expected}


def test_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError):
        hash_files([str(tmp_path / "missing")], threads=1)
