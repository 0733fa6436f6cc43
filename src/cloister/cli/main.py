"""``cloister``: one program for those who ask and those who serve.

Commands live in a file each and import what they need when they run, so that
``cloister --help`` and the asking side stay quick. Exit codes are the same everywhere:
0 done or affirmed, 1 refused, 2 usage, 3 cannot decide, 4 unreachable.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import typer

from cloister.cli.exits import USAGE, exit_code
from cloister.errors import CloisterError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("cloister.cli.demo", "Start a sealed worker here, check it, and talk to it."),
    "verify": ("cloister.cli.verify", "Check a worker, or evidence, and show every claim."),
    "inspect": ("cloister.cli.inspect", "Decode evidence of any kind."),
    "chat": ("cloister.cli.chat", "Talk to a worker, after checking it."),
    "proxy": ("cloister.cli.proxy", "A local OpenAI endpoint that checks and seals."),
    "forward": ("cloister.cli.forward", "Carry streams between two addresses, unread."),
    "serve": (
        "cloister.cli.serve",
        "Serve models from a sealed worker.\n\n"
        "Options that are measured decide what clients have to pin: give `cloister measure` the "
        "same.",
    ),
    "measure": ("cloister.cli.measure", "Compute reference values ahead of time."),
    "manifest": ("cloister.cli.manifest", "What may see prompts: write, sign, check, compare."),
    "model": ("cloister.cli.model", "Prepare a model: check its files and record their digests."),
    "weights": ("cloister.cli.weights", "Seal a model's weights; check sealed ones, open them."),
    "quantize": ("cloister.cli.quantize", "Make smaller copies of a GGUF model."),
    "bench": ("cloister.cli.bench", "Measure models, and what an endpoint delivers."),
    "image": ("cloister.cli.image", "Machine images: build them, and say what will be measured."),
    "deploy": (
        "cloister.cli.deploy",
        "Start an image on a machine or in a cloud, or write down how.",
    ),
    "doctor": ("cloister.cli.doctor", "Say what this machine can attest, and what it lacks."),
    "endorsements": (
        "cloister.cli.endorsements",
        "What vendors say about the hardware: fetch, keep, carry, renew.",
    ),
    "broker": (
        "cloister.cli.broker",
        "Keep keys, and release them to workers whose evidence holds.",
    ),
    "keys": ("cloister.cli.keys", "API keys that the worker checks inside the seal."),
}
"""Command → module with a function (or, for groups, a typer app) of that name."""


def build_app(wanted: Sequence[str] = tuple(COMMANDS)) -> typer.Typer:
    """Make the program with the named commands; the others' modules are not imported."""
    app = typer.Typer(
        name="cloister",
        help="Sealed inference that the person asking can check first.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name in wanted:
        module, help_text = COMMANDS[name]
        command: Any = getattr(importlib.import_module(module), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, help=help_text)
        else:
            app.command(name, help=help_text)(command)
    return app


_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EIO})
"""What a write or an open may say that names no file."""
_FILE_CODE: Final = "system.file"


def _told(error: OSError) -> str:
    """What the system says of a file, where nobody before has said it better."""
    from cloister.cli.asking import plain

    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    why = error.strerror or type(error).__name__
    return plain(f"cloister: {' and '.join(names) or 'a file'}: {why} [{_FILE_CODE}]")


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and leave.",
            is_eager=True,  # before it is noticed that no command was named
            callback=lambda wanted: _print_version(wanted=wanted),
        ),
    ] = False,
) -> None:
    """Options of the program itself; each acts in its callback."""


def _print_version(*, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as installed

        typer.echo(f"cloister {installed('cloister')}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    named = next((argument for argument in arguments if argument in COMMANDS), None)
    sys.exit(guard(lambda: build_app([named] if named else list(COMMANDS))(arguments)))


def guard(run: Callable[[], object]) -> int:
    """Run a command; turn deliberate errors into one sentence and an exit code."""
    try:
        run()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except CloisterError as error:
        # It may repeat names of files, or words from inside them.
        from cloister.cli.asking import plain

        typer.echo(plain(f"cloister: {error} [{error.code}]"), err=True)
        return exit_code(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in _NO_ROOM:
            raise  # not about a file: a fault of ours, which shows
        typer.echo(_told(error), err=True)
        return USAGE
    except ModuleNotFoundError as error:
        # An extra that is not installed; anything of our own missing is a fault, and shows.
        if error.name is None or error.name.startswith("cloister"):
            raise
        typer.echo(
            f"cloister: this command needs the package {error.name}, which is not installed; "
            "install cloister[serve] to serve, cloister[proxy] for the proxy, "
            "cloister[openai] for the SDK, cloister[broker] for the broker, cloister[gpu] for "
            "NVIDIA's manifests, cloister[jwt] to sign results",
            err=True,
        )
        return 2
    return 0
