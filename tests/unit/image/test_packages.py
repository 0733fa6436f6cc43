"""What an image boots from, out of packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import BuildError
from cloister.image.packages import STUB, BootFiles, boot_tree, tools_tree
from support.debian_packages import deb

KERNEL = "boot/vmlinuz-6.1.0"
MODULE = "usr/lib/modules/6.1.0/kernel/dm-verity.ko"


def written(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def test_one_kernel_its_modules_and_the_stub(tmp_path: Path) -> None:
    found = BootFiles.find(written(tmp_path, KERNEL, MODULE, STUB))
    assert found.kernel == tmp_path / KERNEL
    assert found.modules == tmp_path / "usr/lib/modules/6.1.0"
    assert found.stub == tmp_path / STUB


@pytest.mark.parametrize("missing", [KERNEL, MODULE, STUB])
def test_one_of_them_is_missing(tmp_path: Path, missing: str) -> None:
    names = {KERNEL, MODULE, STUB}
    BootFiles.find(written(tmp_path / "good", *names))
    with pytest.raises(BuildError, match="hold 0 of what") as caught:
        BootFiles.find(written(tmp_path / "bad", *names - {missing}))
    assert caught.value.code == "image.boot"


@pytest.mark.parametrize("more", ["boot/vmlinuz-6.1.1", "usr/lib/modules/6.1.1/x.ko"])
def test_with_two_which_one_is_meant(tmp_path: Path, more: str) -> None:
    folder = written(tmp_path, KERNEL, MODULE, STUB)
    BootFiles.find(folder)
    written(folder, more)
    with pytest.raises(BuildError, match="hold 2 of what"):
        BootFiles.find(folder)


def test_nothing_else_of_the_packages_is_taken(tmp_path: Path) -> None:
    files = {f"./{name}": b"x" for name in (KERNEL, MODULE, STUB, "usr/bin/tool", "etc/x", "boots")}
    package = deb(tmp_path / "kernel.deb", files, {"./boot/vmlinuz": "/bin/sh"})
    assert set(boot_tree({"kernel": package}).items) == {KERNEL, MODULE, STUB}
    tools = set(tools_tree({"kernel": package}).items)
    assert {"usr/bin/tool", KERNEL} <= tools
    assert "etc/x" not in tools
