"""Writes the table of recorded cases into ``docs/reference/platforms.md``.

``python docs/generate_platforms.py FOLDER``: every case below FOLDER is verified as by ``cloister
verify --case``, and held against the verdict that the case itself expects.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

from cloister.cli.cases.verdict import verdict

PAGE: Final = Path(__file__).parent / "reference" / "platforms.md"
BEGIN: Final = "<!-- cases: written by docs/generate_platforms.py -->\n"
END: Final = "<!-- end of cases -->\n"

TITLES: Final = {
    "az-vtpm": "Azure confidential VM",
    "dstack": "dstack",
    "gcp-vtpm": "Google Cloud vTPM",
    "nitro": "AWS Nitro Enclaves",
    "nitro-tpm": "AWS NitroTPM",
    "nvidia-gpu": "NVIDIA",
    "sgx": "Intel SGX",
    "snp": "AMD SEV-SNP",
    "tdx": "Intel TDX",
    "tpm": "TPM",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case, with what it expects and what was found."""

    platform: str
    name: str
    expected: str
    result: str
    reason: str | None
    wanted: str | None
    layers: int
    agreed: int

    @property
    def agrees(self) -> bool:
        """Whether verdict, reason and every layer are as expected."""
        same = (self.result, self.reason) == (self.expected, self.wanted)
        return same and self.agreed == self.layers

    def cells(self) -> str:
        """The row in Markdown; a reason that is not the expected one is shown beside it."""
        found = "–" if self.reason is None else f"`{self.reason}`"
        if self.reason != self.wanted:
            found += f" (expected: {self.wanted or 'none'})"
        return (
            f"| {self.name} | {self.expected} | {self.result} | {found}"
            f" | {self.agreed} of {self.layers} |"
        )


def examine(folder: Path) -> Row:
    """Verify the case in `folder`, and compare with what its ``case.json`` expects."""
    told = json.loads((folder / "case.json").read_text())
    expected, found = told["expected"], verdict(folder)
    layers = found["layers"]
    if not isinstance(layers, dict):
        raise TypeError("layers are an object")
    result, reason = found["result"], found["reason"]
    agreed = [name for name, word in expected["layers"].items() if _same(layers.get(name), word)]
    return Row(
        platform=told["platform"],
        name=folder.name,
        expected=expected["result"],
        result=str(result),
        reason=None if reason is None else str(reason),
        wanted=expected.get("reason"),
        layers=len(expected["layers"]),
        agreed=len(agreed),
    )


def _same(found: object, expected: object) -> bool:
    """A remark in brackets behind a word does not count."""
    return _plain(found) == _plain(expected)


def _plain(value: object) -> object:
    return value.partition(" (")[0] if isinstance(value, str) else value


def table(rows: Sequence[Row]) -> str:
    """All cases in Markdown, a table for each platform."""
    agree = sum(row.agrees for row in rows)
    return "\n".join(
        (
            f"{agree} of {len(rows)} cases agree in verdict, reason and every layer.",
            *_tables(rows),
            "",
        )
    )


def _tables(rows: Sequence[Row]) -> Iterator[str]:
    for platform, group in groupby(rows, key=lambda row: row.platform):
        yield f"\n### {TITLES.get(platform, platform)}\n"
        yield "| Case | Expected | Found | Reason | Layers agreed |"
        yield "|---|---|---|---|---|"
        yield from (row.cells() for row in group)


def render(page: str, rows: Sequence[Row]) -> str:
    """`page` with the table of `rows` in its place."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no place for the cases")
    return f"{head}{BEGIN}\n{table(rows)}\n{END}{tail}"


def cases(folder: Path) -> tuple[Row, ...]:
    """Every case below `folder`, by platform and name."""
    found = sorted(path.parent for path in folder.glob("*/*/case.json"))
    return tuple(map(examine, found))


def main(arguments: Sequence[str]) -> int:
    """Rewrite the page; the exit status is 1 where a case does not agree."""
    rows = cases(Path(arguments[0]))
    PAGE.write_text(render(PAGE.read_text(), rows))
    for row in rows:
        if not row.agrees:
            sys.stdout.write(f"{row.platform}/{row.name} does not agree\n")
    return 0 if rows and all(row.agrees for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
