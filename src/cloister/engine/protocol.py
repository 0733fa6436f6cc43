"""What the worker knows of an engine, and nothing more.

An engine takes one OpenAI-shaped request as bytes and gives back one response as bytes, in
the pieces in which it produced them. It never learns who asks, never sees a worker key, and
what it says about itself (`configuration`) is known before it starts, because it is measured
before it starts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from cloister.model_digest import Role, model_digest

CHAT_COMPLETIONS: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
TOKENIZE: Final = "/v1/tokenize"
RERANK: Final = "/v1/rerank"
MODELS: Final = "/v1/models"
HEALTH: Final = "/health"

#: Codes of the `EngineError`s that `Engine.send` and a response's chunks may raise.
NOT_RUNNING: Final = "engine.not_running"  # not started, or stopped: nothing was computed
STOPPED: Final = "engine.stopped"  # it went away while it answered
TRUNCATED: Final = "engine.truncated"  # the connection ended before the answer did
PROTOCOL: Final = "engine.protocol"  # what came back is not HTTP as we accept it
NO_DESCRIPTOR: Final = "engine.no_descriptor"  # it could not be asked: this process has too many
REQUEST_REFUSED: Final = "engine.request_refused"  # the caller's request; message may be shown
PATH_REFUSED: Final = "engine.path_refused"  # the engine does not serve this path


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a model, and its lower-case hex SHA-256.

    Of one that is `proven`, the bytes were found to have that digest on their way into memory
    that nothing can change any more: it is not hashed again.
    """

    path: Path
    sha256: str
    proven: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The model an engine serves.

    `sha256` is the lower-case hex digest of what it is made of (`cloister.model_digest`), or None
    where this machine cannot know it (an upstream server): such a model is not proven.
    `context_length` is in tokens and 0 where unknown.
    """

    name: str
    sha256: str | None
    path: Path | None
    """Its weights."""
    context_length: int
    quantisation: str
    cache_bytes: int = 0
    """What one token takes in the engine's cache, at most; 0 where unknown."""
    files: Mapping[Role, ModelFile] = field(default_factory=dict)
    """Everything it is made of; empty where it is not proven, or only its weights are known."""
    template_words: frozenset[str] = frozenset()
    """What its chat template heeds (`cloister.engine.gguf.TEMPLATE_WORDS`), where that is known."""
    sealed: str | None = None
    """The digest of the header of the sealed weights that it is opened from, where it is."""

    def __post_init__(self) -> None:
        if not self.files:
            return
        weights = self.files.get(Role.MODEL)
        if weights is None or weights.path != self.path:
            raise ValueError("the files of a model are not those that it names")
        if model_digest(self.digests) != self.sha256:
            raise ValueError("the digest of a model does not cover its files")

    @property
    def digests(self) -> Mapping[Role, str]:
        """The digest of each of its files."""
        return {role: file.sha256 for role, file in self.files.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One request: a path of the OpenAI API and its JSON body (empty for GET).

    `cache_domain` names who may share cached prefixes with this request; None means nobody.
    An engine that cannot keep domains apart reuses nothing.

    `client` is an opaque name of whoever asks, by which the worker chooses the process that
    answers; None is somebody who will not be recognised again. It never leaves the worker.

    `whole` says that the answer does not come in pieces, so that until it is there the engine says
    nothing of it.
    """

    path: str
    body: bytes = field(default=b"", repr=False)
    cache_domain: str | None = field(default=None, repr=False)
    client: str | None = field(default=None, repr=False)
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResponse:
    """The engine's answer. `chunks` yields raw body bytes as they come (SSE framing kept).

    A body whose `status` is 400 or more may repeat the prompt: it is not fit for a log, nor for
    anyone but the caller. Iteration raises EngineError (`STOPPED`, `TRUNCATED`, `PROTOCOL`) when
    the answer did not end the way HTTP says it must. Cancelling the iteration or calling
    `aclose` tells the engine to stop computing.
    """

    status: int
    content_type: str
    chunks: AsyncIterator[bytes] = field(repr=False)
    close: Callable[[], Awaitable[None]] = field(repr=False)

    async def aclose(self) -> None:
        """Stop the generation and free its slot; harmless when it has ended."""
        await self.close()

    async def read(self, limit: int, spend: Callable[[int], None] = lambda _: None) -> bytes:
        """Return the whole body; ValueError when it is longer than `limit` bytes.

        `spend` is told of each piece before it is kept, and may raise.
        """
        parts: list[bytes] = []
        size = 0
        try:
            async for part in self.chunks:
                size += len(part)
                if size > limit:
                    raise ValueError("the engine's answer is longer than the limit")
                spend(len(part))
                parts.append(part)
        finally:
            await self.aclose()
        return b"".join(parts)

    async def __aenter__(self) -> EngineResponse:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


Paths = Mapping[str, frozenset[str] | None]
"""Paths, each with the fields of a body that mean something there; None where any may."""


class Engine(Protocol):
    """Something that computes tokens. Restarting is `start` again after it stopped."""

    @property
    def model(self) -> ModelInfo:
        """The model it serves."""

    @property
    def paths(self) -> Paths:
        """The paths it serves, of those in `cloister.engine.requests.METHODS`.

        A field that is not among a path's is one that this engine would ignore without a word;
        with None it is handed whatever the caller sends, and answers for it itself.
        """

    @property
    def slots(self) -> int:
        """Requests it computes at a time; what is sent beyond waits inside it, first come first."""

    @property
    def alive(self) -> bool:
        """Whether it is started and its process has not ended."""

    def sibling(self) -> Engine | None:
        """A new engine of the same settings, not started; it describes itself as this one does.

        None where there can be only this one: a server that somebody else runs.
        """

    def configuration(self) -> Mapping[str, object]:
        """Everything about it that is worth measuring, as JSON without floats.

        Available before `start`; the same settings give the same value. It includes
        ``isolation``, with the mode and its layers, and ``managed``: whether `start` itself
        starts what computes, so held. Where the worker's own process computes,
        ``termination`` says so. `start` fails rather than run with less.
        """

    async def start(self) -> None:
        """Start it and return when it answers. EngineError or SandboxError if it cannot."""

    async def send(self, request: EngineRequest) -> EngineResponse:
        """Send one request and return when the head of the answer is there.

        EngineError with one of this module's codes. Cancelling frees the engine's slot.
        """

    async def wait_stopped(self) -> None:
        """Return when the engine has ended, asked or not; at once if it is not running."""

    async def aclose(self) -> None:
        """End the engine and everything it started. Safe to call twice."""
