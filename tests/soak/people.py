"""Those who use the worker during a soak: some read, some leave, some stall, some send rubbish.

Every one of them asks for a marker of its own. Each behaviour returns the name under which it is
counted, or notes what went wrong, in words and numbers: nothing of an answer is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import random
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httpx2

from cloister.client.connect import open_async_connection
from cloister.client.connection import AsyncConnection
from cloister.client.trust import Trust
from cloister.errors import CloisterError
from soak.transports import CutUploads, TightReads, UploadCutError, exchange_raw

CHAT: Final = "/v1/chat/completions"
DIGITS: Final = 8
_NUMBER: Final = re.compile(r"\d+")
_STALL_S: Final = 20.0
"""Longer than the short hours give a reader that stalls: 3 s, and 5 s between two looks, from
when the buffers on the way are full, which takes a slow machine a while."""
_TIMEOUT: Final = httpx2.Timeout(120.0)
_MAX_PROBLEMS: Final = 50


class Length(enum.Enum):
    """Of an answer: read whole, or left in the middle, or more than any buffer holds."""

    SHORT = enum.auto()
    LONG = enum.auto()
    HUGE = enum.auto()


_TOKENS: Final = {Length.LONG: 1_000, Length.HUGE: 40_000}


class Script(Protocol):
    """What is asked, and what an answer may hold."""

    def body(self, marker: str, length: Length) -> dict[str, Any]:
        """A request for `marker`, with an answer of that length."""

    def exact(self, marker: str) -> str | None:
        """The whole answer to a short request; None where a model decides."""


@dataclass(frozen=True, kw_only=True)
class Copying:
    """The demo model, which repeats most markers, and makes mistakes with some."""

    model: str = "cloister-demo"

    def body(self, marker: str, length: Length) -> dict[str, Any]:
        question = f"Remember the code {marker}."
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 32 if length is Length.SHORT else 440,
            "temperature": 0,
        }
        if length is not Length.SHORT:
            body["ignore_eos"] = True
        if length is Length.HUGE:  # alternatives to each token make a megabyte
            body |= {"logprobs": True, "top_logprobs": 20}
        return body

    def exact(self, marker: str) -> str | None:
        del marker
        return None


@dataclass(frozen=True, kw_only=True)
class Echoing:
    """The fake engine with ``--echo``: the marker again and again, and nothing else."""

    model: str = "fake"
    short: int = 40

    def body(self, marker: str, length: Length) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": marker}],
            "max_tokens": {Length.SHORT: self.short, Length.LONG: 1_000, Length.HUGE: 40_000}[
                length
            ],
        }

    def exact(self, marker: str) -> str | None:
        return f"{marker} " * self.short


@dataclass(kw_only=True)
class Tally:
    """What happened, by name, and what should not have."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    issued: set[str] = field(default_factory=set)
    answers: int = 0
    """Answers read to their end."""
    own: int = 0
    """Those of them that held their own marker."""
    pieces: int = 0
    foreign: int = 0
    """Answers that held the marker of somebody else."""

    def problem(self, what: str) -> None:
        """Note what went wrong."""
        self.counts["problems"] += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(what)

    def draw(self, chosen: random.Random) -> str:
        """A marker that nobody had."""
        low = 10 ** (DIGITS - 1)
        while (marker := str(chosen.randrange(low, 10 * low))) in self.issued:
            pass
        self.issued.add(marker)
        return marker

    def read(self, marker: str, text: str, *, whole: bool = False) -> None:
        """Look for markers in what came of an answer, whole or not."""
        seen = set(_NUMBER.findall(text))
        if whole:
            self.answers += 1
            self.own += marker in seen
        # A model that mistakes two digits of its own marker has not read somebody else's: two
        # markers are that close to each other once in some 40,000 pairs.
        if any(_distance(one, marker) > 2 for one in seen & self.issued):
            self.foreign += 1


def _distance(one: str, other: str) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


