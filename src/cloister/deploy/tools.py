"""The programs that a plan calls: that they are here, and new enough to know its words.

Asked before the first step, so that no plan stops half-way for want of a program.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cloister.deploy.plan import Tool
from cloister.errors import ConfigurationError

OWN: Final = "cloister"
_VERSION: Final = re.compile(r"(?<![\w.])[vV]?(\d{1,6}(?:\.\d{1,6}){1,3})(?![\d.])")
_SECRETS: Final = (
    # What follows the name of a secret, up to the next space.
    re.compile(
        r"(?i)\b(?:sig|\w*signature|\w*secret\w*|\w*passw(?:or)?d|\w*token|\w*key|sharedaccess\w*|"
        r"\w*authorization|bearer|x-amz-[\w-]+)\b[\"']?\s*[=: ]\s*(?:(?:bearer|basic)\s+)?\S+"
    ),
    re.compile(r"(?<=://)[^\s/@]+@"),  # names and passwords in addresses
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),  # AWS access key ids
    re.compile(r"[A-Za-z0-9+/_=.~%-]{32,}"),  # keys, tokens and signatures of any kind
)
MAX_WORDS: Final = 2000
"""Characters of a tool's complaint that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


class Runner(Protocol):
    """Runs one command to its end; a program that is not there is ``code`` 127."""

    def __call__(self, argv: Sequence[str], /) -> Finished:
        """Run it."""


def run_here(argv: Sequence[str], /) -> Finished:
    """Run a command with this process' environment, nothing on its standard input."""
    try:
        done = subprocess.run(  # noqa: S603 - an argument list of checked words, and no shell
            [_own() if argv[0] == OWN else argv[0], *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        return Finished(code=127, out="", err=error.strerror or "")
    return Finished(
        code=done.returncode,
        out=done.stdout.decode("utf-8", "replace"),
        err=done.stderr.decode("utf-8", "replace"),
    )


def _own() -> str:
    """Cloister's program of this installation, not another one that comes first on the path."""
    beside = Path(sys.executable).with_name(OWN)
    return str(beside) if beside.exists() else OWN


def check_tools(
    tools: Sequence[Tool],
    run: Runner,
    *,
    which: Callable[[str], str | None] = shutil.which,
) -> None:
    """Refuse to begin without every tool in a version that is new enough.

    Raises:
        ConfigurationError: with everything that is missing or too old (code ``deploy.tool``).
    """
    faults = [fault for tool in tools if (fault := _fault(tool, run, which))]
    if faults:
        raise ConfigurationError("; ".join(faults), code="deploy.tool")


def _fault(tool: Tool, run: Runner, which: Callable[[str], str | None]) -> str:
    get = f" ({tool.get})" if tool.get else ""
    if tool.name != OWN and which(tool.name) is None:
        return f"{tool.name} is not installed{get}"
    if not tool.version:
        return ""
    wanted = ".".join(map(str, tool.minimum))
    finished = run((tool.name, *tool.version))
    found = _VERSION.search(finished.out) or _VERSION.search(finished.err)
    if finished.code or found is None:
        return f"{tool.name} does not say its version; {wanted} or newer is needed{get}"
    if tuple(map(int, found[1].split("."))) < tool.minimum:
        return f"{tool.name} is of version {found[1]}; {wanted} or newer is needed{get}"
    return ""


def plain_words(text: str) -> str:
    """The end of what a tool said, without anything that may be a key, a token or a signature.

    Digests go too: nobody can tell them from keys.
    """
    for secret in _SECRETS:
        text = secret.sub("[…]", text)
    printable = "".join(
        sign if sign.isprintable() else " " if sign in "\t\r" else "\n" if sign == "\n" else "�"
        for sign in text.strip()
    )
    return printable[-MAX_WORDS:]
