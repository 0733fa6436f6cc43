"""Every target's plan: carried out, cut off at each step in turn, resumed, undone, written down."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cloister.deploy import formats
from cloister.deploy.apply import DeployError, Effects, apply, undo
from cloister.deploy.ingress import make_filter
from cloister.deploy.journal import Journal
from cloister.deploy.plan import Argument, Plan, Run, Step, parts
from cloister.deploy.shell import script
from cloister.deploy.tools import Finished
from cloister.errors import ConfigurationError
from cloister.image import configuration
from support import cloud_plans
from support.cloud_plans import PLATFORMS, TARGETS, answers, by_query, plan_of
from support.deployments import Recorder, write_configuration, write_record

VECTORS = Path(__file__).parents[2] / "vectors" / "deploy"
FLAGS: Mapping[str, Mapping[str, list[str]]] = json.loads((VECTORS / "cli-flags.json").read_text())[
    "commands"
]


class Platform(Recorder):
    """Tools that answer as the platform would, and fail when they are told to."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(answers(plan))
        self.fail_call: int | None = None

    def __call__(self, argv: Sequence[str], /) -> Finished:
        if self.fail_call == len(self.calls):
            self.calls.append(tuple(argv))
            return Finished(code=1, out="", err="made to fail")
        if (found := by_query(argv)) is not None:
            self.calls.append(tuple(argv))
            return found
        return super().__call__(argv)


class Heard(list[tuple[str, str]]):
    """What was told."""

    def __call__(self, step: Step, event: str) -> None:
        self.append((step.id, event))


def quiet(step: Step, event: str) -> None:
    """Hear nothing."""


@pytest.fixture(autouse=True)
def small_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's disks are whole gibibytes, which take seconds to compress."""
    monkeypatch.setattr(formats, "GIBIBYTE", 1 << 20)


@pytest.fixture(params=TARGETS)
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Plan:
    return plan_of(request.param, tmp_path)


def test_all_steps_are_done_in_order_and_undone_in_reverse(plan: Plan) -> None:
    platform = Platform(plan)
    done: list[str] = []
    apply(
        plan,
        platform.effects,
        tell=lambda step, event: done.append(step.id) if event == "done" else None,
    )
    assert done == [step.id for step in plan.steps]
    back = Platform(plan)
    assert undo(plan, back.effects, tell=quiet) == ()
    undoing = [step for step in reversed(plan.steps) if isinstance(step, Run) and step.undo]
    assert undoing
    called = [call for call in back.calls if "--version" not in call and call[1:2] != ("version",)]
    assert [call[0] for call in called] == [parts(step.undo[0])[0] for step in undoing]


