"""Options that every target has, and what is done with a plan: shown, carried out, taken back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from cloister.errors import ConfigurationError
from cloister.strictjson import JsonObject

if TYPE_CHECKING:
    from cloister.deploy.apply import Effects
    from cloister.deploy.deployment import Deployment
    from cloister.deploy.ingress import Filter
    from cloister.deploy.plan import Plan, Step

Image = Annotated[Path, typer.Argument(help="A folder that `cloister image build` wrote.")]
Name = Annotated[str, typer.Option("--name", help="Of the deployment, and of what it makes.")]
Vcpus = Annotated[int, typer.Option("--vcpus", min=1, help="Processors of the machine.")]
Memory = Annotated[int, typer.Option("--memory", min=256, help="Memory of the machine, in MiB.")]
Port = Annotated[
    int | None,
    typer.Option("--port", help="One of the ports that the image lets in. Default: its first."),
]
Manifest = Annotated[
    str | None,
    typer.Option(
        "--manifest-digest", help="SHA-256 of the manifest. Default: the one that the image names."
    ),
]
StartDisk = Annotated[
    Path | None,
    typer.Option(
        "--start-disk",
        help="API keys and manifest (cloister image start-disk); in a cloud there has to be one.",
    ),
]
DebugImage = Annotated[
    bool, typer.Option("--debug-image", help="Deploy a debug image, which clients refuse.")
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        help="For files and progress. Default: ~/.local/state/cloister/deploy/TARGET/NAME.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only write the commands (the default).")]
Apply = Annotated[
    bool, typer.Option("--apply", help="Carry them out, or go on where it was cut off.")
]
Undo = Annotated[bool, typer.Option("--undo", help="Take back what was done, the last first.")]
Json = Annotated[bool, typer.Option("--json", help="Print the plan as JSON, not as commands.")]


class Common(NamedTuple):
    """Values of the options above that describe the deployment."""

    image: Path
    name: str
    port: int | None
    manifest: str | None
    debug_image: bool
    folder: Path | None
    start_disk: Path | None = None


class Action(NamedTuple):
    """Values of the options above that say what to do."""

    dry_run: bool
    apply: bool
    undo: bool
    json: bool

    def check(self) -> None:
        """Refuse more than one at once."""
        if self.dry_run + self.apply + self.undo > 1:
            raise ConfigurationError(
                "--dry-run, --apply and --undo exclude each other", code="deploy.options"
            )
        if self.json and (self.apply or self.undo):
            raise ConfigurationError(
                "--json prints a plan; it goes with --dry-run only", code="deploy.options"
            )


def deployment(target: str, common: Common, *, undo: bool = False) -> Deployment:
    """The description that the options give; hashes the image's files.

    To `undo`, what was deployed is known, and its files need not be there any more.
    """
    from cloister.cli.image_start_disk import read_start_disk
    from cloister.deploy import words
    from cloister.deploy.deployment import describe, hash_file, read_image
    from cloister.deploy.kept import read_kept

    words.NAME.check(common.name)  # before it becomes part of a path
    given = common.folder or Path("~/.local/state/cloister/deploy") / target / common.name
    folder = words.path(given, "the deployment's folder")
    kept = read_kept(folder) if undo else None
    if kept is not None:
        if kept.name != common.name:
            raise ConfigurationError(
                f"what is deployed in {folder} is called {kept.name}", code="deploy.options"
            )
        return kept
    image = read_image(
        common.image,
        debug_accepted=common.debug_image,
        tell=lambda name: typer.echo(f"reading {name}", err=True),
    )
    start = None
    if common.start_disk is not None:
        path = words.path(common.start_disk, "the start disk")
        read_start_disk(path)
        start = hash_file(path)
    return describe(
        common.name,
        image,
        folder,
        port=common.port,
        manifest=None if common.manifest is None else words.digest(common.manifest),
        start_disk=start,
    )


def allowed(deployment: Deployment, sources: list[str] | None) -> Filter:
    """The platform's filter for a deployment: people from `sources`, and the image's own peers."""
    from cloister.deploy.ingress import make_filter

    network = deployment.image.network
    return make_filter(deployment.port, sources or [], network.peers if network else ())


def carry_out(
    target: str,
    common: Common,
    make: Callable[[Deployment], Plan],
    to: Action,
    *,
    terraform: Path | None = None,
    module: Callable[[Deployment], JsonObject] | None = None,
) -> None:
    """Make the plan, and show it, carry it out or take it back; or write a Terraform module."""
    from cloister.deploy.kept import kept_text

    to.check()
    what = deployment(target, common, undo=to.undo)
    plan = make(what)
    if terraform is not None and module is not None:
        _write_module(plan, module(what), terraform, to)
    elif to.apply:
        _apply(plan, kept_text(what))
    elif to.undo:
        _undo(plan)
    elif to.json:
        typer.echo(json.dumps(plan.to_json(), indent=2))
    else:
        from cloister.deploy.shell import script

        typer.echo(script(plan), nl=False)


def _write_module(plan: Plan, module: JsonObject, folder: Path, to: Action) -> None:
    from cloister.deploy.plan import Convert
    from cloister.deploy.shell import command_line, converting
    from cloister.deploy.terraform import write_module

    if to.apply or to.undo or to.json:
        raise ConfigurationError(
            "--terraform writes a module; `terraform apply` and `terraform destroy` do the rest",
            code="deploy.options",
        )
    path = write_module(module, folder)
    typer.echo(f"{path} is written. Before `terraform apply`, make the disk that it uploads:")
    for step in plan.steps:
        if isinstance(step, Convert):
            typer.echo(f"  {command_line(converting(step))}")
    for note in plan.notes:
        typer.echo(note, err=True)


def _apply(plan: Plan, description: str) -> None:
    from cloister.deploy.apply import apply

    values = apply(plan, _effects(), tell=_told(plan), description=description)
    for note in plan.notes:
        typer.echo(note, err=True)
    typer.echo(json.dumps({"done": plan.name, **values}, indent=2))


def _undo(plan: Plan) -> None:
    from cloister.deploy.apply import undo

    unsure = undo(plan, _effects(), tell=_told(plan))
    typer.echo(json.dumps({"undone": plan.name, "cut_off": list(unsure)}, indent=2))
    if unsure:
        typer.echo(
            "These steps were cut off and may have left something; look for it, and remove "
            f"{plan.folder} before you deploy into it again: {', '.join(unsure)}",
            err=True,
        )


def _effects() -> Effects:
    import shutil
    import time

    from cloister.deploy.apply import Effects
    from cloister.deploy.tools import run_here

    return Effects(run=run_here, sleep=time.sleep, which=shutil.which)


def _told(plan: Plan) -> Callable[[Step, str], None]:
    numbers = {step.id: number for number, step in enumerate(plan.steps, start=1)}

    def tell(step: Step, event: str) -> None:
        place = f"[{numbers[step.id]}/{len(plan.steps)}]"
        said = {
            "already": f"{step.id} is done already",
            "begin": step.says,
            "again": f"{step.id}: not yet, once more",
            "found": f"{step.id} was cut off after it had done its work",
            "done": f"{step.id} is done",
            "undone": f"{step.id} is taken back",
        }[event]
        typer.echo(f"{place} {said}", err=True)

    return tell
