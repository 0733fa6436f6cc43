"""Puts load on an endpoint and measures what it delivers, sealed or plain alike.

Every request asks for a marker of its own and looks for it in the answer. A model may fail to
repeat its marker; that is counted. An answer with the marker of *another* request means that two
people's conversations were mixed up, and is never the model's fault: markers are drawn at random.

Times are taken where a person would see them: when a piece of text has been decoded. Nothing of
an answer is kept but its markers.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from cloister.client.conversation import CHAT_PATH, MODELS_PATH
from cloister.errors import CloisterError, ConfigurationError, FetchError, MalformedError

PROMPT: Final = "Repeat after me: {marker}"
MARKER_DIGITS: Final = 6
MAX_EVENT: Final = 1 << 20  # bytes of one line of a stream
MAX_ANSWER: Final = 64 << 20  # bytes of one stream
_DIGITS: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to ask: `requests` one after the other on each stream. `extra` joins each body."""

    model: str
    requests: int = 4
    max_tokens: int = 128
    prompt: str = PROMPT
    extra: Mapping[str, Any] = field(default_factory=dict)
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if "{marker}" not in self.prompt:
            raise ConfigurationError(
                "the prompt has to ask for {marker}, or answers cannot be told apart",
                code="bench.prompt",
            )

    def body(self, marker: str) -> bytes:
        """The body of one request."""
        document = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt.replace("{marker}", marker)}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }
        return json.dumps(document).encode()


@dataclass(slots=True, kw_only=True)
class Answer:
    """One answer. Times in seconds of the performance counter; `gaps` between pieces of text."""

    marker: str
    began: float
    first: float | None = None
    last: float = 0.0
    pieces: int = 0
    tokens: int | None = None
    gaps: list[float] = field(default_factory=list)
    failure: str | None = None
    """Why there is no whole answer: an HTTP status or the kind of error, nothing of a message."""
    seen: frozenset[str] = frozenset()
    """Numbers in the answer."""

    def arrived(self, now: float) -> None:
        """Note that a piece of text came."""
        if self.first is None:
            self.first = now
        else:
            self.gaps.append(now - self.last)
        self.last = now
        self.pieces += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What came of one number of streams. Times in seconds, CPU seconds; None: not measured."""

    streams: int
    answers: tuple[Answer, ...]
    issued: frozenset[str]
    """Markers of all requests so far, those of earlier levels too."""
    wall: float
    client_cpu: float
    server_cpu: float | None

    @property
    def whole(self) -> tuple[Answer, ...]:
        """The answers that came to their end."""
        return tuple(answer for answer in self.answers if answer.failure is None)

    @property
    def tokens(self) -> int:
        """Tokens by the server's count, pieces where it does not tell."""
        return sum(a.pieces if a.tokens is None else a.tokens for a in self.whole)

    @property
    def first_times(self) -> list[float]:
        """Time to the first piece of text, in order."""
        return sorted(a.first - a.began for a in self.whole if a.first is not None)

    @property
    def gaps(self) -> list[float]:
        """Times between pieces of text, in order."""
        return sorted(gap for answer in self.whole for gap in answer.gaps)

    @property
    def own(self) -> int:
        """How many answers hold their own marker."""
        return sum(answer.marker in answer.seen for answer in self.whole)

    @property
    def foreign(self) -> int:
        """How many hold another request's."""
        return sum(bool(a.seen & self.issued - {a.marker}) for a in self.answers)


Cpu = Callable[[], float | None]


async def first_model(client: httpx2.AsyncClient, api_key: str | None) -> str:
    """The name of the first model that the endpoint lists; FetchError if it lists none."""
    try:
        response = await client.get(MODELS_PATH, headers=_headers(api_key))
        name = response.json()["data"][0]["id"]
    except (httpx2.TransportError, ValueError, KeyError, IndexError, TypeError):
        name = None
    if not isinstance(name, str):
        raise FetchError("the endpoint lists no model: name one", code="fetch.models")
    return name


async def run_level(
    client: httpx2.AsyncClient,
    load: Load,
    streams: int,
    *,
    markers: Markers,
    server_cpu: Cpu = lambda: None,
) -> Level:
    """Ask on `streams` streams at once and wait for all answers."""

    async def stream() -> list[Answer]:
        return [await _ask(client, load, markers.draw()) for _ in range(load.requests)]

    server, own, began = server_cpu(), time.process_time(), time.perf_counter()
    done = await asyncio.gather(*(stream() for _ in range(streams)))
    wall = time.perf_counter() - began
    spent = time.process_time() - own
    after = server_cpu()
    return Level(
        streams=streams,
        answers=tuple(answer for many in done for answer in many),
        issued=frozenset(markers.issued),
        wall=wall,
        client_cpu=spent,
        server_cpu=None if server is None or after is None else after - server,
    )


class Markers:
    """Draws markers, each once; `random(n)` gives a number below n."""

    def __init__(self, random: Callable[[int], int]) -> None:
        self._random = random
        self.issued: set[str] = set()

    def draw(self) -> str:
        """A number of `MARKER_DIGITS` digits that was not drawn before."""
        low = 10 ** (MARKER_DIGITS - 1)
        if len(self.issued) > low:
            raise ConfigurationError("so many requests cannot be told apart", code="bench.sizes")
        while (marker := str(low + self._random(9 * low))) in self.issued:
            pass
        self.issued.add(marker)
        return marker


async def _ask(client: httpx2.AsyncClient, load: Load, marker: str) -> Answer:
    answer = Answer(marker=marker, began=time.perf_counter())
    text: list[str] = []
    headers = {"content-type": "application/json", **_headers(load.api_key)}
    try:
        async with client.stream(
            "POST", CHAT_PATH, content=load.body(marker), headers=headers
        ) as response:
            if response.status_code != 200:
                answer.failure = f"HTTP {response.status_code}"
                return answer
            async for line in _lines(response):
                _take(answer, text, line)
    except (httpx2.HTTPError, CloisterError) as error:
        answer.failure = getattr(error, "code", None) or type(error).__name__
    # Also of what came before a failure: nothing of another's may come at all.
    answer.seen = frozenset(_DIGITS.findall("".join(text)))
    if answer.failure is None and answer.first is None:
        answer.failure = "no text"
    return answer


def _take(answer: Answer, text: list[str], line: bytes) -> None:
    """Note one line of the stream. MalformedError if it is not an event of a chat."""
    if not line.startswith(b"data:") or (data := line[5:].strip()) == b"[DONE]":
        return
    try:
        event = json.loads(data)
        choices, usage = event.get("choices") or [], event.get("usage")
        piece = choices[0]["delta"].get("content") if choices else None
    except (ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError):
        raise MalformedError("an event is not one of a chat", code="bench.event") from None
    if event.get("error"):
        raise MalformedError("the stream ends with an error", code="bench.error_event")
    if isinstance(piece, str) and piece:
        answer.arrived(time.perf_counter())
        text.append(piece)
    if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
        answer.tokens = usage["completion_tokens"]


async def _lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    """The lines of a stream, as they come; MalformedError for one without end."""
    rest, size = b"", 0
    async for data in response.aiter_bytes():
        size += len(data)
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > MAX_EVENT or size > MAX_ANSWER:
            raise MalformedError("the stream is too long", code="bench.event")
        for line in lines:
            yield line
    yield rest


def _headers(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which `share` of sorted numbers lie, interpolated; None of none."""
    if not ordered:
        return None
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
