"""Plans carried out: cut off anywhere, they go on; nothing half-done is reported as done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.deploy import journal as journal_file
from cloister.deploy.apply import DeployError, Effects, apply, undo
from cloister.deploy.deployment import hash_file
from cloister.deploy.journal import FILE, Journal
from cloister.deploy.kept import FILE as DESCRIPTION
from cloister.deploy.plan import (
    Capture,
    Captured,
    Convert,
    Expect,
    Input,
    Look,
    Plan,
    Run,
    Step,
    Tool,
    Write,
)
from cloister.deploy.tools import Finished, plain_words
from cloister.errors import ConfigurationError
from support.deployments import Recorder

SNAPSHOT = Captured(name="snapshot")
VERSION: dict[tuple[str, ...], str | Finished] = {
    ("aws", "--version"): "aws-cli/2.17.1 Python/3.11"
}
ANSWERS: dict[tuple[str, ...], str | Finished] = {
    **VERSION,
    ("aws", "snapshot"): "snap-0123abcd\n",
    ("aws", "state"): '{"State": ["running"]}',
}


def plan(folder: Path, *, inputs: tuple[Input, ...] = (), more: tuple[Step, ...] = ()) -> Plan:
    return Plan(
        target="test",
        name="web",
        folder=folder,
        tools=(Tool(name="aws", version=("--version",), minimum=(2, 15), get="from AWS"),),
        inputs=inputs,
        steps=(
            Run(
                id="snapshot",
                says="Make it.",
                argv=("aws", "snapshot", "web"),
                capture=Capture(name="snapshot", pattern="snap-[0-9a-f]{8}"),
                look=Look(argv=("aws", "look", "web")),
                undo=("aws", "delete", SNAPSHOT),
            ),
            Write(
                id="file",
                says="Write it.",
                path=folder / "a.json",
                content=('{"id": "', SNAPSHOT, '"}'),
            ),
            Run(
                id="state",
                says="Ask.",
                argv=("aws", "state", ("Id=", SNAPSHOT)),
                expects=(Expect(says="it runs", member=("State", 0), equals="running"),),
            ),
            *more,
        ),
    )


def quiet(step: Step, event: str) -> None:
    """Hear nothing."""


def test_what_one_step_captures_the_next_ones_use(tmp_path: Path) -> None:
    tools = Recorder(ANSWERS)
    assert apply(plan(tmp_path / "d"), tools.effects, tell=quiet) == {"snapshot": "snap-0123abcd"}
    assert tools.calls[1:] == [("aws", "snapshot", "web"), ("aws", "state", "Id=snap-0123abcd")]
    written = tmp_path / "d" / "a.json"
    assert json.loads(written.read_text()) == {"id": "snap-0123abcd"}
    assert written.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "d" / FILE).stat().st_mode & 0o777 == 0o600


def test_a_plan_that_is_done_does_nothing_again(tmp_path: Path) -> None:
    apply(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet)
    again = Recorder(ANSWERS)
    assert apply(plan(tmp_path), again.effects, tell=quiet) == {"snapshot": "snap-0123abcd"}
    assert again.calls == [("aws", "--version")]


@pytest.mark.parametrize(("failing", "done"), [("snapshot", []), ("state", ["snapshot", "file"])])
def test_it_goes_on_where_it_failed(tmp_path: Path, failing: str, done: list[str]) -> None:
    tools = Recorder(ANSWERS, fail_at=("aws", failing))
    heard: list[tuple[str, str]] = []
    with pytest.raises(DeployError, match=failing):
        apply(
            plan(tmp_path), tools.effects, tell=lambda step, event: heard.append((step.id, event))
        )
    assert [step for step, event in heard if event == "done"] == done
    assert heard[-1] == (failing, "begin")
    with Journal(tmp_path, plan(tmp_path).digest) as journal:
        assert list(journal.done) == done
        assert journal.begun == {failing}
    later = Recorder(ANSWERS)
    apply(plan(tmp_path), later.effects, tell=quiet)
    assert ("aws", "snapshot", "web") in later.calls or failing == "state"
    assert later.calls[-1] == ("aws", "state", "Id=snap-0123abcd")


def test_a_step_that_was_cut_off_is_looked_for_before_it_is_repeated(tmp_path: Path) -> None:
    with Journal(tmp_path, plan(tmp_path).digest) as journal:
        journal.begin("snapshot")
    found = Recorder({**ANSWERS, ("aws", "look"): "snap-89abcdef"})
    assert apply(plan(tmp_path), found.effects, tell=quiet) == {"snapshot": "snap-89abcdef"}
    assert ("aws", "snapshot", "web") not in found.calls


@pytest.mark.parametrize("nothing", ["", "None\n", "null"])
def test_a_step_that_left_nothing_is_repeated(tmp_path: Path, nothing: str) -> None:
    with Journal(tmp_path, plan(tmp_path).digest) as journal:
        journal.begin("snapshot")
    tools = Recorder({**ANSWERS, ("aws", "look"): nothing})
    apply(plan(tmp_path), tools.effects, tell=quiet)
    assert ("aws", "snapshot", "web") in tools.calls


def test_a_look_that_fails_is_no_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path, plan(tmp_path).digest) as journal:
        journal.begin("snapshot")
    tools = Recorder(ANSWERS, fail_at=("aws", "look"))
    with pytest.raises(DeployError):
        apply(plan(tmp_path), tools.effects, tell=quiet)
    assert ("aws", "snapshot", "web") not in tools.calls


@pytest.mark.parametrize(
    "printed",
    [
        "snap-0123abcd --force",
        "snap-0123abcd\nsnap-89abcdef",
        "$(id)",
        "",
        "snap-0123ABCD",
        "error",
    ],
)
def test_only_what_matches_whole_travels_on(tmp_path: Path, printed: str) -> None:
    tools = Recorder({**ANSWERS, ("aws", "snapshot"): printed})
    with pytest.raises(DeployError) as caught:
        apply(plan(tmp_path), tools.effects, tell=quiet)
    assert caught.value.code == "deploy.captured"
    assert len(tools.calls) == 2
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    "printed",
    ['{"State": ["stopped"]}', '{"State": []}', "{}", "running", '{"State": [["running"]]}', ""],
)
def test_a_step_that_prints_something_else_is_not_done(tmp_path: Path, printed: str) -> None:
    tools = Recorder({**ANSWERS, ("aws", "state"): printed})
    with pytest.raises(DeployError) as caught:
        apply(plan(tmp_path), tools.effects, tell=quiet)
    assert caught.value.code == "deploy.expectation"
    with Journal(tmp_path, plan(tmp_path).digest) as journal:
        assert "state" not in journal.done


def test_a_step_that_takes_its_time_is_tried_again(tmp_path: Path) -> None:
    waits: list[float] = []
    answers = iter([1, 1, 0])

    def run(argv: object, /) -> Finished:
        if argv == ("aws", "--version"):
            return Finished(code=0, out="aws-cli/2.17.1", err="")
        return Finished(code=next(answers), out="", err="not yet")

    step = Run(id="wait", says="Wait.", argv=("aws", "wait"), tries=5, pause_s=7)
    waiting = Plan(target="test", name="web", folder=tmp_path, tools=(), inputs=(), steps=(step,))
    effects = Effects(run=run, sleep=waits.append, which=lambda name: name)
    apply(waiting, effects, tell=quiet)
    assert waits == [7, 7]  # and not once more: what was made would be made twice


@pytest.mark.parametrize(
    ("printed", "fault"),
    [
        ("aws-cli/1.40.0 Python/3.11", "version 1.40.0"),
        ("aws-cli/2.14.9", "version 2.14.9"),
        ("nothing", "does not say"),
    ],
)
def test_a_tool_that_is_too_old_stops_everything(tmp_path: Path, printed: str, fault: str) -> None:
    tools = Recorder({("aws", "--version"): printed})
    with pytest.raises(ConfigurationError, match=fault) as caught:
        apply(plan(tmp_path / "d"), tools.effects, tell=quiet)
    assert caught.value.code == "deploy.tool"
    assert tools.calls == [("aws", "--version")]
    assert not (tmp_path / "d").exists()


def test_a_tool_that_is_not_there_stops_everything(tmp_path: Path) -> None:
    tools = Recorder(ANSWERS)
    effects = Effects(run=tools, sleep=lambda _: None, which=lambda name: None)
    with pytest.raises(ConfigurationError, match=r"aws is not installed \(from AWS\)"):
        apply(plan(tmp_path / "d"), effects, tell=quiet)
    assert tools.calls == []


def test_an_input_that_changed_since_the_plan_stops_everything(tmp_path: Path) -> None:
    disk = tmp_path / "root.img"
    disk.write_bytes(b"as planned")
    planned = plan(tmp_path / "d", inputs=(hash_file(disk),))
    apply(planned, Recorder(ANSWERS).effects, tell=quiet)
    disk.write_bytes(b"As planned")
    tools = Recorder(ANSWERS)
    with pytest.raises(ConfigurationError) as caught:
        apply(plan(tmp_path / "e", inputs=planned.inputs), tools.effects, tell=quiet)
    assert caught.value.code == "deploy.changed"
    assert tools.calls == [("aws", "--version")]


def test_another_plan_does_not_go_on_in_the_same_folder(tmp_path: Path) -> None:
    apply(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet)
    other = plan(tmp_path, more=(Run(id="more", says="More.", argv=("aws", "more")),))
    tools = Recorder(ANSWERS)
    with pytest.raises(ConfigurationError) as caught:
        apply(other, tools.effects, tell=quiet)
    assert caught.value.code == "deploy.progress"
    assert tools.calls == [("aws", "--version")]


def test_two_processes_do_not_carry_out_one_plan(tmp_path: Path) -> None:
    with (
        Journal(tmp_path, plan(tmp_path).digest),
        pytest.raises(ConfigurationError, match="already"),
    ):
        apply(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet)


def test_a_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    apply(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet)
    kept = tmp_path / FILE
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-3])
    tools = Recorder(ANSWERS)
    apply(plan(tmp_path), tools.effects, tell=quiet)
    assert tools.calls[1:] == [("aws", "state", "Id=snap-0123abcd")]
    with Journal(tmp_path, plan(tmp_path).digest) as journal:
        assert list(journal.done) == ["snapshot", "file", "state"]


@pytest.mark.parametrize("line", [b"nonsense\n", b'{"done": 1}\n', b'{"done": "a"}\n', b"[]\n"])
def test_progress_that_says_something_else_is_refused(tmp_path: Path, line: bytes) -> None:
    apply(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet)
    with (tmp_path / FILE).open("ab") as file:
        file.write(line)
    with pytest.raises(ConfigurationError) as caught:
        apply(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet)
    assert caught.value.code == "deploy.progress"


@pytest.mark.parametrize(
    "line",
    [
        {"done": "snapshot", "captured": {"snapshot": "snap-0123abcd --region=elsewhere"}},
        {"done": "snapshot", "captured": {"snapshot": "snap-0123abcd\n"}},
        {"done": "snapshot", "captured": {}},
        {"done": "snapshot", "captured": {"snapshot": "snap-0123abcd", "more": "x"}},
        {"done": "file", "captured": {"snapshot": "snap-0123abcd"}},
        {"done": "nobody", "captured": {}},
    ],
    ids=["option", "line", "nothing", "more", "another", "nobody"],
)
def test_kept_values_that_no_step_captures_reach_no_command(
    tmp_path: Path, line: dict[str, object]
) -> None:
    good = {"done": "snapshot", "captured": {"snapshot": "snap-0123abcd"}}
    for number, kept in enumerate((good, line)):
        folder = tmp_path / str(number)
        with Journal(folder, plan(folder).digest) as journal:
            journal.begin("snapshot")
        with (folder / FILE).open("ab") as file:
            file.write(json.dumps(kept).encode() + b"\n")
    apply(plan(tmp_path / "0"), Recorder(ANSWERS).effects, tell=quiet)
    for carry_out in (apply, undo):
        tools = Recorder(ANSWERS)
        with pytest.raises(ConfigurationError, match="was altered") as caught:
            carry_out(plan(tmp_path / "1"), tools.effects, tell=quiet)
        assert caught.value.code == "deploy.progress"
        assert tools.calls == [("aws", "--version")]


def test_progress_that_is_too_long_is_refused_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet)
    whole = (tmp_path / FILE).read_bytes()
    monkeypatch.setattr(journal_file, "MAX_BYTES", len(whole))
    apply(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet)
    monkeypatch.setattr(journal_file, "MAX_BYTES", len(whole) - 3)
    with pytest.raises(ConfigurationError, match="too long"):
        apply(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet)
    assert (tmp_path / FILE).read_bytes() == whole


def test_undo_takes_back_what_was_done_and_nothing_else(tmp_path: Path) -> None:
    tools = Recorder(ANSWERS, fail_at=("aws", "state"))
    with pytest.raises(DeployError):
        apply(plan(tmp_path), tools.effects, tell=quiet)
    back = Recorder(ANSWERS)
    assert undo(plan(tmp_path), back.effects, tell=quiet) == ("state",)
    assert back.calls[1:] == [("aws", "delete", "snap-0123abcd")]
    again = Recorder(ANSWERS)
    undo(plan(tmp_path), again.effects, tell=quiet)
    assert again.calls == [("aws", "--version")]


def test_what_is_taken_back_whole_leaves_its_folder_to_another_plan(tmp_path: Path) -> None:
    apply(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet)
    other = plan(tmp_path, more=(Run(id="more", says="More.", argv=("aws", "more")),))
    with pytest.raises(ConfigurationError, match="another plan"):
        apply(other, Recorder(ANSWERS).effects, tell=quiet)
    (tmp_path / DESCRIPTION).write_text("of the first")
    undo(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet)
    assert not (tmp_path / DESCRIPTION).exists()
    tools = Recorder(ANSWERS)
    apply(other, tools.effects, tell=quiet)
    assert tools.calls[-1] == ("aws", "more")


def test_what_may_have_left_something_keeps_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DeployError):
        apply(plan(tmp_path), Recorder(ANSWERS, fail_at=("aws", "state")).effects, tell=quiet)
    assert undo(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet) == ("state",)
    with Journal(tmp_path, plan(tmp_path).digest) as journal:
        assert journal.begun == {"state"}
        with pytest.raises(ValueError, match="left"):
            journal.clear()


def test_a_cut_off_step_that_is_not_found_may_still_appear(tmp_path: Path) -> None:
    with Journal(tmp_path, plan(tmp_path).digest) as journal:
        journal.begin("snapshot")
    tools = Recorder({**ANSWERS, ("aws", "look"): ""})
    assert undo(plan(tmp_path), tools.effects, tell=quiet) == ("snapshot",)
    assert tools.calls[1:] == [("aws", "look", "web")]


def test_a_description_is_kept_before_the_first_step_and_never_over_anothers(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "d"
    with pytest.raises(DeployError):
        apply(
            plan(folder),
            Recorder(ANSWERS, fail_at=("aws", "snapshot")).effects,
            tell=quiet,
            description="ours",
        )
    assert (folder / DESCRIPTION).read_text() == "ours"
    other = plan(folder, more=(Run(id="more", says="More.", argv=("aws", "more")),))
    with pytest.raises(ConfigurationError, match="another plan"):
        apply(other, Recorder(ANSWERS).effects, tell=quiet, description="theirs")
    assert (folder / DESCRIPTION).read_text() == "ours"


def test_undo_finds_what_a_cut_off_step_had_made(tmp_path: Path) -> None:
    with Journal(tmp_path, plan(tmp_path).digest) as journal:
        journal.begin("snapshot")
    tools = Recorder({**ANSWERS, ("aws", "look"): "snap-89abcdef"})
    assert undo(plan(tmp_path), tools.effects, tell=quiet) == ()
    assert tools.calls[-1] == ("aws", "delete", "snap-89abcdef")


def test_an_undo_that_fails_is_not_reported_as_undone(tmp_path: Path) -> None:
    apply(plan(tmp_path), Recorder(ANSWERS).effects, tell=quiet)
    with pytest.raises(DeployError):
        undo(plan(tmp_path), Recorder(ANSWERS, fail_at=("aws", "delete")).effects, tell=quiet)
    with Journal(tmp_path, plan(tmp_path).digest) as journal:
        assert "snapshot" in journal.done


SECRETS = [
    "https://x.blob.core.windows.net/a?sv=2022&sig=abc%2Fdef",
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG",
    "AKIAIOSFODNN7EXAMPLE",
    "Authorization: Bearer abc",
    '"password": "hunter22"',
    "token=short",
    "client_secret=hunter22",
    "db_password: hunter22",
    '"adminPassword": "hunter22"',
    "access_token=short",
    "Authorization: Basic dXNlcjpwYXNz",
    "Proxy-Authorization: Basic dXNlcjpwYXNz",
    "AccountKey=Zm9v",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_failure_repeats_the_tool_but_none_of_its_secrets(tmp_path: Path, secret: str) -> None:
    complaint = f"The region is wrong.\n{secret}\nTry another."
    tools = Recorder({**VERSION, ("aws", "snapshot"): Finished(code=1, out="", err=complaint)})
    with pytest.raises(DeployError, match="The region is wrong") as caught:
        apply(plan(tmp_path), tools.effects, tell=quiet)
    value = secret.replace("=", " ").replace(":", " ").split()[-1].strip('"')
    assert value not in str(caught.value)
    assert "Try another." in str(caught.value)


def test_a_password_in_an_address_is_left_out() -> None:
    said = plain_words("no answer from https://me:hunter22@proxy.example:8080/a")
    assert "hunter22" not in said
    assert "proxy.example" in said


def test_a_tools_words_move_no_cursor_and_have_an_end() -> None:
    assert "\x1b" not in plain_words("\x1b[2Jhello\x07")
    assert len(plain_words("a b " * 5000)) <= 2000


def test_a_conversion_that_fails_leaves_no_file(tmp_path: Path) -> None:
    step = Convert(
        id="vhd", says="Make it.", kind="vhd", sources=(tmp_path / "a",), target=tmp_path / "b"
    )
    (tmp_path / "a").write_bytes(b"")
    converting = Plan(
        target="t", name="web", folder=tmp_path / "d", tools=(), inputs=(), steps=(step,)
    )
    from cloister.errors import BuildError

    with pytest.raises(BuildError):
        apply(converting, Recorder().effects, tell=quiet)
    assert not (tmp_path / "b").exists()
    assert [one.name for one in tmp_path.iterdir()] == ["a", "d"] or len(
        list(tmp_path.iterdir())
    ) == 2
    (tmp_path / "a").write_bytes(b"x")
    apply(converting, Recorder().effects, tell=quiet)
    assert (tmp_path / "b").stat().st_size == (1 << 20) + 512


def test_a_plan_that_uses_what_nobody_captured_cannot_be_made(tmp_path: Path) -> None:
    step = Run(id="a", says="A.", argv=("aws", SNAPSHOT))
    with pytest.raises(ValueError, match="too early"):
        Plan(target="t", name="web", folder=tmp_path, tools=(), inputs=(), steps=(step,))
    with pytest.raises(ValueError, match="two steps"):
        plan(tmp_path, more=(Run(id="state", says="A.", argv=("aws",)),))
