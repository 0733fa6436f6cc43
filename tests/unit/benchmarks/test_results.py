"""Results survive the disk, and tables say what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from benchmarks import results
from benchmarks.harness import MILLISECONDS, Report, Rounds, at_most, difference

ENVIRONMENT = {
    "cpu": "A processor",
    "cores": 2,
    "memory_gib": 24,
    "kernel": "6.1",
    "python": "3.11.7",
    "packages": {"cloister": "0.1.0", "httpx2": "2.16.2"},
    "commit": "abc",
    "at": "2026-01-01 00:00 UTC",
}


def report(*, bound: float) -> Report:
    rounds = Rounds(rounds=({"a": {"seconds": 0.003}, "b": {"seconds": 0.001}},))
    figure = difference(
        "A thing", rounds, "a", "b", "seconds", scale=MILLISECONDS, target=at_most(bound)
    )
    return Report(
        title="Things",
        method="How.",
        figures=(figure,),
        remarks=("By the way.",),
        raw={"x": rounds},
    )


def stored(path: Path, *, bound: float = 5.0) -> results.Outcome:
    results.write(
        path,
        name="things",
        report=report(bound=bound),
        environment=ENVIRONMENT,
        seconds=12.0,
        quick=False,
    )
    return results.read(path)


def test_a_report_reads_back_as_it_was_written(tmp_path: Path) -> None:
    outcome = stored(tmp_path / "deeper" / "things.json")
    assert outcome.figures == report(bound=5.0).figures
    assert (outcome.title, outcome.method, outcome.remarks) == ("Things", "How.", ("By the way.",))


def test_a_table_shows_both_arms_the_spread_and_the_verdict(tmp_path: Path) -> None:
    rendered = results.table(stored(tmp_path / "x.json"))
    row = next(line for line in rendered.splitlines() if line.startswith("| A thing"))
    assert "a 3.00; b 1.00 ms" in row
    assert "**2.00 ms**" in row
    assert row.endswith("| ≤ 5.00 ms | met |")
    assert "- By the way." in rendered


def test_a_missed_target_is_said_aloud(tmp_path: Path) -> None:
    rendered = results.table(stored(tmp_path / "x.json", bound=1.0))
    assert "**missed**" in rendered


def test_the_page_says_how_many_targets_were_met_and_names_the_others(tmp_path: Path) -> None:
    met, missed = stored(tmp_path / "a.json"), stored(tmp_path / "b.json", bound=1.0)
    rendered = results.document([met, dataclasses.replace(missed, name="others")])
    assert "1 of 2 targets met." in rendered
    assert "- Missed: A thing (a − b): 2.00 ms, target ≤ 1.00 ms." in rendered


def test_the_page_keeps_what_is_outside_the_markers(tmp_path: Path) -> None:
    page = f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n"
    filled = results.fill(page, results.document([stored(tmp_path / "x.json")]))
    assert filled.startswith("before\n")
    assert filled.endswith("\nafter\n")
    assert "old" not in filled
    assert "2 cores of A processor" in filled
    again = results.fill(filled, "new")
    assert results.fill(again, "new") == again


def test_a_page_without_markers_is_left_alone() -> None:
    with pytest.raises(ValueError, match="markers"):
        results.fill("no markers here", "x")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12345.6, "12,346"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.9712, "0.971"),
        (0.0123, "0.012"),
        (0.0, "0"),
        (-1.5, "-1.50"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert results.number(value) == shown


def test_a_page_tells_whose_results_it_has(tmp_path: Path) -> None:
    rendered = results.document([stored(tmp_path / "x.json")])
    assert results.told(rendered) == ["things"]
    assert results.told("- `things`: what it measures") == []


def test_the_page_keeps_what_was_not_measured_again(tmp_path: Path) -> None:
    first, second = stored(tmp_path / "a.json"), stored(tmp_path / "b.json", bound=1.0)
    other = dataclasses.replace(second, name="others", title="Other things")
    page = f"{results.BEGIN}\n\n{results.document([first, other])}\n\n{results.END}"
    assert [one.name for one in results.sections(page)] == ["things", "others"]
    assert results.fill(page, results.document([], kept=results.sections(page))) == page

    elsewhere = dataclasses.replace(
        first, environment={**first.environment, "kernel": "7"}, title="Anew"
    )
    rendered = results.document([elsewhere], kept=results.sections(page))
    assert results.told(rendered) == ["things", "others"]
    assert "### Anew" in rendered
    assert "### Other things" in rendered
    assert "1 of 2 targets met." in rendered
    assert "- Missed: A thing (a − b): 2.00 ms, target ≤ 1.00 ms." in rendered
    machines = {one.name: one.machine for one in results.sections(rendered)}
    assert "Linux 7" in machines["things"]
    assert "Linux 7" not in machines["others"]
    assert results.document([], kept=results.sections(rendered)) == rendered


def test_the_page_of_this_repository_can_be_taken_apart() -> None:
    page = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    found = results.sections(page)
    assert [one.name for one in found] == results.told(page)
    assert results.fill(page, results.document([], kept=found)) == page
