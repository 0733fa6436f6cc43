"""An image's folder: whole before, whole after, and one build at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloister.image import outputs
from cloister.image.folder import UNFINISHED, replacing

KNOWN = ("root.img", "values", "build.json")


def held(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def write(out: Path, **files: str) -> None:
    with replacing(out, KNOWN, record="build.json") as new:
        for name, text in files.items():
            (new / name.replace("_", ".")).write_text(text)


def test_what_another_build_left_goes_and_what_is_nobodys_stays(tmp_path: Path) -> None:
    """Reference values and a signature that stay would speak of an image that is gone."""
    out = tmp_path / "image"
    write(out, root_img="one", values="of one", build_json="{}")
    (out / "golden.json").write_text("recorded")
    assert held(out).keys() == {"root.img", "values", "build.json", "golden.json"}
    write(out, root_img="two", build_json="{}")
    assert held(out) == {"root.img": "two", "build.json": "{}", "golden.json": "recorded"}


def test_a_build_that_fails_leaves_the_image_before(tmp_path: Path) -> None:
    out = tmp_path / "image"
    write(out, root_img="one", values="of one", build_json="{}")
    before = held(out)
    with pytest.raises(OSError, match="full"), replacing(out, KNOWN, record="build.json") as new:
        (new / "root.img").write_text("half")
        raise OSError("full")
    assert held(out) == before


def test_a_folder_has_its_record_only_with_all_that_it_names(tmp_path: Path) -> None:
    """Here a name is taken by something that cannot be replaced, in the middle of it."""
    out = tmp_path / "image"
    write(out, root_img="one", build_json="{}")
    (out / "values").mkdir()
    (out / "values" / "inside").touch()
    with pytest.raises(OSError, match="values"):
        write(out, root_img="two", values="of two", build_json="{}")
    assert not (out / "build.json").exists()


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f"{UNFINISHED}x"
    left.mkdir()
    (left / "root.img").write_text("half")
    write(tmp_path, root_img="one")
    assert held(tmp_path) == {"root.img": "one"}


def test_two_builds_do_not_mix(tmp_path: Path) -> None:
    """The second waits until the first is done, and says so."""
    waits = threading.Event()

    def second() -> None:
        with replacing(tmp_path, KNOWN, record="build.json", waiting=waits.set) as new:
            (new / "root.img").write_text("two")
            (new / "build.json").write_text("of two")

    with ThreadPoolExecutor() as pool:
        with replacing(tmp_path, KNOWN, record="build.json") as new:
            running = pool.submit(second)
            assert waits.wait(60)
            (new / "root.img").write_text("one")
            (new / "build.json").write_text("of one")
        running.result(60)
    assert held(tmp_path) == {"root.img": "two", "build.json": "of two"}


@pytest.mark.parametrize("same", [True, False])
def test_a_disk_is_copied_only_where_it_is_another(tmp_path: Path, same: bool) -> None:
    source, before, target = (tmp_path / name for name in ("source", "before", "target"))
    source.write_text("content")
    before.write_text("content" if same else "kontent")
    outputs.take(source, before, target)
    assert target.read_text() == "content"
    assert target.samefile(before) is same


def test_a_disk_is_copied_where_none_was_before(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("content")
    outputs.take(tmp_path / "source", tmp_path / "none", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "content"
