"""The kernel's command line of an image."""

from __future__ import annotations

import pytest

from cloister.errors import BuildError
from cloister.image.command_line import ENCLAVE, MAX_BYTES, MEASURED, NONE, RAMDISK, command_line
from cloister.image.footer import DiskFooter

ROOT = DiskFooter(
    kind="root", fs="squashfs", data_blocks=9, hash_start=9, root_hash="11" * 32, salt="22" * 32
)
MODEL = DiskFooter(
    kind="model", fs="erofs", data_blocks=5, hash_start=5, root_hash="33" * 32, salt="44" * 32
)


def test_it_names_the_root_and_how_the_others_are_known() -> None:
    words = command_line(root=ROOT).split(" ")
    assert f"cloister.root=squashfs:9:9:{'11' * 32}:{'22' * 32}" in words
    assert "cloister.application=measured" in words
    assert "cloister.model=measured" in words
    assert {"lockdown=confidentiality", "module.sig_enforce=1", "panic=-1"} <= set(words)
    assert {"oops=panic", "erst_disable", "efi=noruntime", "vsyscall=none"} <= set(words)
    assert {"init_on_alloc=1", "init_on_free=1", "slab_nomerge", "page_alloc.shuffle=1"} <= {*words}
    assert not any(word.startswith("cloister.debug") for word in words)


def test_a_disk_may_be_named_or_absent() -> None:
    words = command_line(root=ROOT, application=NONE, model=MODEL).split(" ")
    assert "cloister.application=none" in words
    assert f"cloister.model=erofs:5:5:{'33' * 32}:{'44' * 32}" in words


def test_a_debug_image_says_so() -> None:
    assert command_line(root=ROOT, debug=True) == command_line(root=ROOT) + " cloister.debug=1"


@pytest.mark.parametrize("more", [("a b",), ("",), ("caf\u00e9",), ("a\n",), ("x" * MAX_BYTES,)])
def test_nothing_else_gets_in(more: tuple[str, ...]) -> None:
    assert "maxcpus=1" in command_line(root=ROOT, more=("maxcpus=1",)).split(" ")
    with pytest.raises(BuildError) as caught:
        command_line(root=ROOT, more=more)
    assert caught.value.code == "image.command_line"


def test_a_disk_is_not_just_any_word() -> None:
    assert command_line(root=ROOT, model=MEASURED)
    with pytest.raises(BuildError):
        command_line(root=ROOT, model="anything")


def test_an_enclave_has_ramdisks_and_arguments_of_its_own() -> None:
    line = command_line(root=ROOT, application=RAMDISK, model=RAMDISK, more=ENCLAVE)
    words = line.split(" ")
    assert {"cloister.application=ramdisk", "cloister.model=ramdisk"} <= set(words)
    assert {"reboot=k", "rootfstype=ramfs", "cloister.platform=nitro"} <= set(words)


def test_it_is_as_long_as_the_kernel_reads() -> None:
    left = MAX_BYTES - len(command_line(root=ROOT)) - 1
    assert len(command_line(root=ROOT, more=("x" * left,))) == MAX_BYTES
    with pytest.raises(BuildError):
        command_line(root=ROOT, more=("x" * (left + 1),))
