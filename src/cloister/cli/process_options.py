"""What an operator writes about engine processes: who shares one, and when it is exchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.panels import APART
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.worker.settings import Separation

SeparationName = Annotated[
    str,
    typer.Option(
        "--separation",
        help="shared: one engine process answers everybody. process-per-client: nobody's prompt "
        "reaches a process that somebody else uses.",
        rich_help_panel=APART,
    ),
]
MaxProcesses = Annotated[
    int | None,
    typer.Option(
        "--max-processes",
        min=1,
        max=256,
        help="Engine processes at a time. By default 2, and 4 where clients or requests have "
        "processes of their own. 1 if only one fits into memory: requests wait while it is "
        "exchanged.",
        rich_help_panel=APART,
    ),
]
RecycleAfter = Annotated[
    int | None,
    typer.Option(
        "--recycle-after",
        min=0,
        help="Exchange a process after this many requests. [1000]",
        rich_help_panel=APART,
    ),
]
RecycleIdle = Annotated[
    int | None,
    typer.Option(
        "--recycle-idle",
        min=0,
        help="... when it was unused for this many seconds. [60]",
        rich_help_panel=APART,
    ),
]
RecycleAge = Annotated[
    int | None,
    typer.Option(
        "--recycle-age",
        min=0,
        help="... this many seconds after its first request. [3600]",
        rich_help_panel=APART,
    ),
]
RecycleEach = Annotated[
    bool,
    typer.Option(
        "--recycle-each", help="Give each request a process of its own.", rich_help_panel=APART
    ),
]
Warm = Annotated[
    int | None,
    typer.Option(
        "--warm",
        min=0,
        help="Fresh processes kept ready. By default 1 with --recycle-each, else none.",
        rich_help_panel=APART,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOptions:
    """How people are kept apart, as given on the command line; None where nothing was given."""

    separation: str = "shared"
    max_processes: int | None = None
    recycle_after: int | None = None
    recycle_idle: int | None = None
    recycle_age: int | None = None
    recycle_each: bool = False
    warm: int | None = None

    @property
    def given(self) -> bool:
        """Whether anything was asked for."""
        return self != ProcessOptions()

    def settings(self) -> Separation:
        """What a worker does with it. ConfigurationError for what cannot be done."""
        from cloister.worker.settings import Separation, SeparationMode

        try:
            mode = SeparationMode(self.separation)
        except ValueError:
            raise ConfigurationError(
                f"--separation is {' or '.join(SeparationMode)}", code="configuration.separation"
            ) from None
        if self.recycle_each and self.recycle_after not in (None, 1):
            raise ConfigurationError(
                "--recycle-each and --recycle-after exclude each other",
                code="configuration.separation",
            )
        each = self.recycle_each or self.recycle_after == 1
        several = 4 if each or mode is SeparationMode.PER_CLIENT else 2
        most = several if self.max_processes is None else self.max_processes
        usual = Separation()

        def chosen(given: int | None, otherwise: int) -> int:
            return otherwise if given is None else given

        try:
            return Separation(
                mode=mode,
                max_processes=most,
                recycle_requests=1 if each else chosen(self.recycle_after, usual.recycle_requests),
                recycle_idle_s=chosen(self.recycle_idle, usual.recycle_idle_s),
                recycle_age_s=chosen(self.recycle_age, usual.recycle_age_s),
                warm=chosen(self.warm, min(int(each), most - 1)),
            )
        except ValueError:
            raise ConfigurationError(
                "--warm has to be less than --max-processes", code="configuration.separation"
            ) from None
