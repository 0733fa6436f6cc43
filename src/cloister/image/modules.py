"""Which of a kernel's modules a guest loads, in which order.

The init loads what its list says and then closes the door, so everything that a guest may need is
in the list; what a machine has no hardware for stays out. Dependencies, and the devices that a
module is for, come from the modules themselves (ELF section ``.modinfo``, Linux
``include/linux/module.h``; names of devices: ``scripts/mod/file2alias.c``), so that no ``depmod``
has to run over an unpacked package.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cloister.errors import BuildError

GUEST_MODULES: Final = (
    # Disks, network and ports of QEMU and of Google and AWS; Azure's.
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "gve",
    "ena",
    "hv_vmbus",
    "hv_storvsc",
    "hv_netvsc",
    # NVMe disks behind Azure's bus, as its newer types have them.
    "pci_hyperv",
    # Verified read-only disks. The processor's own instructions for SHA-256 go before, for
    # dm-verity takes the quickest that is there when a disk is opened.
    "sha256_ssse3",
    "dm_verity",
    "squashfs",
    "erofs",
    # What network rules are written with.
    "nf_tables",
    "nft_ct",
    "nft_limit",
    "nft_reject_inet",
    # Evidence of confidential machines.
    "sev_guest",
    "tdx_guest",
)
"""Those that a kernel lacks are built in, or not made for it: a guest that needs one and does not
have it finds no disk, and stops."""

BESIDE: Final[Mapping[str, tuple[str, ...]]] = {
    # Disks behind a SCSI controller, which no module asks for.
    "virtio_scsi": ("sd_mod",),
    "hv_storvsc": ("sd_mod",),
}
"""What goes with a module of those, wherever it is loaded."""

BUS_DRIVERS: Final = frozenset({"hv_vmbus"})
"""Drivers of buses on which devices are found some time after they are loaded: drivers of these are
loaded with them."""

ENCLAVE_MODULES: Final = (
    # An enclave's only devices: the parent's vsock and the security module.
    "virtio_mmio",
    "vmw_vsock_virtio_transport",
    "nsm",
    # The root is a file of the ramdisk.
    "loop",
    "sha256_ssse3",
    "dm_verity",
    "squashfs",
    "nf_tables",
    "nft_ct",
    "nft_reject_inet",
)
"""Those of a Nitro enclave (`cloister.image.eif_image`)."""

MODULE_SUFFIXES: Final = (".ko", ".ko.xz")
MAX_MODULE_BYTES: Final = 64 * 1024 * 1024

BUSES: Final = ("acpi", "cpu", "pci", "platform", "virtio")
"""Where Linux has found whatever there is before it starts an init, or while it loads a bus' driver
(the init looks there: ``init/modules.c``); on other buses it may find devices later."""

_ELF64: Final = b"\x7fELF\x02\x01"
_SIGNED: Final = b"~Module signature appended~\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One module and the names of those that must be loaded before it."""

    name: str
    """As the kernel says it: with underscores."""
    data: bytes
    depends: tuple[str, ...]
    devices: tuple[str, ...] = ()
    """What devices of `BUSES` it is for, as patterns of their names (``modalias``)."""
    only_for: tuple[str, ...] = ()
    """The same for the place where it is loaded: the machine has to have one of them. Empty: it is
    loaded everywhere."""

    @property
    def signed(self) -> bool:
        """Whether a signature is appended; the kernel decides whether it holds."""
        return self.data.endswith(_SIGNED)


