"""Disks for clouds: read back by readers of their own, and the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloister.deploy import formats
from cloister.deploy.formats import convert
from cloister.deploy.vhd import footer, geometry
from cloister.errors import BuildError
from cloister.image import boot_disk
from support.deployments import ESP_BYTES, tiny_disk, write_image

MIB = 1 << 20


def test_a_vhd_is_the_disk_padded_and_a_footer(tmp_path: Path) -> None:
    raw, vhd = tmp_path / "disk.raw", tmp_path / "disk.vhd"
    raw.write_bytes(b"\x01" * (MIB + 5) + bytes(MIB) + b"end")
    convert("vhd", [raw], vhd)
    data = vhd.read_bytes()
    assert len(data) == 3 * MIB + 512
    assert data[: 2 * MIB + 8] == raw.read_bytes()
    assert not any(data[2 * MIB + 8 : 3 * MIB])
    last = data[-512:]
    # Offsets of the specification's table "Hard Disk Footer Format".
    assert last[:8] == b"conectix"
    assert struct.unpack_from(">IIQ", last, 8) == (2, 0x10000, 2**64 - 1)
    assert struct.unpack_from(">QQ", last, 40) == (3 * MIB, 3 * MIB)
    assert struct.unpack_from(">I", last, 60) == (2,)
    zeroed = last[:64] + bytes(4) + last[68:]
    assert struct.unpack_from(">I", last, 64)[0] == ~sum(zeroed) & 0xFFFFFFFF
    assert not any(last[84:])


@pytest.mark.parametrize(
    ("sectors", "expected"),
    [
        (2048, (30, 4, 17)),
        (2 * 1024 * 1024, (2080, 16, 63)),
        (20 * 2 * 1024 * 1024, (41610, 16, 63)),
        (2**40, (65535, 16, 255)),
    ],
)
def test_geometry_is_the_specifications(sectors: int, expected: tuple[int, int, int]) -> None:
    assert geometry(sectors) == expected
    assert struct.unpack_from(">HBB", footer(sectors * 512, bytes(16)), 56) == expected


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU")
def test_qemu_reads_the_vhd_as_the_same_disk(tmp_path: Path) -> None:
    raw, vhd, back = (tmp_path / name for name in ("disk.raw", "disk.vhd", "back.raw"))
    raw.write_bytes(b"\x01\x02" * (3 * MIB // 2))
    convert("vhd", [raw], vhd)
    back.write_bytes(bytes(3 * MIB))  # a copy is refused where the sizes differ
    disks = [("vhd", "vpc", vhd), ("back", "raw", back)]
    opened: list[tuple[str, dict[str, object]]] = [
        (
            "blockdev-add",
            {"node-name": name, "driver": kind, "file": {"driver": "file", "filename": str(path)}},
        )
        for name, kind, path in disks
    ]
    copied: dict[str, object] = {
        "job-id": "copy",
        "device": "vhd",
        "target": "back",
        "sync": "full",
    }
    with qemu_without_machine() as ask:
        ask("qmp_capabilities", {})
        for command, arguments in opened:
            assert "error" not in ask(command, arguments)
        nodes = {one["node-name"]: one for one in ask("query-named-block-nodes", {})["return"]}
        assert nodes["vhd"]["image"]["virtual-size"] == 3 * MIB
        assert "error" not in ask("blockdev-backup", copied)
        while ask("query-block-jobs", {})["return"]:
            time.sleep(0.05)
    assert back.read_bytes() == raw.read_bytes()


@contextmanager
def qemu_without_machine() -> Iterator[Callable[[str, dict[str, object]], Any]]:
    """A QEMU that runs nothing and answers questions; it quits at the end."""
    with subprocess.Popen(
        [
            "qemu-system-x86_64",
            "-machine",
            "none",
            "-nodefaults",
            "-display",
            "none",
            "-qmp",
            "stdio",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        orders, answers = process.stdin, process.stdout

        def ask(command: str, arguments: dict[str, object]) -> Any:
            orders.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            while not {"return", "error"} & (answer := json.loads(answers.readline())).keys():
                pass  # a greeting or an event
            return answer

        try:
            yield ask
            ask("quit", {})
        finally:
            process.kill()


def test_google_takes_one_raw_disk_of_whole_gibibytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert formats.GIBIBYTE == 1 << 30
    monkeypatch.setattr(formats, "GIBIBYTE", MIB)  # a real one takes seconds to compress
    raw, packed = tmp_path / "disk.raw", tmp_path / "disk.tar.gz"
    raw.write_bytes(b"\x05" * 5000)
    convert("google", [raw], packed)
    with tarfile.open(packed) as archive:
        (member,) = archive.getmembers()
        assert (member.name, member.size, member.mtime) == ("disk.raw", MIB, 0)
        assert (member.uid, member.gid, member.uname, member.isfile()) == (0, 0, "", True)
        content = archive.extractfile(member)
        assert content is not None
        assert content.read(6000) == b"\x05" * 5000 + bytes(1000)


def parts(disk: bytes) -> list[tuple[int, int]]:
    """First and last sector of every partition, from both copies of the table, which agree."""
    sectors = len(disk) // 512
    found = []
    for here, table in ((1, 2), (sectors - 1, sectors - 33)):
        header = disk[here * 512 : here * 512 + 92]
        fields = struct.unpack("<8sIIIIQQQQ16sQIII", header)
        assert fields[:3] == (b"EFI PART", 0x10000, 92)
        assert fields[3] == zlib.crc32(header[:16] + bytes(4) + header[20:])
        assert (fields[5], fields[6]) == (here, sectors - 1 if here == 1 else 1)
        assert fields[10] == table
        entries = disk[table * 512 : table * 512 + 128 * 128]
        assert fields[13] == zlib.crc32(entries)
        rows = [entries[at : at + 128] for at in range(0, len(entries), 128)]
        used = [row for row in rows if any(row)]
        assert len({row[16:32] for row in used}) == len(used)
        found.append([struct.unpack_from("<QQ", row, 32) for row in used])
        assert all(fields[7] <= first <= last <= fields[8] for first, last in found[-1])
    assert found[0] == found[1]
    return found[0]


def test_one_disk_holds_every_part_exactly(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image")
    sources = [image / name for name in ("esp.img", "root.img", "model.img")]
    convert("disk", sources, tmp_path / "disk")
    disk = (tmp_path / "disk").read_bytes()
    assert len(disk) % MIB == 0
    assert disk[510:512] == b"\x55\xaa"
    found = parts(disk)
    assert all(first % 2048 == 0 for first, _ in found)
    contents = [disk[first * 512 : (last + 1) * 512] for first, last in found]
    esp = sources[0].read_bytes()[2048 * 512 :][:ESP_BYTES]
    # To the byte: the image's init finds a disk by its last block.
    assert contents == [esp, sources[1].read_bytes(), sources[2].read_bytes()]


def test_equal_parts_give_equal_bytes(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image")
    digests = set()
    for number in range(2):
        disk = tmp_path / f"disk{number}"
        convert("disk", [image / "esp.img", image / "root.img"], disk)
        convert("vhd", [disk], tmp_path / f"vhd{number}")
        digests.add(
            (
                hashlib.sha256(disk.read_bytes()).hexdigest(),
                hashlib.sha256((tmp_path / f"vhd{number}").read_bytes()).hexdigest(),
            )
        )
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("kind", "contents"),
    [
        ("disk", []),
        ("disk", [b"no table".ljust(5 * MIB, b"\0")]),
        ("disk", [tiny_disk(b"\1" * ESP_BYTES), b"not whole"]),
        ("disk", [tiny_disk(b"\1" * ESP_BYTES), b""]),
        ("disk", [tiny_disk(b"\1" * ESP_BYTES)[: 2048 * 512]]),
        ("disk", [tiny_disk(b"\1" * ESP_BYTES), *[b"\2" * 512] * 4]),
        ("vhd", [b""]),
        ("vhd", [b"\1" * 512, b"\1" * 512]),
        ("google", [b""]),
        ("qcow2", [b"\1" * 512]),
    ],
)
def test_what_cannot_be_made_leaves_nothing(
    kind: str, contents: list[bytes], tmp_path: Path
) -> None:
    sources = []
    for number, content in enumerate(contents):
        sources.append(tmp_path / str(number))
        sources[-1].write_bytes(content)
    with pytest.raises(BuildError):
        convert(kind, sources, tmp_path / "out" / "disk")
    assert not list(tmp_path.glob("out/*"))


def test_a_source_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        convert("vhd", [tmp_path / "missing"], tmp_path / "disk")
    assert caught.value.code == "deploy.file"


ENTRY = 2 * 512
ESP_DISK = tiny_disk(b"\1" * ESP_BYTES)
ESP_SECTORS = len(ESP_DISK) // 512


@pytest.mark.parametrize(
    ("at", "new", "extent"),
    [
        (512, b"EFI PARX", None),
        (ENTRY, bytes([ESP_DISK[ENTRY] ^ 1]), None),
        (ENTRY + 32, struct.pack("<QQ", 34, 34), (34 * 512, 1)),
        (ENTRY + 32, struct.pack("<QQ", 33, 34), None),
        (ENTRY + 32, struct.pack("<QQ", 35, 34), None),
        (ENTRY + 32, struct.pack("<QQ", 34, ESP_SECTORS - 1), (34 * 512, ESP_SECTORS - 34)),
        (ENTRY + 32, struct.pack("<QQ", 34, ESP_SECTORS), None),
    ],
    ids=range(7),
)
def test_where_the_system_partition_lies(
    at: int, new: bytes, extent: tuple[int, int] | None, tmp_path: Path
) -> None:
    disk = tmp_path / "esp.img"
    disk.write_bytes(ESP_DISK)
    assert boot_disk.esp_extent(disk) == (2048 * 512, ESP_BYTES // 512)
    disk.write_bytes(ESP_DISK[:at] + new + ESP_DISK[at + len(new) :])
    if extent is not None:
        assert boot_disk.esp_extent(disk) == extent
        return
    with pytest.raises(BuildError, match="no EFI system partition"):
        boot_disk.esp_extent(disk)


def test_a_disk_holds_zeros_and_what_is_behind_them(tmp_path: Path) -> None:
    esp, root = tmp_path / "esp.img", tmp_path / "root.img"
    esp.write_bytes(ESP_DISK)
    root.write_bytes(bytes(MIB) + b"\2" * 512)
    boot_disk.write_boot_disk(esp, [root] * 3, tmp_path / "disk")
    disk = (tmp_path / "disk").read_bytes()
    names = [disk[ENTRY + 128 * n :][56:128].decode("utf-16-le").rstrip("\0") for n in range(4)]
    assert names == ["esp", "root", "application", "model"]
    assert [disk[first * 512 : (last + 1) * 512] for first, last in parts(disk)][1:] == [
        root.read_bytes()
    ] * 3


def test_a_part_that_becomes_shorter_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    esp, root = tmp_path / "esp.img", tmp_path / "root.img"
    esp.write_bytes(ESP_DISK)
    root.write_bytes(b"\2" * 1024)
    boot_disk.write_boot_disk(esp, [root], tmp_path / "disk")
    lay_out = boot_disk._lay_out

    def then_cut(*arguments: Any) -> Any:
        laid = lay_out(*arguments)
        root.write_bytes(b"\2" * 512)
        return laid

    monkeypatch.setattr(boot_disk, "_lay_out", then_cut)
    with pytest.raises(BuildError, match="became shorter"):
        boot_disk.write_boot_disk(esp, [root], tmp_path / "disk")
