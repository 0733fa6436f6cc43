"""A build's operations: described, run, resumed, and made again where something changed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.errors import BuildError
from cloister.image.operations import LOCK, RECORD, Build, Operation, outside


class Kitchen:
    """Two operations, one after the other, that count how often they ran."""

    def __init__(self, source: Path) -> None:
        self.ran: list[str] = []
        self.first = Operation(
            name="first",
            title="Double a text",
            reads={"text": outside(source)},
            writes=("doubled",),
            execute=self._double,
        )
        self.second = Operation(
            name="second",
            title="Put it into a folder",
            reads={"doubled": self.first.made("doubled")},
            parameters={"name": "text"},
            writes=("folder",),
            execute=self._fold,
        )

    def build(self, work: Path) -> Build:
        return Build((self.first, self.second), work)

    def _double(self, reads: Mapping[str, Path], target: Path) -> None:
        self.ran.append("first")
        (target / "doubled").write_text(reads["text"].read_text() * 2)

    def _fold(self, reads: Mapping[str, Path], target: Path) -> None:
        self.ran.append("second")
        (target / "folder").mkdir()
        (target / "folder" / "text").write_text(reads["doubled"].read_text())


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    source = tmp_path / "source"
    source.write_text("ab")
    return Kitchen(source)


def test_what_stands_is_not_done_again(kitchen: Kitchen, tmp_path: Path) -> None:
    work = tmp_path / "work"
    build = kitchen.build(work)
    assert [(step.key is None, step.done) for step in build.describe()] == [
        (False, False),
        (True, False),
    ]
    assert not work.exists()
    build.run()
    assert (build.path(kitchen.second.made("folder")) / "text").read_text() == "abab"
    again = kitchen.build(work)
    assert all(step.done for step in again.describe())
    again.run()
    assert kitchen.ran == ["first", "second"]


def test_a_changed_input_or_parameter_is_another_result(kitchen: Kitchen, tmp_path: Path) -> None:
    work = tmp_path / "work"
    kitchen.build(work).run()
    kitchen.second = replace(kitchen.second, parameters={"name": "other"})
    kitchen.build(work).run()
    assert kitchen.ran == ["first", "second", "second"]
    (tmp_path / "source").write_text("cd")
    build = kitchen.build(work)
    build.run()
    assert kitchen.ran == ["first", "second", "second", "first", "second"]
    assert (build.path(kitchen.second.made("folder")) / "text").read_text() == "cdcd"
    (tmp_path / "source").write_text("ab")
    kitchen.build(work).run()
    assert len(kitchen.ran) == 5


@pytest.mark.parametrize("what", ["result", "record", "mode"])
def test_a_result_that_somebody_changed_is_made_again(
    kitchen: Kitchen, tmp_path: Path, what: str
) -> None:
    work = tmp_path / "work"
    build = kitchen.build(work)
    build.run()
    made = build.path(kitchen.second.made("folder")) / "text"
    match what:
        case "result":
            made.write_text("other")
        case "mode":
            made.chmod(0o755)
        case _:
            (made.parent.parent / RECORD).write_text("{}")
    kitchen.build(work).run()
    assert kitchen.ran == ["first", "second", "second"]
    assert made.read_text() == "abab"


def test_a_failure_leaves_nothing_that_stands(kitchen: Kitchen, tmp_path: Path) -> None:
    work = tmp_path / "work"

    def fail(_: Mapping[str, Path], target: Path) -> None:
        (target / "folder").mkdir()
        raise BuildError("out of eggs")

    whole = kitchen.second
    kitchen.second = replace(whole, execute=fail)
    with pytest.raises(BuildError, match="eggs"):
        kitchen.build(work).run()
    assert [step.done for step in kitchen.build(work).describe()] == [True, False]
    assert len([entry for entry in work.iterdir() if entry.name != LOCK]) == 1
    kitchen.second = whole
    kitchen.build(work).run()
    assert kitchen.ran == ["first", "second"]


def test_a_step_that_writes_less_than_it_says_fails(kitchen: Kitchen, tmp_path: Path) -> None:
    kitchen.second = replace(kitchen.second, execute=lambda _reads, _target: None)
    with pytest.raises(BuildError, match="did not write folder"):
        kitchen.build(tmp_path / "work").run()


def test_two_builds_at_once_do_each_step_once(kitchen: Kitchen, tmp_path: Path) -> None:
    """The second begins while the first is within a step, and says that it waits."""
    work = tmp_path / "work"
    inside, go_on, waits = threading.Event(), threading.Event(), threading.Event()
    fill = kitchen.first.execute

    def slow(reads: Mapping[str, Path], target: Path) -> None:
        inside.set()
        assert go_on.wait(60)
        fill(reads, target)

    first = Build((replace(kitchen.first, execute=slow), kitchen.second), work)
    second = kitchen.build(work)
    with ThreadPoolExecutor() as both:
        running = both.submit(first.run)
        assert inside.wait(60)
        behind = both.submit(second.run, waiting=waits.set)
        assert waits.wait(60)
        go_on.set()
        running.result(60)
        behind.result(60)
    assert kitchen.ran == ["first", "second"]
    path = second.path(kitchen.second.made("folder"))
    assert (path / "text").read_text() == "abab"


def test_what_a_killed_build_left_is_removed(kitchen: Kitchen, tmp_path: Path) -> None:
    left = tmp_path / "work" / ".new-first-x"
    left.mkdir(parents=True)
    (left / "doubled").write_text("half")
    kitchen.build(tmp_path / "work").run()
    assert not left.exists()
