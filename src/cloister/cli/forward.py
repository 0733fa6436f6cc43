"""``cloister forward LISTEN TARGET``: carry streams between two addresses, unread."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cloister.streams.address import Address
    from cloister.streams.forward import ForwardLimits

_SYNTAX = "tcp://HOST:PORT, unix:/PATH, vsock://CID:PORT or virtio:/PATH"


def forward(
    listen: Annotated[str, typer.Argument(help=f"Where to listen: {_SYNTAX}.")],
    target: Annotated[str, typer.Argument(help="Whom to reach for every stream; likewise.")],
    *,
    streams: Annotated[
        int, typer.Option("--streams", min=1, max=65536, help="At a time; the next one waits.")
    ] = 256,
    idle: Annotated[
        float,
        typer.Option("--idle", min=1, help="Seconds without a byte after which a stream ends."),
    ] = 900.0,
    connect: Annotated[
        float, typer.Option("--connect", min=0.1, help="Seconds to reach the target within.")
    ] = 10.0,
) -> None:
    """Forward until SIGTERM or Ctrl-C."""
    from cloister.streams.address import parse_address
    from cloister.streams.forward import ForwardLimits

    limits = ForwardLimits(streams=streams, idle_s=idle)
    asyncio.run(serve(parse_address(listen), parse_address(target), limits, connect_s=connect))


async def serve(
    listen: Address, target: Address, limits: ForwardLimits, *, connect_s: float
) -> None:
    """Forward until a signal says to stop; ConfigurationError where `listen` cannot be had."""
    from cloister.streams.ends import dialler_to, listener_on
    from cloister.streams.forward import Forwarder
    from cloister.streams.sockets import SocketListener
    from cloister.streams.tasks import first_to_end

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def on_reach(failure: str | None) -> None:
        typer.echo(
            f"{target} is reached" if failure is None else f"{target} is not reached: {failure}",
            err=True,
        )

    dialler = dialler_to(target, connect_s=connect_s)
    listener = await listener_on(listen)
    try:
        shown = listener.address if isinstance(listener, SocketListener) else listen
        typer.echo(f"Forwarding {shown} to {target}", err=True)
        forwarder = Forwarder(listener, dialler, limits=limits, on_reach=on_reach)
        await first_to_end(forwarder.run(), _heard(stop))
    finally:
        await listener.aclose()
        await dialler.aclose()


async def _heard(stop: asyncio.Event) -> None:
    await stop.wait()
