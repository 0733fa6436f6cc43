"""Which modules a guest loads, in which order, and for which machines."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from cloister.errors import BuildError
from cloister.image.modules import read_module, select_modules

SIGNED = b"~Module signature appended~\n"


def module_file(depends: str, *, signed: bool = True, aliases: Sequence[str] = ()) -> bytes:
    """An ELF file with a section ``.modinfo`` and one of names, and nothing else."""
    names = b"\0.modinfo\0.shstrtab\0"
    said = ["license=GPL", *(f"alias={one}" for one in aliases), f"depends={depends}", "name=x"]
    info = b"".join(entry.encode() + b"\0" for entry in said)
    table = 64 + len(names) + len(info)
    header = b"\x7fELF\x02\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = [(0, 0, 0), (1, 64 + len(names), len(info)), (10, 64, len(names))]
    content = header + names + info
    for name, offset, size in sections:
        content += struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size).ljust(64, b"\0")
    return content + (SIGNED if signed else b"")


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    for name, depends in {
        "virtio": "",
        "virtio-pci": "virtio,virtio-ring",
        "virtio-ring": "virtio",
        "dm-verity": "dm-mod",
        "dm-mod": "",
        "unused": "",
    }.items():
        path = tmp_path / "kernel" / name[:2] / f"{name}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(module_file(depends))
    return tmp_path


def test_what_a_module_needs_comes_before_it(kernel: Path) -> None:
    chosen = select_modules(kernel, ("virtio_pci", "dm_verity", "virtio", "built_in"))
    assert [one.name for one in chosen] == [
        "virtio",
        "virtio_ring",
        "virtio_pci",
        "dm_mod",
        "dm_verity",
    ]


def test_one_that_is_missing(kernel: Path) -> None:
    assert select_modules(kernel, ("virtio_pci",))
    (kernel / "kernel" / "vi" / "virtio-ring.ko").unlink()
    with pytest.raises(BuildError, match="needs virtio_ring"):
        select_modules(kernel, ("virtio_pci",))


def test_two_that_need_one_another(kernel: Path) -> None:
    (kernel / "kernel" / "vi" / "virtio.ko").write_bytes(module_file("virtio_pci"))
    with pytest.raises(BuildError, match="in turn"):
        select_modules(kernel, ("virtio_pci",))


def test_one_without_a_signature(kernel: Path) -> None:
    assert select_modules(kernel, ("unused",))
    (kernel / "kernel" / "un" / "unused.ko").write_bytes(module_file("", signed=False))
    with pytest.raises(BuildError, match="not signed"):
        select_modules(kernel, ("unused",))
    assert select_modules(kernel, ("unused",), unsigned=True)


def test_packed_modules_go_unpacked(kernel: Path) -> None:
    """Newer kernels pack theirs; the signature is behind what was packed."""
    plain = kernel / "kernel" / "vi" / "virtio.ko"
    packed = plain.with_suffix(".ko.xz")
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    expected = plain.read_bytes()
    plain.unlink()
    chosen = select_modules(kernel, ("virtio_pci",))
    assert chosen[0].name == "virtio"
    assert chosen[0].data == expected

    whole = packed.read_bytes()
    for broken in (whole[:-1], whole + b"x", b"no xz", b""):
        packed.write_bytes(broken)
        with pytest.raises(BuildError, match="does not unpack") as caught:
            select_modules(kernel, ("virtio_pci",))
        assert caught.value.code == "image.module"


def test_a_module_that_unpacks_without_end(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = kernel / "kernel" / "vi" / "virtio.ko"
    plain.with_suffix(".ko.xz").write_bytes(lzma.compress(plain.read_bytes()))
    size = len(plain.read_bytes())
    plain.unlink()
    monkeypatch.setattr("cloister.image.modules.MAX_MODULE_BYTES", size + 1)
    assert select_modules(kernel, ("virtio",))
    monkeypatch.setattr("cloister.image.modules.MAX_MODULE_BYTES", size - 1)
    with pytest.raises(BuildError, match="does not unpack"):
        select_modules(kernel, ("virtio",))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF",
        module_file("")[:70],
        b"x" * 4096,
        module_file("")[:40] + b"\xff" * 8 + module_file("")[48:],
    ],
    ids=["empty", "magic", "cut", "text", "far table"],
)
def test_what_is_no_module(data: bytes) -> None:
    assert read_module("x", module_file("a,b-c")).depends == ("a", "b_c")
    with pytest.raises(BuildError) as caught:
        read_module("x", data)
    assert caught.value.code == "image.module"


VIRTIO_NET = "virtio:d00000001v*"
VMBUS = ("acpi*:VMBUS:*", "acpi*:VMBus:*")
OTHER = ("of:N*T*Cmicrosoft,vmbus", "crypto-x", "vmbus:4acc9b2f6900f34ab76b6fd0be528cda")


@pytest.fixture
def hardware(tmp_path: Path) -> Path:
    """Modules for devices, as the kernel's are; one has no name on a bus that is looked at."""
    for name, (depends, aliases) in {
        "virtio_net": ("net_failover", (VIRTIO_NET,)),
        "net_failover": ("", ()),
        "virtio_scsi": ("scsi_mod", ("virtio:d00000008v*",)),
        "scsi_mod": ("", ()),
        "sd_mod": ("scsi_mod", ("scsi:t-0x00*",)),
        "hv_vmbus": ("", (*VMBUS, OTHER[0])),
        "hv_storvsc": ("hv_vmbus,scsi_mod", OTHER[2:]),
        "dm_verity": ("", OTHER[1:2]),
        "needs_scsi": ("scsi_mod", ()),
    }.items():
        (tmp_path / f"{name}.ko").write_bytes(module_file(depends, aliases=aliases))
    return tmp_path


