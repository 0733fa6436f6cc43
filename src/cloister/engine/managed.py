"""Engines that a worker starts itself from somebody else's installation, in the managed sandbox.

vLLM, SGLang, Text Generation Inference, llama-server and Triton's OpenAI front end: each by the
command line that `cloister.engine.command_lines` builds, in `cloister.engine.managed_sandbox`. The
model's files are opened once; what is open is what is hashed and what the engine sees. Of the
engine itself, what `cloister.engine.installation` names is measured before the worker starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cloister.engine.assemble import assemble
from cloister.engine.command_lines import (
    FOLDER,
    GGUF,
    OPTIONS,
    SALTED,
    Command,
    ManagedKind,
    Sizes,
    command_line,
)
from cloister.engine.confined import DESCRIPTORS, Confined
from cloister.engine.http_unix import HttpClient, UnixAddress
from cloister.engine.installation import Installation
from cloister.engine.llama import generation_body, named_model
from cloister.engine.llama_fields import paths_of
from cloister.engine.managed_sandbox import ManagedProgram, ManagedSandbox
from cloister.engine.model_folder import open_folder
from cloister.engine.models import sha256_descriptor
from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    HEALTH,
    MODELS,
    NOT_RUNNING,
    RERANK,
    STOPPED,
    TOKENIZE,
    TRUNCATED,
    EngineRequest,
    EngineResponse,
    ModelInfo,
    Paths,
)
from cloister.engine.requests import NATIVE, encode_salted, method_of
from cloister.errors import ConfigurationError, EngineError
from cloister.model_digest import Role

_ALWAYS: Final = (CHAT_COMPLETIONS, COMPLETIONS, MODELS, HEALTH)

#: What each may serve besides, where the model is one for it.
FURTHER: Final[Mapping[ManagedKind, frozenset[str]]] = {
    ManagedKind.VLLM: frozenset({EMBEDDINGS, RERANK, TOKENIZE}),
    ManagedKind.SGLANG: frozenset({EMBEDDINGS, RERANK, TOKENIZE}),
    ManagedKind.TGI: frozenset(),
    ManagedKind.LLAMA_SERVER: frozenset(),
    ManagedKind.TRITON: frozenset({EMBEDDINGS}),
}
#: Where Triton answers whether it is ready; the others agree on ``/health``.
_HEALTH: Final[Mapping[ManagedKind, str]] = {ManagedKind.TRITON: "/health/ready"}

_LOOK_EVERY: Final = 0.1  # seconds between questions while the model loads
_LOOK_TIMEOUT: Final = 10.0
_MAX_HEALTH: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedSettings:
    """Sizes of a managed engine, and what it may use.

    `context` tokens per request (None: the model's own), `parallel` requests at a time, `gpus`
    the numbers of NVIDIA devices (none: the processor), `threads` of llama-server (None: all cores
    but one), `options` further words of the command line, `serves` further paths, `start_timeout`
    seconds: large models load for minutes.
    """

    kind: ManagedKind
    context: int | None = None
    parallel: int = 64
    gpus: tuple[int, ...] = ()
    threads: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    serves: frozenset[str] = frozenset()
    start_timeout: float = 1_800.0

    def __post_init__(self) -> None:
        if not 0 < self.parallel <= 4_096 or (self.context or 1) < 1 or (self.threads or 1) < 1:
            raise ConfigurationError("the engine's sizes are out of bounds", code="engine.sizes")
        if len(set(self.gpus)) < len(self.gpus) or any(not 0 <= one < 64 for one in self.gpus):
            raise ConfigurationError(
                "GPUs are named by their numbers, each once", code="engine.sizes"
            )
        if not self.serves <= FURTHER[self.kind]:
            raise ConfigurationError(
                f"besides chat and completions {self.kind.value} may serve "
                + (", ".join(sorted(name.removeprefix("/v1/") for name in FURTHER[self.kind])))
                + "; nothing else",
                code="configuration.engine_paths",
            )
        for name, value in self.options.items():
            if name not in OPTIONS[self.kind] or not value.isprintable() or len(value) > 256:
                raise ConfigurationError(
                    f"{name!r} is not among the options of {self.kind.value} that may be set: "
                    + ", ".join(sorted(OPTIONS[self.kind])),
                    code="configuration.engine_option",
                )


class ManagedEngine:
    """Somebody else's engine, started and held by the worker. See `protocol.Engine`."""

    def __init__(
        self,
        model: ModelInfo,
        installation: Installation,
        settings: ManagedSettings,
        *,
        sandbox: ManagedSandbox | None = None,
        cores: int | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if model.path is None or model.sha256 is None:
            raise ConfigurationError("a managed engine needs a model", code="engine.model")
        if model.files.keys() - {Role.MODEL}:
            # It would not load them, and the model's digest would speak of them all the same.
            raise ConfigurationError(
                "a managed engine serves a model without files beside its weights",
                code="engine.model",
            )
        own = model.context_length
        context = min(settings.context or own, own) if own else settings.context
        if not context:
            raise ConfigurationError(
                "the model does not say how long a context it has: give --context",
                code="engine.sizes",
            )
        self._model = replace(model, context_length=context)
        self._path = model.path
        self.installation = installation
        self.settings = settings
        self._sandbox = sandbox or ManagedSandbox()
        self._cores = cores if cores is not None else len(os.sched_getaffinity(0))
        self._random_bytes = random_bytes
        try:
            self._command = self._command_line()
        except ValueError as error:
            raise ConfigurationError(str(error), code="configuration.engine_option") from None
        self._confined: Confined | None = None
        self._client: HttpClient | None = None
        self._watch: asyncio.Task[None] | None = None

    def _command_line(self) -> Command:
        return command_line(
            self.settings.kind,
            Sizes(
                name=self._model.name,
                context=self._model.context_length,
                parallel=self.settings.parallel,
                gpus=len(self.settings.gpus),
                threads=self.settings.threads or max(1, self._cores - 1),
                options=self.settings.options,
            ),
        )

    @property
    def model(self) -> ModelInfo:
        """The model it serves; its digest is checked again at every start."""
        return self._model

    @property
    def paths(self) -> Paths:
        """As the settings say. llama-server's fields are known; the others know their own."""
        if self.settings.kind is ManagedKind.LLAMA_SERVER:
            fields = paths_of(self._model.template_words)
            return {path: fields[path] for path in _ALWAYS}
        return dict.fromkeys((*_ALWAYS, *sorted(self.settings.serves)))

    @property
    def slots(self) -> int:
        """Requests computed at a time."""
        return self.settings.parallel

    def sibling(self) -> ManagedEngine | None:
        """Another engine of the same settings; None on GPUs, whose memory one engine fills."""
        if self.settings.gpus:
            return None
        return ManagedEngine(
            self._model,
            self.installation,
            self.settings,
            sandbox=self._sandbox,
            cores=self._cores,
            random_bytes=self._random_bytes,
        )

    @property
    def alive(self) -> bool:
        """Whether it is started and its process has not ended."""
        return self._client is not None and self._confined is not None and self._confined.alive

    @property
    def output_bytes(self) -> int:
        """How many bytes the engine has written to its output, all of them dropped."""
        return self._confined.output_bytes if self._confined is not None else 0

    def configuration(self) -> Mapping[str, object]:
        """What is measured: the whole command line but for what changes speed alone."""
        salted = self.settings.kind in SALTED
        return {
            "engine": self.settings.kind.value,
            "installation": dict(self.installation.describe()),
            "model": named_model(self._model),
            "context": self._model.context_length,
            "parallel": self.settings.parallel,
            "gpus": list(self.settings.gpus),
            "options": dict(self.settings.options),
            "arguments": list(self._command.arguments),
            "environment": dict(self._command.environment),
            "files": {name: text.decode() for name, text in self._command.texts.items()},
            "prefix_cache": "salted" if salted else "off",
            "serves": sorted(self.settings.serves),
            "managed": True,
            "isolation": dict(self._sandbox.describe(gpus=self.settings.gpus)),
        }

    async def start(self) -> None:
        """Start it in its sandbox and return when it answers.

        ConfigurationError when the model's digest has changed, EngineError when the engine does
        not start, SandboxError when the sandbox does not.
        """
        if self.alive:
            raise RuntimeError("the engine is already running")
        await self.aclose()
        with self._opened() as (files, descriptors, digest):
            # Hashing runs beside loading: a file is read once from disk for both.
            hashing = asyncio.create_task(asyncio.to_thread(digest))
            client: HttpClient | None = None
            try:
                self._confined = confined = await self._sandbox.spawn(
                    self._program(files, descriptors)
                )
                async with asyncio.timeout(self.settings.start_timeout):
                    await confined.word()
                    if await hashing != self._model.sha256:
                        raise ConfigurationError(
                            "the model is no longer the one that was measured",
                            code="configuration.model_digest",
                        )
                    client = HttpClient(UnixAddress(path=confined.open_socket("engine.sock")))
                    self._watch = asyncio.create_task(confined.watch())
                    await self._answering(client, self._watch)
            except BaseException as error:
                if client is not None:
                    client.close()
                await self.aclose()
                if isinstance(error, TimeoutError):
                    raise EngineError(
                        "the engine did not get ready in time", code="engine.start"
                    ) from None
                raise
            finally:
                await asyncio.wait({hashing})
        self._client = client

    @contextlib.contextmanager
    def _opened(
        self,
    ) -> Iterator[tuple[Mapping[str, Path], tuple[int, ...], Callable[[], str]]]:
        """Open the model: where it is shown, its descriptors, and what hashes it."""
        proven = self._proven()
        if self._path.is_dir():
            with open_folder(self._path) as folder:
                files = folder.shown_at(FOLDER)
                yield files, tuple(folder.descriptors.values()), proven or folder.digest
            return
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigurationError(
                f"the model file cannot be opened (errno {error.errno})",
                code="configuration.model",
            ) from None
        try:
            shown = {GGUF: DESCRIPTORS / str(descriptor)}
            yield shown, (descriptor,), proven or (lambda: sha256_descriptor(descriptor))
        finally:
            os.close(descriptor)

    def _proven(self) -> Callable[[], str] | None:
        """What says the digest where it was proven already; None where it has to be hashed."""
        weights = self._model.files.get(Role.MODEL)
        if weights is None or not weights.proven:
            return None
        digest = weights.sha256
        return lambda: digest

    def _program(self, files: Mapping[str, Path], inherited: tuple[int, ...]) -> ManagedProgram:
        command = self._command
        return ManagedProgram(
            arguments=(*self.installation.words, *command.arguments, *command.tuning),
            environment=command.environment,
            roots=self.installation.roots,
            files=files,
            texts=command.texts,
            inherited=inherited,
            port=command.port,
            gpus=self.settings.gpus,
        )

    async def _answering(self, client: HttpClient, watch: asyncio.Task[None]) -> None:
        """Wait until it says that it is ready; EngineError if it ends before."""
        while not watch.done():
            if await self._ready(client):
                return
            await asyncio.wait({watch}, timeout=_LOOK_EVERY)
        raise EngineError("the engine ended while it loaded the model", code="engine.start")

    async def _ready(self, client: HttpClient) -> bool:
        path = _HEALTH.get(self.settings.kind, HEALTH)
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT):
                response = await client.request("GET", path, host="localhost")
                await response.read(_MAX_HEALTH)
        except (EngineError, TimeoutError, ValueError):
            return False
        return response.status == 200

    async def send(self, request: EngineRequest) -> EngineResponse:
        """Send one request; see `Engine.send`."""
        method = method_of(request.path, self.paths)
        body, whole = self._body(request) if method == "POST" else (b"", False)
        client = self._client
        if client is None or not self.alive:
            raise EngineError("the engine is not running", code=NOT_RUNNING)
        path = NATIVE.get(request.path, request.path)
        if path == HEALTH:
            path = _HEALTH.get(self.settings.kind, HEALTH)
        try:
            response = await client.request(method, path, body, host="localhost")
            return await _whole(response) if whole and response.status == 200 else response
        except EngineError as error:
            if error.code == TRUNCATED:
                raise EngineError("the engine stopped", code=STOPPED) from None
            raise

    def _body(self, request: EngineRequest) -> tuple[bytes, bool]:
        """Return what the engine gets, and whether its stream is to be made one whole answer."""
        kind = self.settings.kind
        if kind is ManagedKind.LLAMA_SERVER:
            return generation_body(request, parallel=self.settings.parallel)
        salted = kind in SALTED
        return encode_salted(request, salted=salted, random_bytes=self._random_bytes), False

    async def wait_stopped(self) -> None:
        """Return when the engine has ended."""
        if self._watch is not None:
            await asyncio.wait({self._watch})

    async def aclose(self) -> None:
        """End the engine and its sandbox; requests in flight end with EngineError."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait({watch})
        confined, self._confined = self._confined, None
        if confined is not None:
            await confined.aclose()


async def _whole(response: EngineResponse) -> EngineResponse:
    """Collect llama-server's stream into one answer; see `cloister.engine.assemble`."""
    async with response:
        status, body = await assemble(response.chunks)

    async def once() -> AsyncGenerator[bytes]:
        yield body

    chunks = once()
    return EngineResponse(
        status=status, content_type="application/json", chunks=chunks, close=chunks.aclose
    )
