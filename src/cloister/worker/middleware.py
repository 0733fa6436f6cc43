"""The worker as ASGI middleware: a seal that ends inside the application that answers.

Any server of an ASGI application takes it. vLLM, for one, imports what ``--middleware`` names and
calls it with the application alone, so settings come from a file that an environment variable
names::

    CLOISTER_SEAL=/etc/cloister/seal.toml vllm serve … --middleware \\
        cloister.worker.middleware.SealMiddleware

Sealed requests are opened and handed to the application in this process; keys and reports are
answered here; everything else in clear is refused, but for the paths that the operator names,
which answer with a status and nothing else.

What the application does with a prompt, such as writing it to its log, is out of this module's
reach. The server's own log of requests sees ``POST /ohttp`` and no more.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cloister.attester.machine import MachineAttester
from cloister.attester.stapling import stapled_from
from cloister.engine.asgi_app import AsgiEngine, AsgiSettings, unproven_model
from cloister.engine.asgi_call import App
from cloister.engine.models import sha256_file
from cloister.engine.protocol import ModelInfo
from cloister.errors import CloisterError, ConfigurationError, EngineError
from cloister.worker import problems
from cloister.worker.app import Worker, build_worker
from cloister.worker.configuration import claims_of, effective_configuration
from cloister.worker.hardening import forbid_core_files
from cloister.worker.logs import EventLog
from cloister.worker.reports import EvidenceSource
from cloister.worker.response import Receive, Scope, Send
from cloister.worker.seal import Seal, load_seal
from cloister.worker.settings import Separation, WorkerSettings
from cloister.worker.unsealed import send_plain, send_problem
from cloister.worker.wrapped_lifespan import WrappedLifespan

VARIABLE: Final = "CLOISTER_SEAL"
"""Environment variable with the path of the settings."""
_POLICY_VIOLATION: Final = 1008
"""Of RFC 6455 section 7.4.1; before the handshake, servers make 403 of it."""
_SHARED: Final = ("app", "state")
"""What the scopes of one application have in common. Starlette puts itself into ``app``, and inside
its middleware expects to find it there."""


class SealMiddleware:
    """Seals `app`. Without `seal`, its settings are read now from the file that `VARIABLE` names.

    `source` gives evidence; without it, this machine's platform is asked. Settings that cannot be
    used end the server's start-up, and until the seal stands every request is refused.
    """

    def __init__(
        self,
        app: App,
        seal: Seal | None = None,
        *,
        source: EvidenceSource | None = None,
        settings: WorkerSettings | None = None,
        log: EventLog | None = None,
    ) -> None:
        self._app = app
        self._source = source
        # The process is not ours to exchange, so nothing bounds what stays in its memory; nor is
        # the server, which would have to listen for TLS.
        self._settings = dataclasses.replace(
            settings or WorkerSettings(),
            separation=Separation.of_one_process(),
            attested_tls=False,
        )
        self._log = log or EventLog(sys.stderr)
        self._shared: Mapping[str, Any] = {}
        self._engine: AsgiEngine | None = None
        self._worker: Worker | None = None
        self._seal = seal
        self._refused: ConfigurationError | None = None
        if seal is None:
            try:
                self._seal = _from_environment()
            except ConfigurationError as error:
                # Servers take an error here for an application without a lifespan, and go on.
                self._refused = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or go through the server's start-up and shutdown."""
        match scope["type"]:
            case "http":
                await self._answer(scope, receive, send)
            case "lifespan":
                self._shared = {name: scope[name] for name in _SHARED if name in scope}
                lifespan = WrappedLifespan(receive, send, begin=self._begin, end=self._end)
                await lifespan.run(self._app, scope)
            case "websocket":
                await receive()
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            case _:
                return  # nothing that this version knows, so nothing that it lets through

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine, worker = self._engine, self._worker
        if engine is None or worker is None or self._seal is None:
            await send_problem(send, problems.NOT_STARTED)
        elif scope["path"] in self._seal.health and scope["method"] in ("GET", "HEAD"):
            try:
                status = await engine.health(scope["path"])
            except EngineError:
                status = 503
            await send_plain(send, status, b"", ((b"cache-control", b"no-store"),))
        else:
            await worker(scope, receive, send)

    async def _begin(self) -> str | None:
        """Set the seal up; says why it cannot be."""
        try:
            await self._set_up()
        except CloisterError as error:
            # Its sentence is for the operator: it was made before any request could arrive.
            self._log.event("seal.failed", code=error.code, reason=str(error))
            return str(error)
        except Exception as error:
            self._log.failure("seal.failed", error)
            return f"the seal could not be set up ({type(error).__name__})"
        return None

    async def _set_up(self) -> None:
        if self._seal is None:
            raise self._refused or RuntimeError("settings were read, or refused")
        seal = self._seal
        self._log.event("seal.begun", no_core=forbid_core_files())
        model = await asyncio.to_thread(_model, seal)
        engine = AsgiEngine(
            self._app,
            AsgiSettings(
                application="middleware",
                model=model,
                cache_salt=seal.cache_salt,
                prefix_cache_off=not seal.cache_salt,
                serves=seal.serves,
                health=seal.health,
            ),
            shared=lambda: self._shared,
        )
        configuration = effective_configuration([engine], self._settings)
        worker = build_worker(
            engines=[engine],
            source=self._source or _evidence(seal),
            tee_type=seal.platform,
            claims=claims_of(configuration, [engine]),
            log=self._log,
            settings=self._settings,
            api_keys=seal.api_keys,
            open_when_empty=seal.open,
        )
        await worker.start()
        self._engine, self._worker = engine, worker

    async def _end(self) -> None:
        if self._worker is not None:
            await self._worker.stop()  # and stay: it says to whoever still asks that it stops


def _from_environment() -> Seal:
    path = os.environ.get(VARIABLE)
    if not path:
        raise ConfigurationError(
            f"{VARIABLE} has to name the file with the seal's settings", code="configuration.seal"
        )
    return load_seal(Path(path))


def _evidence(seal: Seal) -> EvidenceSource:
    machine = MachineAttester(seal.platform)
    return machine if seal.endorsements is None else stapled_from(machine, seal.endorsements)


def _model(seal: Seal) -> ModelInfo:
    """What the operator states; the digest is of the file that they state, hashed here."""
    sha256 = None
    if seal.model_file is not None:
        try:
            sha256 = sha256_file(seal.model_file)
        except OSError as error:
            raise ConfigurationError(
                f"{seal.model_file} cannot be read (errno {error.errno})", code="configuration.seal"
            ) from None
    return dataclasses.replace(
        unproven_model(seal.model), sha256=sha256, context_length=seal.context_length
    )
