"""An ASGI application in this very process as an engine: the seal ends where the answers are made.

There is no second hop and no second process, and so nothing between the application and the
worker's keys: whatever its code does with a prompt or a key, it can do. The measured configuration
says so (``termination`` is ``in-engine``, and the engine is not ``managed``).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from cloister.engine.asgi_call import ASGI, App, AppCall
from cloister.engine.asgi_lifespan import Lifespan
from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    HEALTH,
    MODELS,
    NOT_RUNNING,
    TRUNCATED,
    EngineRequest,
    EngineResponse,
    ModelInfo,
    Paths,
)
from cloister.engine.requests import METHODS, NATIVE, encode_salted, method_of
from cloister.errors import ConfigurationError, EngineError

TERMINATION: Final = "in-engine"
ISOLATION: Final[Mapping[str, object]] = {"mode": "none (in-engine)", "layers": []}
MAX_ANSWER_BYTES: Final = 1 << 28
"""Of one answer, streamed or not; what is not streamed the worker bounds further."""
_MAX_LISTING: Final = 1 << 20
_LISTING_S: Final = 30.0
_HEALTH_S: Final = 10.0
_ALWAYS: Final = frozenset({CHAT_COMPLETIONS, COMPLETIONS, MODELS, HEALTH})
_NAMED: Final = METHODS.keys() - _ALWAYS
_APPLICATION: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_SLOTS: Final = 1 << 16
_END_S: Final = 5.0
"""What answers in flight have to heed that they are cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AsgiSettings:
    """What the application is.

    `application` is a name for it (``package.module:attribute``), `model` the model's name there
    and the digest of the files that were stated for it, if any. With `cache_salt` it is a vLLM,
    whose prefix cache is divided by that field; without it, it must not reuse prefixes between
    requests at all, which `prefix_cache_off` has the operator state. `serves` names the paths it
    answers besides chat and completions, `health` those that may be asked for in clear.
    """

    application: str
    model: ModelInfo
    cache_salt: bool = False
    prefix_cache_off: bool = False
    serves: frozenset[str] = frozenset()
    health: frozenset[str] = field(default=frozenset())

    def __post_init__(self) -> None:
        if not self.serves <= _NAMED:
            raise ConfigurationError(
                "an application may also serve "
                + ", ".join(sorted(name.removeprefix("/v1/") for name in _NAMED)),
                code="configuration.upstream_paths",
            )
        if self.cache_salt == self.prefix_cache_off:
            raise ConfigurationError(
                "say how the application keeps clients apart: its prefix cache is salted (vLLM), "
                "or it was started without one",
                code="configuration.upstream_cache",
            )


def unproven_model(name: str) -> ModelInfo:
    """A model of which nothing is known but what the application calls it."""
    return ModelInfo(name=name, sha256=None, path=None, context_length=0, quantisation="")


def import_application(named: str) -> App:
    """Import ``package.module:attribute``. Runs the module's code.

    ConfigurationError (``configuration.application``) if it cannot be had. What went wrong in it
    is told by the kind of error alone.
    """
    if not _APPLICATION.fullmatch(named):
        raise ConfigurationError(
            "an application is written package.module:attribute", code="configuration.application"
        )
    module, _, attribute = named.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"the application {named} cannot be imported ({type(error).__name__}): is it installed "
            "beside Cloister, and does it need anything of the environment?",
            code="configuration.application",
        ) from None
    if not callable(found):
        raise ConfigurationError(
            f"{named} is no ASGI application", code="configuration.application"
        )
    return cast(App, found)


