"""Small stand-ins for what an image is made of: programs, a unified kernel image, a disk."""

from __future__ import annotations

import lzma
import struct
import uuid
import zlib
from collections.abc import Mapping, Sequence

MAGIC = "#### LoaderInfo: systemd-stub {} ####"
OS_RELEASE = b"ID=test\nVERSION_ID=1\n"
COMMAND_LINE = b"console=ttyS0 panic=-1 cloister.root=x"
INITRD = b"070701 not really an archive"


def pe_file(
    sections: Sequence[tuple[str, bytes]],
    *,
    machine: int = 0x8664,
    magic: int = 0x20B,
    directories: int = 16,
    certificates: bytes = b"",
    trailing: bytes = b"",
    gap: bytes = b"",
    checksum: int = 0,
    alignment: int = 512,
) -> bytes:
    """A PE file by hand (Microsoft, "PE Format"); `gap` comes before the last section."""
    optional_size = 112 + 8 * directories
    headers = 64 + 24 + optional_size + 40 * len(sections)
    headers_size = -(-headers // alignment) * alignment
    table, body, address = b"", b"", 0x1000
    for number, (name, content) in enumerate(sections):
        body += gap if number == len(sections) - 1 else b""
        size = -(-len(content) // alignment) * alignment
        at = headers_size + len(body) if size else 0
        table += struct.pack(
            "<8sIIIIIIHHI", name.encode(), len(content), address, size, at, *[0] * 5
        )
        body += content.ljust(size, b"\0")
        address += -(-max(size, 1) // 0x1000) * 0x1000
    end = headers_size + len(body) + len(trailing)
    padding = -end % 8 if certificates else 0
    optional = bytearray(optional_size)
    struct.pack_into("<H", optional, 0, magic)
    struct.pack_into("<II", optional, 32, 0x1000, alignment)
    struct.pack_into("<II", optional, 56, address, headers_size)
    struct.pack_into("<I", optional, 64, checksum)
    struct.pack_into("<I", optional, 108, directories)
    if certificates:
        struct.pack_into("<II", optional, 144, end + padding, len(certificates))
    head = b"MZ" + bytes(58) + struct.pack("<I", 64)
    coff = struct.pack(
        "<4sHHIIIHH", b"PE\0\0", machine, len(sections), 0, 0, 0, optional_size, 0x22
    )
    whole = head + coff + bytes(optional) + table
    return whole.ljust(headers_size, b"\0") + body + trailing + bytes(padding) + certificates


def kernel(content: bytes = b"a kernel") -> bytes:
    """A program that stands for a kernel."""
    return pe_file([(".setup", b"setup"), (".text", content)])


def uki(
    *, release: str = "252.39-1", sections: Mapping[str, bytes] | None = None, **changes: bytes
) -> bytes:
    """A unified kernel image; `changes` replace sections by their names without the dot."""
    parts = {
        "osrel": OS_RELEASE,
        "cmdline": COMMAND_LINE,
        "initrd": INITRD,
        "linux": kernel(),
        **changes,
    }
    stub = [(".text", b"stub"), (".sbat", b"sbat,1"), (".sdmagic", MAGIC.format(release).encode())]
    more = [(f".{name}", content) for name, content in parts.items() if content]
    return pe_file([*stub, *more, *(sections or {}).items()])


def disk(*, partition: bytes = b"\x01" * 16, blocks: int = 4096) -> bytes:
    """The beginning of a disk with one partition (UEFI 2.10 section 5.3)."""
    entry = struct.pack("<16s16sQQQ72s", b"\x28" * 16, partition, 2048, blocks - 34, 0, b"")
    table = entry + bytes(128 * 127)

    def header(crc: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", 0x10000, 92, crc, 0, 1, blocks - 1, 34, blocks - 34),
            *(b"\x02" * 16, 2, 128, 128, zlib.crc32(table)),
        )

    return bytes(512) + header(zlib.crc32(header(0))).ljust(512, b"\0") + table


def variable_store(
    *variables: tuple[str, bytes], deleted: tuple[str, bytes] | None = None, size: int = 8192
) -> bytes:
    """A store of authenticated variables (EDK2, VariableFormat.h) in a firmware volume."""
    volume = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
    head = struct.pack("<16s16sQ4sIHHHBB", bytes(16), volume, 72 + size, b"_FVH", 0, 72, 0, 0, 0, 2)
    body = b""
    for state, entries in ((0x3D, [deleted] if deleted else []), (0x3F, variables)):
        for name, content in entries:
            text = name.encode("utf-16-le") + b"\0\0"
            sizes = (0, len(text), len(content))
            one = struct.pack("<HBBIQ16s", 0x55AA, state, 0, 3, 0, bytes(16))
            one += struct.pack("<III16s", *sizes, bytes(16)) + text + content
            body += one + b"\xff" * (-len(one) % 4)
    kind = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
    store = struct.pack("<16sIBBHI", kind, size, 0x5A, 0xFE, 0, 0) + body
    return head.ljust(72, b"\0") + store.ljust(size, b"\xff")


LZMA_SECTION = uuid.UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf").bytes_le
PEI_CORE, DXE_CORE, VOLUME_FILE = 4, 5, 11
PEI_VOLUME, DXE_VOLUME = (
    (PEI_CORE, b"an early start"),
    (DXE_CORE, b"all the rest"),
)


def firmware_volume(*files: tuple[int, bytes], size: int = 4096) -> bytes:
    """A volume of the PI specification: a header, and files of a type and a content each."""
    head = struct.pack("<16x16sQ4sIHHHBB", bytes(16), size, b"_FVH", 0, 56, 0, 0, 0, 2)
    body = b""
    for kind, content in files:
        assert 24 + len(content) < 0xFFFFFF
        one = bytes(18) + bytes([kind, 0]) + (24 + len(content)).to_bytes(3, "little") + b"\xf8"
        body += (one + content) + bytes(-len(content) % 8)
    return (head + body).ljust(size, b"\xff")


def firmware_section(kind: int, content: bytes) -> bytes:
    return (4 + len(content)).to_bytes(3, "little") + bytes([kind]) + content


def ovmf_code(*volumes: tuple[int, bytes]) -> bytes:
    """A flash image with volumes of one file each, compressed as in OVMF's."""
    inner = b"".join(
        one + bytes(-len(one) % 4)
        for one in (firmware_section(0x17, firmware_volume(volume)) for volume in volumes)
    )
    packed = lzma.compress(inner, format=lzma.FORMAT_ALONE)
    guided = firmware_section(2, LZMA_SECTION + (24).to_bytes(2, "little") + b"\1\0" + packed)
    return bytes(4096) + firmware_volume((VOLUME_FILE, guided), size=8192)


SNP_RESET, SNP_HASHES_AT = 0x80B004, 0x810C00
SNP_SECTIONS = ((0x800000, 0x9000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3))
SNP_HASHES = (0x810000, 0x1000, 0x10)


def snp_firmware(*sections: tuple[int, int, int]) -> bytes:
    """Firmware with metadata for SEV-SNP (EDK2, OvmfSevMetadata.asm) and nothing else."""
    sections = sections or (*SNP_SECTIONS, SNP_HASHES)
    metadata = struct.pack("<4sIII", b"ASEV", 16 + 12 * len(sections), 1, len(sections))
    metadata += b"".join(struct.pack("<III", *section) for section in sections)
    whole = bytearray(8192)
    at = 8192 - 1024
    whole[at : at + len(metadata)] = metadata
    table = b""
    for guid, value in (
        ("dc886566-984a-4798-a75e-5585a7bf67cc", 1024),
        ("00f771de-1a7e-4fcb-890e-68c77e2fb44e", SNP_RESET),
        ("7255371f-3a3b-4b04-927b-1da6efa8d454", SNP_HASHES_AT),
    ):
        table += struct.pack("<IH16s", value, 22, uuid.UUID(guid).bytes_le)
    table += struct.pack(
        "<H16s", len(table) + 18, uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    )
    whole[8192 - 32 - len(table) : 8192 - 32] = table
    return bytes(whole)


TdxSection = tuple[int, int, int, int, int, int]
_BFV: TdxSection = (4096, 8192, 0xFFFFD000, 8192, 0, 1)
"""Offset, size, address, size in memory, type, attributes."""
_CFV: TdxSection = (0, 4096, 0xFFFFC000, 4096, 1, 0)
_HOB: TdxSection = (0, 0, 0x809000, 8192, 2, 0)
_PERMANENT: TdxSection = (0, 0, 0, 0x800000, 4, 2)
TDX_SECTIONS = (_BFV, _CFV, _HOB, _PERMANENT)
_FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
_OFFSET = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le


def tdvf(
    *sections: TdxSection, version: int = 1, length: int | None = None, offset: int = 1024
) -> bytes:
    """Firmware of three pages with TDX metadata (design guide, section 11)."""
    body = b"".join(struct.pack("<IIQQII", *section) for section in sections)
    size = 16 + len(body) if length is None else length
    metadata = struct.pack("<4sIII", b"TDVF", size, version, len(sections)) + body
    whole = bytearray(range(256)) * 48
    whole[len(whole) - 1024 : len(whole) - 1024 + len(metadata)] = metadata
    table = b"other" + struct.pack("<H16s", 23, bytes(16))
    table += struct.pack("<IH16s", offset, 22, _OFFSET)
    table += struct.pack("<H16s", len(table) + 18, _FOOTER)
    whole[len(whole) - 32 - len(table) : len(whole) - 32] = table
    return bytes(whole)
