"""The pages on serving tell every option of ``cloister serve``, under a heading of its help."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from cloister.cli import panels
from cloister.cli.main import build_app

PAGES = Path(__file__).parents[3] / "docs" / "how-to"
TEXT = "".join(
    (PAGES / name).read_text()
    for name in (
        *("serve.md", "managed.md", "in-engine.md", "attested-tls.md", "compat.md"),
        *("broker.md", "weights.md"),
    )
)
HEADINGS = {value for name, value in vars(panels).items() if name.isupper()}


def parameters(command: str) -> dict[str, str | None]:
    """The options of a command, with the heading that each stands under."""
    made = typer.main.get_command(build_app([command]))
    found = getattr(made, "commands", {command: made})[command]
    return {
        name: getattr(parameter, "rich_help_panel", None)
        for parameter in found.params
        for name in parameter.opts
        if name.startswith("--") and name != "--help"
    }


def test_every_option_is_told() -> None:
    assert [name for name in parameters("serve") if name not in TEXT] == []


def test_every_option_says_whether_it_is_measured() -> None:
    assert {
        name for name, heading in parameters("serve").items() if heading not in HEADINGS
    } == set()


def test_what_is_measured_can_be_measured_ahead() -> None:
    """By the same option, where the worker is one whose engine is its own."""
    serve, measure = parameters("serve"), parameters("measure")
    measured = {
        name
        for name, heading in serve.items()
        if heading is not None and heading.endswith("(measured)")
    }
    elsewhere = {name for name in measured if serve[name] == panels.OTHERS_ENGINE}
    assert measured - elsewhere - measure.keys() == {"--tls-port"}  # there: --attested-tls
    assert {measure[name] for name in measure.keys() & measured} <= HEADINGS


@pytest.mark.parametrize("command", ["serve", "measure"])
def test_headings_stand_apart_only_where_options_differ(command: str) -> None:
    headings = list(parameters(command).values())
    changes = [one for one, last in zip(headings, [None, *headings], strict=False) if one != last]
    assert len(changes) == len(set(changes)), "a heading is interrupted by another"
