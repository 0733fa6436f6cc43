"""``cloister doctor``: what this machine can attest, what is missing, and what to do about it.

It looks, and changes nothing. Only ``--try`` asks devices: for evidence over random bytes, each
in a child process with a time limit. Exit codes: 0 if something can be attested, 3 if nothing
but a development platform can.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from cloister.attester.platforms import GPU, Machine, PlatformFinding, State, detect
from cloister.cli.exits import AFFIRMED, CANNOT_DECIDE
from cloister.errors import CloisterError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cloister.attester.machine import Attester
    from cloister.evidence.report import EvidenceItem
    from cloister.strictjson import Json, JsonObject

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

FindProgram: TypeAlias = Callable[[str], str | None]
OpenAttester: TypeAlias = "Callable[[str], Attester]"

_MARKS: Final = {
    State.READY: ("✓", "green"),
    State.BLOCKED: ("!", "yellow"),
    State.ABSENT: ("–", "dim"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prerequisite:
    """Something that serving needs besides a platform."""

    name: str
    met: bool
    needed_for: str
    step: str = ""
    """What to do where it is not met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found."""

    platforms: tuple[PlatformFinding, ...]
    prerequisites: tuple[Prerequisite, ...]
    tried: Mapping[str, str]
    """Platform → what came of asking it; empty where nothing was asked."""

    @property
    def attests(self) -> tuple[str, ...]:
        """Platforms whose evidence stands alone, and which lack nothing."""
        return tuple(
            finding.platform
            for finding in self.platforms
            if finding.state is State.READY and finding.complete
        )

    @property
    def development(self) -> bool:
        """Whether a software TPM can be run here."""
        return all(entry.met for entry in self.prerequisites if entry.needed_for == "development")

    @property
    def exit_code(self) -> int:
        """0 if something can be attested, 3 otherwise."""
        return AFFIRMED if self.attests else CANNOT_DECIDE

    def to_json(self) -> JsonObject:
        """Everything, for programs."""
        platforms: list[Json] = [
            {
                "platform": finding.platform,
                "title": finding.title,
                "state": finding.state.value,
                "found": list(finding.found),
                "steps": list(finding.steps),
                "memory_confidentiality": finding.confidential,
                "stands_alone": finding.complete,
                "tried": self.tried.get(finding.platform),
            }
            for finding in self.platforms
        ]
        prerequisites: list[Json] = [
            {
                "name": entry.name,
                "met": entry.met,
                "needed_for": entry.needed_for,
                "step": entry.step,
            }
            for entry in self.prerequisites
        ]
        return {
            "attests": list(self.attests),
            "development": self.development,
            "platforms": platforms,
            "prerequisites": prerequisites,
        }


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    try_them: Annotated[
        bool, typer.Option("--try", help="Also ask each device for evidence over random bytes.")
    ] = False,
) -> None:
    """Exit 0 if this machine can attest something, 3 if it is good for development only."""
    diagnosis = examine()
    if try_them:
        diagnosis = attempt(diagnosis)
    if as_json:
        typer.echo(json.dumps(diagnosis.to_json(), indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        for part in show(diagnosis):
            console.print(part)
    raise typer.Exit(diagnosis.exit_code)


def _find_program(name: str) -> str | None:
    return shutil.which(name, path=_PATH)


def examine(
    root: Path = Path("/"),
    *,
    may_use: Callable[[Path], bool] | None = None,
    find_program: FindProgram = _find_program,
) -> Diagnosis:
    """Look at the machine whose files lie below `root`."""
    return Diagnosis(
        platforms=detect(root, may_use=may_use),
        prerequisites=tuple(_prerequisites(Machine(root=root), find_program)),
        tried={},
    )


def _prerequisites(machine: Machine, find_program: FindProgram) -> Iterable[Prerequisite]:
    yield Prerequisite(
        name="bubblewrap",
        met=find_program("bwrap") is not None,
        needed_for="serving",
        step="Debian: apt-get install bubblewrap",
    )
    refused = _namespaces_refused(machine)
    yield Prerequisite(
        name="user namespaces", met=not refused, needed_for="serving", step=refused or ""
    )
    missing = [name for name in _SWTPM if find_program(name) is None]
    yield Prerequisite(
        name="software TPM",
        met=not missing,
        needed_for="development",
        step=f"{', '.join(missing)} missing; Debian: apt-get install swtpm swtpm-tools"
        if missing
        else "",
    )


_SWTPM: Final = ("swtpm", "swtpm_setup", "swtpm_localca")


def _namespaces_refused(machine: Machine) -> str | None:
    """What to change, by the kernel's settings; a container may refuse on top of them."""
    refusals = (
        ("proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
        (
            "proc/sys/kernel/unprivileged_userns_clone",
            "0",
            "sysctl kernel.unprivileged_userns_clone=1",
        ),
        (
            "proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    )
    if not machine.has("proc/self/ns/user"):
        return "use a kernel with user namespaces (CONFIG_USER_NS)"
    return next((step for name, value, step in refusals if machine.text(name) == value), None)


def _open_attester(platform: str) -> Attester:
    if platform == GPU:
        from cloister.attester.nvgpu import GpuAttester

        return GpuAttester()
    from cloister.attester.machine import MachineAttester

    return MachineAttester(platform)


def attempt(
    diagnosis: Diagnosis,
    *,
    open_attester: OpenAttester = _open_attester,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> Diagnosis:
    """Ask every platform that lacks nothing for evidence; one that gives none is blocked."""
    tried: dict[str, str] = {}
    platforms = []
    for finding in diagnosis.platforms:
        checked = finding
        if finding.state is State.READY:
            try:
                items = open_attester(finding.platform).quote(random_bytes(32))
                tried[finding.platform] = _summary(items)
            except CloisterError as error:
                tried[finding.platform] = f"{error} [{error.code}]"
                checked = replace(finding, state=State.BLOCKED)
        platforms.append(checked)
    return replace(diagnosis, platforms=tuple(platforms), tried=tried)


def _summary(items: Mapping[str, EvidenceItem]) -> str:
    return "gave " + ", ".join(f"{name} ({len(item.data)} bytes)" for name, item in items.items())


def show(diagnosis: Diagnosis) -> Iterable[RenderableType]:
    """The diagnosis for a person."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    for finding in diagnosis.platforms:
        mark, style = _MARKS[finding.state]
        lines = [*finding.found]
        if finding.platform in diagnosis.tried:
            lines.append(f"asked: {diagnosis.tried[finding.platform]}")
        lines += [f"→ {step}" for step in finding.steps]
        table.add_row(
            Text(mark, style=style),
            Text(finding.title, style=style),
            Text("\n".join(lines) or "not here", style=style),
        )
    for entry in diagnosis.prerequisites:
        mark, style = _MARKS[State.READY if entry.met else State.BLOCKED]
        said = f"for {entry.needed_for}"
        table.add_row(
            Text(mark, style=style),
            Text(entry.name, style=style),
            Text(said if entry.met else f"{said}\n→ {entry.step}", style=style),
        )
    yield table
    yield Text()
    yield Text(verdict(diagnosis), style="bold")


def verdict(diagnosis: Diagnosis) -> str:
    """One sentence."""
    ready = [
        finding
        for finding in diagnosis.platforms
        if finding.state is State.READY and finding.complete
    ]
    if any(finding.confidential for finding in ready):
        names = ", ".join(finding.title for finding in ready if finding.confidential)
        return f"This machine can prove what it runs, and that memory is sealed: {names}."
    if ready:
        return (
            f"This machine can prove what it booted ({ready[0].title}), but nothing here keeps its"
            " memory from whoever owns it."
        )
    if diagnosis.development:
        return (
            "This machine is good for development: a software TPM runs here, and proves nothing"
            " to anyone else."
        )
    return "This machine can attest nothing; the steps above say what would change that."
