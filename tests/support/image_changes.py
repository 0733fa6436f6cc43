"""Changes to a built image, each into a folder of its own: what an attacker, or an update, does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cloister.image.esp import FIRST_SECTOR, SECTOR, write_esp
from cloister.image.footer import BLOCK, DiskFooter, parse_footer
from cloister.image.initrd import Entry, archive
from cloister.image.pe import parse_pe
from cloister.image.uki import SECTIONS, UkiParts, build_uki

_PER_BLOCK = BLOCK // 32


def run(command: Sequence[str], folder: Path) -> None:
    subprocess.run(
        command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def share(path: Path, other: Path) -> None:
    """Make `other` the same file, or a copy where it lies in another file system."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def copied(image: Path, target: Path) -> Path:
    """The same image in another folder; files are shared until they are replaced."""
    target.mkdir()
    for path in image.iterdir():
        if path.suffix in {".img", ".efi"}:
            share(path, target / path.name)
    return target


def replace(folder: Path, name: str, content: bytes) -> None:
    """Give `folder` a file of its own."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content)


def taken_apart(uki: bytes) -> tuple[bytes, UkiParts]:
    """The stub and the parts of an image."""
    headers = parse_pe(uki)
    own = [one for one in headers.sections if one.name in SECTIONS]
    content = {one.name: one.content(uki) for one in own}
    stub = bytearray(uki[: min(one.raw_offset for one in own)])
    kept = len(headers.sections) - len(own)
    stub[headers.coff + 2 : headers.coff + 4] = kept.to_bytes(2, "little")
    table = headers.section_table
    stub[table + 40 * kept : table + 40 * len(headers.sections)] = bytes(40 * len(own))
    return bytes(stub), UkiParts(
        kernel=content[".linux"],
        initrd=content[".initrd"],
        command_line=content[".cmdline"].decode("ascii"),
        os_release=content[".osrel"].decode(),
    )


def with_parts(image: Path, target: Path, change: Callable[[UkiParts], UkiParts]) -> Path:
    """The image with other parts in its unified kernel image, on a disk of its own."""
    copied(image, target)
    with_parts_in(target, change)
    return target


def with_parts_in(folder: Path, change: Callable[[UkiParts], UkiParts]) -> None:
    """The same in a folder that is a copy already."""
    stub, parts = taken_apart((folder / "uki.efi").read_bytes())
    uki = build_uki(stub, change(parts))
    replace(folder, "uki.efi", uki)
    _write_disk(folder, uki)


def with_program(image: Path, target: Path, program: bytes) -> Path:
    """The image with `program` put on its boot disk by the command that docs/how-to/images.md has.

    The partition table stays as it is.
    """
    own_esp(image, target)
    replace(target, "uki.efi", program)
    with_file(target, "EFI/BOOT/BOOTX64.EFI", program)
    return target


def footer_of(disk: Path) -> DiskFooter:
    """What stands in the last block of a disk."""
    return parse_footer(disk.read_bytes()[-BLOCK:])


def with_larger_esp(image: Path, target: Path) -> Path:
    """The same program on a larger disk; what is behind it on the disk, nobody starts."""
    copied(image, target)
    uki = (image / "uki.efi").read_bytes()
    _write_disk(target, uki + bytes(24 << 20))
    with_file(target, "EFI/BOOT/BOOTX64.EFI", uki)
    return target


def _write_disk(target: Path, uki: bytes) -> None:
    (target / "esp.img").unlink()
    work = target / "work"
    work.mkdir()
    write_esp(uki, target / "esp.img", folder=work, run=run)
    work.rmdir()


def with_file(folder: Path, path: str, content: bytes) -> None:
    """Put a file on the folder's ESP, which must be its own."""
    source = folder / "dropped"
    source.write_bytes(content)
    partition = f"{folder / 'esp.img'}@@{FIRST_SECTOR * SECTOR}"
    above = Path(path).parent
    if above.name.endswith(".d"):
        run(("mmd", "-i", partition, f"::/{above}"), folder)
    run(("mcopy", "-o", "-i", partition, str(source), f"::/{path}"), folder)
    source.unlink()


