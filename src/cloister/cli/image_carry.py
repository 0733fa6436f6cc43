"""What carries the questions to its broker of a guest that ``cloister image boot`` gave no card."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.image.boot import BootedGuest

BROKER: Final = "broker"
FORWARD: Final = "from cloister.cli.main import main; main()"
SOCKET_WITHIN_S: Final = 10.0
"""QEMU makes its sockets before anything else."""


def broker_address(written: Sequence[str]) -> str | None:
    """Where the broker is of an image without a card; ConfigurationError (``image.peer``)."""
    from cloister.streams.address import TcpAddress, parse_address

    if not written:
        return None
    name, _, target = written[0].partition("=")
    if name != BROKER or len(written) > 1:
        raise ConfigurationError(
            f"this image has no network card: --peer {BROKER}=HOST:PORT, once, is where its broker"
            " is, and it can call nobody else",
            code="image.peer",
        )
    where = parse_address(f"tcp://{target}")
    if not isinstance(where, TcpAddress):
        raise TypeError("tcp:// gives an address of TCP")
    return str(where)


@contextlib.contextmanager
def carried_broker(guest: BootedGuest, broker: str | None) -> Iterator[None]:
    """Carry what a guest without a card asks its broker, by a forwarder that reads none of it."""
    from cloister.image.boot import ending_with_us

    if broker is None:
        yield
        return
    words = ("forward", f"virtio:{guest.sockets.broker}", broker)
    until = time.monotonic() + SOCKET_WITHIN_S
    while not guest.sockets.broker.exists() and time.monotonic() < until:
        time.sleep(0.1)
    process = subprocess.Popen(  # noqa: S603 - this very program
        ending_with_us([sys.executable, "-I", "-c", FORWARD, *words]), stdin=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()
