"""``cloister measure``: what a worker must be made of, computed before it is asked.

Run it on any machine with the same packages and the same interpreter: what it prints is what a
worker started there, or elsewhere from equal files, measures into its TPM.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.broker_options import BrokerId, BrokerKit, BrokerOptions, DevelopmentBroker
from cloister.cli.managed_options import (
    EMBEDDED,
    EngineName,
    EngineOptionWords,
    EngineProgram,
    EngineRoots,
    EngineServes,
    Gpus,
    ManagedOptions,
    managed_engine,
    managed_subject,
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
from cloister.cli.panels import ENGINE, WAYS_IN
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
from cloister.errors import BuildError, ConfigurationError

if TYPE_CHECKING:
    from cloister.attester.measure import Measured, Subject
    from cloister.engine.managed import ManagedEngine
    from cloister.engine.protocol import ModelInfo
    from cloister.strictjson import JsonObject
    from cloister.worker.settings import BrokerSettings, Separation, WorkerSettings

NATIVE_LIBRARY: Final = "xllamacpp"
MAX_CONFIGURATION_BYTES: Final = 256 * 1024

Context = Annotated[
    int | None,
    typer.Option("--context", min=1, help="Tokens per request.", rich_help_panel=ENGINE),
]
Parallel = Annotated[
    int,
    typer.Option("--parallel", min=1, help="Requests computed at a time.", rich_help_panel=ENGINE),
]
Unsafe = Annotated[
    bool,
    typer.Option(
        "--unsafe-without-sandbox",
        help="Run the engine unconfined.",
        rich_help_panel=ENGINE,
    ),
]
Compat = Annotated[
    str,
    typer.Option(
        "--compat",
        help="Also serve the paths of servers that Cloister replaces: cosmian, triton, or both "
        "with a comma between.",
        rich_help_panel=WAYS_IN,
    ),
]
AttestedTls = Annotated[
    bool,
    typer.Option(
        "--attested-tls",
        help="The worker also takes requests over attested TLS, as `cloister serve --tls-port`.",
        rich_help_panel=WAYS_IN,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What decides the engine's part of the configuration, and the paths that are served."""

    context: int | None = None
    parallel: int = 8
    unsafe_without_sandbox: bool = False
    landlock_abi: int | None = None
    """Of the kernel that the worker will run on; None for this machine's."""
    compat: str = ""
    """Names of `cloister.worker.settings.Dialect`, with commas between."""
    attested_tls: bool = False
    broker: BrokerSettings | None = None
    """Where keys of sealed weights come from."""
    processes: ProcessOptions = field(default_factory=ProcessOptions)
    managed: ManagedOptions = field(default_factory=ManagedOptions)
    """Another engine than the embedded one, where one is named."""
    manifest_sha256: str | None = None
    """Of the manifest that the worker runs under."""


def measure(
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
    compat: Compat = "",
    attested_tls: AttestedTls = False,
    broker_identity: BrokerId = None,
    broker_kit: BrokerKit = None,
    development_broker: DevelopmentBroker = False,
    landlock_abi: Annotated[
        int | None,
        typer.Option(
            "--landlock-abi",
            min=0,
            help="Of the worker's kernel, where it is another than this machine's.",
        ),
    ] = None,
    configuration: Annotated[
        Path | None,
        typer.Option("--configuration", help="A whole effective configuration (JSON) instead."),
    ] = None,
    python: Annotated[
        Path, typer.Option("--python", help="The interpreter whose installation is measured.")
    ] = Path(sys.executable),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file instead of standard output.")
    ] = None,
    toml: Annotated[bool, typer.Option("--toml", help="TOML instead of JSON.")] = False,
) -> None:
    """Print the reference values of this installation with its models and a configuration."""
    from cloister.attester.measure import measure as hash_everything
    from cloister.verifier.reference_values import ReferenceValues

    began = time.perf_counter()
    written = ModelOptions.written(
        models=model,
        sha256=model_sha256,
        name=model_name,
        adapters=adapter,
        drafts=draft_model,
        projectors=projector,
    )
    options = EngineOptions(
        context=context,
        parallel=parallel,
        unsafe_without_sandbox=unsafe_without_sandbox,
        landlock_abi=landlock_abi,
        compat=compat,
        attested_tls=attested_tls,
        broker=BrokerOptions(
            identity=broker_identity, kit=broker_kit, development=development_broker
        ).settings(),
        processes=ProcessOptions(
            separation=separation,
            max_processes=max_processes,
            recycle_after=recycle_after,
            recycle_idle=recycle_idle,
            recycle_age=recycle_age,
            recycle_each=recycle_each,
            warm=warm,
        ),
        managed=ManagedOptions(
            engine=engine,
            program=engine_program,
            roots=engine_root or (),
            options=engine_option or (),
            serves=engine_serves or (),
            gpus=gpus,
        ),
    )
    if options.managed.managed:
        subject = _managed_subject(written, options, configuration, python=python)
    else:
        models = models_from(written)
        effective = (
            effective_for(models, options) if configuration is None else _read(configuration)
        )
        subject = subject_for(models, effective, python=python)
    measured = hash_everything(subject)
    _check_library(measured, subject.configuration)
    values = ReferenceValues.from_components(measured.components)
    text = values.dump_toml() if toml else values.dump_json()
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
    typer.echo(
        f"{len(values.components)} components, digest {values.digest}"
        f" ({time.perf_counter() - began:.2f} s)",
        err=True,
    )


