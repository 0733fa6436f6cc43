"""From a measured configuration, and measured files, to the engines of a worker."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.models import model_of_files, resolve_model
from cloister.engine.protocol import Engine, ModelFile, ModelInfo
from cloister.engine.sandbox import Sandbox
from cloister.errors import ConfigurationError
from cloister.model_digest import Role
from cloister.strictjson import JsonObject
from cloister.worker.configuration import effective_configuration
from cloister.worker.engines import Files, engines_of
from cloister.worker.operation import Operation
from cloister.worker.settings import WorkerSettings


def models() -> tuple[ModelInfo, ...]:
    """The demonstration model, and the same as its own draft."""
    weights = resolve_model("demo").files[Role.MODEL]
    return (
        model_of_files({Role.MODEL: weights}, name="one"),
        model_of_files({Role.MODEL: weights, Role.DRAFT: weights}, name="two"),
    )


def configured(*models: ModelInfo) -> JsonObject:
    engines = [
        LlamaEngine(model, isolation=Sandbox(), settings=LlamaSettings(parallel=2))
        for model in models
    ]
    return effective_configuration(engines, WorkerSettings())


def measured(*models: ModelInfo) -> Mapping[str, Files]:
    return {model.name: model.files for model in models}


def test_each_model_gets_the_engine_that_was_described() -> None:
    configuration = configured(*models())
    engines = engines_of(configuration, Operation(), models=measured(*models()), native={})
    assert [engine.model.name for engine in engines] == ["one", "two"]
    assert effective_configuration(engines, WorkerSettings()) == configuration


def test_engines_share_the_cores_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))

    def threads(operation: Operation, *served: ModelInfo) -> list[int | None]:
        engines = engines_of(configured(*served), operation, models=measured(*served), native={})
        return [engine._settings.threads for engine in engines if isinstance(engine, LlamaEngine)]

    assert threads(Operation(), models()[0]) == [8]
    assert threads(Operation(), *models()) == [4, 4]
    assert threads(Operation(threads=3), *models()) == [3, 3]


def test_compiled_code_is_read_only_where_it_was_measured() -> None:
    configuration, files = configured(models()[0]), measured(models()[0])

    def isolations(engines: Iterable[Engine]) -> list[object]:
        return [engine._isolation for engine in engines if isinstance(engine, LlamaEngine)]

    usual = engines_of(configuration, Operation(), models=files, native={})
    inside = engines_of(configuration, Operation(), models=files, native={}, measured_root=True)
    assert isolations(usual) == [Sandbox()]
    assert isolations(inside) == [Sandbox(compiled=True)]
    assert Sandbox(compiled=True).describe() == Sandbox().describe()


def test_what_was_measured_is_what_is_served() -> None:
    one, two = models()
    configuration = configured(one)
    engines_of(configuration, Operation(), models=measured(one), native={})
    weights = one.files[Role.MODEL]
    other = {Role.MODEL: dataclasses.replace(weights, sha256="0" * 64)}
    for files, code in (
        (measured(one, two), "configuration.engine"),
        ({}, "configuration.engine"),
        ({"two": one.files}, "configuration.engine"),
        ({"one": two.files}, "configuration.engine_mismatch"),
        ({"one": other}, "configuration.engine_mismatch"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            engines_of(configuration, Operation(), models=files, native={})
        assert caught.value.code == code


def test_a_model_names_a_digest_that_covers_its_files() -> None:
    _, two = models()
    weights = two.files[Role.MODEL]
    elsewhere = ModelFile(path=Path("/elsewhere"), sha256=weights.sha256)
    for change in (
        {"sha256": weights.sha256},
        {"files": {Role.MODEL: weights}},
        {"files": {Role.DRAFT: weights}},
        {"files": {**two.files, Role.MODEL: elsewhere}},
        {"path": None},
    ):
        with pytest.raises(ValueError, match="files"):
            dataclasses.replace(two, **change)
