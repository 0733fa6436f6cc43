"""``cloister serve``: measure, start and keep up a sealed worker.

What decides which answers are given (model, engine, limits) is measured before the worker
starts; where it listens and whom it serves is the operator's business and is not.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from cloister.cli.broker_options import (
    Broker,
    BrokerId,
    BrokerKit,
    BrokerOptions,
    DevelopmentBroker,
)
from cloister.cli.managed_options import (
    EMBEDDED,
    EngineName,
    EngineOptionWords,
    EngineProgram,
    EngineRoots,
    EngineServes,
    Gpus,
    ManagedOptions,
    managed_subject,
    warnings_for,
)
from cloister.cli.measure import (
    Compat,
    Context,
    EngineOptions,
    Parallel,
    Unsafe,
    effective_for,
    managed_engine_for,
    managed_settings_for,
    subject_for,
)
from cloister.cli.model_options import (
    Adapters,
    Drafts,
    ModelDigests,
    ModelName,
    ModelOptions,
    Models,
    Projectors,
    models_from,
)
from cloister.cli.operation_options import (
    ApiKeys,
    Host,
    KitFolder,
    Listen,
    Manifest,
    OperatorSocket,
    Port,
    Prepare,
    RateBurst,
    RatePerMinute,
    State,
    Threads,
    TlsNames,
    TlsPort,
    state_directory,
    table_of_keys,
)
from cloister.cli.process_options import (
    MaxProcesses,
    ProcessOptions,
    RecycleAfter,
    RecycleAge,
    RecycleEach,
    RecycleIdle,
    SeparationName,
    Warm,
)
from cloister.cli.sealed_options import WeightsKey, memory_for
from cloister.cli.upstream_options import (
    Application,
    CacheSalt,
    Upstream,
    UpstreamAddress,
    UpstreamOptions,
    UpstreamServes,
    to_accept,
    upstream_configuration,
)
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.attester.launcher import LaunchedWorker, LaunchPlan
    from cloister.worker.operation import Operation

PLATFORM: Final = "development (software TPM)"
DEFAULT_PORT: Final = 8440
COMPILED: Final = ("cloister.worker.serve", "cloister.engine.llama", "uvloop", "httptools")
"""Modules the launcher compiles ahead of the worker's start."""


def serve(
    *,
    model: Models = None,
    model_sha256: ModelDigests = None,
    model_name: ModelName = None,
    adapter: Adapters = None,
    draft_model: Drafts = None,
    projector: Projectors = None,
    engine: EngineName = EMBEDDED,
    engine_program: EngineProgram = None,
    engine_root: EngineRoots = None,
    engine_option: EngineOptionWords = None,
    engine_serves: EngineServes = None,
    gpus: Gpus = "",
    context: Context = None,
    parallel: Parallel = 8,
    unsafe_without_sandbox: Unsafe = False,
    separation: SeparationName = "shared",
    max_processes: MaxProcesses = None,
    recycle_after: RecycleAfter = None,
    recycle_idle: RecycleIdle = None,
    recycle_age: RecycleAge = None,
    recycle_each: RecycleEach = False,
    warm: Warm = None,
    upstream: UpstreamAddress = None,
    asgi: Application = None,
    upstream_cache_salt: CacheSalt = False,
    upstream_serves: UpstreamServes = None,
    compat: Compat = "",
    tls_port: TlsPort = None,
    manifest: Manifest = None,
    broker_identity: BrokerId = None,
    broker_kit: BrokerKit = None,
    development_broker: DevelopmentBroker = False,
    broker: Broker = None,
    host: Host = "127.0.0.1",
    port: Port = DEFAULT_PORT,
    listen: Listen = None,
    tls_name: TlsNames = None,
    api_keys: ApiKeys = None,
    rate_per_minute: RatePerMinute = 600,
    rate_burst: RateBurst = 120,
    threads: Threads = None,
    weights_key: WeightsKey = None,
    operator_socket: OperatorSocket = None,
    kit: KitFolder = None,
    state: State = None,
    prepare_only: Prepare = False,
) -> None:
    """Serve models from a sealed worker, until SIGTERM or Ctrl-C."""
    from cloister.attester.launcher import prepare, run
    from cloister.worker.operation import Operation

    directory = state_directory() if state is None else state
    operation = Operation(
        host=host,
        port=port,
        listen=listen,
        tls_port=tls_port,
        tls_names=tuple(name.lower() for name in tls_name or ()),
        api_keys=table_of_keys(api_keys),
        manifest=manifest,
        weights_key=weights_key,
        operator_socket=operator_socket,
        threads=threads,
        broker=broker,
        broker_kit=broker_kit,
        upstream=upstream,
        rate_per_minute=rate_per_minute,
        rate_burst=rate_burst,
    )
    if tls_port is not None:
        _ = operation.certificate_names  # said now, and not by a worker that does not start
    elif tls_name:
        raise ConfigurationError(
            "--tls-name names nothing without --tls-port", code="configuration.tls_names"
        )
    if (broker is None) is not (broker_identity is None):
        raise ConfigurationError(
            "--broker and --broker-identity go together", code="configuration.broker"
        )
    processes = ProcessOptions(
        separation=separation,
        max_processes=max_processes,
        recycle_after=recycle_after,
        recycle_idle=recycle_idle,
        recycle_age=recycle_age,
        recycle_each=recycle_each,
        warm=warm,
    )
    managed = ManagedOptions(
        engine=engine,
        program=engine_program,
        roots=engine_root or (),
        options=engine_option or (),
        serves=engine_serves or (),
        gpus=gpus,
    )
    options = EngineOptions(
        context=context,
        parallel=parallel,
        unsafe_without_sandbox=unsafe_without_sandbox,
        compat=compat,
        attested_tls=tls_port is not None,
        broker=BrokerOptions(
            identity=broker_identity, kit=broker_kit, development=development_broker
        ).settings(),
        processes=processes,
        managed=managed,
        manifest_sha256=None if manifest is None else _digest_in_force(manifest),
    )
    others = UpstreamOptions(
        address=upstream,
        application=asgi,
        cache_salt=upstream_cache_salt,
        serves=upstream_serves or (),
    )
    if others.named:
        of_a_model = model or model_sha256 or adapter or draft_model or projector
        described = others.described(model_name, options, of_a_model=bool(of_a_model))
        plan = upstream_plan(directory, operation, described)
    else:
        models = ModelOptions.written(
            models=model,
            sha256=model_sha256,
            name=model_name,
            adapters=adapter,
            drafts=draft_model,
            projectors=projector,
        )
        plan = sandboxed_plan(directory, operation, models=models, options=options)
    if manifest is not None:
        _check_listed(manifest, plan)
    if prepare_only:
        prepare(plan)
        return
    where = directory / "kit" if kit is None else kit

    def on_ready(worker: LaunchedWorker, ready: dict[str, object]) -> None:
        from cloister.verifier.policy import development

        worker.client_kit(development()).write(where)
        _announce(ready, where)
        accepted = to_accept(plan.subject.configuration)
        if accepted:
            typer.echo(
                "This policy refuses the worker. Whoever accepts what it is changes their own to:\n"
                + "".join(f"  {line}\n" for line in accepted),
                err=True,
                nl=False,
            )

    raise typer.Exit(run(plan, on_ready=on_ready))


