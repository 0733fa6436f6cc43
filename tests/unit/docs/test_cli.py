"""The reference of commands names every option, kind and platform, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from cloister.cli.cases.verdict import READERS
from cloister.cli.main import COMMANDS, build_app
from cloister.endorsements.artefact import ArtefactKind
from cloister.endorsements.status import State
from cloister.evidence.recognise import Kind

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "cli.md").read_text()


def section(title: str) -> str:
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def options(command: str) -> set[str]:
    made = typer.main.get_command(build_app([command]))
    found = getattr(made, "commands", {command: made})[command]
    return {
        name
        for parameter in found.params
        for name in parameter.opts
        if name.startswith("--") and name != "--help"
    }


def test_every_command_has_a_row() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| \[", PAGE, re.MULTILINE)
    assert sorted(re.findall(r"\w+", " ".join(rows))) == sorted(COMMANDS)


@pytest.mark.parametrize("command", ["verify", "inspect", "doctor"])
def test_every_option_is_told(command: str) -> None:
    text = section(f"`cloister {command}`")
    told = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", text))
    assert told == options(command) | ({"--case"} if command == "verify" else set())


def test_the_commands_on_endorsements_are_told() -> None:
    group = typer.main.get_command(build_app(["endorsements"]))
    commands = getattr(group, "commands", {})["endorsements"].commands
    told = re.findall(r"^\| `(\w+)[ `]", section("`cloister endorsements`"), re.MULTILINE)
    assert told == list(commands)


def test_kinds_platforms_and_states_are_told() -> None:
    listed = section("`cloister inspect`").partition("Kinds:")[2]
    assert set(re.findall(r"`([\w-]+)`", listed)) == set(Kind)
    (cell,) = re.findall(r"^\| `platform` \| (.*) \|$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", cell)) == READERS.keys()
    artefacts = section("`cloister endorsements`")
    assert [kind for kind in ArtefactKind if f"`{kind}`" not in artefacts] == []
    assert [state for state in State if f"`{state}`" not in artefacts] == []


def test_the_commands_of_the_broker_are_told() -> None:
    """Each with its options, besides the two that all have."""
    group = typer.main.get_command(build_app(["broker"]))
    commands: dict[str, set[str]] = {}
    for name, command in getattr(group, "commands", {})["broker"].commands.items():
        for inner, made in getattr(command, "commands", {"": command}).items():
            commands[f"{name} {inner}".strip()] = {
                option
                for parameter in made.params
                for option in parameter.opts
                if option.startswith("--") and option not in {"--help", "--store", "--root-key"}
            }
    rows = re.findall(
        r"^\| `([a-z -]+)[^`]*` \| (.*) \|$", section("`cloister broker`"), re.MULTILINE
    )
    told = {name.strip(): set(re.findall(r"--[a-z][a-z-]+", text)) for name, text in rows}
    assert told == commands