def conditions(directory: Path, *wanted: str, everywhere: bool = False) -> dict[str, set[str]]:
    chosen = select_modules(directory, wanted, everywhere=everywhere)
    return {module.name: set(module.only_for) for module in chosen}


def test_a_driver_is_loaded_only_where_its_device_is(hardware: Path) -> None:
    assert conditions(hardware, "virtio_net", "dm_verity") == {
        "net_failover": {VIRTIO_NET},
        "virtio_net": {VIRTIO_NET},
        "dm_verity": set(),
    }


def test_a_driver_of_a_bus_is_loaded_only_where_the_bus_is(hardware: Path) -> None:
    """Its own devices are found later than the init looks."""
    found = conditions(hardware, "hv_storvsc")
    assert set(found) == {"hv_vmbus", "scsi_mod", "hv_storvsc", "sd_mod"}
    assert all(only_for == set(VMBUS) for only_for in found.values())


def test_what_a_library_is_for_does_not_count_for_who_uses_it(hardware: Path) -> None:
    """Network rules are loaded everywhere, also where what they compute with is a processor's."""
    quick = module_file("", aliases=("cpu:type:x86,ven*fam*mod*:feature:*0094*",))
    (hardware / "quick.ko").write_bytes(quick)
    (hardware / "rules.ko").write_bytes(module_file("quick"))
    assert conditions(hardware, "quick")["quick"]
    assert conditions(hardware, "rules") == {"quick": set(), "rules": set()}


def test_what_two_need_is_loaded_for_either(hardware: Path) -> None:
    found = conditions(hardware, "virtio_scsi", "hv_storvsc")
    either = {"virtio:d00000008v*", *VMBUS}
    assert found["scsi_mod"] == found["sd_mod"] == either
    assert found["virtio_scsi"] == {"virtio:d00000008v*"}


@pytest.mark.parametrize("order", [1, -1])
def test_what_one_needs_everywhere_is_loaded_everywhere(hardware: Path, order: int) -> None:
    found = conditions(hardware, *("virtio_scsi", "needs_scsi")[::order])
    assert found["scsi_mod"] == found["needs_scsi"] == set()
    assert found["sd_mod"] == {"virtio:d00000008v*"}


def test_an_enclave_loads_all_of_them(hardware: Path) -> None:
    found = conditions(hardware, "virtio_net", "hv_storvsc", everywhere=True)
    assert len(found) == 6
    assert not any(found.values())


def test_a_driver_that_is_built_in_brings_its_disks_everywhere(hardware: Path) -> None:
    (hardware / "virtio_scsi.ko").unlink()
    assert conditions(hardware, "virtio_scsi") == {"scsi_mod": set(), "sd_mod": set()}


@pytest.mark.parametrize("alias", ["pci:v0000 1AE0", "pci:v0\n01-other.ko"])
def test_a_device_that_would_be_more_than_a_word(alias: str) -> None:
    assert read_module("x", module_file("", aliases=("pci:v00001AE0*",))).devices
    with pytest.raises(BuildError, match="cannot be named") as caught:
        read_module("x", module_file("", aliases=(alias,)))
    assert caught.value.code == "image.module"
