"""``cloister demo``: the main job in front of your eyes.

Computes the reference values, starts a sealed worker, checks its evidence claim by claim, asks
a question over the sealed channel, checks the receipt, and on a terminal goes on as a chat.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli.exits import exit_code
from cloister.cli.measure import EngineOptions
from cloister.cli.model_options import Model, ModelDigest, ModelOptions
from cloister.cli.operation_options import State, state_directory
from cloister.cli.serve import PLATFORM, embedded_plan
from cloister.errors import AppraisalError, EngineError, UnsupportedError

if TYPE_CHECKING:
    from rich.console import Console

    from cloister.attester.launcher import LaunchedWorker
    from cloister.client.connection import Connection
    from cloister.client.trust import Trust
    from cloister.verifier.result import AttestationResult

QUESTION: Final = "What is Cloister?"
READY_TIMEOUT_S: Final = 300.0
PICTURE_WIDTH: Final = 118


@dataclass(slots=True)
class Stopwatch:
    """Milliseconds that each step took."""

    timings_ms: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def time(self, step: str) -> Iterator[None]:
        """Time one step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.note(step, began)

    def note(self, step: str, began: float) -> None:
        """Write down the time since `began` (of ``perf_counter``)."""
        self.timings_ms[step] = round((time.perf_counter() - began) * 1000, 1)


def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="Ask one question and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    question: Annotated[str, typer.Option("--question", help="What to ask.")] = QUESTION,
    model: Model = "demo",
    model_sha256: ModelDigest = None,
    state: State = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Also save what is shown, as SVG.")
    ] = None,
) -> None:
    """Start a sealed worker here, check it, and talk to it."""
    from rich.console import Console

    interactive = (
        sys.stdin.isatty() and sys.stdout.isatty() and not (once or as_json or os.getenv("CI"))
    )
    console = Console(
        highlight=False,
        quiet=as_json,
        record=picture is not None,
        width=PICTURE_WIDTH if picture else None,
    )
    watch = Stopwatch()
    directory = state_directory() if state is None else state
    with _started(console, watch, directory, model, model_sha256) as (url, trust):
        code = _checked(
            console, watch, url, trust, question, as_json=as_json, interactive=interactive
        )
    if picture is not None:
        console.save_svg(str(picture), title="cloister demo")
    if code:
        raise typer.Exit(code)


@contextlib.contextmanager
def _started(
    console: Console, watch: Stopwatch, state: Path, model: str, sha256: str | None
) -> Iterator[tuple[str, Trust]]:
    """A worker that is ready, its address, and what it is to be checked against."""
    from cloister.attester.launcher import launch
    from cloister.attester.measure import reference_values
    from cloister.client.trust import Trust
    from cloister.endorsements.roots import Roots
    from cloister.verifier.policy import development
    from cloister.worker.operation import Operation

    with tempfile.TemporaryFile() as log:
        plan = embedded_plan(
            state,
            Operation(),
            models=ModelOptions(models=(model,), sha256=() if sha256 is None else (sha256,)),
            options=EngineOptions(),
            output=log.fileno(),
        )
        console.print("[bold]1. Reference values[/bold], computed before anything is started")
        with watch.time("measure"):
            expected = reference_values(plan.subject)
        console.print(
            f"   {len(expected.components)} components: interpreter, libraries, engine, "
            f"configuration, model\n   {expected.digest}",
            style="dim",
        )
        console.print(f"[bold]2. A sealed worker[/bold] on the platform {PLATFORM}")
        began = time.perf_counter()
        with launch(plan) as worker:
            ready = _ready(worker, log)
            watch.note("start", began)
            url = f"http://{ready['host']}:{ready['port']}"
            console.print(
                f"   {url}, model {ready['models'][0]}, engine in its sandbox", style="dim"
            )
            yield (
                url,
                Trust(
                    policy=development(),
                    reference_values=expected,
                    roots=Roots(enrolment_cas=(worker.enrolment_ca,)),
                ),
            )


def _ready(worker: LaunchedWorker, log: Any) -> dict[str, Any]:
    try:
        return worker.wait_ready(READY_TIMEOUT_S)
    except EngineError:
        # Nothing was asked yet, so the worker's output can hold no prompt.
        worker.close(grace=1.0)
        log.seek(0)
        sys.stderr.write(log.read().decode("utf-8", "replace"))
        raise


def _checked(
    console: Console,
    watch: Stopwatch,
    url: str,
    trust: Trust,
    question: str,
    *,
    as_json: bool,
    interactive: bool,
) -> int:
    """Verify, ask, check the receipt; then chat or print. Returns the exit code."""
    from cloister.cli.asking import whole
    from cloister.cli.chat import answer, converse
    from cloister.client.connect import open_connection
    from cloister.client.conversation import Conversation

    with open_connection(url, verifier=trust, trust_env=False) as connection:
        console.print("[bold]3. Its evidence[/bold], checked here, claim by claim")
        with watch.time("verify"):
            result = connection.verify()
        for part in whole(result):
            console.print(part)
        try:
            result.require_affirming()
        except (AppraisalError, UnsupportedError) as error:
            if as_json:
                typer.echo(json.dumps(_document(result, connection, question, "", watch)))
            return exit_code(error)
        console.print("[bold]4. A question over the sealed channel[/bold]")
        console.print(f"> {question}", markup=False)
        conversation = Conversation(connection)
        with watch.time("answer"):
            text = answer(console, connection, conversation, question, temperature=0)
        if as_json:
            document = _document(result, connection, question, text, watch)
            typer.echo(json.dumps(document, ensure_ascii=False))
        exchange = connection.last_exchange
        if exchange is None or not exchange.receipt_verified:
            return 1
        if interactive:
            console.print("\nGo on; /why explains the claims, /quit leaves.", style="dim")
            return converse(console, connection, conversation)
    return 0


def _document(
    result: AttestationResult,
    connection: Connection,
    question: str,
    answer: str,
    watch: Stopwatch,
) -> dict[str, Any]:
    exchange = connection.last_exchange
    served = None if exchange is None else exchange.model
    return {
        "platform": result.platform,
        "verdict": str(result.verdict),
        "claims": [
            {
                "name": claim.name,
                "finding": str(claim.finding),
                "source": str(claim.source),
                "explanation": claim.explanation,
                "code": claim.code,
            }
            for claim in result.claims
        ],
        "not_proven": list(result.not_proven),
        "model": None if served is None else {"name": served[0], "sha256": served[1]},
        "question": question,
        "answer": answer,
        "receipt_verified": exchange is not None and exchange.receipt_verified,
        "timings_ms": watch.timings_ms,
    }
