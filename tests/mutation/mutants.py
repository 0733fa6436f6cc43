"""Every mutant of a piece of evidence, by number: the same number is always the same mutant."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Final

MAX_PLACES: Final = 8192
"""Lengths and places tried in one part; of larger parts, every second, third, … place."""

EXTENSIONS: Final = (*range(1, 65), 100, 127, 128, 255, 256, 511, 512, 1000, 1024, 2048, 4096)
"""By how many bytes a part is made longer."""
FILLS: Final = (b"\0", b"\xff", b"\x20", b"\x5a")
"""What the bytes behind the end are: padding of two kinds, white space, and none of these."""


class Kind(Enum):
    """What is done to a part."""

    FLIP = "flip"
    TRUNCATE = "truncate"
    EXTEND = "extend"
    INSERT = "insert"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change."""

    kind: Kind
    place: int
    """The byte that is changed, or the length that is left; for `Kind.EXTEND` the old length."""
    value: int = 0
    """Which bit, which byte is inserted, or how many are appended."""
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        fill = f" {self.data[-1]:02x}" if self.kind is Kind.EXTEND else ""
        return f"{self.kind.value} {self.place} {self.value}{fill}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is done to one part of `data`.

    Every bit of the first `dense` bytes is flipped, and one bit of every byte behind them.
    """

    data: bytes
    dense: int = 0
    seed: str = ""

    @property
    def counts(self) -> dict[Kind, int]:
        """How many mutants of each kind there are."""
        places = len(range(0, len(self.data), self._stride))
        return {
            Kind.FLIP: 8 * self.dense + len(self.data) - self.dense,
            Kind.TRUNCATE: places,
            Kind.EXTEND: len(EXTENSIONS) * len(FILLS),
            Kind.INSERT: places,
            Kind.DELETE: places,
        }

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __getitem__(self, number: int) -> Mutant:
        for kind, count in self.counts.items():
            if number < count:
                return self._made(kind, number)
            number -= count
        raise IndexError(number)

    def sample(self, one_in: int, turn: int = 0) -> range:
        """The numbers of one mutant in `one_in`, beginning where the seed says, and `turn`."""
        return range(self._chance(one_in, "sample", turn), len(self), one_in)

    @property
    def _stride(self) -> int:
        return 1 + (len(self.data) - 1) // MAX_PLACES

    def _chance(self, bound: int, *what: object) -> int:
        digest = hashlib.sha256(repr((self.seed, *what)).encode()).digest()
        return int.from_bytes(digest[:8], "big") % bound

    def _made(self, kind: Kind, number: int) -> Mutant:
        data = self.data
        if kind is Kind.FLIP:
            return self._flipped(number)
        if kind is Kind.EXTEND:
            size, fill = divmod(number, len(FILLS))
            size = EXTENSIONS[size]
            return Mutant(kind=kind, place=len(data), value=size, data=data + FILLS[fill] * size)
        place = number * self._stride
        if kind is Kind.TRUNCATE:
            return Mutant(kind=kind, place=place, data=data[:place])
        if kind is Kind.DELETE:
            return Mutant(kind=kind, place=place, data=data[:place] + data[place + 1 :])
        value = self._chance(256, kind, place)
        changed = data[:place] + bytes([value]) + data[place:]
        return Mutant(kind=kind, place=place, value=value, data=changed)

    def _flipped(self, number: int) -> Mutant:
        if number < 8 * self.dense:
            place, bit = divmod(number, 8)
        else:
            place = self.dense + number - 8 * self.dense
            bit = self._chance(8, Kind.FLIP, place)
        changed = bytearray(self.data)
        changed[place] ^= 1 << bit
        return Mutant(kind=Kind.FLIP, place=place, value=bit, data=bytes(changed))


def chunks(numbers: range, size: int) -> Iterator[range]:
    """`numbers` in runs of at most `size`."""
    edges = [*range(0, len(numbers), size), len(numbers)]
    return (numbers[start:end] for start, end in pairwise(edges))