@dataclass(kw_only=True)
class Crowd:
    """What all of them share: where the worker is, how it is believed, what is asked."""

    url: str
    trust: Trust
    script: Script
    keys: tuple[str, ...]
    """API keys: one in turn for each request, since a worker keeps room for a second asker."""
    chosen: random.Random
    tally: Tally = field(default_factory=Tally)
    _asked: int = 0
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def __aenter__(self) -> Crowd:
        self.readers = [await self._connection() for _ in range(4)]
        self.stallers = await self._connection(TightReads())
        self.cutters = await self._connection(CutUploads(self.chosen))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _connection(self, inner: httpx2.AsyncBaseTransport | None = None) -> AsyncConnection:
        return await self._stack.enter_async_context(self._open(inner))

    def _open(self, inner: httpx2.AsyncBaseTransport | None = None) -> AsyncConnection:
        return open_async_connection(self.url, verifier=self.trust, inner=inner, trust_env=False)

    # -- behaviours ---------------------------------------------------------------------------

    async def reads(self) -> str:
        """Read an answer to its end."""
        await self._read_whole(self.chosen.choice(self.readers))
        return "read whole"

    async def comes(self) -> str:
        """Verify the worker anew, ask once, and go."""
        async with self._open() as connection:
            await self._read_whole(connection)
        return "came anew"

    async def leaves(self) -> str:
        """Go away in the middle of an answer."""
        marker, take, text = self.tally.draw(self.chosen), self.chosen.randrange(1, 12), ""
        async with self.ask(self.chosen.choice(self.readers), marker, Length.LONG) as response:
            pieces = _pieces(response)
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    text += piece
                    take -= 1
                    if not take:
                        break
        self.tally.read(marker, text)
        return "left in the middle"

    async def stalls(self) -> str:
        """Stop reading until the worker gives up; then see that the end never came."""
        marker, text, cut = self.tally.draw(self.chosen), "", False
        try:
            async with self.ask(self.stallers, marker, Length.HUGE) as response:
                pieces = _pieces(response)
                async with contextlib.aclosing(pieces):
                    text += await anext(pieces)
                    await asyncio.sleep(_STALL_S)
                    async for piece in pieces:
                        text += piece
        except (CloisterError, httpx2.HTTPError):
            cut = True
        self.tally.read(marker, text)
        if not cut:
            self.tally.problem("a reader that stalled was waited for")
        return "stalled and was cut off"

    async def uploads_half(self) -> str:
        """Go away in the middle of a request."""
        marker = self.tally.draw(self.chosen)
        body = self.script.body(marker, Length.SHORT)
        body["messages"][0]["content"] += " " * self.chosen.randrange(200_000)
        try:
            await self.cutters.http.post(
                CHAT, json=body, headers=self._credential(), timeout=_TIMEOUT
            )
        except UploadCutError:
            return "cut an upload"
        self.tally.problem("half a request was answered")
        return "cut an upload"

    async def sends_rubbish(self) -> str:
        """Send what is no request; whatever comes back must not be a success."""
        answer = await exchange_raw(self.url, self.chosen.choice(_rubbish(self.chosen)), wait_s=8.0)
        if answer.startswith(b"HTTP/1.1 2"):
            self.tally.problem("rubbish was answered with success")
        return "sent rubbish"

    async def says_nothing(self) -> str:
        """Connect, send a part of a head, and wait to be cut off."""
        answer = await exchange_raw(self.url, b"POST /ohttp HT", wait_s=30.0, stay=True)
        if answer:
            self.tally.problem("half a head was answered")
        return "said nothing"

    # -- parts ----------------------------------------------------------------------------------

    async def _read_whole(self, connection: AsyncConnection) -> None:
        marker, text = self.tally.draw(self.chosen), ""
        async with self.ask(connection, marker, Length.SHORT) as response:
            if response.status_code != 200:
                self.tally.problem(f"HTTP {response.status_code}")
                return
            async for piece in _pieces(response):
                self.tally.pieces += 1
                text += piece
            exchange = response.extensions["cloister"]
        if not (exchange.complete and exchange.receipt_verified):
            self.tally.problem("an answer came without its end or its receipt")
        self.tally.read(marker, text, whole=True)
        exact = self.script.exact(marker)
        if exact is not None and text != exact:
            self.tally.problem("an answer was not exactly what was asked for")

    @contextlib.asynccontextmanager
    async def ask(
        self, connection: AsyncConnection, marker: str, length: Length
    ) -> AsyncIterator[httpx2.Response]:
        """The stream of one answer."""
        body = {**self.script.body(marker, length), "stream": True}
        async with connection.http.stream(
            "POST", CHAT, json=body, headers=self._credential(), timeout=_TIMEOUT
        ) as response:
            yield response

    def _credential(self) -> dict[str, str]:
        self._asked += 1
        return {"authorization": f"Bearer {self.keys[self._asked % len(self.keys)]}"}


Behaviour = Callable[[Crowd], Awaitable[str]]

BEHAVIOURS: Final[Mapping[Behaviour, int]] = {
    Crowd.reads: 60,
    Crowd.leaves: 15,
    Crowd.stalls: 5,
    Crowd.uploads_half: 8,
    Crowd.sends_rubbish: 10,
    Crowd.comes: 5,
    Crowd.says_nothing: 2,
}
"""How often each is chosen."""
WAITING: Final = (Crowd.stalls, Crowd.says_nothing)
"""Those that take a while, whatever the machine."""


async def behave(crowd: Crowd, behaviour: Behaviour) -> None:
    """Do it once, and count it. An error that it does not expect is a problem, by its kind."""
    try:
        crowd.tally.counts[await behaviour(crowd)] += 1
    except (CloisterError, httpx2.HTTPError, OSError) as error:
        code = getattr(error, "code", None) or type(error).__name__
        crowd.tally.problem(f"{getattr(behaviour, '__name__', '?')}: {code}")


async def _pieces(response: httpx2.Response) -> AsyncGenerator[str]:
    """The pieces of text of a stream; ValueError for an event that is none."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                for choice in event["choices"]:
                    if piece := choice["delta"].get("content"):
                        yield piece


def _rubbish(chosen: random.Random) -> list[bytes]:
    """Requests that are none, of several kinds."""
    noise = chosen.randbytes(chosen.randrange(1, 3000))
    post = b"POST /ohttp HTTP/1.1\r\nHost: x\r\nContent-Type: message/ohttp-%breq\r\n"
    whole = b"Content-Length: %d\r\n\r\n%b" % (len(noise), noise)
    plain = b'{"model":"x","messages":[]}'
    return [
        noise,
        b"GET / HTTP/1.1\r\nX: " + noise.replace(b"\n", b""),
        post % b"" + whole,
        post % b"chunked-" + whole,
        post % b"" + b"Content-Length: 10737418240\r\n\r\n" + noise,
        post % b"chunked-" + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + noise,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(plain), plain),
        b"PUT /ohttp HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    ]
