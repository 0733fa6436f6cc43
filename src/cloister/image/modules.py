"""Which of a kernel's modules a guest loads, in which order.

The init loads what its list says and then closes the door, so everything that a guest may need is
in the list; what a machine has no hardware for does nothing. Dependencies come from the modules
themselves (ELF section ``.modinfo``, Linux ``include/linux/module.h``), so that no ``depmod`` has
to run over an unpacked package.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    "sd_mod",
    "hv_vmbus",
    "hv_storvsc",
    "hv_netvsc",
    # Verified read-only disks.
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

ENCLAVE_MODULES: Final = (
    # An enclave's only devices: the parent's vsock and the security module.
    "virtio_mmio",
    "vmw_vsock_virtio_transport",
    "nsm",
    # The root is a file of the ramdisk.
    "loop",
    "dm_verity",
    "squashfs",
    "nf_tables",
    "nft_ct",
    "nft_reject_inet",
)
"""Those of a Nitro enclave (`cloister.image.eif_image`)."""

MODULE_SUFFIXES: Final = (".ko", ".ko.xz")
MAX_MODULE_BYTES: Final = 64 * 1024 * 1024

_ELF64: Final = b"\x7fELF\x02\x01"
_SIGNED: Final = b"~Module signature appended~\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One module and the names of those that must be loaded before it."""

    name: str
    """As the kernel says it: with underscores."""
    data: bytes
    depends: tuple[str, ...]

    @property
    def signed(self) -> bool:
        """Whether a signature is appended; the kernel decides whether it holds."""
        return self.data.endswith(_SIGNED)


def select_modules(
    directory: Path, wanted: Iterable[str] = GUEST_MODULES, *, unsigned: bool = False
) -> tuple[Module, ...]:
    """The modules `wanted` under `directory` and what they need, in the order to load them.

    Modules that the kernel does not have are left out. With `unsigned` a module without signature
    is taken: a locked-down kernel will not.

    Raises:
        BuildError: a module does not decode, is not signed, or needs one that is not there (code
            ``image.module``).
    """
    files = _files(directory)
    chosen: dict[str, Module] = {}
    for name in wanted:
        if name in files:
            _choose(name, files, chosen, above=())
    for module in chosen.values():
        if not module.signed and not unsigned:
            raise BuildError(
                f"the module {module.name} is not signed, and the kernel will not load it",
                code="image.module",
            )
    return tuple(chosen.values())


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
    """Decode the dependencies of a module.

    Raises:
        BuildError: it is no ELF file of 64 bits with a section ``.modinfo``.
    """
    try:
        entries = _section(data, b".modinfo").split(b"\0")
        listed = [entry[8:].decode("ascii") for entry in entries if entry.startswith(b"depends=")]
    except (struct.error, ValueError, IndexError, OverflowError):
        raise BuildError(f"{name} is no kernel module", code="image.module") from None
    names = ",".join(listed).replace("-", "_").split(",")
    return Module(name=name, data=data, depends=tuple(filter(None, names)))


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
