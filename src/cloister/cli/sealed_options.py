"""Models that lie sealed, as an operator names them: known by header, opened by the worker."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.panels import OPERATION
from cloister.errors import ConfigurationError
from cloister.weights.header import Kind
from cloister.weights.reader import SealedFile, is_sealed

if TYPE_CHECKING:
    from cloister.attester.memory import WorkerMemory
    from cloister.engine.protocol import ModelInfo
    from cloister.worker.operation import Operation

WeightsKey = Annotated[
    Path | None,
    typer.Option(
        "--weights-key",
        metavar="FILE",
        help="The key of the model's sealed weights, as `cloister weights seal` wrote it.",
        rich_help_panel=OPERATION,
    ),
]

_LABEL: Final = re.compile(r"[^A-Za-z0-9._-]+")
_WHAT: Final = {
    Kind.GGUF: "this engine loads one GGUF file",
    Kind.SAFETENSORS: "this engine loads a folder of safetensors",
}


def names_sealed(reference: str) -> bool:
    """Whether `reference` is the path of sealed weights."""
    return is_sealed(Path(reference).expanduser())


def sealed_model(reference: str, kind: Kind, *, sha256: str | None, name: str | None) -> ModelInfo:
    """The model that lies sealed there, as its header describes it.

    Raises ConfigurationError where it is of another kind, or not the one with this digest, and
    MalformedError where it is not whole.
    """
    from cloister.worker.weights import info_of

    path = Path(reference).expanduser().resolve()
    with SealedFile(path) as sealed:
        header = sealed.header
    if header.kind is not kind:
        raise ConfigurationError(
            f"{_WHAT[kind]}, and {path} holds {header.kind.value}", code="configuration.model"
        )
    if sha256 is not None and sha256.strip().lower().removeprefix("sha256:") != header.model_sha256:
        raise ConfigurationError(
            f"the sealed weights {path} hold a model with the digest {header.model_sha256}, not "
            "the one given",
            code="configuration.model_digest",
        )
    label = _LABEL.sub("-", name or header.about.name).strip("-.")[:128] or "model"
    return info_of(header, path, name=label)


def memory_for(models: Iterable[ModelInfo], operation: Operation) -> WorkerMemory | None:
    """What those of the models that lie sealed are opened into; None if none does.

    ConfigurationError where there is no key for them, or a key for nothing.
    """
    memory = memory_of(models)
    key, broker = operation.weights_key is not None, operation.broker is not None
    if (memory and key is broker) or (key and not memory):
        raise ConfigurationError(
            "sealed weights need one place that their key is in: a broker (--broker) or a file "
            "(--weights-key), which nothing else needs",
            code="weights.key_file",
        )
    return memory


def memory_of(models: Iterable[ModelInfo]) -> WorkerMemory | None:
    """How much the models that lie sealed are opened into; None if none does."""
    from cloister.attester.memory import WorkerMemory

    size = files = 0
    for model in models:
        if model.sealed is None or model.path is None:
            continue
        with SealedFile(model.path) as sealed:
            size += sealed.header.plaintext_bytes
            files += len(sealed.header.files)
    return WorkerMemory(size=size, files=files) if files else None
