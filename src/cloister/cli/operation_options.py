"""What an operator decides and nobody measures: addresses, people, the state on disk.

The port of attested TLS is here as well; that there is one is measured.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.keys import DEFAULT_FILE
from cloister.cli.panels import ADDRESSES, OPERATION, UNDER, WAYS_IN
from cloister.errors import ConfigurationError

State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        help="The operator's private directory.",
        envvar="CLOISTER_STATE",
        rich_help_panel=OPERATION,
    ),
]
Host = Annotated[
    str, typer.Option("--host", help="An IP address of this machine.", rich_help_panel=ADDRESSES)
]
Port = Annotated[
    int,
    typer.Option("--port", min=0, max=65535, help="0 takes a free one.", rich_help_panel=ADDRESSES),
]
Listen = Annotated[
    str | None,
    typer.Option(
        "--listen",
        help="Instead of --host and --port: tcp://IP:PORT, unix:/PATH, vsock://CID:PORT or "
        "virtio:/PATH.",
        rich_help_panel=ADDRESSES,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Of the engine; by default all cores but one.",
        rich_help_panel=OPERATION,
    ),
]
TlsPort = Annotated[
    int | None,
    typer.Option(
        "--tls-port",
        min=0,
        max=65535,
        help="Also take requests over attested TLS, for tools that can only pin a "
        "certificate. 0 takes a free port (which one is not measured).",
        rich_help_panel=WAYS_IN,
    ),
]
TlsNames = Annotated[
    list[str] | None,
    typer.Option(
        "--tls-name",
        help="A DNS name or IP address that clients reach attested TLS by, besides --host. "
        "May be given several times.",
        rich_help_panel=ADDRESSES,
    ),
]
ApiKeys = Annotated[
    Path | None,
    typer.Option(
        "--api-keys",
        help="The table that `cloister keys` edits.",
        envvar="CLOISTER_API_KEYS",
        rich_help_panel=ADDRESSES,
    ),
]
RatePerMinute = Annotated[
    int,
    typer.Option(
        "--rate-per-minute",
        min=0,
        help="Requests per API key; 0: no limit.",
        rich_help_panel=ADDRESSES,
    ),
]
RateBurst = Annotated[
    int,
    typer.Option(
        "--rate-burst", min=1, help="Requests per API key at once.", rich_help_panel=ADDRESSES
    ),
]
OperatorSocket = Annotated[
    Path | None,
    typer.Option(
        "--operator-socket",
        help="Liveness, readiness and metrics (unix socket).",
        rich_help_panel=OPERATION,
    ),
]
Manifest = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        metavar="BUNDLE",
        help="The signed manifest that the worker runs under: it serves nothing that is not listed"
        " there. Its digest is measured; the bundle is shown to clients.",
        rich_help_panel=UNDER,
    ),
]
KitFolder = Annotated[
    Path | None,
    typer.Option(
        "--kit",
        help="Write here what clients pin; by default into the state.",
        rich_help_panel=OPERATION,
    ),
]
Prepare = Annotated[
    bool,
    typer.Option(
        "--prepare",
        help="Make the TPM and compile ahead, so that starting is quick; leave.",
        rich_help_panel=OPERATION,
    ),
]


def state_directory() -> Path:
    """Where an operator's state lies: ``$XDG_STATE_HOME/cloister``."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "cloister"


def table_of_keys(named: Path | None) -> Path:
    """The table of API keys; ConfigurationError if one was named that is not there."""
    if named is None:
        return DEFAULT_FILE
    if not named.expanduser().is_file():
        # Taking a mistyped name for an empty table would open the worker to everybody.
        raise ConfigurationError(
            f"there is no table of API keys at {named}; `cloister keys add` makes one",
            code="configuration.api_keys",
        )
    return named
