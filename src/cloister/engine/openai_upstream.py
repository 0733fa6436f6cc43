"""Any OpenAI-compatible server on this machine as an engine: vLLM, SGLang, TGI, Triton.

It listens on a unix socket or on a loopback address; any other address is refused, since what
leaves this machine in the clear has left the worker. What the server is, which model file it
loads and how it is confined, nobody here can know: the model counts as unproven and the
isolation as the operator's, and both stand in the measured configuration.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cloister.engine.http_unix import Address, HttpClient, LoopbackAddress, UnixAddress
from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    HEALTH,
    MODELS,
    NOT_RUNNING,
    EngineRequest,
    EngineResponse,
    ModelInfo,
    Paths,
)
from cloister.engine.requests import METHODS, NATIVE, encode_salted, method_of
from cloister.errors import ConfigurationError, EngineError

_URL = re.compile(r"http://(\[[0-9a-fA-F:.]+\]|[0-9.]+):([0-9]{1,5})/?")
_UNIX_PATH_MAX: Final = 107  # sizeof(sun_path) less the closing zero, unix(7)
_MAX_LISTING: Final = 1 << 20
_PROBE_EVERY: Final = 0.25  # seconds between tries while it starts
_WATCH_EVERY: Final = 2.0  # seconds between looks at its health
_PROBE_TIMEOUT: Final = 10.0
_SLOTS: Final = 1024
_MISSES: Final = 3  # failed looks in a row after which it counts as stopped

_ALWAYS: Final = frozenset({CHAT_COMPLETIONS, COMPLETIONS, MODELS, HEALTH})
_NAMED: Final = METHODS.keys() - _ALWAYS


def parse_address(text: str) -> Address:
    """Decode ``unix:/path`` or ``http://127.0.0.1:8000`` (an IP address, never a name).

    A name could come to mean another machine. ConfigurationError for anything else.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path or len(path.encode()) > _UNIX_PATH_MAX:
            raise ConfigurationError(
                "a unix socket is written unix:/absolute/path", code="configuration.upstream"
            )
        return UnixAddress(path=path)
    match = _URL.fullmatch(text)
    try:
        address = ipaddress.ip_address(match[1].strip("[]")) if match else None
    except ValueError:
        address = None
    if match is None or address is None:
        raise ConfigurationError(
            "an upstream engine is written unix:/path or http://127.0.0.1:PORT",
            code="configuration.upstream",
        )
    port = int(match[2])
    if not address.is_loopback or not 0 < port < 65_536:
        raise ConfigurationError(
            "an upstream engine must listen on this machine (127.0.0.0/8 or ::1): prompts are "
            "not encrypted on the way to it",
            code="configuration.upstream_not_local",
        )
    return LoopbackAddress(host=str(address), port=port)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """How to reach the server and what it is.

    `name` is the model's name there. With `cache_salt` the server is a vLLM, whose prefix
    cache is divided by that field; without it the server must not reuse prefixes between
    requests at all, which `prefix_cache_off` has the operator state (it is measured). `serves`
    names the paths it answers besides chat and completions: embeddings, rerank, tokenize.
    `start_timeout` in seconds is how long `start` waits for it.
    """

    address: str
    name: str
    context_length: int = 0
    cache_salt: bool = False
    prefix_cache_off: bool = False
    start_timeout: float = 600.0
    max_idle: int = 32
    serves: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.serves <= _NAMED:
            raise ConfigurationError(
                "an upstream may also serve "
                + ", ".join(sorted(name.removeprefix("/v1/") for name in _NAMED)),
                code="configuration.upstream_paths",
            )


