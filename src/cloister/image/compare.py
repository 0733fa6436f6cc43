"""Compares two builds of one image, and says where they part.

A digest says that two disks differ; this says in which file: disks are unpacked, boot images taken
apart, records read member by member. The first difference in the order in which things are made is
named, because those after it follow from it (another root changes the command line, that the boot
image, and that the boot disk).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

from cloister.errors import BuildError, CloisterError
from cloister.image.disks import FileSystem, unpack_disk
from cloister.image.downloads import file_digest
from cloister.image.footer import BLOCK
from cloister.image.pe import parse_pe
from cloister.image.toolbox import Tools
from cloister.image.tree import list_files
from cloister.image.verity import read_footer

ORDER: Final = (
    "contents.json",
    "root.img",
    "uki.efi",
    "esp.img",
    "configuration.json",
    "application.img",
    "model.img",
)
"""Others follow by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where two builds part."""

    file: str
    inside: str
    """The file of a disk, the section of a boot image, or what else can be said; maybe empty."""

    def __str__(self) -> str:
        return f"{self.file}: {self.inside}" if self.inside else self.file


def first_difference(
    ours: Path, theirs: Path, names: Iterable[str], tools: Tools
) -> Difference | None:
    """The first of the files `names` that differs between two folders; None if none does."""
    known = {name: place for place, name in enumerate(ORDER)}
    for name in sorted(names, key=lambda name: (known.get(name, len(ORDER)), name)):
        mine, other = ours / name, theirs / name
        if not other.is_file():
            return Difference(file=name, inside="is missing")
        if file_digest(mine) != file_digest(other):
            return Difference(file=name, inside=_inside(mine, other, tools))
    return None


def _inside(mine: Path, other: Path, tools: Tools) -> str:
    try:
        if mine.suffix == ".img" and mine.name != "esp.img":
            return _in_disks(mine, other, tools)
        if mine.suffix == ".efi":
            return _in_programs(mine.read_bytes(), other.read_bytes())
        if mine.suffix == ".json":
            return _in_records(json.loads(mine.read_bytes()), json.loads(other.read_bytes()), "")
    except (CloisterError, ValueError, OSError) as error:
        return f"cannot be taken apart: {error}"
    return _at(mine, other)


def _in_disks(mine: Path, other: Path, tools: Tools) -> str:
    """The first file that differs; else whether it is the packing or what is behind it."""
    with tempfile.TemporaryDirectory(prefix="cloister-compare-") as work:
        ours = _unpacked(mine, Path(work) / "ours", tools)
        theirs = _unpacked(other, Path(work) / "theirs", tools)
    for (name, what), (name2, what2) in zip_longest(ours, theirs, fillvalue=("", "")):
        if name != name2:
            only = min(filter(None, (name, name2)))
            return f"/{only} is in one of them only"
        if what != what2:
            return f"/{name}"
    blocks = read_footer(mine).data_blocks
    with mine.open("rb") as a, other.open("rb") as b:
        packed_alike = a.read(blocks * BLOCK) == b.read(blocks * BLOCK)
    return "its hash tree or footer" if packed_alike else "packed otherwise; all files are equal"


def _unpacked(disk: Path, target: Path, tools: Tools) -> Sequence[tuple[str, str]]:
    unpack_disk(disk, target, FileSystem(read_footer(disk).fs), tools)
    return list(list_files(target))


def _in_programs(mine: bytes, other: bytes) -> str:
    ours, theirs = parse_pe(mine).sections, parse_pe(other).sections
    for one, two in zip_longest(ours, theirs):
        if one is None or two is None or one.name != two.name:
            return "its sections"
        if one.content(mine) != two.content(other):
            return f"section {one.name}"
    return "its headers"


def _in_records(mine: object, other: object, where: str) -> str:
    if isinstance(mine, Mapping) and isinstance(other, Mapping):
        for key in sorted({*mine, *other}):
            if mine.get(key) != other.get(key):
                return _in_records(mine.get(key), other.get(key), f"{where}.{key}".lstrip("."))
    if isinstance(mine, list) and isinstance(other, list):
        for number, (one, two) in enumerate(zip_longest(mine, other)):
            if one != two:
                return _in_records(one, two, f"{where}[{number}]")
    return where or "written otherwise"


def _at(mine: Path, other: Path) -> str:
    """The first byte that differs."""
    with mine.open("rb") as a, other.open("rb") as b:
        at = 0
        while True:
            one, two = a.read(BLOCK), b.read(BLOCK)
            if one != two:
                same = next(
                    (n for n, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]),
                    min(len(one), len(two)),
                )
                return f"byte {at + same}"
            if not one:
                raise BuildError(f"{mine.name} changed while it was read", code="image.file")
            at += len(one)