def own_esp(image: Path, target: Path) -> Path:
    """A copy whose ESP may be written to."""
    copied(image, target)
    (target / "esp.img").unlink()
    shutil.copyfile(image / "esp.img", target / "esp.img")
    return target


def with_byte_changed(image: Path, target: Path, name: str, at: int) -> Path:
    """One byte of a disk is another."""
    copied(image, target)
    (target / name).unlink()
    shutil.copyfile(image / name, target / name)
    with (target / name).open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))
    return target


def with_another_salt(image: Path, target: Path, name: str) -> Path:
    """A disk with the same files and another dm-verity root: another disk, and a whole one."""
    copied(image, target)
    data = (image / name).read_bytes()
    footer = parse_footer(data[-BLOCK:])
    content = data[: footer.data_blocks * BLOCK]
    salt = hashlib.sha256(bytes.fromhex(footer.salt)).digest()
    tree, root = hash_tree(content, salt)
    other = DiskFooter(
        kind=footer.kind,
        fs=footer.fs,
        data_blocks=footer.data_blocks,
        hash_start=footer.data_blocks,
        root_hash=root.hex(),
        salt=salt.hex(),
    )
    replace(target, name, content + tree + other.encode())
    return target


def application_file(image: Path, name: str) -> dict[str, Any]:
    """A JSON file of the application disk."""
    data = (image / "application.img").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder) / "disk.img"
        disk.write_bytes(data[: parse_footer(data[-BLOCK:]).data_blocks * BLOCK])
        read = subprocess.run(
            ("unsquashfs", "-cat", str(disk), name), check=True, capture_output=True
        )
    found: dict[str, Any] = json.loads(read.stdout)
    return found


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def with_application(image: Path, target: Path, files: Mapping[str, bytes]) -> Path:
    """An application disk with `files` in place of its own, or beside them."""
    copied(image, target)
    data = (image / "application.img").read_bytes()
    footer = parse_footer(data[-BLOCK:])
    assert footer.fs == "squashfs"
    work = target / "work"
    work.mkdir()
    (work / "old.img").write_bytes(data[: footer.data_blocks * BLOCK])
    run(("unsquashfs", "-q", "-n", "-d", "tree", "old.img"), work)
    for name, content in files.items():
        (work / "tree" / name).write_bytes(content)
        (work / "tree" / name).chmod(0o644)
    run(("mksquashfs", "tree", "new.img", "-all-root", "-no-xattrs", "-quiet"), work)
    content = (work / "new.img").read_bytes()
    content += bytes(-len(content) % BLOCK)
    tree, root = hash_tree(content, bytes(32))
    other = DiskFooter(
        kind="application",
        fs="squashfs",
        data_blocks=len(content) // BLOCK,
        hash_start=len(content) // BLOCK,
        root_hash=root.hex(),
        salt="00" * 32,
    )
    replace(target, "application.img", content + tree + other.encode())
    shutil.rmtree(work)
    return target


def hash_tree(content: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """dm-verity's tree, version 1, the highest level first, and the root above it."""
    levels: list[bytes] = []
    level = content
    while len(level) > BLOCK:
        digests = [
            hashlib.sha256(salt + level[at : at + BLOCK]).digest()
            for at in range(0, len(level), BLOCK)
        ]
        blocks = [
            b"".join(digests[at : at + _PER_BLOCK]).ljust(BLOCK, b"\0")
            for at in range(0, len(digests), _PER_BLOCK)
        ]
        level = b"".join(blocks)
        levels.append(level)
    return b"".join(reversed(levels)), hashlib.sha256(salt + level).digest()


def initrd_with_a_note(initrd: bytes) -> bytes:
    """One more file, which nothing reads."""
    return initrd + archive([Entry(name="note", mode=0o100644, data=b"hello")])
