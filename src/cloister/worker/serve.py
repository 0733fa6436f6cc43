"""The worker process: from the launcher's hand-over to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloister.attester.handover import Handover
from cloister.engine.protocol import ModelFile
from cloister.errors import CloisterError, ConfigurationError
from cloister.streams.address import Address, TcpAddress
from cloister.strictjson import JsonObject
from cloister.worker.app import Worker, build_worker
from cloister.worker.configuration import claims_of, settings_of
from cloister.worker.engines import engines_of
from cloister.worker.hardening import harden_process
from cloister.worker.logs import EventLog, silence_loop, silence_process
from cloister.worker.operation import Operation
from cloister.worker.operator import OperatorServer
from cloister.worker.server import allow_connections, listen_tcp
from cloister.worker.settings import BrokerSettings, WorkerSettings
from cloister.worker.way_in import open_way_in

if TYPE_CHECKING:
    from cloister.channel.claims import ClaimsDocument
    from cloister.worker.key_release import Prover
    from cloister.worker.releases import KeyReleases
    from cloister.worker.tls_key import TlsKey
    from cloister.worker.tls_server import TlsServer
    from cloister.worker.weights import SealedModel
    from cloister.worker.weights_keys import WeightsKeys

ENTRY: Final = "cloister.worker.serve:main"
"""What a launch plan names as its entry."""

STARTED, FAILED = 0, 1


def main(handover: Handover) -> int:
    """Run a worker until it is told to stop; the exit status."""
    log = EventLog(sys.stderr)
    silence_process(log)
    hardening = harden_process()
    log.event("worker.hardened", **dataclasses.asdict(hardening))
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(_serve(handover, log))
    except CloisterError as error:
        # Its sentence is for the operator: it was made before any request could arrive.
        log.event("worker.failed", code=error.code, reason=str(error))
        return FAILED
    return STARTED


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _serve(handover: Handover, log: EventLog) -> None:
    loop = asyncio.get_running_loop()
    silence_loop(loop, log)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    operation = Operation.from_json(handover.operator)
    if not allow_connections(listeners=1 if operation.tls_port is None else 2):
        log.event("worker.few_descriptors")
    settings = settings_of(handover.configuration)
    sealed = _sealed(handover)
    worker, claims, bundle = _build(handover, operation, log, sealed)
    async with contextlib.AsyncExitStack() as stack:
        way_in = await open_way_in(operation.address)
        stack.push_async_callback(way_in.aclose)
        inside_tls = None
        if operation.tls_port is not None:
            inside_tls = _listen(operation.host, operation.tls_port)
            stack.callback(inside_tls.close)
        operator = OperatorServer(
            operation.operator_socket or handover.directory / "operator.sock",
            metrics=worker.context.metrics,
            ready=lambda: worker.readiness,
        )
        await operator.start()
        stack.push_async_callback(operator.aclose)
        releases = None
        if settings.broker is not None:
            prover = _prover(handover, worker, claims, bundle)
            releases = _releases(settings.broker, prover, operation, stack)
            await asyncio.to_thread(releases.check)
            log.event("broker.checked", attested=settings.broker.evidence is not None)
        keys = functools.partial(_weights_keys, operation.weights_key, releases, bundle)
        if not await _started(worker, stop, _starting(worker, handover, sealed, keys)):
            return
        servers = [way_in.server(worker)]
        if inside_tls is not None:
            servers.append(_tls_server(worker, inside_tls))
        for server in servers:
            await server.open()
        handover.ready(
            {
                **_shown(way_in.address),
                "tls_port": None if inside_tls is None else inside_tls.getsockname()[1],
                "keyset_digest": worker.context.keys.current.digest,
                "models": list(worker.context.engines.names),
                "api_keys_needed": not worker.context.gatekeeper.open,
                "operator_socket": str(operator.path),
            }
        )
        await stop.wait()
        await worker.stop()
        await asyncio.gather(*(server.close() for server in servers))


def _shown(address: Address) -> JsonObject:
    """What a client is told to ask, and for TCP its parts."""
    if isinstance(address, TcpAddress):
        host = f"[{address.host}]" if ":" in address.host else address.host
        url = f"http://{host}:{address.port}"
        return {"address": url, "host": address.host, "port": address.port}
    return {"address": str(address), "host": None, "port": None}


def _build(
    handover: Handover, operation: Operation, log: EventLog, sealed: Sequence[SealedModel]
) -> tuple[Worker, ClaimsDocument, bytes | None]:
    """The worker, what it says of itself, and the bundle that its reports carry."""
    configuration = handover.configuration
    models = {
        name: {role: ModelFile(path=file.path, sha256=file.sha256) for role, file in files.items()}
        for name, files in handover.models.items()
        if not any(file.sealed for file in files.values())
    }
    native = {name: measured.path for name, measured in handover.native.items()}
    engines = engines_of(
        configuration,
        operation,
        models=models,
        native=native,
        sealed={model.info.name: model.info for model in sealed},
        measured_root=handover.measured_root,
    )
    settings = dataclasses.replace(settings_of(configuration), rate=operation.rate)
    claims = claims_of(configuration, engines)
    bundle = _manifest(operation.manifest, claims)
    worker = build_worker(
        engines=engines,
        source=handover.attester,
        tee_type=handover.tee_type,
        claims=claims,
        manifest=bundle,
        log=log,
        settings=settings,
        tls_key=tls_key_of(settings, operation),
        random=os.urandom,
        api_keys=operation.api_keys,
        open_when_empty=operation.local_only,
        provenance=operation.provenance,
    )
    return worker, claims, bundle


# What only some workers need is imported by those: an import takes a tenth of a second where
# instructions are emulated.


def _manifest(path: Path | None, claims: ClaimsDocument) -> bytes | None:
    """As `manifest_to_serve`; None where neither the operator nor the configuration names one."""
    if path is None and claims.manifest_sha256 is None:
        return None
    from cloister.worker.manifest import manifest_to_serve

    return manifest_to_serve(path, claims, at=datetime.now(UTC))


def _sealed(handover: Handover) -> Sequence[SealedModel]:
    """The models that lie sealed."""
    if not any(file.sealed for files in handover.models.values() for file in files.values()):
        return ()
    from cloister.worker.weights import sealed_models

    return sealed_models(handover.models, handover.memory)


def _prover(
    handover: Handover, worker: Worker, claims: ClaimsDocument, bundle: bytes | None
) -> Prover:
    from cloister.worker.key_release import Prover

    return Prover(
        source=handover.attester,
        tee_type=handover.tee_type,
        keyset=worker.context.keys.current.keyset,
        claims=claims,
        manifest=bundle,
    )


def _releases(
    settings: BrokerSettings,
    prover: Prover,
    operation: Operation,
    stack: contextlib.AsyncExitStack,
) -> KeyReleases:
    """Keys from the worker's broker; its connection is closed with `stack`."""
    from cloister.worker.releases import open_releases

    http, releases = open_releases(
        settings, operation.broker, operation.broker_kit, prover=prover, random=os.urandom
    )
    stack.callback(http.close)
    return releases


