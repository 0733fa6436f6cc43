"""The page that lists what is in an image names the locked packages, in their locked versions."""

from __future__ import annotations

from pathlib import Path

from cloister.image.lock import Use, read_lock

PAGE = Path(__file__).parents[3] / "docs/reference/image-contents.md"


def test_the_list_is_of_the_locked_packages() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = {row[0].removeprefix("| "): row[1] for row in rows if row[1] not in {"", "Version"}}
    lock = read_lock(None)
    locked = {one.name: one.version for one in lock.of(Use.ROOT)}
    locked |= {one.name: one.version for one in lock.wheels}
    assert {"python3.11-minimal", "nftables", "bubblewrap", "xllamacpp"} <= listed.keys()
    assert listed.items() <= locked.items(), "run docs/generate_image_contents.py"
    assert {one.name for one in lock.wheels} <= listed.keys()
