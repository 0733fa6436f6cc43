"""Many streams over one port: who dials begins sessions, who listens accepts their streams.

A port has one who dials and one who listens. Which of them is the guest is nobody's business
here: requests to a worker come in by one port, and what the worker itself asks for goes out by
another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from cloister.streams.device import ABSENT_S, AbsentError, Device
from cloister.streams.frames import (
    GREETINGS,
    SESSION_BYTES,
    Event,
    Frame,
    FrameReader,
    Kind,
    OutOfStep,
    encode_greeting,
)
from cloister.streams.multiplex import MuxStream, Session, ViolationError
from cloister.streams.tasks import end, first_to_end

HELLO_AGAIN_S: Final = 2.0
"""A HELLO is lost where nobody has the port open yet."""
REOPEN_S: Final = 0.5

Open = Callable[[], Awaitable[Device]]


class _Link:
    """One open port: a reader, a writer, and the session there is at the moment."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._session: Session | None = None
        self._greeting = b""
        """To be sent next; a newer one takes its place."""
        self._something = asyncio.Event()

    async def run(self) -> None:
        """Work until the port fails; raises OSError then."""
        await first_to_end(self._read(), self._write())

    def end(self, reason: str) -> None:
        """End the session, if there is one."""
        session, self._session = self._session, None
        if session is not None:
            session.fail(reason)

    def wake(self) -> None:
        """Have the writer look for something to send."""
        self._something.set()

    def greet(self, kind: Kind, session: bytes = bytes(SESSION_BYTES)) -> None:
        """Send a greeting before anything else."""
        self._greeting = encode_greeting(kind, session)
        self.wake()

    async def _read(self) -> None:
        frames = FrameReader()
        while True:
            try:
                data = await self._device.read()
            except AbsentError:
                frames = FrameReader()
                if self._session is not None:
                    self.lost()
                await asyncio.sleep(ABSENT_S)
                continue
            for event in frames.feed(data):
                self._handle(event)
            await asyncio.sleep(0)  # whoever always has more to say starves nobody else

    def _handle(self, event: Event) -> None:
        match event:
            case OutOfStep():
                self.lost()
            case Frame(kind=kind) if kind in GREETINGS:
                self.greeted(event)
            case Frame() if self._session is not None:
                try:
                    self._session.handle(event)
                except ViolationError:
                    self.lost()
            case _:
                pass  # of a session before this one

    def greeted(self, frame: Frame) -> None:
        """A greeting came."""
        raise NotImplementedError

    def lost(self) -> None:
        """What came is of no session, or breaks its rules."""
        raise NotImplementedError

    async def _write(self) -> None:
        while True:
            data = self._take()
            if data is None:
                self._something.clear()
                await self._something.wait()
            else:
                await self._device.write(data)

    def _take(self) -> bytes | None:
        if self._greeting:
            greeting, self._greeting = self._greeting, b""
            return greeting
        return None if self._session is None else self._session.take()


class _ListenerLink(_Link):
    def __init__(self, device: Device, accepted: asyncio.Queue[MuxStream]) -> None:
        super().__init__(device)
        self._accepted = accepted
        self.greet(Kind.LOST)  # for whom had a session with somebody before us

    def greeted(self, frame: Frame) -> None:
        if frame.kind is not Kind.HELLO:
            return
        if self._session is None or self._session.name != frame.session:
            self.end("the dialler has begun again")
            self._session = Session(frame.session, accepted=self._accepted, wake=self.wake)
        self.greet(Kind.WELCOME, frame.session)

    def lost(self) -> None:
        if self._session is not None:
            self.end("the link has lost its step")
            self.greet(Kind.LOST)


class _DiallerLink(_Link):
    def __init__(self, device: Device, random: Callable[[int], bytes]) -> None:
        super().__init__(device)
        self._random = random
        self._name = b""
        self._established = asyncio.Event()
        self.lost()

    async def run(self) -> None:
        await first_to_end(super().run(), self._greet_again())

    async def open(self) -> MuxStream:
        """A new stream, as soon as there is a session."""
        while self._session is None:
            await self._established.wait()
        return await self._session.open()

    def greeted(self, frame: Frame) -> None:
        if frame.kind is Kind.LOST and self._session is not None:
            self.lost()
        elif frame.kind is Kind.WELCOME and self._session is None and frame.session == self._name:
            self._session = Session(self._name, accepted=None, wake=self.wake)
            self._established.set()

    def lost(self) -> None:
        if self._session is None and self._name:
            return  # whatever comes before the WELCOME is for somebody else
        self.end("the link has lost its step, or its listener")
        self._established.clear()
        self._name = self._random(SESSION_BYTES)
        self.greet(Kind.HELLO, self._name)

    async def _greet_again(self) -> None:
        while True:
            await asyncio.sleep(HELLO_AGAIN_S)
            if self._session is None:
                self.greet(Kind.HELLO, self._name)


class PortListener:
    """Accepts the streams of a port; keeps opening it while it fails."""

    def __init__(self, open_port: Open) -> None:
        self._open = open_port
        self._accepted: asyncio.Queue[MuxStream] = asyncio.Queue()
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the port for the first time; raises OSError where that cannot be."""
        self._running = asyncio.create_task(self._run(await self._open()))

    async def accept(self) -> MuxStream:
        """As `Listener.accept`."""
        if self._running is None:
            raise RuntimeError("a listener is started before it accepts")
        return await _unless_ended(self._accepted.get(), self._running)

    async def aclose(self) -> None:
        """As `Listener.aclose`; all streams of the port end."""
        await _stop(self._running)

    async def _run(self, device: Device) -> None:
        while True:
            await _run_link(_ListenerLink(device, self._accepted), device)
            device = await _opened_again(self._open)


class PortDialler:
    """Opens streams on a port, which it opens with the first of them and again after a failure."""

    def __init__(
        self, open_port: Open, *, connect_s: float, random: Callable[[int], bytes]
    ) -> None:
        self._open = open_port
        self._connect_s = connect_s
        self._random = random
        self._link: _DiallerLink | None = None
        self._running: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()

    async def dial(self) -> MuxStream:
        """As `Dialler.dial`."""
        async with asyncio.timeout(self._connect_s):
            async with self._opening:
                if self._link is None or self._running is None or self._running.done():
                    device = await self._open()
                    self._link = _DiallerLink(device, self._random)
                    self._running = asyncio.create_task(_run_link(self._link, device))
            return await _unless_ended(self._link.open(), self._running)

    async def aclose(self) -> None:
        """As `Dialler.aclose`."""
        await _stop(self._running)


async def _run_link(link: _Link, device: Device) -> None:
    """Run `link` until its port fails; then everything on it has ended."""
    try:
        with contextlib.suppress(OSError):
            await link.run()
    finally:
        link.end("the port has failed")
        device.close()


async def _opened_again(open_port: Open) -> Device:
    while True:
        await asyncio.sleep(REOPEN_S)
        with contextlib.suppress(OSError):
            return await open_port()


async def _unless_ended(
    opening: Coroutine[Any, Any, MuxStream], running: asyncio.Task[None]
) -> MuxStream:
    """What `opening` returns; when the port fails first, what `running` raised or else OSError."""
    task = asyncio.create_task(opening)
    try:
        await asyncio.wait({task, running}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        running.result()
        raise ConnectionResetError("the port has failed")
    except asyncio.CancelledError:
        task.add_done_callback(_close_unwanted)
        raise
    finally:
        task.cancel()


def _close_unwanted(task: asyncio.Task[MuxStream]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _stop(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        await end([task])