def effective_for(models: Sequence[ModelInfo], options: EngineOptions) -> JsonObject:
    """The effective configuration of a worker that serves `models`, each in an embedded engine."""
    from cloister.engine.llama import LlamaEngine, LlamaSettings
    from cloister.engine.sandbox import Sandbox, UnsafeNoSandbox
    from cloister.worker.configuration import effective_configuration

    sandbox = Sandbox()
    if options.landlock_abi is not None:
        sandbox = Sandbox(landlock_abi=options.landlock_abi)
    engines = [
        LlamaEngine(
            model,
            isolation=UnsafeNoSandbox() if options.unsafe_without_sandbox else sandbox,
            settings=LlamaSettings(context=options.context, parallel=options.parallel),
        )
        for model in models
    ]
    settings = settings_for(
        options.compat,
        options.processes.settings(),
        attested_tls=options.attested_tls,
        manifest_sha256=options.manifest_sha256,
        broker=options.broker,
    )
    return effective_configuration(engines, settings)


def managed_engine_for(models: ModelOptions, options: EngineOptions) -> ManagedEngine:
    """The engine that these options name; raises ConfigurationError, FetchError, MalformedError."""
    if options.unsafe_without_sandbox:
        raise ConfigurationError(
            "a managed engine is never run without its sandbox: start it yourself, and name it "
            "with --upstream",
            code="configuration.engine",
        )
    return managed_engine(
        options.managed,
        models,
        context=options.context,
        parallel=options.parallel,
        landlock_abi=options.landlock_abi,
    )


def managed_settings_for(engine: ManagedEngine, options: EngineOptions) -> WorkerSettings:
    """Settings of a worker with this engine. One that fills a GPU cannot be exchanged."""
    from cloister.worker.settings import Separation

    if engine.sibling() is not None:
        separation = options.processes.settings()
    elif options.processes.given:
        raise ConfigurationError(
            "an engine on GPUs fills their memory, so there is one process of it: people cannot "
            "be kept apart in it, nor can it be exchanged",
            code="configuration.separation",
        )
    else:
        separation = Separation.of_one_process()
    return settings_for(
        options.compat,
        separation,
        attested_tls=options.attested_tls,
        manifest_sha256=options.manifest_sha256,
        broker=options.broker,
    )


def _managed_subject(
    models: ModelOptions, options: EngineOptions, configuration: Path | None, *, python: Path
) -> Subject:
    if configuration is not None:
        raise ConfigurationError(
            "--configuration and --engine exclude each other", code="measure.configuration"
        )
    engine = managed_engine_for(models, options)
    return managed_subject(engine, managed_settings_for(engine, options), python=python)


def settings_for(
    compat: str,
    separation: Separation | None = None,
    *,
    attested_tls: bool = False,
    manifest_sha256: str | None = None,
    broker: BrokerSettings | None = None,
) -> WorkerSettings:
    """Settings of a worker that also serves the paths that `compat` names.

    Raises ConfigurationError for a name that is not known.
    """
    from cloister.worker.settings import Dialect, Separation, WorkerSettings

    names = {name.strip() for name in compat.split(",")} - {""}
    try:
        return WorkerSettings(
            compat=frozenset(Dialect(name) for name in names),
            separation=separation or Separation(),
            attested_tls=attested_tls,
            manifest_sha256=manifest_sha256,
            broker=broker,
        )
    except ValueError:
        raise ConfigurationError(
            f"--compat takes {' and '.join(sorted(Dialect))}, with a comma between",
            code="configuration.compat",
        ) from None


def subject_for(
    models: Sequence[ModelInfo],
    configuration: JsonObject,
    *,
    python: Path = Path(sys.executable),
) -> Subject:
    """What is measured of a worker that serves `models` from the installation of `python`."""
    from cloister.attester.installation import find_package
    from cloister.attester.measure import ModelFiles, Subject

    native = {path.name: path for path in find_package(python, NATIVE_LIBRARY, suffix=".so")}
    if not native:
        raise BuildError(
            f"{python} has no engine ({NATIVE_LIBRARY}); install cloister[serve]",
            code="measure.engine",
        )
    return Subject(
        python=python,
        configuration=configuration,
        models=tuple(
            ModelFiles(
                name=model.name,
                files={role: file.path for role, file in model.files.items()},
                sealed={} if model.sealed is None else dict(model.digests),
            )
            for model in models
        ),
        native=native,
    )


def _check_library(measured: Measured, configuration: JsonObject) -> None:
    """The engine's version comes from this program's installation; it must be the measured."""
    installed = {entry.name: entry.version for entry in measured.installation.distributions}
    for library in libraries_of(configuration):
        found = installed.get(str(library.get("name")))
        if found == library.get("version"):
            continue
        raise ConfigurationError(
            f"the configuration names {library.get('name')} {library.get('version')}, but the"
            f" installation holds {found}; run that installation's own `cloister measure`",
            code="measure.engine",
        )


def libraries_of(configuration: JsonObject) -> Iterator[JsonObject]:
    """The library of each engine that names one."""
    engines = configuration.get("engines")
    for engine in engines if isinstance(engines, list) else []:
        library = engine.get("library") if isinstance(engine, dict) else None
        if isinstance(library, dict):
            yield library


def _read(path: Path) -> JsonObject:
    from cloister.errors import MalformedError
    from cloister.strictjson import parse_json_object

    try:
        content = path.read_bytes()
        return parse_json_object(content, limit=MAX_CONFIGURATION_BYTES, what="the configuration")
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", code="measure.configuration"
        ) from None
    except MalformedError as error:
        raise ConfigurationError(str(error), code="measure.configuration") from None