def test_cut_off_at_any_command_it_goes_on_and_nothing_half_done_is_done(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # thousands of them take minutes
    whole = Platform(plan)
    apply(plan, whole.effects, tell=quiet)
    tools = len(
        [call for call in whole.calls if "--version" in call or call[:2] == ("az", "version")]
    )
    finished = {step.id for step in plan.steps}
    for cut in range(tools, len(whole.calls)):
        folder = plan.folder.with_name(f"cut-{cut}")
        moved = plan_in(plan, folder)
        platform = Platform(moved)
        platform.fail_call = cut
        if retried(moved, whole.calls[cut]):
            continue
        heard = Heard()
        with pytest.raises(DeployError):
            apply(moved, platform.effects, tell=heard)
        failed = heard[-1][0]
        with Journal(folder, moved.digest) as journal:
            assert failed not in journal.done
            assert journal.begun == {failed}
            before = set(journal.done)
        assert before == {step for step, event in heard if event == "done"}
        later = Platform(moved)
        apply(moved, later.effects, tell=quiet)
        with Journal(folder, moved.digest) as journal:
            assert set(journal.done) == finished
            assert journal.begun == set()


def retried(plan: Plan, call: tuple[str, ...]) -> bool:
    """Whether a step that takes its time makes this call: one failure of it is nothing."""
    return any(
        isinstance(step, Run) and step.tries > 1 and step.argv[1:5] == call[1:5]
        for step in plan.steps
    )


def plan_in(plan: Plan, folder: Path) -> Plan:
    from dataclasses import replace

    return replace(plan, folder=folder)


def test_it_is_written_down_as_ever(plan: Plan, tmp_path: Path) -> None:
    kept = VECTORS / "plans" / f"{plan.target}.sh"
    text = script(plan).replace(str(tmp_path), "/home/me")
    if not kept.exists():  # pragma: no cover - to make a new one: remove it, run this, read it
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(text)
        pytest.fail(f"{kept.name} was not there; read what was written and run this again")
    assert text == kept.read_text()


def commands(plan: Plan) -> list[tuple[Argument, ...]]:
    found: list[tuple[Argument, ...]] = []
    for step in plan.steps:
        if isinstance(step, Run):
            looked = step.look.argv if step.look is not None else ()
            found += [argv for argv in (step.argv, step.undo, looked) if argv]
    return found


def known_flags(argv: tuple[Argument, ...]) -> tuple[str, Mapping[str, list[str]]] | None:
    """The command's name and flags by its tool's own help; None for tools without a table."""
    words = [word for word in argv if isinstance(word, str)]
    for length in range(5, 1, -1):
        name = " ".join(words[:length])
        if name in FLAGS:
            return name, FLAGS[name]
    assert words[0] not in {"az", "gcloud", "nitro-cli"}, words
    return None


def test_every_flag_and_value_is_one_of_the_tools_own(plan: Plan) -> None:
    for argv in commands(plan):
        known = known_flags(argv)
        if known is None:
            continue
        name, flags = known
        for at, word in enumerate(argv):
            if not isinstance(word, str) or not word.startswith("--"):
                continue
            flag, joined, value = word.partition("=")
            # gcloud negates each of its switches by `--no-`.
            negated = flag.replace("--no-", "--", 1) if name.startswith("gcloud") else flag
            assert flag in flags or negated in flags, (name, flag)
            choices = flags.get(flag)
            if choices:
                given = value if joined else argv[at + 1]
                assert isinstance(given, str)
                assert set(given.split(",")) <= set(choices), (name, flag, given)


def test_the_check_of_flags_finds_a_wrong_one() -> None:
    known = known_flags(("az", "vm", "create", "--x"))
    assert known is not None
    assert "--security-type" in known[1]
    assert "--securty-type" not in known[1]
    assert "ConfidentialVM" in known[1]["--security-type"]


def test_no_plan_asks_for_debugging_or_holds_a_credential(plan: Plan) -> None:
    text = json.dumps(plan.to_json())
    assert not re.search(
        r"(?i)debug-mode|attach-console|devtools|password|account-key|sas|--ssh", text
    )
    assert "access_key" not in text.lower()


def test_what_is_planned_depends_on_nothing_but_what_it_is_given(
    plan: Plan, tmp_path: Path
) -> None:
    again = plan_of(plan.target, tmp_path)
    assert again == plan
    assert again.digest == plan.digest
    assert plan_of(plan.target, tmp_path / "other").digest != plan.digest


def test_a_platform_that_does_not_protect_the_machine_ends_it(tmp_path: Path) -> None:
    described = ("aws", "--region", "us-east-2", "ec2", "describe-instances")
    wrong = {
        "aws-snp": (described, '{"found": null}'),
        "aws-nitrotpm": (described, "{}"),
        "google-snp": (("gcloud", "compute", "instances", "describe"), "SEV\n"),
        "google-tdx": (("gcloud", "compute", "instances", "describe"), "\n"),
        "google-vtpm": (("gcloud", "compute", "instances", "describe"), "False\n"),
        "azure": (("az", "vm", "show"), '{"securityType": "TrustedLaunch"}'),
        "aws-nitro": (("nitro-cli", "describe-enclaves"), '"DEBUG_MODE"'),
    }
    for target, (beginning, said) in wrong.items():
        plan = plan_of(target, tmp_path / target)
        answered = answers(plan)
        if target == "aws-nitro":
            said = str(answered[beginning]).replace('"NONE"', said)  # noqa: PLW2901
        tools = Recorder({beginning: said, **{k: v for k, v in answered.items() if k != beginning}})
        effects = Effects(run=tools, sleep=lambda _: None, which=lambda name: name)
        with pytest.raises(DeployError) as caught:
            apply(plan, effects, tell=quiet)
        assert caught.value.code == "deploy.expectation", target
        assert tools.calls[-1][: len(beginning)] == beginning


def test_an_enclave_of_another_image_ends_it(tmp_path: Path) -> None:
    plan = plan_of("aws-nitro", tmp_path)
    good = answers(plan)
    described = good["nitro-cli", "describe-eif"]
    assert isinstance(described, str)
    pcr0 = json.loads(described)["Measurements"]["PCR0"]
    other = ("0" if pcr0[0] != "0" else "1") + pcr0[1:]
    for command in (("nitro-cli", "describe-eif"), ("nitro-cli", "describe-enclaves")):
        said = good[command]
        assert isinstance(said, str)
        tools = Recorder({**good, command: said.replace(pcr0, other)})
        with pytest.raises(DeployError) as caught:
            apply(plan_in(plan, tmp_path / command[1]), tools.effects, tell=quiet)
        assert caught.value.code == "deploy.expectation"
        assert tools.calls[-1][:2] == command


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_for_another_platform_is_refused(target: str, tmp_path: Path) -> None:
    """Its worker would look for evidence that this target has none of."""
    plan_of(target, tmp_path)
    image = tmp_path / "image"
    own = PLATFORMS[target]
    for platform in configuration.Platform:
        write_configuration(image, members={"platform": platform})
        write_record(image, {"debug": False})
        if platform == own:
            plan_of(target, tmp_path)
        else:
            with pytest.raises(ConfigurationError, match=f'platform = "{own}"') as caught:
                plan_of(target, tmp_path)
            assert caught.value.code == "deploy.platform"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_that_does_not_say_its_platform_is_refused(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_of(target, tmp_path)
    monkeypatch.setattr(cloud_plans, "built_for", lambda what, _: what)
    with pytest.raises(ConfigurationError, match="does not say") as caught:
        plan_of(target, tmp_path)
    assert caught.value.code == "deploy.platform"
    (tmp_path / "image" / "configuration.json").unlink()
    write_record(tmp_path / "image", {"debug": False})
    monkeypatch.setattr(
        cloud_plans, "allowed", lambda what: make_filter(what.port, ["203.0.113.0/24"], ())
    )
    if target == "aws-nitro":  # an enclave image alone, of whatever maker
        plan_of(target, tmp_path)
        return
    with pytest.raises(ConfigurationError) as caught:
        plan_of(target, tmp_path)
    assert caught.value.code == "deploy.platform"
