"""The embedded engine's settings: all overridden, all read back; and what the sandbox loads."""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloister.engine import confine, landlock, llama_child, seccomp
from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.llama_child import OVERRIDES, RefusedError, override, parameters
from cloister.engine.models import resolve_model
from cloister.engine.sandbox import Sandbox
from cloister.errors import ConfigurationError
from cloister.model_digest import Role

SETTINGS = {
    "files": {"model": "/m"},
    "name": "n",
    "context": 512,
    "parallel": 4,
    "connections": 9,
    "threads": 1,
    "embeddings": False,
}
EXTRA = (
    "hostnames",
    "model_alias",
    "n_ctx",
    "n_parallel",
    "n_threads_http",
    "fit_params",
    "embedding",
)


def library(**changed: object) -> Any:
    """A stand-in for xllamacpp whose defaults are all wrong."""

    def make() -> Any:
        values = dict.fromkeys((*OVERRIDES, *EXTRA), "wrong")
        made = SimpleNamespace(**{**values, **changed})
        made.model = SimpleNamespace(path="")
        made.cpuparams = SimpleNamespace(n_threads=0)
        made.cpuparams_batch = SimpleNamespace(n_threads=0)
        made.lora_adapters = ["wrong"]
        made.mmproj = SimpleNamespace(path="wrong")
        draft = SimpleNamespace(
            mparams=SimpleNamespace(path="wrong"),
            cpuparams=SimpleNamespace(n_threads=0),
            cpuparams_batch=SimpleNamespace(n_threads=0),
        )
        made.speculative = SimpleNamespace(types=["wrong"], draft=draft)
        return made

    return SimpleNamespace(
        CommonParams=make,
        CommonAdapterLoraInfo=lambda: SimpleNamespace(path="", scale=0.5),
        common_speculative_type=SimpleNamespace(
            COMMON_SPECULATIVE_TYPE_NONE=0, COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE=1
        ),
    )


def test_every_default_that_keeps_or_shows_text_is_overridden() -> None:
    made = parameters(library(), SETTINGS, "/run/s.sock")
    assert {name: getattr(made, name) for name in OVERRIDES} == OVERRIDES
    assert (made.n_ctx, made.n_parallel, made.hostnames) == (2048, 4, ["/run/s.sock"])
    # The ones that the notes on privacy name, whatever else comes and goes.
    for name, value in {
        "cache_prompt": False,
        "cache_ram_mib": 0,
        "cache_idle_slots": False,
        "endpoint_slots": False,
        "endpoint_metrics": False,
        "endpoint_props": False,
        "slot_save_path": "",
        "ui": False,
        "verbosity": -1,
        "path_prompts_log_dir": "",
        "offline": True,
    }.items():
        assert OVERRIDES[name] == value


@pytest.mark.parametrize("name", sorted(OVERRIDES))
def test_a_library_that_lacks_a_setting_is_not_used(name: str) -> None:
    made = library().CommonParams()
    override(made, OVERRIDES)
    delattr(made, name)
    with pytest.raises(RefusedError, match="setting-missing"):
        override(made, OVERRIDES)


def test_a_library_that_does_not_keep_a_setting_is_not_used() -> None:
    class Stubborn(SimpleNamespace):
        def __setattr__(self, name: str, value: object) -> None:
            if name != "cache_prompt":
                super().__setattr__(name, value)

    class Strict(SimpleNamespace):
        def __setattr__(self, name: str, value: object) -> None:
            raise TypeError

    with pytest.raises(RefusedError, match="setting-refused"):
        override(Stubborn(**dict.fromkeys(OVERRIDES, "wrong")), OVERRIDES)
    with pytest.raises(RefusedError, match="setting-missing"):
        override(Strict(**dict.fromkeys(OVERRIDES, "wrong")), OVERRIDES)


def test_the_installed_library_takes_every_override() -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    made = parameters(xllamacpp, SETTINGS, "/run/s.sock")
    assert made.hostnames == ["/run/s.sock"]
    assert not made.cache_prompt
    assert not made.embedding
    made = parameters(xllamacpp, {**SETTINGS, "embeddings": True}, "/run/s.sock")
    assert made.embedding
    assert made.pooling_type == xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN


BESIDE: dict[str, Callable[[Any], object]] = {
    "adapter": lambda made: [(one.path, one.scale) for one in made.lora_adapters],
    "draft": lambda made: [made.speculative.draft.mparams.path, *map(int, made.speculative.types)],
    "projector": lambda made: made.mmproj.path,
}
OFF: dict[str, object] = {"adapter": [], "draft": ["", 0], "projector": ""}
ON: dict[str, object] = {"adapter": [("/x", 1.0)], "draft": ["/x", 1], "projector": "/x"}


@pytest.mark.parametrize("role", sorted(BESIDE))
@pytest.mark.parametrize("installed", [False, True])
def test_a_file_beside_the_weights_is_used_where_it_is_given_alone(
    role: str, installed: bool
) -> None:
    used = pytest.importorskip("xllamacpp") if installed else library()
    settings = {**SETTINGS, "files": {"model": "/m", role: "/x"}}
    made = parameters(used, settings, "/run/s.sock")
    for name, read in BESIDE.items():
        assert read(made) == (ON if name == role else OFF)[name]
    made = parameters(used, SETTINGS, "/run/s.sock")
    assert {name: read(made) for name, read in BESIDE.items()} == OFF


@pytest.mark.parametrize("module", [confine, landlock, seccomp, llama_child])
def test_what_runs_inside_imports_the_standard_library_only(module: Any) -> None:
    """Nothing else is bound there; and what is bound there is measured."""
    allowed = set(sys.stdlib_module_names) | {"xllamacpp"}
    beside = {"cloister.engine"} if module is confine else set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or ""}
        else:
            continue
        assert {name for name in names if name.split(".")[0] not in allowed} <= beside


def test_sizes_and_threads() -> None:
    model = resolve_model("demo")

    def arguments(cores: int, settings: LlamaSettings) -> str:
        engine = LlamaEngine(
            model, isolation=Sandbox(landlock_abi=0), settings=settings, cores=cores
        )
        return engine._program({Role.MODEL: 0}).arguments[0]

    for cores, threads in ((1, 1), (2, 1), (8, 7)):
        assert f'"threads": {threads}' in arguments(cores, LlamaSettings())
    assert '"threads": 5' in arguments(2, LlamaSettings(threads=5))
    assert '"context": 100' in arguments(2, LlamaSettings(context=100))
    assert f'"context": {model.context_length}' in arguments(2, LlamaSettings(context=10**6))
    for wrong in ({"parallel": 0}, {"connections": 10**6}, {"threads": -1}, {"memory": -1}):
        with pytest.raises(ConfigurationError):
            dataclasses.replace(LlamaSettings(), **wrong)  # type: ignore[arg-type]


def test_the_configuration_does_not_depend_on_this_machines_cores() -> None:
    model = resolve_model("demo")
    made = [
        LlamaEngine(model, isolation=Sandbox(landlock_abi=7), cores=cores).configuration()
        for cores in (2, 64)
    ]
    assert made[0] == made[1]
