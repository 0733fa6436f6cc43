"""``cloister chat URL``: check a worker, then talk to it; a receipt is checked after each answer.

On a terminal it asks and colours; with input from a pipe each line is a question.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.asking import (
    ApiKey,
    Development,
    Kit,
    Policy,
    Proxy,
    References,
    Root,
    Url,
    plain,
    receipt_line,
    trust_from,
)
from cloister.cli.exits import UNREACHABLE, exit_code
from cloister.cli.manifest_pins import (
    ManifestDigest,
    ManifestFile,
    ManifestMemory,
    ManifestName,
    MinVersion,
    Signer,
    SigstoreRoot,
    UnsafeUnsigned,
    manifest_from,
)
from cloister.errors import AppraisalError, CloisterError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from cloister.client.connection import Connection
    from cloister.client.conversation import Conversation

HELP = """\
/why           explain every claim that was checked
/model [NAME]  show the models, or talk to another
/clear         forget the conversation
/quit          leave"""


def chat(
    url: Url,
    *,
    kit: Kit = None,
    policy: Policy = None,
    reference_values: References = None,
    root: Root = None,
    development: Development = False,
    signer: Signer = None,
    min_version: MinVersion = None,
    manifest: ManifestFile = None,
    manifest_name: ManifestName = None,
    manifest_digest: ManifestDigest = None,
    manifest_memory: ManifestMemory = None,
    unsafe_unsigned_manifest: UnsafeUnsigned = False,
    sigstore_root: SigstoreRoot = None,
    proxy: Proxy = None,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option("--model", help="Which model to ask.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
) -> None:
    """Talk to a worker, after checking it."""
    from rich.console import Console

    from cloister.client.connect import open_connection
    from cloister.client.conversation import Conversation

    trust = trust_from(
        kit,
        policy,
        reference_values,
        root,
        development=development,
        manifest=manifest_from(
            signer=signer,
            min_version=min_version,
            manifest=manifest,
            name=manifest_name,
            digest=manifest_digest,
            memory=manifest_memory,
            sigstore_root=sigstore_root,
            unsafe_unsigned=unsafe_unsigned_manifest,
        ),
    )
    with open_connection(url, verifier=trust, proxy=proxy) as connection:
        console = Console(highlight=False)
        code = show_verdict(console, connection)
        if code == 0:
            code = converse(
                console,
                connection,
                Conversation(connection, model=model, system=system, api_key=api_key),
            )
    if code:
        raise typer.Exit(code)


def show_verdict(console: Console, connection: Connection) -> int:
    """Verify and show the verdict; where it is not affirming, why. Returns the exit code."""
    from cloister.cli.asking import claims_table, verdict

    result = connection.verify()
    console.print(verdict(result))
    try:
        result.require_affirming()
    except (AppraisalError, UnsupportedError) as error:
        console.print(claims_table(result.failures))
        return exit_code(error)
    console.print(
        f"{len(result.claims)} claims checked, {len(result.not_proven)} things not proven; "
        "/why explains them, /quit leaves",
        style="dim",
    )
    return 0


def converse(console: Console, connection: Connection, conversation: Conversation) -> int:
    """Read questions until there are no more. Returns the exit code: 0, or of the last failure.

    On a terminal a failed question ends only that question; in a pipe it ends everything.
    """
    interactive = sys.stdin.isatty()
    for line in _questions(console, interactive=interactive):
        text = line.strip()
        if not text:
            continue
        if text == "/quit":
            break
        try:
            if text.startswith("/"):
                _command(console, connection, conversation, text)
            else:
                answer(console, connection, conversation, text)
        except KeyboardInterrupt:
            if not interactive:
                raise
            console.print("stopped; what came is not remembered", style="dim")
        except Exception as error:
            code = _report(console, error)
            if code is None:
                raise
            if not interactive:
                return code
    return 0


def answer(
    console: Console, connection: Connection, conversation: Conversation, question: str, **more: Any
) -> str:
    """Ask, print the answer as it comes, then what its receipt says; return the answer."""
    pieces: list[str] = []
    for piece in conversation.ask(question, **more):
        pieces.append(piece)
        console.out(plain(piece), end="", highlight=False)
    console.out("")
    console.print(f"  {receipt_line(connection.last_exchange)}", style="dim", markup=False)
    return "".join(pieces)


def _questions(console: Console, *, interactive: bool) -> Iterator[str]:
    if not interactive:
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - line editing, where the platform has it
    while True:
        try:
            yield console.input("[bold]> [/bold]")
        except EOFError:
            console.print()
            return


def _command(
    console: Console, connection: Connection, conversation: Conversation, text: str
) -> None:
    name, _, argument = text.partition(" ")
    match name:
        case "/why":
            _explain(console, connection)
        case "/model":
            _choose_model(console, conversation, argument.strip())
        case "/clear":
            conversation.clear()
            console.print("the conversation is forgotten here", style="dim")
        case _:
            console.print(HELP, style="dim", markup=False)


def _explain(console: Console, connection: Connection) -> None:
    from cloister.cli.asking import whole

    result = connection.result
    if result is not None:
        for part in whole(result):
            console.print(part)


def _choose_model(console: Console, conversation: Conversation, name: str) -> None:
    models = conversation.models()
    if name in models:
        conversation.model = name
    elif name:
        console.print(f"there is no model {plain(name)}", markup=False)
    if conversation.model is None:
        conversation.model = next(iter(models), None)
    for model in models:
        mark = "*" if model == conversation.model else " "
        console.print(f"{mark} {plain(model)}", markup=False)


def _report(console: Console, error: Exception) -> int | None:
    """Show a failed question; ``None`` for what is no failure of the channel or the network."""
    import httpx2

    if isinstance(error, CloisterError):
        console.print(plain(f"{error} [{error.code}]"), style="red", markup=False)
        return exit_code(error)
    if isinstance(error, httpx2.TransportError):
        console.print(
            f"the worker cannot be reached ({type(error).__name__})", style="red", markup=False
        )
        return UNREACHABLE
    return None
