"""What an operator writes about the models to serve, and the files that it names.

Options that belong to one model are written ``NAME=VALUE``; where there is one model only, its
name may be left out. An adapter is served under a name of its own, beside the model that it was
made for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.panels import MODELS
from cloister.cli.sealed_options import names_sealed, sealed_model
from cloister.errors import ConfigurationError
from cloister.weights.header import Kind

if TYPE_CHECKING:
    from cloister.engine.protocol import ModelFile, ModelInfo
    from cloister.model_digest import Role

DEFAULT_MODEL: Final = "demo"

Model = Annotated[
    str, typer.Option("--model", help="demo, a GGUF file, an https: address or hf:ORG/REPO/FILE.")
]
ModelDigest = Annotated[
    str | None, typer.Option("--model-sha256", help="Its SHA-256; required if it is fetched.")
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="demo (the default), a GGUF file, sealed weights, an https: address or "
        "hf:ORG/REPO/FILE; with "
        "NAME= in front the name it is served under. Several times for several models.",
        rich_help_panel=MODELS,
    ),
]
ModelDigests = Annotated[
    list[str] | None,
    typer.Option(
        "--model-sha256",
        help="Its SHA-256; required if it is fetched. NAME=SHA256 where there are several.",
        rich_help_panel=MODELS,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option("--model-name", help="The name it is served under.", rich_help_panel=MODELS),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help="NAME=FILE: a LoRA adapter (GGUF), served as the model NAME; NAME@MODEL=FILE where "
        "there are several models. May be given several times.",
        rich_help_panel=MODELS,
    ),
]
Drafts = Annotated[
    list[str] | None,
    typer.Option(
        "--draft-model",
        help="A small model (GGUF) of the same vocabulary that guesses tokens ahead. MODEL=FILE "
        "where there are several models.",
        rich_help_panel=MODELS,
    ),
]
Projectors = Annotated[
    list[str] | None,
    typer.Option(
        "--projector",
        help="The model's projector (GGUF, mmproj), so that it reads images. MODEL=FILE where "
        "there are several models.",
        rich_help_panel=MODELS,
    ),
]

_NAMED: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})=(.+)", re.DOTALL)
_ADAPTER: Final = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,127})(?:@(?P<base>[^=]+))?=(?P<file>.+)", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The options as they were written."""

    models: Sequence[str] = (DEFAULT_MODEL,)
    sha256: Sequence[str] = ()
    name: str | None = None
    adapters: Sequence[str] = ()
    drafts: Sequence[str] = ()
    projectors: Sequence[str] = ()

    @classmethod
    def written(
        cls,
        *,
        models: Sequence[str] | None,
        sha256: Sequence[str] | None,
        name: str | None,
        adapters: Sequence[str] | None,
        drafts: Sequence[str] | None,
        projectors: Sequence[str] | None,
    ) -> ModelOptions:
        """From what the command line gives: None where an option was not written."""
        return cls(
            models=models or (DEFAULT_MODEL,),
            sha256=sha256 or (),
            name=name,
            adapters=adapters or (),
            drafts=drafts or (),
            projectors=projectors or (),
        )


def models_from(options: ModelOptions) -> tuple[ModelInfo, ...]:
    """The models that an operator named, then the adapters; each file is hashed once.

    What must be fetched goes into the cache. Raises ConfigurationError, FetchError or
    MalformedError.
    """
    from cloister.model_digest import Role

    plain = _plain_models(options)
    added = {
        Role.DRAFT: _per_model("--draft-model", options.drafts, plain),
        Role.PROJECTOR: _per_model("--projector", options.projectors, plain),
    }
    models: dict[str, ModelInfo] = {}
    for name, model in plain.items():
        files = {role: _file(paths[name]) for role, paths in added.items() if name in paths}
        models[name] = _with(model, name, files)
    for name, base, path in _adapters(options.adapters, plain):
        if name in models:
            raise _refused(f"two models are called {name}: give the adapter another name")
        models[name] = _with(models[base], name, {Role.ADAPTER: _file(path)})
    return tuple(models.values())


