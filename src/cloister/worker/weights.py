"""Sealed weights in the worker: known by their header before there is a key, opened into memory.

Steps, in order:

1. `sealed_model` reads the header, which is not secret, and makes of it what is measured: the
   model's digest, and what the engine's settings follow from. The launcher measured the same, so
   another file in its place does not pass.
2. `open_weights` gets the key, opens every file into the worker's folder in memory in one checked
   pass, and compares what lies there with what the header said of it.
3. The folder is made read-only. Only then is any engine started.

When any of this fails nothing has been started, and the folder is empty.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.attester.handover import MeasuredFile
from cloister.attester.memory import close_memory
from cloister.engine.model_folder import folder_facts
from cloister.engine.models import model_of_files
from cloister.engine.protocol import ModelFile, ModelInfo
from cloister.engine.safetensors import check_safetensors
from cloister.errors import AuthenticationError, ConfigurationError
from cloister.model_digest import Role
from cloister.weights.folder import FolderSink
from cloister.weights.header import About, Header, Kind
from cloister.weights.opening import open_sealed
from cloister.weights.reader import SealedFile

if TYPE_CHECKING:
    from cloister.worker.weights_keys import WeightsKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedModel:
    """A model that lies sealed at `source`, and what it will be once it is open."""

    source: Path
    header: Header = field(repr=False)
    folder: Path
    """Where it will lie, in memory."""
    info: ModelInfo


def sealed_model(name: str, file: MeasuredFile, memory: Path) -> SealedModel:
    """Read the header of a sealed file that the launcher measured by it.

    Raises:
        ConfigurationError: the file is not the one that was measured, or cannot be read.
        MalformedError: it is no sealed file.
    """
    with SealedFile(file.path) as sealed:
        header = sealed.header
    if header.model_sha256 != file.sha256:
        raise ConfigurationError(
            f"the sealed weights at {file.path} are no longer the ones that were measured",
            code="configuration.model_digest",
        )
    folder = memory / name
    path = folder / header.files[0].path if header.kind is Kind.GGUF else folder
    return SealedModel(
        source=file.path, header=header, folder=folder, info=info_of(header, path, name=name)
    )


def info_of(header: Header, path: Path, *, name: str) -> ModelInfo:
    """What a header says of its model, which will lie at `path`."""
    digest, about = header.model_sha256, header.about
    return ModelInfo(
        name=name,
        sha256=digest,
        path=path,
        context_length=about.context_length,
        quantisation=about.quantisation,
        cache_bytes=about.cache_bytes,
        files={Role.MODEL: ModelFile(path=path, sha256=digest, proven=True)},
        template_words=about.template_words,
        sealed=header.sha256,
    )


async def open_weights(
    models: Sequence[SealedModel],
    keys: WeightsKeys,
    memory: Path,
    *,
    threads: int | None = None,
    close: Callable[[Path], None] = close_memory,
) -> None:
    """Open all `models` below `memory`, and `close` it: make it read-only. Cancelling ends it.

    Raises:
        KeyReleaseDenied, FetchError: no key is to be had.
        AuthenticationError: the key is another one, the sealed file was altered, or the model is
            not what the header says of it.
        MalformedError: what was sealed is no model.
        ConfigurationError: there is not enough memory, or it cannot be made read-only.
    """
    count = threads or len(os.sched_getaffinity(0))
    stop = threading.Event()

    def work() -> None:
        for model in models:
            open_model(model, keys.key(model), threads=count, stop=stop)
        close(memory)

    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # it was told to stop, and says so
        raise


class _StoppedError(Exception):
    """The worker was told to stop while it opened weights."""


def open_model(model: SealedModel, key: bytes, *, threads: int, stop: threading.Event) -> None:
    """Open one model and compare it with its header. Errors as for `open_weights`."""

    def progress(_bytes: int) -> None:
        if stop.is_set():
            raise _StoppedError

    model.folder.mkdir(mode=0o700)
    with SealedFile(model.source) as sealed, FolderSink(model.folder) as sink:
        sealed.expect(model.header.sha256)
        open_sealed(sealed, key, sink, threads=threads, progress=progress)
        paths = [file.path for file in model.header.files]
        found = describe(model.header.kind, model.folder, paths)
        if found != dataclasses.replace(model.header.about, name=found.name):
            raise AuthenticationError(
                "the header of the sealed weights says something else of the model than the model "
                "itself: seal it again with this version",
                code="weights.about",
            )


def describe(kind: Kind, root: Path, paths: Sequence[str]) -> About:
    """What weights that are not sealed say of themselves: the files `paths` below `root`.

    Raises MalformedError if they are no model, ConfigurationError if they cannot be read.
    """
    if kind is Kind.GGUF:
        unhashed = ModelFile(path=root / paths[0], sha256="")
        info = model_of_files({Role.MODEL: unhashed})
        return About(
            name=info.name,
            context_length=info.context_length,
            quantisation=info.quantisation,
            cache_bytes=info.cache_bytes,
            template_words=info.template_words,
        )
    for path in paths:
        if path.endswith(".safetensors"):
            check_safetensors(root / path)
    facts = folder_facts(root, sha256="")
    return About(
        name=root.name, context_length=facts.context_length, quantisation=facts.quantisation
    )


def sealed_models(
    models: Mapping[str, Mapping[Role, MeasuredFile]], memory: Path | None
) -> tuple[SealedModel, ...]:
    """The models among `models` that lie sealed, in order. Errors as for `sealed_model`."""
    found = []
    for name, files in models.items():
        if not any(file.sealed for file in files.values()):
            continue
        if memory is None or files.keys() != {Role.MODEL}:
            raise ConfigurationError(
                f"the model {name} lies sealed, and this worker was not started to open it",
                code="weights.memory",
            )
        found.append(sealed_model(name, files[Role.MODEL], memory))
    return tuple(found)
