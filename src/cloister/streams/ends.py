"""From an address to somebody who listens on it, or dials it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Final

from cloister.errors import ConfigurationError
from cloister.streams.address import Address, UnixAddress, VirtioAddress
from cloister.streams.device import open_device
from cloister.streams.serial import PortDialler, PortListener
from cloister.streams.sockets import SocketDialler, SocketListener, listen
from cloister.streams.stream import Dialler, Listener

CONNECT_S: Final = 10.0
"""How long the other end may take to be there."""


async def listener_on(address: Address) -> Listener:
    """Listen on `address`; ConfigurationError (``configuration.listen``) where that cannot be."""
    try:
        if isinstance(address, VirtioAddress):
            port = PortListener(partial(open_device, address.path))
            await port.start()
            return port
        unlink = address.path if isinstance(address, UnixAddress) else None
        return SocketListener(listen(address), unlink=unlink)
    except OSError as error:
        raise ConfigurationError(
            f"{address} cannot be listened on: {error.strerror or type(error).__name__}",
            code="configuration.listen",
        ) from None


def dialler_to(
    address: Address,
    *,
    connect_s: float = CONNECT_S,
    random: Callable[[int], bytes] = os.urandom,
) -> Dialler:
    """Somebody who dials `address`; nothing is reached yet."""
    if isinstance(address, VirtioAddress):
        return PortDialler(partial(open_device, address.path), connect_s=connect_s, random=random)
    return SocketDialler(address, connect_s=connect_s)
