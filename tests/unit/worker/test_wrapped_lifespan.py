"""A lifespan with something inside: the order of its beginning and end, and what servers hear."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from cloister.worker.wrapped_lifespan import WrappedLifespan

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Server:
    """A server that starts an application up and shuts it down; everything goes into `log`."""

    def __init__(self, *, refused: str | None = None) -> None:
        self.log: list[str] = []
        self.messages: list[MutableMapping[str, Any]] = []
        self._told = iter(("lifespan.startup", "lifespan.shutdown"))
        self._failed = asyncio.Event()
        self._refused = refused

    async def run(self, app: Any) -> None:
        wrapped = WrappedLifespan(self.receive, self.send, begin=self.begin, end=self.end)
        async with asyncio.timeout(60):
            await wrapped.run(app, {"type": "lifespan"})

    async def receive(self) -> MutableMapping[str, Any]:
        if any("failed" in one for one in self.log):
            raise AssertionError("a server asks nothing of what failed to start")
        return {"type": next(self._told)}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.messages.append(message)
        self.log.append(message["type"].removeprefix("lifespan."))

    async def begin(self) -> str | None:
        self.log.append("begin")
        return self._refused

    async def end(self) -> None:
        self.log.append("end")

    def app(self, *, fails: bool = False, breaks: bool = False) -> Any:
        """An application that takes part."""

        async def app(_scope: object, receive: Receive, send: Send) -> None:
            assert (await receive())["type"] == "lifespan.startup"
            self.log.append("app up")
            if fails:
                await send({"type": "lifespan.startup.failed", "message": "no"})
                return
            await send({"type": "lifespan.startup.complete"})
            if breaks:
                raise ValueError("broken")
            assert (await receive())["type"] == "lifespan.shutdown"
            self.log.append("app down")
            await send({"type": "lifespan.shutdown.complete"})

        return app


async def test_what_is_inside_begins_last_and_ends_first() -> None:
    server = Server()
    await server.run(server.app())
    assert server.log == [
        "app up",
        "begin",
        "startup.complete",
        "end",
        "app down",
        "shutdown.complete",
    ]


async def test_an_application_that_cannot_start_begins_nothing() -> None:
    server = Server()
    await server.run(server.app(fails=True))
    assert server.log == ["app up", "startup.failed"]


async def test_what_cannot_begin_stops_the_start_and_the_application() -> None:
    server = Server(refused="why not")
    await server.run(server.app())
    assert server.log == ["app up", "begin", "startup.failed", "app down"]
    assert server.messages == [{"type": "lifespan.startup.failed", "message": "why not"}]


async def test_an_application_that_breaks_ends_what_was_begun() -> None:
    server = Server()
    with pytest.raises(ValueError, match="broken"):
        await server.run(server.app(breaks=True))
    assert server.log == ["app up", "begin", "startup.complete", "end"]


async def raises_at_once(_scope: object, _receive: Receive, _send: Send) -> None:
    raise ValueError("what is a lifespan?")


async def returns_at_once(_scope: object, _receive: Receive, _send: Send) -> None:
    return


async def raises_when_asked(_scope: object, receive: Receive, _send: Send) -> None:
    raise ValueError(await receive())


@pytest.mark.parametrize("app", [raises_at_once, returns_at_once, raises_when_asked])
async def test_for_an_application_that_takes_no_part_it_is_answered(app: Any) -> None:
    server = Server()
    await server.run(app)
    assert server.log == ["begin", "startup.complete", "end", "shutdown.complete"]
    server = Server(refused="why not")
    await server.run(app)
    assert server.log == ["begin", "startup.failed"]
