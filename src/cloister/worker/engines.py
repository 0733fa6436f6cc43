"""The engine that a measured configuration describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from cloister.engine.confined import Isolation
from cloister.engine.gguf import parse_gguf
from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.openai_upstream import OpenAIUpstream, UpstreamSettings
from cloister.engine.protocol import Engine, ModelInfo
from cloister.engine.sandbox import Sandbox, UnsafeNoSandbox
from cloister.errors import ConfigurationError
from cloister.strictjson import JsonObject
from cloister.worker.configuration import check_engine
from cloister.worker.operation import Operation

_LLAMA: Final = "llama.cpp"
_UPSTREAM: Final = "openai-upstream"


def engine_of(
    configuration: JsonObject,
    operation: Operation,
    *,
    model: tuple[str, Path, str] | None,
) -> Engine:
    """Make the engine; `model` is its name, file and measured SHA-256.

    ConfigurationError when the configuration describes no engine that can be made here, or
    the one made would describe itself otherwise.
    """
    described = configuration.get("engine")
    try:
        if not isinstance(described, dict):
            raise TypeError
        match described["engine"]:
            case kind if kind == _LLAMA and model is not None:
                engine: Engine = _llama(described, operation, model)
            case kind if kind == _UPSTREAM and operation.upstream is not None:
                engine = _upstream(described, operation.upstream)
            case _:
                raise TypeError
    except (KeyError, TypeError, ValueError):
        raise ConfigurationError(
            "the worker's configuration describes no engine that can be made here",
            code="configuration.engine",
        ) from None
    check_engine(configuration, engine)
    return engine


def _llama(
    described: dict[str, Any], operation: Operation, model: tuple[str, Path, str]
) -> LlamaEngine:
    name, path, sha256 = model
    with path.open("rb") as file:
        metadata = parse_gguf(file)
    return LlamaEngine(
        ModelInfo(
            name=name,
            sha256=sha256,
            path=path,
            context_length=metadata.context_length,
            quantisation=metadata.quantisation,
        ),
        isolation=_isolation(described),
        settings=LlamaSettings(
            context=described["context"],
            parallel=described["parallel"],
            connections=described["connections"],
            threads=operation.threads,
            embeddings=described["embeddings"] == "mean",
        ),
    )


def _isolation(described: dict[str, Any]) -> Isolation:
    sandbox = Sandbox()
    return sandbox if described["isolation"] == sandbox.describe() else _unsafe(described)


def _unsafe(described: dict[str, Any]) -> Isolation:
    unsafe = UnsafeNoSandbox()
    if described["isolation"] != unsafe.describe():
        raise ConfigurationError(
            "the sandbox on this machine has other layers than the measured configuration names",
            code="configuration.sandbox",
        )
    return unsafe


def _upstream(described: dict[str, Any], address: str) -> OpenAIUpstream:
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
