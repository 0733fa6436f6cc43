"""Writes the list of what is in an image into ``docs/reference/image-contents.md``.

``python docs/generate_image_contents.py FOLDER``: FOLDER is what ``cloister image build`` wrote.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloister.image.lock import read_lock

PAGE: Final = Path(__file__).parent / "reference" / "image-contents.md"
BEGIN: Final = "<!-- packages: written by docs/generate_image_contents.py -->\n"
END: Final = "<!-- end of packages -->\n"


def rows(contents: list[dict[str, object]]) -> Iterator[str]:
    """One line a package, the largest first."""
    lock = read_lock(None)
    versions = {one.name: one.version for one in lock.debian}
    versions |= {one.name: one.version for one in lock.wheels}
    packages: dict[str, list[dict[str, object]]] = {}
    for file in contents:
        packages.setdefault(str(file["origin"]), []).append(file)
    sizes = {name: sum(int(str(f["size"])) for f in files) for name, files in packages.items()}
    for name in sorted(packages, key=lambda name: (-sizes[name], name)):
        files = packages[name]
        reasons = sorted({str(file["why"]) for file in files})
        why = reasons[0] if len(reasons) == 1 else f"{reasons[0]}, …"
        size = f"{sizes[name] / 1e6:.2f}"
        yield f"| {name} | {versions.get(name, '')} | {len(files)} | {size} | {why} |"


def main(folder: Path) -> None:
    """Replace the list in the page."""
    contents = json.loads((folder / "contents.json").read_text())["files"]
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    head = "| Package | Version | Files | MB | Why |\n|---|---|---|---|---|\n"
    listed = "".join(f"{row}\n" for row in rows(contents))
    PAGE.write_text(before + BEGIN + head + listed + END + after)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
