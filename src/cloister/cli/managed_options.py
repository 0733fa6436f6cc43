"""What an operator writes about an engine that the worker starts itself, and what follows.

``--engine vllm --model FOLDER`` and its relatives: the installation is found, the model hashed, and
both become what is measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.model_options import ModelOptions, models_from, written_name
from cloister.cli.panels import ENGINE
from cloister.cli.sealed_options import names_sealed, sealed_model
from cloister.errors import CloisterError, ConfigurationError
from cloister.weights.header import Kind

if TYPE_CHECKING:
    from cloister.attester.measure import Subject
    from cloister.engine.managed import ManagedEngine
    from cloister.engine.protocol import ModelInfo
    from cloister.worker.settings import WorkerSettings

EMBEDDED: Final = "llama.cpp"

EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="llama.cpp, the embedded one; or vllm, sglang, tgi, llama-server or triton as "
        "installed on this machine, started by the worker in a sandbox of their own.",
        rich_help_panel=ENGINE,
    ),
]
EngineProgram = Annotated[
    Path | None,
    typer.Option(
        "--engine-program",
        help="Where the engine's program lies; else it is looked up.",
        rich_help_panel=ENGINE,
    ),
]
EngineRoots = Annotated[
    list[Path] | None,
    typer.Option(
        "--engine-root",
        help="A directory that the engine needs besides its own, read-only. May be given several "
        "times.",
        rich_help_panel=ENGINE,
    ),
]
EngineOptionWords = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        help="NAME=VALUE: an option of the engine's own, of those that are known to be harmless. "
        "May be given several times.",
        rich_help_panel=ENGINE,
    ),
]
EngineServes = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-serves",
        help="What the engine serves besides chat and completions: embeddings, rerank or tokenize. "
        "May be given several times.",
        rich_help_panel=ENGINE,
    ),
]
Gpus = Annotated[
    str,
    typer.Option(
        "--gpus",
        help="Numbers of the NVIDIA GPUs that the engine gets: 0 or 0,1.",
        rich_help_panel=ENGINE,
    ),
]

_LABEL: Final = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedOptions:
    """The options as they were written. With `engine` the embedded one, none of them is used."""

    engine: str = EMBEDDED
    program: Path | None = None
    roots: Sequence[Path] = ()
    options: Sequence[str] = ()
    serves: Sequence[str] = ()
    gpus: str = ""

    def __post_init__(self) -> None:
        rest = (self.program, *self.roots, *self.options, *self.serves, self.gpus or None)
        if not self.managed and any(one is not None for one in rest):
            raise ConfigurationError(
                "--engine-program, --engine-root, --engine-option, --engine-serves and --gpus are "
                "for an engine that --engine names",
                code="configuration.engine_option",
            )

    @property
    def managed(self) -> bool:
        """Whether another engine than the embedded one is named."""
        return self.engine != EMBEDDED


def managed_engine(
    options: ManagedOptions,
    models: ModelOptions,
    *,
    context: int | None,
    parallel: int,
    landlock_abi: int | None = None,
) -> ManagedEngine:
    """The engine that these options describe; it is not started.

    Raises ConfigurationError, FetchError or MalformedError.
    """
    from cloister.engine.command_lines import ManagedKind
    from cloister.engine.installation import find_installation
    from cloister.engine.managed import ManagedEngine, ManagedSettings
    from cloister.engine.managed_sandbox import ManagedSandbox

    try:
        kind = ManagedKind(options.engine)
    except ValueError:
        raise ConfigurationError(
            f"--engine is {EMBEDDED}, {', '.join(sorted(ManagedKind))}",
            code="configuration.engine",
        ) from None
    return ManagedEngine(
        _model(kind is ManagedKind.LLAMA_SERVER, models),
        find_installation(kind, program=options.program, further=options.roots),
        ManagedSettings(
            kind=kind,
            context=context,
            parallel=parallel,
            gpus=_numbers(options.gpus),
            options=_pairs(options.options),
            serves=frozenset(f"/v1/{name}" for name in options.serves),
        ),
        sandbox=ManagedSandbox()
        if landlock_abi is None
        else ManagedSandbox(landlock_abi=landlock_abi),
    )


def managed_subject(engine: ManagedEngine, settings: WorkerSettings, *, python: Path) -> Subject:
    """What is measured of a worker with this engine."""
    from cloister.attester.measure import ModelFiles, Subject
    from cloister.model_digest import Role
    from cloister.worker.configuration import effective_configuration

    if engine.model.path is None:
        raise RuntimeError("a managed engine has a model")
    return Subject(
        python=python,
        configuration=effective_configuration([engine], settings),
        models=(
            ModelFiles(
                name=engine.model.name,
                files={Role.MODEL: engine.model.path},
                sealed={} if engine.model.sealed is None else dict(engine.model.digests),
            ),
        ),
        native=engine.installation.measured,
    )


def warnings_for(engine: ManagedEngine) -> tuple[str, ...]:
    """What to say before it is started; ConfigurationError for what cannot work on these GPUs."""
    from cloister.engine.preflight import preflight

    settings = engine.settings
    findings = preflight(settings, confidential=_confidential() if settings.gpus else None)
    for finding in findings:
        if finding.refused:
            raise ConfigurationError(
                f"{finding.setting}: {finding.text}", code="configuration.engine_preflight"
            )
    return tuple(f"{finding.setting}: {finding.text}" for finding in findings)


def _confidential() -> bool | None:
    """The mode of this machine's GPUs, None where the driver does not say."""
    from cloister.attester.nvml import handle_state

    try:
        return bool(handle_state({})["cc"])
    except (CloisterError, KeyError):
        return None


def _model(gguf: bool, models: ModelOptions) -> ModelInfo:
    if models.adapters or models.drafts or models.projectors or len(models.models) > 1:
        raise ConfigurationError(
            "a managed engine serves one model, without adapters, drafts or projectors",
            code="configuration.models",
        )
    if gguf:
        return models_from(models)[0]
    return _folder(models)


def _folder(models: ModelOptions) -> ModelInfo:
    from cloister.engine.model_folder import describe_folder, model_of_folder

    named, written = written_name(models.models[0])
    folder = Path(written).expanduser().resolve()
    if names_sealed(written):
        digest = models.sha256[0] if models.sha256 else None
        name = models.name or named
        return sealed_model(written, Kind.SAFETENSORS, sha256=digest, name=name)
    if not folder.is_dir():
        raise ConfigurationError(
            f"there is no model's folder at {written}: this engine loads safetensors, as "
            "`cloister model prepare` lays them out",
            code="configuration.model_missing",
        )
    sha256 = describe_folder(folder).sha256
    wanted = {one.removeprefix("sha256:").lower() for one in models.sha256}
    if wanted - {sha256}:
        raise ConfigurationError(
            f"the model's folder has the digest {sha256}, not the one given",
            code="configuration.model_digest",
        )
    label = _LABEL.sub("-", models.name or named or folder.name).strip("-.")[:128]
    return model_of_folder(folder, sha256=sha256, name=label or "model")


def _numbers(written: str) -> tuple[int, ...]:
    words = [word.strip() for word in written.split(",") if word.strip()]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ConfigurationError(
            "--gpus takes numbers with commas between", code="configuration.engine_option"
        )
    return tuple(map(int, words))


def _pairs(written: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for one in written:
        name, equals, value = one.partition("=")
        if not equals or name in pairs:
            raise ConfigurationError(
                "--engine-option is written NAME=VALUE, each name once",
                code="configuration.engine_option",
            )
        pairs[name] = value
    return pairs