def _plain_models(options: ModelOptions) -> Mapping[str, ModelInfo]:
    written = [written_name(model) for model in options.models]
    if options.name is not None:
        if len(written) > 1:
            raise _refused("--model-name is for one model: write --model NAME=FILE instead")
        written = [(options.name, written[0][1])]
    digests = _digests(options.sha256, [name for name, _ in written])
    models: dict[str, ModelInfo] = {}
    for index, (name, reference) in enumerate(written):
        model = _resolved(reference, sha256=digests.get(index), name=name)
        if model.name in models:
            raise _refused(f"two models are called {model.name}: write --model NAME=FILE")
        models[model.name] = model
    return models


def _digests(written: Sequence[str], names: Sequence[str | None]) -> Mapping[int, str]:
    """The digests by the place of the model that they are for."""
    digests: dict[int, str] = {}
    for one in written:
        name, digest = written_name(one)
        if name is None and len(names) > 1:
            raise _refused("there are several models: write --model-sha256 NAME=SHA256")
        if name is not None and name not in names:
            raise _refused("--model-sha256 names a model that no --model NAME=FILE names")
        index = 0 if name is None else names.index(name)
        if index in digests:
            raise _refused("--model-sha256 is given twice for one model")
        digests[index] = digest
    return digests


def _resolved(reference: str, *, sha256: str | None, name: str | None) -> ModelInfo:
    if names_sealed(reference):
        return sealed_model(reference, Kind.GGUF, sha256=sha256, name=name)
    from cloister.engine.fetch import HttpsFetcher
    from cloister.engine.models import resolve_model

    base = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(base) if base else Path.home() / ".cache") / "cloister" / "models"
    return resolve_model(reference, sha256=sha256, name=name, cache=cache, fetcher=HttpsFetcher())


def _per_model(
    option: str, written: Sequence[str], models: Mapping[str, ModelInfo]
) -> Mapping[str, str]:
    """Which model has which file."""
    files: dict[str, str] = {}
    for one in written:
        name, path = written_name(one)
        if name is None:
            if len(models) > 1:
                raise _refused(f"there are several models: write {option} MODEL=FILE")
            name = next(iter(models))
        _known(option, name, models)
        if name in files:
            raise _refused(f"{option} is given twice for {name}")
        files[name] = path
    return files


def _adapters(
    written: Iterable[str], models: Mapping[str, ModelInfo]
) -> Iterable[tuple[str, str, str]]:
    """The name, the model and the file of each adapter."""
    for one in written:
        found = _ADAPTER.fullmatch(one)
        if found is None:
            raise _refused("an adapter is written --adapter NAME=FILE, or NAME@MODEL=FILE")
        base = found["base"]
        if base is None:
            if len(models) > 1:
                raise _refused("there are several models: write --adapter NAME@MODEL=FILE")
            base = next(iter(models))
        _known("--adapter", base, models)
        yield found["name"], base, found["file"]


def written_name(written: str) -> tuple[str | None, str]:
    """``NAME=VALUE`` apart. What is no name belongs to the value: a path, an address."""
    found = _NAMED.fullmatch(written)
    return (None, written) if found is None else (found[1], found[2])


def _known(option: str, name: str, models: Mapping[str, ModelInfo]) -> None:
    if name not in models:
        raise _refused(f"{option} names a model that is not served; these are: {', '.join(models)}")


def _file(reference: str) -> ModelFile:
    """A file beside a model; the demonstration model may be named like there."""
    model = _resolved(reference, sha256=None, name=None)
    if model.sealed is not None:
        raise _refused("a model's weights may lie sealed; an adapter, draft or projector may not")
    return next(iter(model.files.values()))


def _with(model: ModelInfo, name: str, files: Mapping[Role, ModelFile]) -> ModelInfo:
    from cloister.engine.models import model_of_files

    if files and model.sealed is not None:
        raise _refused("weights that lie sealed are served without adapter, draft or projector")
    return model_of_files({**model.files, **files}, name=name) if files else model


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(why, code="configuration.models")
