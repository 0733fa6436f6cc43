"""An image's folder: whole before, whole after, and one build at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

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


def test_a_name_that_cannot_be_replaced_is_noticed_before_anything_is(tmp_path: Path) -> None:
    out = tmp_path / "image"
    write(out, root_img="one", build_json="{}")
    (out / "values").mkdir()
    with pytest.raises(IsADirectoryError, match="values"):
        write(out, root_img="two", values="of two", build_json="{}")
    (out / "values").rmdir()
    assert held(out) == {"root.img": "one", "build.json": "{}"}


def test_a_folder_has_its_record_only_with_all_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here somebody pulls the disk out, in the middle of it."""
    out = tmp_path / "image"
    write(out, root_img="one", values="of one", build_json="{}")
    replace = Path.replace

    def pulled(path: Path, target: Path) -> Path:
        if path.name == "values":
            raise OSError("gone")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", pulled)
    with pytest.raises(OSError, match="gone"):
        write(out, root_img="two", values="of two", build_json="{}")
    assert held(out) == {"root.img": "two", "values": "of one"}


def test_a_link_is_replaced_and_what_it_names_left_alone(tmp_path: Path) -> None:
    """Whoever can write what a link names could alter an image after it was recorded."""
    (tmp_path / "elsewhere").write_text("one")
    out = tmp_path / "image"
    out.mkdir()
    (out / "root.img").symlink_to(tmp_path / "elsewhere")
    write(out, root_img="one")
    assert not (out / "root.img").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "one"


def test_what_goes_is_told(tmp_path: Path) -> None:
    write(tmp_path, root_img="one", values="of one", build_json="{}")
    gone: list[str] = []
    with replacing(tmp_path, KNOWN, record="build.json", removed=gone.append) as new:
        (new / "build.json").write_text("{}")
    assert gone == ["root.img", "values"]


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
