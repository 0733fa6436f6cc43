"""The embedded engine: llama.cpp, through `xllamacpp`, in the sandbox.

Its server listens on a unix socket inside the sandbox (`cloister.engine.llama_child`). Nothing
is reused between requests: the engine's prefix cache cannot keep clients apart, so it is off
for everybody, in the settings and once more in every request.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cloister.engine import llama_child, llama_fields
from cloister.engine.assemble import assemble
from cloister.engine.budget import Budget, Spend
from cloister.engine.confined import DESCRIPTORS, Confined, Isolation, Program
from cloister.engine.http_unix import HttpClient, UnixAddress
from cloister.engine.llama_memory import Sizes, addresses_for, memory_for, threads_for
from cloister.engine.llama_parts import check_parts
from cloister.engine.llama_values import check_values
from cloister.engine.models import sha256_descriptor
from cloister.engine.one_by_one import embed
from cloister.engine.protocol import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    NOT_RUNNING,
    STOPPED,
    TOKENIZE,
    TRUNCATED,
    EngineRequest,
    EngineResponse,
    ModelFile,
    ModelInfo,
    Paths,
)
from cloister.engine.requests import NATIVE, decode_body, encode_body, method_of, refuse
from cloister.errors import ConfigurationError, EngineError
from cloister.model_digest import Role

DEFAULT_CONTEXT: Final = 4_096
_MAX_ANSWERS: Final = 1 << 30  # memory of all answers being put together, those of siblings too
_DESCRIPTORS: Final = 64  # besides one for each connection
_LIBRARY: Final = "xllamacpp"
_SPARE_CONNECTIONS: Final = 8

#: Fields of llama.cpp's own that reach into other requests' slots, caches or into files.
REFUSED_FIELDS: Final = frozenset(
    {"id_slot", "slot_id", "n_cache_reuse", "lora", "__verbose", "control_vectors"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSettings:
    """Sizes of the embedded engine.

    `context` tokens per request (None: the model's own, at most 4096), `parallel` requests
    computed at a time, `connections` accepted at a time (more wait), `threads` (None: all
    cores but one, which is the worker's), `memory` bounds what the engine may fill, in bytes
    (None: by the model's size, see `cloister.engine.llama_memory`),
    `start_timeout` in seconds. With `embeddings` it also serves those: the mean
    over the tokens, of inputs up to 512 tokens.
    """

    context: int | None = None
    parallel: int = 8
    connections: int = 128
    threads: int | None = None
    memory: int | None = None
    start_timeout: float = 300.0
    embeddings: bool = True

    def __post_init__(self) -> None:
        sizes = (
            *(self.parallel, self.connections),
            *(1 if size is None else size for size in (self.context, self.threads, self.memory)),
        )
        if min(sizes) < 1 or self.parallel > 256 or self.connections > 1024:
            raise ConfigurationError("the engine's sizes are out of bounds", code="engine.sizes")

    @property
    def server_threads(self) -> int:
        """Connections that the server can hold: some always remain for looks at its health."""
        return max(self.connections, self.parallel + _SPARE_CONNECTIONS)


class LlamaEngine:
    """llama.cpp in a sandbox. See `cloister.engine.protocol.Engine`."""

    def __init__(
        self,
        model: ModelInfo,
        *,
        isolation: Isolation,
        settings: LlamaSettings | None = None,
        cores: int | None = None,
        answers: Budget | None = None,
    ) -> None:
        if Role.MODEL not in model.files:
            raise ConfigurationError("the embedded engine needs a model file", code="engine.model")
        self._settings = settings or LlamaSettings()
        own = model.context_length or DEFAULT_CONTEXT
        self.context = min(self._settings.context or min(own, DEFAULT_CONTEXT), own)
        """Tokens of context for each request."""
        self._model = replace(model, context_length=self.context)
        self._paths: Paths = {
            **llama_fields.paths_of(model.template_words),
            **(llama_fields.EMBEDDING_PATHS if self._settings.embeddings else {}),
        }
        self._isolation = isolation
        self._embedding = asyncio.Lock()
        self._answers = answers or Budget(_MAX_ANSWERS)
        self._cores = cores if cores is not None else len(os.sched_getaffinity(0))
        self._confined: Confined | None = None
        self._client: HttpClient | None = None
        self._watch: asyncio.Task[None] | None = None
        self._path = ""

    @property
    def model(self) -> ModelInfo:
        """The model it serves; its digest is checked again at every start."""
        return self._model

    @property
    def paths(self) -> Paths:
        """OpenAI's, and the tokeniser."""
        return self._paths

    @property
    def slots(self) -> int:
        """Requests computed at a time."""
        return self._settings.parallel

    def sibling(self) -> LlamaEngine:
        """A new engine for the same files, in a sandbox of its own."""
        return LlamaEngine(
            self._model,
            isolation=self._isolation,
            settings=self._settings,
            cores=self._cores,
            answers=self._answers,
        )

    @property
    def alive(self) -> bool:
        """Whether it is started and its process has not ended."""
        return self._client is not None and self._confined is not None and self._confined.alive

    @property
    def socket_path(self) -> str:
        """Where it listens: a path through this process's descriptors. Empty if not running.

        For measurements against the bare engine; nothing that goes there is checked.
        """
        return self._path

    @property
    def pid(self) -> int | None:
        """The process to which all of it belongs; None if not running. For measurements."""
        return self._confined.pid if self._confined is not None else None

    @property
    def output_bytes(self) -> int:
        """How many bytes the engine has written to its output, all of them dropped."""
        return self._confined.output_bytes if self._confined is not None else 0

    def configuration(self) -> Mapping[str, object]:
        """What is measured. Thread count and timeouts change nothing but speed: not in here."""
        return {
            "engine": "llama.cpp",
            "library": {"name": _LIBRARY, "version": importlib.metadata.version(_LIBRARY)},
            "model": self._measured(),
            "context": self.context,
            "parallel": self._settings.parallel,
            "connections": self._settings.server_threads,
            "prefix_cache": "off",
            "embeddings": "mean" if self._settings.embeddings else "off",
            "managed": True,
            "isolation": dict(self._isolation.describe()),
        }

    def _measured(self) -> Mapping[str, object]:
        """The model, and where it has more files than its weights, each of them."""
        named = named_model(self._model)
        files = {role.value: digest for role, digest in self._model.digests.items()}
        return {**named, "files": files} if len(files) > 1 else named

    async def start(self) -> None:
        """Start it in its sandbox and return when it answers.

        Each of the model's files is opened once; what is open is what is hashed and what the
        sandbox shows. ConfigurationError when a digest has changed, EngineError when the engine
        does not start, SandboxError when the sandbox does not.
        """
        if self.alive:
            raise RuntimeError("the engine is already running")
        await self.aclose()
        with contextlib.ExitStack() as stack:
            opened = {
                role: _open(file.path, stack) for role, file in sorted(self._model.files.items())
            }
            # Hashing runs beside loading: the files are read once from disk for both.
            hashing = asyncio.create_task(asyncio.to_thread(_hashed, opened, self._model.files))
            try:
                self._confined = await self._isolation.spawn(self._program(opened))
                async with asyncio.timeout(self._settings.start_timeout):
                    await self._confined.word()
                    if await hashing != self._model.digests:
                        raise ConfigurationError(
                            "a model file is no longer the one that was measured",
                            code="configuration.model_digest",
                        )
                self._path = self._confined.open_socket(llama_child.SOCKET_NAME)
            except TimeoutError:
                await self.aclose()
                raise EngineError(
                    "the engine did not get ready in time", code="engine.start"
                ) from None
            except BaseException:
                await self.aclose()
                raise
            finally:
                await asyncio.wait({hashing})
        self._client = HttpClient(UnixAddress(path=self._path))
        self._watch = asyncio.create_task(self._confined.watch())

    def _program(self, opened: Mapping[Role, int]) -> Program:
        package = _package()
        computing = self._settings.threads or max(1, self._cores - 1)
        sizes = Sizes(
            files=sum(os.fstat(one).st_size for one in opened.values()),
            cache=self._model.cache_bytes,
            tokens=self.context * self._settings.parallel,
            threads=threads_for(connections=self._settings.server_threads, computing=computing),
        )
        memory = self._settings.memory or memory_for(sizes, physical=_physical_memory())
        program = Program(
            script=Path(llama_child.__file__),
            packages=tuple(p for p in (package, package.parent / f"{_LIBRARY}.libs") if p.is_dir()),
            files={_inside(role): DESCRIPTORS / str(one) for role, one in opened.items()},
            inherited=tuple(opened.values()),
            native=tuple(sorted(package.glob("*.so"))),
            memory=memory,
            addresses=addresses_for(sizes, memory),
            threads=sizes.threads,
            descriptors=self._settings.server_threads + _DESCRIPTORS,
        )
        settings = {
            "files": {
                role.value: self._isolation.path_of(program, _inside(role)) for role in opened
            },
            "name": self._model.name,
            "context": self.context,
            "parallel": self._settings.parallel,
            "connections": self._settings.server_threads,
            "embeddings": self._settings.embeddings,
            "threads": computing,
        }
        return replace(program, arguments=(json.dumps(settings),))

    async def send(self, request: EngineRequest) -> EngineResponse:
        """Send one request; see `Engine.send`."""
        method = method_of(request.path, self._paths)
        if Role.PROJECTOR in self._model.files:
            # Looking at images takes time, and nobody else should wait for it.
            body, whole = await asyncio.to_thread(self._native_body, request)
        else:
            body, whole = self._native_body(request)
        client = self._client
        if client is None or not self.alive:
            raise EngineError("the engine is not running", code=NOT_RUNNING)
        try:
            if request.path == EMBEDDINGS:
                refused, answer = await embed(client.request, decode_body(body), self._embedding)
                return refused or _answer(200, answer)
            response = await client.request(method, NATIVE.get(request.path, request.path), body)
            if not whole or response.status != 200:
                return response
            with self._answers.share() as spend:
                return await _whole(response, spend)
        except EngineError as error:
            if error.code == TRUNCATED:
                raise EngineError("the engine stopped", code=STOPPED) from None
            raise

    def _native_body(self, request: EngineRequest) -> tuple[bytes, bool]:
        """Return what the server gets, and whether its stream is to be made one whole answer."""
        if request.path in (CHAT_COMPLETIONS, COMPLETIONS):
            images = Role.PROJECTOR in self._model.files
            return generation_body(request, parallel=self._settings.parallel, images=images)
        if not request.body:
            return b"", False
        decoded = decode_body(request.body)
        if request.path == TOKENIZE:
            decoded = {
                "content": decoded.get("prompt"),
                "add_special": decoded.get("add_special_tokens", True),
            }
        return encode_body(decoded), False

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
        self._path = ""
        if confined is not None:
            await confined.aclose()


def named_model(model: ModelInfo) -> dict[str, object]:
    """A model in a measured configuration: name, digest, and the sealed weights it comes from."""
    named: dict[str, object] = {"name": model.name, "sha256": model.sha256}
    return named if model.sealed is None else {**named, "sealed": model.sealed}


def _inside(role: Role) -> str:
    """What the engine finds a file under."""
    return f"{role.value}.gguf"


def _open(path: Path, stack: contextlib.ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(
            f"a model file cannot be opened (errno {error.errno})", code="configuration.model"
        ) from None
    stack.callback(os.close, descriptor)
    return descriptor


def _hashed(opened: Mapping[Role, int], files: Mapping[Role, ModelFile]) -> Mapping[Role, str]:
    return {
        role: files[role].sha256 if files[role].proven else sha256_descriptor(descriptor)
        for role, descriptor in opened.items()
    }


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _package() -> Path:
    found = importlib.util.find_spec(_LIBRARY)
    if found is None or found.origin is None:
        raise ConfigurationError(
            "the embedded engine is not installed: pip install 'cloister[serve]'",
            code="configuration.engine_missing",
        )
    return Path(found.origin).parent


async def _whole(response: EngineResponse, spend: Spend) -> EngineResponse:
    """Collect a stream into one answer; being cancelled meanwhile frees the engine's slot."""
    async with response:
        status, body = await assemble(response.chunks, spend)
    return _answer(status, body)


def _answer(status: int, body: bytes) -> EngineResponse:
    chunks = _once(body)
    return EngineResponse(
        status=status, content_type="application/json", chunks=chunks, close=chunks.aclose
    )


async def _once(body: bytes) -> AsyncGenerator[bytes]:
    yield body


def generation_body(
    request: EngineRequest, *, parallel: int, images: bool = False
) -> tuple[bytes, bool]:
    """Return the body of a checked generation, and whether the caller wants a whole answer.

    `parallel` is how many answers the server computes at a time; with `images` it reads those.
    """
    decoded = decode_body(request.body)
    check_values(decoded, chat=request.path == CHAT_COMPLETIONS, parallel=parallel)
    check_parts(decoded.get("messages"), images=images)
    return private_body(decoded)


def private_body(decoded: dict[str, Any]) -> tuple[bytes, bool]:
    """Return the body as the engine gets it, and whether the caller wants a whole answer.

    EngineError (`REQUEST_REFUSED`) names a field that is not accepted here; the names are ours.
    """
    for name in sorted(REFUSED_FIELDS & decoded.keys()):
        raise refuse(f"the field '{name}' is not accepted here")
    if decoded.get("cache_prompt", False) is not False:
        raise refuse("the field 'cache_prompt' can only be false here: no prompt is kept")
    decoded["cache_prompt"] = False
    stream = decoded.get("stream")
    if stream not in (None, False, True):
        raise refuse("the field 'stream' is neither true nor false")
    if not stream:
        decoded.update({"stream": True, "stream_options": {"include_usage": True}})
    return encode_body(decoded), not stream
