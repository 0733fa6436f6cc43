"""``cloister image start``: what a guest waits for, given through its operator's port."""

from __future__ import annotations

import base64
import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.asking import plain
from cloister.errors import ConfigurationError, EngineError, FetchError, MalformedError

if TYPE_CHECKING:
    from cloister.image.operator_link import OperatorLink
    from cloister.manifest.bundle import SignedManifest

LOOK_S: Final = 0.2

Bundle = Annotated[
    Path | None,
    typer.Option("--manifest", help="The bundle of the manifest that the worker runs under."),
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=10, help="Seconds until the worker must be ready.")
]


def start(
    port: Annotated[
        str,
        typer.Argument(
            metavar="PORT",
            help="The host's end of the port cloister.operator: the path of a Unix socket; of an"
            " enclave, vsock://CID:8441.",
        ),
    ],
    *,
    api_keys: Annotated[Path, typer.Option("--api-keys", help="Who is served (cloister keys).")],
    manifest: Bundle = None,
    timeout: Timeout = 300.0,
) -> None:
    """Start the worker of a guest that another program runs, such as a confidential one.

    The guest ends unless it was launched for this manifest. `cloister image boot` does this itself.
    """
    table = read_api_keys(api_keys)
    bundle = None if manifest is None else read_manifest(manifest)
    patience = _Patience(port, timeout)
    link = _asked_first(port, patience, api_keys=_text(table))
    with contextlib.closing(link):
        link.ask("start", **({} if bundle is None else {"manifest": _text(bundle)}))
        while not isinstance(ready := link.ask("ready").get("ready"), dict):
            patience()
            time.sleep(LOOK_S)
    typer.echo(plain(f"The worker listens on {ready.get('address')}, as its guest sees it."))


class _Patience:
    """Called while there is nothing to do but wait; raises where that is no use."""

    def __init__(self, port: str, timeout: float) -> None:
        self._port = port
        self._timeout = timeout
        self._until = time.monotonic() + timeout
        self.gone: EngineError | None = None
        """Raised at once, where it is set."""

    def __call__(self) -> None:
        if self.gone is not None:
            raise self.gone
        if time.monotonic() > self._until:
            raise EngineError(
                f"the guest behind {self._port} is not ready after {self._timeout:g} seconds; its"
                " console says how far it came",
                code="guest.not_ready",
            )


def _asked_first(port: str, patience: _Patience, *, api_keys: str) -> OperatorLink:
    """A connection on which the guest has taken the table of API keys.

    Who forwards to a guest takes connections before the guest does, and lets go of them: so as long
    as somebody takes them, they are made again.
    """
    link = _link(port, patience)
    while True:
        try:
            link.ask("api_keys", table=api_keys)
        except EngineError as error:
            link.close()
            if error.code != "guest.ended":
                raise
            patience.gone = error
            link = _link(port, patience)
            patience.gone = None
            patience()
        except FetchError:
            link.close()
            raise
        else:
            return link


def _link(port: str, waiting: Callable[[], None]) -> OperatorLink:
    """The connection to the guest; ConfigurationError for an address that leads to none."""
    from cloister.image.operator_link import OperatorLink
    from cloister.streams.address import UnixAddress, VsockAddress, is_address, parse_address

    if not is_address(port):
        return OperatorLink.connect(Path(port).expanduser(), waiting=waiting)
    match parse_address(port):
        case UnixAddress(path=path):
            return OperatorLink.connect(Path(path), waiting=waiting)
        case VsockAddress(cid=cid, port=number):
            return OperatorLink.dial(socket.AF_VSOCK, (cid, number), waiting=waiting)
    raise ConfigurationError(
        "a guest's port is a Unix socket's path, or vsock://CID:PORT", code="image.operator_port"
    )


def read_api_keys(path: Path) -> bytes:
    """The table of API keys at `path`, for a guest; ConfigurationError if there is none."""
    from cloister.worker.api_keys import load_table

    table = load_table(path.expanduser())
    if table is None:
        raise ConfigurationError(f"{path} does not exist", code="image.api_keys")
    return table.encode()


def read_manifest(path: Path) -> bytes:
    """The bundle at `path`, for a guest; ConfigurationError if it is none, or cannot be read."""
    return _bundle(path)[0]


def read_manifest_digest(path: Path) -> tuple[bytes, str]:
    """The same, with the manifest's digest."""
    bundle, signed = _bundle(path)
    return bundle, signed.digest


def _bundle(path: Path) -> tuple[bytes, SignedManifest]:
    from cloister.manifest.bundle import load_bundle

    try:
        bundle = path.expanduser().read_bytes()
        return bundle, load_bundle(bundle)
    except OSError as error:
        why = f" cannot be read: {error.strerror}"
    except MalformedError as error:
        why = f": {error}; `cloister manifest sign --bundle` writes one"
    raise ConfigurationError(f"{path}{why}", code="image.manifest")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
