"""A worker with attested TLS on loopback, and what pins it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.testing.fake_engine import FakeEngine
from cloister.worker.server import listen_tcp
from cloister.worker.settings import WorkerSettings
from cloister.worker.tls_key import TlsKey
from cloister.worker.tls_server import TlsServer
from support.worker import Bench, running

NAMES = ("localhost", "127.0.0.1")
CURL = "curl"


@dataclass(slots=True, kw_only=True)
class Pinned:
    """A running worker, where its attested TLS listens, and the certificate to pin."""

    bench: Bench
    server: TlsServer
    port: int
    pin: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def context(self) -> ssl.SSLContext:
        """What a client has that knows nothing but the pin."""
        return ssl.create_default_context(cafile=str(self.pin))


@contextlib.asynccontextmanager
async def listening(
    folder: Path,
    *,
    engine: FakeEngine | None = None,
    names: tuple[str, ...] = NAMES,
    **options: Any,
) -> AsyncIterator[Pinned]:
    """A worker behind its listener of attested TLS, on a free port of loopback."""
    key = TlsKey(names, random=os.urandom)
    settings = options.pop("settings", WorkerSettings(attested_tls=True))
    async with running(settings, engine=engine, tls_key=key, **options) as bench:
        listener = listen_tcp("127.0.0.1", 0)
        context = bench.worker.context
        server = TlsServer(
            bench.worker.inside_tls,
            listener,
            key=key,
            keys=context.keys,
            log=context.log,
            metrics=context.metrics,
        )
        await server.open()
        certificates = context.keys.current.certificates
        assert certificates is not None
        pin = folder / "pin.pem"
        pin.write_bytes(certificates.pin)
        try:
            yield Pinned(bench=bench, server=server, port=listener.getsockname()[1], pin=pin)
        finally:
            await server.close()
            listener.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a program that was run left behind."""

    status: int
    output: bytes
    errors: bytes


async def run(*command: str, stdin: bytes | None = None) -> Ran:
    """Run a program to its end, while the worker goes on in this loop."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "NO_PROXY": "*"},
    )
    try:
        async with asyncio.timeout(60):
            output, errors = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ran(status=process.returncode or 0, output=output, errors=errors)