def tls_key_of(settings: WorkerSettings, operation: Operation) -> TlsKey | None:
    """A key for attested TLS, where it was measured that there is such a way in.

    ConfigurationError unless the operator gives that listener a port then, and only then.
    """
    if settings.attested_tls is not (operation.tls_port is not None):
        raise ConfigurationError(
            "whether the worker takes requests over attested TLS has to be the same in its "
            "measured configuration and in the operator's settings",
            code="configuration.tls",
        )
    if not settings.attested_tls:
        return None
    from cloister.worker.tls_key import TlsKey

    return TlsKey(operation.certificate_names, random=os.urandom)


def _tls_server(worker: Worker, listener: socket.socket) -> TlsServer:
    from cloister.worker.tls_server import TlsServer

    context = worker.context
    if context.keys.tls_key is None:
        raise RuntimeError("a listener of attested TLS needs a key")
    try:
        return TlsServer(
            worker.inside_tls,
            listener,
            key=context.keys.tls_key,
            keys=context.keys,
            log=context.log,
            metrics=context.metrics,
        )
    except OSError as error:
        raise ConfigurationError(
            f"the key of attested TLS cannot be loaded (errno {error.errno}); that takes /proc "
            "and a free file descriptor",
            code="configuration.tls",
        ) from None


def _listen(host: str, port: int) -> socket.socket:
    try:
        return listen_tcp(host, port)
    except OSError as error:
        raise ConfigurationError(
            f"the worker cannot listen on {host}, port {port} (errno {error.errno})",
            code="configuration.listen",
        ) from None


def _weights_keys(
    file: Path | None, releases: KeyReleases | None, bundle: bytes | None
) -> WeightsKeys:
    from cloister.worker.weights_keys import weights_keys

    return weights_keys(file, releases, bundle)


async def _starting(
    worker: Worker,
    handover: Handover,
    sealed: Sequence[SealedModel],
    keys: Callable[[], WeightsKeys],
) -> None:
    """Open what lies sealed, and start the engines."""
    if sealed and handover.memory is not None:
        from cloister.worker.weights import open_weights

        await open_weights(sealed, keys(), handover.memory)
        worker.context.log.event("weights.opened", models=len(sealed))
    await worker.start()


async def _started(worker: Worker, stop: asyncio.Event, start: Coroutine[Any, Any, None]) -> bool:
    """Run `start`, unless the worker is told to stop before the engine has loaded."""
    starting = asyncio.create_task(start)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            return True
    finally:
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
    await worker.context.engines.aclose()
    return False