def select_modules(
    directory: Path,
    wanted: Iterable[str] = GUEST_MODULES,
    *,
    unsigned: bool = False,
    everywhere: bool = False,
) -> tuple[Module, ...]:
    """The modules `wanted` under `directory` and what they need, in the order to load them.

    Modules that the kernel does not have are left out. One that is for devices, or for those of a
    bus, is loaded only where there is one; `everywhere` says that all are loaded anyway.
    With `unsigned` a module without signature is taken: a locked-down kernel will not.

    Raises:
        BuildError: a module does not decode, is not signed, or needs one that is not there (code
            ``image.module``).
    """
    files = _files(directory)
    chosen: dict[str, Module] = {}
    always: set[str] = set()
    only_for: dict[str, set[str]] = {}
    for name in wanted:
        group = [one for one in (name, *BESIDE.get(name, ())) if one in files]
        for one in group:
            _choose(one, files, chosen, above=())
        devices = _devices(name, chosen) if name in files and not everywhere else ()
        for one in _with_needed(group, chosen):
            only_for.setdefault(one, set()).update(devices)
            if not devices:
                always.add(one)
    for module in chosen.values():
        if not module.signed and not unsigned:
            raise BuildError(
                f"the module {module.name} is not signed, and the kernel will not load it",
                code="image.module",
            )
    return tuple(
        module if name in always else replace(module, only_for=tuple(sorted(only_for[name])))
        for name, module in chosen.items()
    )


def _devices(name: str, chosen: Mapping[str, Module]) -> tuple[str, ...]:
    """What a module is for: by its own word, or by that of its bus."""
    module = chosen[name]
    buses = [chosen[needed].devices for needed in module.depends if needed in BUS_DRIVERS]
    return module.devices or (buses[0] if buses else ())


def _with_needed(names: Iterable[str], chosen: Mapping[str, Module]) -> set[str]:
    found: set[str] = set()
    for name in names:
        found |= {name, *_with_needed(chosen[name].depends, chosen)}
    return found


def _files(directory: Path) -> Mapping[str, Path]:
    return {
        path.name.split(".ko")[0].replace("-", "_"): path
        for suffix in MODULE_SUFFIXES
        for path in sorted(directory.rglob(f"*{suffix}"))
    }


def _content(path: Path) -> bytes:
    """What the kernel loads: the signature stands behind the module, not behind its packing."""
    data = path.read_bytes()
    if not path.name.endswith(".xz"):
        return data
    try:
        unpacking = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        module = unpacking.decompress(data, MAX_MODULE_BYTES)
    except lzma.LZMAError:
        module = b""
    if not unpacking.eof or unpacking.unused_data:
        raise BuildError(f"{path.name} does not unpack", code="image.module")
    return module


def _choose(
    name: str, files: Mapping[str, Path], chosen: dict[str, Module], *, above: tuple[str, ...]
) -> None:
    if name in chosen:
        return
    if name in above or name not in files:
        raise BuildError(
            f"the module {above[-1] if above else name} needs {name}, which "
            + ("needs it in turn" if name in above else "the kernel does not have"),
            code="image.module",
        )
    module = read_module(name, _content(files[name]))
    for needed in module.depends:
        _choose(needed, files, chosen, above=(*above, name))
    chosen[name] = module


def read_module(name: str, data: bytes) -> Module:
    """Decode the dependencies of a module, and what it is for.

    Raises:
        BuildError: it is no ELF file of 64 bits with a section ``.modinfo``.
    """
    try:
        entries = _section(data, b".modinfo").split(b"\0")
        listed = _values(entries, b"depends=")
        devices = [one for one in _values(entries, b"alias=") if _bus(one) in BUSES]
    except (struct.error, ValueError, IndexError, OverflowError):
        raise BuildError(f"{name} is no kernel module", code="image.module") from None
    names = ",".join(listed).replace("-", "_").split(",")
    if any(" " in one or not one.isprintable() for one in devices):
        raise BuildError(f"{name} is for a device that cannot be named", code="image.module")
    depends = tuple(filter(None, names))
    return Module(name=name, data=data, depends=depends, devices=tuple(devices))


def _values(entries: Iterable[bytes], key: bytes) -> list[str]:
    return [entry.removeprefix(key).decode("ascii") for entry in entries if entry.startswith(key)]


def _bus(device: str) -> str:
    return device.partition(":")[0].rstrip("*")


def _section(data: bytes, name: bytes) -> bytes:
    """Content of a section of an ELF file (System V ABI, chapter 4); ValueError without it."""
    if data[:6] != _ELF64:
        raise ValueError
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQ", data, table + index * size) for index in range(count)]
    strings = headers[names][4]
    for label, _type, _flags, _address, offset, length in headers:
        start = strings + label
        if data[start : start + len(name) + 1] == name + b"\0":
            return data[offset : offset + length]
    raise ValueError
