"""One engine, three ways to it: bare, through `cloister.OpenAI`, through `cloister proxy`.

A test asks the same question each way and expects the same answer. The engine behind the seal
and the bare one are two of the same settings (and, where it is scripted, of the same script), so
nothing that one way leaves behind can help another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import uvicorn

from cloister.attester.kit import ClientKit
from cloister.cli.proxy import allowed_hosts
from cloister.cli.verify import encode
from cloister.client import open_async_connection
from cloister.client.proxy import LocalProxy
from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.models import resolve_model
from cloister.engine.sandbox import Sandbox
from cloister.evidence.component import Component, ComponentKind
from cloister.testing.fake_dialects import Dialect
from cloister.testing.fake_engine import Answer, FakeEngine, serve
from cloister.verifier import policy as policies
from support.scene import Scene, launched, scene

Way = Literal["direct", "sealed", "proxied"]
WAYS: Final[tuple[Way, ...]] = ("direct", "sealed", "proxied")


@dataclass(kw_only=True)
class Ground:
    """Where the engine can be reached; URLs have no path."""

    model: str
    direct: str
    proxied: str
    worker: str
    """Of the worker itself, or of the eavesdropper in front of it."""
    scene: Scene
    script: Script | None = None
    """What the engine will say, unless it is a real one."""

    def url(self, way: Way) -> str:
        """The root to ask."""
        return {"direct": self.direct, "sealed": self.worker, "proxied": self.proxied}[way]


@dataclass(slots=True)
class Script:
    """What scripted engines answer and were asked; one for the engine on each side."""

    bare: FakeEngine
    behind: FakeEngine
    answers: list[Answer] = field(default_factory=lambda: [Answer()])
    said: Callable[[str, Mapping[str, Any]], Answer] | None = None

    def will(self, **answer: Any) -> None:
        """Answer like this from now on."""
        self.said, self.answers = None, [Answer(**answer)]

    def turns(self, *answers: Answer) -> None:
        """Give these answers, one after the other, and the last of them ever after.

        Which is next is told from the conversation, which holds one message of the assistant
        for each that was given, so that questions asked several times are answered alike.
        """
        self.said, self.answers = None, list(answers)

    def speak(self, dialect: Dialect) -> None:
        """Word answers as this engine does."""
        self.bare.dialect = self.behind.dialect = dialect

    def asked(self, way: Way) -> dict[str, Any]:
        """The body of the last request that reached the engine."""
        engine = self.bare if way == "direct" else self.behind
        return dict(json.loads(engine.requests[-1].body))

    def __call__(self, path: str, body: Mapping[str, Any]) -> Answer:
        if self.said is not None:
            return self.said(path, body)
        messages = body.get("messages") or body.get("input") or ()
        given = sum(_is_turn(one) for one in messages) if isinstance(messages, list) else 0
        return self.answers[min(given, len(self.answers) - 1)]


def _is_turn(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


@contextlib.contextmanager
def scripted(*, watched: bool = False, **options: Any) -> Iterator[Ground]:
    """A scripted engine; `options` as for `support.scene.scene`.

    If it is `watched`, the scene's proxy stands in front of the worker and sees what passes.
    """
    script = Script(FakeEngine(), FakeEngine())
    script.bare.script = script.behind.script = script

    @contextlib.asynccontextmanager
    async def bare() -> AsyncIterator[str]:
        await script.bare.start()
        server = await serve(script.bare, port=0)
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()

    with _reachable(bare, watched=watched, engine=script.behind, **options) as reachable:
        yield Ground(model=script.behind.model.name, script=script, **reachable)


@contextlib.contextmanager
def embedded(*, watched: bool = False, **settings: Any) -> Iterator[Ground]:
    """llama.cpp with the demo model, in its sandbox; `watched` as for `scripted`."""
    sizes = LlamaSettings(parallel=2, threads=1, **settings)

    def engine() -> LlamaEngine:
        return LlamaEngine(resolve_model("demo"), isolation=Sandbox(), settings=sizes)

    behind = engine()
    component = Component(
        kind=ComponentKind.MODEL,
        name=behind.model.name,
        version="",
        digest=f"sha256:{behind.model.sha256}",
    )

    @contextlib.asynccontextmanager
    async def bare() -> AsyncIterator[str]:
        alone = engine()
        await alone.start()
        try:
            async with _relayed(alone.socket_path) as port:
                yield f"http://127.0.0.1:{port}"
        finally:
            await alone.aclose()

    attester = launched(component)
    with _reachable(bare, watched=watched, engine=behind, attester=attester) as reachable:
        yield Ground(model=behind.model.name, **reachable)


def write_kit(ground: Ground, directory: Path) -> Path:
    """Write what clients of other processes pin, and return where."""
    attester = ground.scene.live.attester
    kit = ClientKit(
        roots=attester.roots,
        reference_values=attester.reference_values,
        policy=policies.development(),
    )
    kit.write(directory)
    return directory


Serving = Callable[[], contextlib.AbstractAsyncContextManager[str]]


@contextlib.contextmanager
def _reachable(bare: Serving, *, watched: bool, **options: Any) -> Iterator[dict[str, Any]]:
    with scene(**options) as made:
        worker = made.url if watched else made.live.url

        def proxied() -> contextlib.AbstractAsyncContextManager[str]:
            return local_proxy(worker, **made.trust)

        with in_thread(bare) as direct, in_thread(proxied) as proxy:
            yield {"direct": direct, "proxied": proxy, "worker": worker, "scene": made}


@contextlib.contextmanager
def in_thread(serving: Serving) -> Iterator[str]:
    """Serve in a thread of its own; the value is the URL."""
    where: list[str] = []
    ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        async with serving() as url:
            where.append(url)
            ready.set()
            await stop.wait()

    def serve_until_told() -> None:
        try:
            asyncio.run(run())
        finally:
            ready.set()

    thread = threading.Thread(target=serve_until_told)
    thread.start()
    ready.wait(60)
    if not where:
        thread.join()
        raise RuntimeError("it did not start")
    try:
        yield where[0]
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


@contextlib.asynccontextmanager
async def local_proxy(worker: str, **trust: Any) -> AsyncIterator[str]:
    """`cloister proxy` for the worker at `worker`, on a port of its own."""
    connection = open_async_connection(worker, trust_env=False, **trust)
    config = uvicorn.Config(lambda: None, port=0, log_level="critical", lifespan="off")
    listener = config.bind_socket()
    port = listener.getsockname()[1]
    app = LocalProxy(connection, allowed_hosts=allowed_hosts("127.0.0.1", port), encode=encode)
    config.app = app
    server = uvicorn.Server(config)
    async with connection:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            await serving
            listener.close()


@contextlib.asynccontextmanager
async def _relayed(path: str) -> AsyncIterator[int]:
    """A port of loopback whose bytes go to the unix socket at `path`, and back."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inward, outward = await asyncio.open_unix_connection(path)
        with contextlib.suppress(asyncio.CancelledError):  # of the loop's end
            await asyncio.gather(pump(reader, outward), pump(inward, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
