"""The engines that a measured configuration describes.

Each kind is imported when it is described, as is what reads a model that is a folder: a worker
starts with one of them, and in an emulated machine the others would cost seconds.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloister.engine.protocol import Engine, ModelFile, ModelInfo
from cloister.errors import ConfigurationError
from cloister.model_digest import Role
from cloister.strictjson import JsonObject
from cloister.worker.configuration import check_engines, engine_descriptions
from cloister.worker.operation import Operation

if TYPE_CHECKING:
    from cloister.engine.confined import Isolation
    from cloister.engine.llama import LlamaEngine

_LLAMA: Final = "llama.cpp"
_UPSTREAM: Final = "openai-upstream"
_ASGI: Final = "asgi-app"


Files = Mapping[Role, ModelFile]


def engines_of(
    configuration: JsonObject,
    operation: Operation,
    *,
    models: Mapping[str, Files],
    native: Mapping[str, Path],
    sealed: Mapping[str, ModelInfo] | None = None,
    measured_root: bool = False,
) -> tuple[Engine, ...]:
    """Make the engines, in order; `models` holds the measured files of each model by its name,
    `native` what was measured of the engines themselves, `sealed` what is known of the models
    whose files are not there yet. `measured_root`: compiled code was measured as well, and is read.

    ConfigurationError when the configuration describes an engine that cannot be made here, one
    made would describe itself otherwise, or a model was measured that none serves.
    """
    described = engine_descriptions(configuration)
    known = sealed or {}

    def model_of(name: str) -> ModelInfo:
        return known[name] if name in known else _measured_model(name, models[name])

    cores = max(1, (len(os.sched_getaffinity(0)) - 1) // len(described))
    engines = tuple(
        _engine(
            one,
            dataclasses.replace(operation, threads=operation.threads or cores),
            model_of,
            native,
            measured_root,
        )
        for one in described
    )
    check_engines(configuration, engines)
    if (models.keys() | known.keys()) - {engine.model.name for engine in engines}:
        raise ConfigurationError(
            "a model was measured that the worker's configuration does not serve",
            code="configuration.engine",
        )
    return engines


def _engine(
    described: JsonObject,
    operation: Operation,
    model_of: Callable[[str], ModelInfo],
    native: Mapping[str, Path],
    compiled: bool,
) -> Engine:
    try:
        match described["engine"]:
            case kind if kind == _LLAMA:
                return _llama(described, operation, model_of, compiled)
            case kind if kind == _ASGI:
                return _asgi(described)
            case kind if kind == _UPSTREAM and operation.upstream is not None:
                return _upstream(described, operation.upstream)
            case _:
                return _managed(described, operation, model_of, native)
    except (KeyError, TypeError, ValueError):
        raise ConfigurationError(
            "the worker's configuration describes an engine that cannot be made here",
            code="configuration.engine",
        ) from None


def _measured_model(name: str, files: Files) -> ModelInfo:
    weights = files[Role.MODEL]
    if weights.path.is_dir():
        from cloister.engine.model_folder import model_of_folder

        return model_of_folder(weights.path, sha256=weights.sha256, name=name)
    from cloister.engine.models import model_of_files

    return model_of_files(files, name=name)


def _llama(
    described: dict[str, Any],
    operation: Operation,
    model_of: Callable[[str], ModelInfo],
    compiled: bool,
) -> LlamaEngine:
    from cloister.engine.llama import LlamaEngine, LlamaSettings

    return LlamaEngine(
        model_of(described["model"]["name"]),
        isolation=_isolation(described, compiled),
        settings=LlamaSettings(
            context=described["context"],
            parallel=described["parallel"],
            connections=described["connections"],
            threads=operation.threads,
            embeddings=described["embeddings"] == "mean",
        ),
    )


def _managed(
    described: dict[str, Any],
    operation: Operation,
    model_of: Callable[[str], ModelInfo],
    native: Mapping[str, Path],
) -> Engine:
    """The engine that was measured: where its program lies comes with its digest.

    ValueError for what is none of them.
    """
    from cloister.engine.command_lines import ManagedKind
    from cloister.engine.installation import restored
    from cloister.engine.managed import ManagedEngine, ManagedSettings

    kind = ManagedKind(described["engine"])
    return ManagedEngine(
        model_of(described["model"]["name"]),
        restored(kind, described["installation"], native),
        ManagedSettings(
            kind=kind,
            context=described["context"],
            parallel=described["parallel"],
            gpus=tuple(described["gpus"]),
            threads=operation.threads,
            options=described["options"],
            serves=frozenset(described["serves"]),
        ),
    )


def _isolation(described: dict[str, Any], compiled: bool) -> Isolation:
    from cloister.engine.sandbox import Sandbox

    sandbox = Sandbox(compiled=compiled)
    return sandbox if described["isolation"] == sandbox.describe() else _unsafe(described)


def _unsafe(described: dict[str, Any]) -> Isolation:
    from cloister.engine.sandbox import UnsafeNoSandbox

    unsafe = UnsafeNoSandbox()
    if described["isolation"] != unsafe.describe():
        raise ConfigurationError(
            "the sandbox on this machine has other layers than the measured configuration names",
            code="configuration.sandbox",
        )
    return unsafe


def _asgi(described: dict[str, Any]) -> Engine:
    """The application is imported into this process: measured code, like all that can be."""
    from cloister.engine.asgi_app import (
        AsgiEngine,
        AsgiSettings,
        import_application,
        unproven_model,
    )

    salted = described["prefix_cache"] == "salted"
    settings = AsgiSettings(
        application=described["application"],
        model=unproven_model(described["model"]["name"]),
        cache_salt=salted,
        prefix_cache_off=not salted,
        serves=frozenset(described["serves"]),
    )
    return AsgiEngine(import_application(settings.application), settings)


def _upstream(described: dict[str, Any], address: str) -> Engine:
    from cloister.engine.openai_upstream import OpenAIUpstream, UpstreamSettings

    salted = described["prefix_cache"] == "salted"
    return OpenAIUpstream(
        UpstreamSettings(
            address=address,
            name=described["model"]["name"],
            cache_salt=salted,
            prefix_cache_off=not salted,
            serves=frozenset(described["serves"]),
        )
    )
