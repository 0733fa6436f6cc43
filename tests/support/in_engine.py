"""A sealed application on a real server, with the middleware loaded as vLLM loads it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import inspect
import logging
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette

from cloister.client.connect import TrustOptions
from cloister.evidence.report import EvidenceItem
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.verifier import policy as policies
from cloister.verifier.policy import AppraisalPolicy

MIDDLEWARE = "cloister.worker.middleware.SealMiddleware"


def add_as_vllm_does(app: Starlette, named: str = MIDDLEWARE) -> None:
    """What ``vllm serve --middleware NAMED`` does with a class (``build_app`` in its
    ``entrypoints/openai/api_server.py``): imported by its path, and given the application alone."""
    module_path, object_name = named.rsplit(".", 1)
    imported: Any = getattr(importlib.import_module(module_path), object_name)
    named_class: bool = inspect.isclass(imported)
    if not named_class:
        raise TypeError("vLLM would take this for a function of FastAPI's")
    app.add_middleware(imported)


class Evidence:
    """Evidence of a simulated platform, as a worker asks for it."""

    def __init__(self, hardware: SimulatedHardware) -> None:
        self.hardware = hardware

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        return self.hardware.issue(statement_digest)


def accepting(**changes: Any) -> AppraisalPolicy:
    """A policy that accepts what a seal inside an engine is, and simulated platforms."""
    return dataclasses.replace(
        policies.development(),
        **{
            "require_model": False,
            "require_managed": False,
            "isolation": ("none (in-engine)",),
            "termination": ("in-engine",),
            **changes,
        },
    )


def believing(hardware: SimulatedHardware, policy: AppraisalPolicy | None = None) -> TrustOptions:
    return {
        "policy": policy or accepting(),
        "reference_values": hardware.reference_values,
        "roots": hardware.roots,
    }


@dataclass(kw_only=True)
class Served:
    """A server that runs."""

    url: str
    server: uvicorn.Server


@contextlib.contextmanager
def serving(app: Any) -> Iterator[Served]:
    """Serve `app` with uvicorn's own settings, its log of requests among them, in a thread."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="trace", log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)

    def run() -> None:
        with contextlib.suppress(SystemExit):  # how uvicorn ends when it cannot start
            asyncio.run(server.serve(sockets=[listener]))

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        for _ in range(3000):
            if server.started or not thread.is_alive():
                break
            thread.join(0.02)
        if not server.started:
            raise RuntimeError("the server did not start")
        port = listener.getsockname()[1]
        yield Served(url=f"http://127.0.0.1:{port}", server=server)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        logging.getLogger("uvicorn").handlers.clear()
