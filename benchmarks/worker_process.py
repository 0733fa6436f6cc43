"""The worker under measurement, in a process of its own: ``python -m benchmarks.worker_process``.

The spec names the engine: ``{"engine": "llama", "model": PATH, "parallel": 32, "context": 512}``
or ``{"engine": "upstream", "socket": PATH, "name": NAME}``. With ``separation`` its processes are
exchanged. The ready line says the port, this
process's id, and where the engine itself listens, for the plain arm.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.children import read_spec, say
from benchmarks.stand_ins import bench_worker
from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.models import describe_model
from cloister.engine.openai_upstream import OpenAIUpstream, UpstreamSettings
from cloister.engine.protocol import Engine
from cloister.engine.sandbox import Sandbox
from cloister.worker.hardening import harden_process
from cloister.worker.server import HttpServer, listen_tcp
from cloister.worker.settings import Separation


def _engine(spec: Mapping[str, Any]) -> Engine:
    if spec["engine"] == "upstream":
        return OpenAIUpstream(
            UpstreamSettings(
                address=f"unix:{spec['socket']}",
                name=spec["name"],
                prefix_cache_off=True,
                max_idle=128,
            )
        )
    return llama_engine(Path(spec["model"]), parallel=spec["parallel"], context=spec["context"])


def llama_engine(model: Path, *, parallel: int, context: int) -> LlamaEngine:
    """The embedded engine in its sandbox, with one thread."""
    return LlamaEngine(
        describe_model(model),
        isolation=Sandbox(),
        settings=LlamaSettings(threads=1, parallel=parallel, context=context, connections=128),
    )


async def serve(application: Any, listener: socket.socket) -> None:
    """Serve an ASGI application on `listener` until SIGTERM, with the worker's own server."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = HttpServer(application, listener)
    await server.open()
    await stop.wait()
    await server.close()


async def _run(spec: Mapping[str, Any]) -> None:
    engine = _engine(spec)
    separation = spec.get("separation")
    worker = bench_worker(engine, None if separation is None else Separation(**separation))
    await worker.start()
    listener = listen_tcp("127.0.0.1", 0)
    say(
        port=listener.getsockname()[1],
        pid=os.getpid(),
        model=engine.model.name,
        engine_socket=engine.socket_path if isinstance(engine, LlamaEngine) else spec["socket"],
    )
    try:
        await serve(worker, listener)
    finally:
        await worker.stop()


def main() -> None:
    """Serve until ended."""
    harden_process()
    spec = read_spec()
    uvloop.run(_run(spec))
    sys.exit(0)


if __name__ == "__main__":
    main()