class OpenAIUpstream:
    """A server started by somebody else. See `cloister.engine.protocol.Engine`."""

    def __init__(
        self,
        settings: UpstreamSettings,
        *,
        watch_every: float = _WATCH_EVERY,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if settings.cache_salt == settings.prefix_cache_off:
            raise ConfigurationError(
                "say how the upstream keeps clients apart: cache_salt for vLLM, or "
                "prefix_cache_off for a server started without prefix caching",
                code="configuration.upstream_cache",
            )
        self._settings = settings
        self._address = parse_address(settings.address)
        self._watch_every = watch_every
        self._random_bytes = random_bytes
        self._client: HttpClient | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def model(self) -> ModelInfo:
        """The model it is said to serve; nothing proves it."""
        return ModelInfo(
            name=self._settings.name,
            sha256=None,
            path=None,
            context_length=self._settings.context_length,
            quantisation="",
        )

    @property
    def paths(self) -> Paths:
        """As the settings say. Which fields it reads, only the server itself knows."""
        return dict.fromkeys(_ALWAYS | self._settings.serves)

    @property
    def slots(self) -> int:
        """More than a worker lets in: how many it computes at a time is the server's business."""
        return _SLOTS

    def sibling(self) -> None:
        """None: a server that somebody else started cannot be started again."""

    @property
    def alive(self) -> bool:
        """Whether it was reached and its last looks were not all in vain."""
        return self._client is not None and self._watch is not None and not self._watch.done()

    def configuration(self) -> Mapping[str, object]:
        """What is measured."""
        unix = isinstance(self._address, UnixAddress)
        return {
            "engine": "openai-upstream",
            "address": "unix" if unix else "loopback",
            "model": {"name": self._settings.name, "sha256": "unproven"},
            "prefix_cache": "salted" if self._settings.cache_salt else "off (as stated)",
            "serves": sorted(self._settings.serves),
            "managed": False,
            "isolation": {"mode": "external (not proven)", "layers": []},
        }

    async def start(self) -> None:
        """Wait until it answers; EngineError after the settings' timeout."""
        if self.alive:
            raise RuntimeError("the engine is already running")
        await self.aclose()
        client = HttpClient(self._address, max_idle=self._settings.max_idle)
        try:
            async with asyncio.timeout(self._settings.start_timeout):
                while not await _answers(client):  # noqa: ASYNC110 - it is another process
                    await asyncio.sleep(_PROBE_EVERY)
                await self._check_model(client)
        except TimeoutError:
            client.close()
            raise EngineError(
                "the upstream engine did not answer in time", code="engine.start"
            ) from None
        except BaseException:
            client.close()
            raise
        self._client = client
        self._watch = asyncio.create_task(self._look_after(client))

    async def _check_model(self, client: HttpClient) -> None:
        """EngineError unless the server lists the model under its configured name."""
        response = await client.request("GET", MODELS)
        try:
            listing = json.loads(await response.read(_MAX_LISTING))
            names = {entry["id"] for entry in listing["data"]}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EngineError("the upstream's list of models does not decode") from None
        if self._settings.name not in names:
            raise ConfigurationError(
                f"the upstream engine serves no model called {self._settings.name}",
                code="configuration.upstream_model",
            )

    async def _look_after(self, client: HttpClient) -> None:
        """Return when it has not answered several times in a row."""
        missed = 0
        while missed < _MISSES:
            await asyncio.sleep(self._watch_every)
            missed = 0 if await _answers(client) else missed + 1

    async def send(self, request: EngineRequest) -> EngineResponse:
        """Send one request; see `Engine.send`."""
        method = method_of(request.path, self.paths)
        body = b""
        if method == "POST":
            body = encode_salted(
                request, salted=self._settings.cache_salt, random_bytes=self._random_bytes
            )
        client = self._client
        if client is None or not self.alive:
            raise EngineError("the engine is not running", code=NOT_RUNNING)
        path = NATIVE.get(request.path, request.path)
        return await client.request(method, path, body, host="localhost")

    async def wait_stopped(self) -> None:
        """Return when it no longer answers."""
        if self._watch is not None:
            await asyncio.wait({self._watch})

    async def aclose(self) -> None:
        """Close the connections to it; the server itself is not ours to end."""
        client, self._client = self._client, None
        watch, self._watch = self._watch, None
        if client is not None:
            client.close()
        if watch is not None:
            watch.cancel()
            await asyncio.wait({watch})


async def _answers(client: HttpClient) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT):
            response = await client.request("GET", MODELS)  # the one path that all of them have
            await response.read(_MAX_LISTING)
    except (EngineError, TimeoutError, ValueError):
        return False
    return response.status == 200
