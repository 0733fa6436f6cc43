"""A way for HTTP libraries to an address: the path of a unix socket, which all of them can dial.

For a unix socket that is its own path. For anything else a thread of this process forwards from
a socket in a private directory. (Neither httpx nor httpcore lets an application bring connections
of its own but through their private parts.)
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Self

from cloister.errors import ConfigurationError
from cloister.streams.address import Address, UnixAddress
from cloister.streams.ends import dialler_to, listener_on
from cloister.streams.forward import Forwarder, ForwardLimits
from cloister.streams.tasks import end


class Route:
    """Open from the start until `close`, or until nobody has it; `socket_path` is what to dial."""

    def __init__(self, address: Address, *, limits: ForwardLimits | None = None) -> None:
        self._close: Callable[[], object] = lambda: None
        if isinstance(address, UnixAddress):
            self.socket_path = address.path
            return
        carrier = _Carrier(address, limits)
        self.socket_path = carrier.socket_path
        self._close = weakref.finalize(self, carrier.close)
        carrier.start()

    def close(self) -> None:
        """End every stream and remove the socket. Any number of times."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Carrier:
    """The forwarder's thread, its loop, and the private directory of its socket."""

    def __init__(self, address: Address, limits: ForwardLimits | None) -> None:
        self._address = address
        self._limits = limits
        self._directory = tempfile.mkdtemp(prefix="cloister-route-")  # mode 0700
        self.socket_path = str(Path(self._directory) / "socket")
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._stop: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._run, name="cloister-route", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise ConfigurationError(
                "no socket can be made for the way to that address", code="configuration.address"
            ) from self._failure

    def close(self) -> None:
        if self._thread.is_alive():
            self._stop()
            self._thread.join()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._forward())
        except Exception as error:  # told to whoever waits for the start
            self._failure = error
        finally:
            self._ready.set()

    async def _forward(self) -> None:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        dialler = dialler_to(self._address)
        listener = await listener_on(UnixAddress(path=self.socket_path))
        forwarding = asyncio.create_task(Forwarder(listener, dialler, limits=self._limits).run())
        self._stop = lambda: loop.call_soon_threadsafe(stopping.set)
        self._ready.set()
        try:
            await stopping.wait()
        finally:
            await end([forwarding])
            await listener.aclose()
            await dialler.aclose()