def _digest_in_force(path: Path) -> str:
    """The digest of the manifest in a bundle. ConfigurationError if no worker may start under it.

    It is only read here; whether its owners are anybody's to trust is for clients to say.
    """
    from cloister.worker.manifest import read_bundle, require_in_force

    return require_in_force(read_bundle(path.expanduser()), at=datetime.now(UTC)).digest


def _check_listed(path: Path, plan: LaunchPlan) -> None:
    """Say now, and not by a worker that does not start, what the manifest does not list."""
    from cloister.worker.configuration import claims_described
    from cloister.worker.manifest import manifest_to_serve

    claims = claims_described(plan.subject.configuration)
    manifest_to_serve(path.expanduser(), claims, at=datetime.now(UTC))


def sandboxed_plan(
    state: Path, operation: Operation, *, models: ModelOptions, options: EngineOptions
) -> LaunchPlan:
    """What to launch with an engine that the worker starts: the embedded one, or as named.

    Raises as `embedded_plan`; what has to be known about a managed engine goes to standard error.
    """
    if not options.managed.managed:
        return embedded_plan(state, operation, models=models, options=options)
    from cloister.attester.launcher import LaunchPlan
    from cloister.worker.serve import ENTRY

    engine = managed_engine_for(models, options)
    for warning in warnings_for(engine):
        typer.echo(f"Note on {warning}", err=True)
    return LaunchPlan(
        state_dir=state,
        subject=managed_subject(
            engine, managed_settings_for(engine, options), python=Path(sys.executable)
        ),
        entry=ENTRY,
        operator=operation.to_json(),
        compiled=COMPILED,
        memory=memory_for([engine.model], operation),
    )


def embedded_plan(
    state: Path,
    operation: Operation,
    *,
    models: ModelOptions,
    options: EngineOptions,
    output: int | None = None,
) -> LaunchPlan:
    """What to launch for models in the embedded engine.

    Raises:
        ConfigurationError, FetchError, MalformedError: a model cannot be had or read.
        SandboxError: this machine cannot sandbox the engine.
    """
    from cloister.attester.launcher import LaunchPlan
    from cloister.worker.serve import ENTRY

    found = models_from(models)
    return LaunchPlan(
        state_dir=state,
        subject=subject_for(found, effective_for(found, options)),
        entry=ENTRY,
        operator=operation.to_json(),
        compiled=COMPILED,
        output=output,
        memory=memory_for(found, operation),
    )


def upstream_plan(state: Path, operation: Operation, upstream: Upstream) -> LaunchPlan:
    """What to launch in front of an engine that somebody else runs, or around an application."""
    from cloister.attester.launcher import LaunchPlan
    from cloister.attester.measure import Subject
    from cloister.worker.serve import ENTRY

    return LaunchPlan(
        state_dir=state,
        subject=Subject(
            python=Path(sys.executable), configuration=upstream_configuration(upstream)
        ),
        entry=ENTRY,
        operator=operation.to_json(),
        compiled=COMPILED,
    )


def _announce(ready: dict[str, object], kit: Path) -> None:
    address = ready["address"]
    listed = ready["models"]
    models = listed if isinstance(listed, list) else []
    tls = ready["tls_port"]
    inside = "" if tls is None else f"  TLS        port {tls}, for who pins its certificate\n"
    needed = "needed (cloister keys add)" if ready["api_keys_needed"] else "not needed on loopback"
    typer.echo(
        f"Serving {', '.join(map(str, models))} at {address}\n"
        f"  platform   {PLATFORM}: proves nothing to anyone else\n"
        f"{inside}"
        f"  API keys   {needed}\n"
        f"  operator   {ready['operator_socket']}\n"
        f"  pins       {kit}\n"
        f"Check it:    cloister verify {address} --kit {kit} --development\n"
        f"Talk to it:  cloister chat {address} --kit {kit} --development",
        err=True,
    )