class AsgiEngine:
    """See `cloister.engine.protocol.Engine`.

    `shared` gives the members that every scope has in common where somebody else drives the
    application's lifespan (``state``, and ``app``, which Starlette expects inside its own
    middleware). Without it, `start` and `aclose` drive it.
    """

    def __init__(
        self,
        app: App,
        settings: AsgiSettings,
        *,
        shared: Callable[[], Mapping[str, Any]] | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._app = app
        self._settings = settings
        self._shared = shared
        self._max_answer_bytes = max_answer_bytes
        self._random_bytes = random_bytes
        self._lifespan: Lifespan | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Event | None = None

    @property
    def model(self) -> ModelInfo:
        """The model it is said to serve."""
        return self._settings.model

    @property
    def paths(self) -> Paths:
        """As the settings say. Which fields it reads, only the application itself knows."""
        return dict.fromkeys(_ALWAYS | self._settings.serves)

    @property
    def slots(self) -> int:
        """More than a worker lets in: how many it computes at a time is its own business."""
        return _SLOTS

    def sibling(self) -> None:
        """None: a process holds one of it."""

    @property
    def alive(self) -> bool:
        """Whether it was started and not closed: it ends with this process alone."""
        return self._ended is not None and not self._ended.is_set()

    def configuration(self) -> Mapping[str, object]:
        """What is measured."""
        settings = self._settings
        return {
            "engine": "asgi-app",
            "application": settings.application,
            "model": {"name": settings.model.name, "sha256": settings.model.sha256 or "unproven"},
            "prefix_cache": "salted" if settings.cache_salt else "off (as stated)",
            "serves": sorted(settings.serves),
            "health": sorted(settings.health),
            "managed": False,
            "termination": TERMINATION,
            "isolation": dict(ISOLATION),
        }

    async def start(self) -> None:
        """Start the application, unless somebody else does, and see that it serves the model."""
        if self.alive:
            raise RuntimeError("the engine is already running")
        if self._shared is None:
            self._lifespan = Lifespan(self._app)
            await self._lifespan.start()
        self._ended = asyncio.Event()
        try:
            await self._check_model()
        except BaseException:
            await self.aclose()
            raise

    async def _check_model(self) -> None:
        """ConfigurationError unless the application lists the model under its name."""
        try:
            async with asyncio.timeout(_LISTING_S):
                response = await self._call("GET", MODELS, b"")
                listing = json.loads(await response.read(_MAX_LISTING))
            names = {entry["id"] for entry in listing["data"]}
        except TimeoutError:
            raise EngineError(
                "the application did not list its models in time", code="engine.start"
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EngineError(
                f"the application's list of models ({MODELS}) does not decode", code="engine.start"
            ) from None
        if self._settings.model.name not in names:
            raise ConfigurationError(
                f"the application serves no model called {self._settings.model.name}",
                code="configuration.upstream_model",
            )

    async def send(self, request: EngineRequest) -> EngineResponse:
        """Send one request; see `Engine.send`."""
        method = method_of(request.path, self.paths)
        body = b""
        if method == "POST":
            body = encode_salted(
                request, salted=self._settings.cache_salt, random_bytes=self._random_bytes
            )
        return await self._call(method, NATIVE.get(request.path, request.path), body)

    async def health(self, path: str) -> int:
        """The status with which the application answers GET `path`, one of its `health` paths."""
        if path not in self._settings.health:
            raise RuntimeError("only paths that the settings name are asked for in clear")
        try:
            # Anybody may ask, so that a question which hangs must not be kept.
            async with asyncio.timeout(_HEALTH_S):
                response = await self._call("GET", path, b"")
                with contextlib.suppress(ValueError):
                    await response.read(_MAX_LISTING)  # nobody sees it; but it may finish
        except TimeoutError:
            raise EngineError("the application did not answer in time", code=TRUNCATED) from None
        return response.status

    async def _call(self, method: str, path: str, body: bytes) -> EngineResponse:
        if not self.alive:
            raise EngineError("the engine is not running", code=NOT_RUNNING)
        scope = self._scope(method, path, len(body))
        call = AppCall(self._app, scope, body, max_bytes=self._max_answer_bytes)
        self._calls.add(call.task)
        call.task.add_done_callback(self._calls.discard)
        head = await call.head()
        return EngineResponse(
            status=head.status, content_type=head.content_type, chunks=call, close=call.aclose
        )

    def _scope(self, method: str, path: str, length: int) -> MutableMapping[str, Any]:
        """A request from nobody: no address, no field but those of the body."""
        headers = [(b"host", b"localhost")]
        if method == "POST":
            headers.append((b"content-type", b"application/json"))
            headers.append((b"content-length", str(length).encode()))
        shared = {} if self._shared is None else dict(self._shared())
        state = shared.pop("state", None) if self._lifespan is None else self._lifespan.state
        return {
            **shared,
            "type": "http",
            "asgi": dict(ASGI),
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": None,
            # A copy for each request, as servers make.
            "state": dict(state or {}),
        }

    async def wait_stopped(self) -> None:
        """Return when it was closed."""
        if self._ended is not None:
            await self._ended.wait()

    async def aclose(self) -> None:
        """End answers in flight, and the application's lifespan if it was begun here."""
        if self._ended is not None:
            self._ended.set()
        calls = set(self._calls)
        for task in calls:
            task.cancel()
        if calls:
            await asyncio.wait(calls, timeout=_END_S)
        lifespan, self._lifespan = self._lifespan, None
        if lifespan is not None:
            await lifespan.stop()
