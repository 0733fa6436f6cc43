"""What an operator writes about models, and what becomes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cloister.cli.model_options import ModelOptions, models_from
from cloister.engine.demo_model import DEMO_MODEL_NAME, DEMO_MODEL_SHA256
from cloister.engine.protocol import ModelInfo
from cloister.errors import ConfigurationError
from cloister.model_digest import Role, model_digest
from support.tiny_gguf import write_tiny
from support.tiny_parts import write_adapter, write_projector


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Paths by what lies there."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        "tiny": write_tiny(folder / "tiny.gguf"),
        "equals": write_tiny(folder / "a=b.gguf"),
        "adapter": write_adapter(folder / "adapter.gguf"),
        "projector": write_projector(folder / "projector.gguf"),
    }
    return {name: str(path) for name, path in made.items()}


def digest_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def made(**options: Any) -> dict[str, ModelInfo]:
    return {model.name: model for model in models_from(ModelOptions(**options))}


def refused(**options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        models_from(ModelOptions(**options))
    return str(caught.value)


def test_without_options_it_is_the_demonstration_model() -> None:
    (model,) = models_from(ModelOptions())
    assert (model.name, model.sha256) == (DEMO_MODEL_NAME, DEMO_MODEL_SHA256)


def test_one_model_can_be_named_in_both_ways(files: Mapping[str, str]) -> None:
    assert list(made(models=[files["tiny"]])) == ["tiny"]
    assert list(made(models=[files["tiny"]], name="mine")) == ["mine"]
    assert list(made(models=[f"mine={files['tiny']}"])) == ["mine"]


def test_several_models_come_in_the_order_in_which_they_were_written(
    files: Mapping[str, str],
) -> None:
    found = made(models=[f"b={files['tiny']}", "a=demo"])
    assert [(name, model.sha256) for name, model in found.items()] == [
        ("b", digest_of(files["tiny"])),
        ("a", DEMO_MODEL_SHA256),
    ]


def test_a_path_may_hold_an_equals_sign(files: Mapping[str, str]) -> None:
    assert made(models=[files["equals"]])["tiny"].path == Path(files["equals"])
    assert made(models=[f"x={files['equals']}"])["x"].path == Path(files["equals"])


def test_two_models_of_one_name_are_refused(files: Mapping[str, str]) -> None:
    assert "called tiny" in refused(models=[files["tiny"], files["equals"]])
    assert "called a" in refused(models=["a=demo", f"a={files['tiny']}"])
    assert "--model NAME=FILE" in refused(models=["a=demo", "b=demo"], name="c")


def test_digests_belong_to_models(files: Mapping[str, str]) -> None:
    tiny = digest_of(files["tiny"])
    assert made(models=[files["tiny"]], sha256=[tiny])
    pair = [f"a={files['tiny']}", "b=demo"]
    assert made(models=pair, sha256=[f"b={DEMO_MODEL_SHA256}", f"a={tiny}"])
    assert "has the digest" in refused(models=[files["tiny"]], sha256=["0" * 64])
    assert "has the digest" in refused(models=pair, sha256=[f"b={tiny}"])
    assert "NAME=SHA256" in refused(models=pair, sha256=[tiny])
    assert "names a model" in refused(models=pair, sha256=[f"c={tiny}"])
    assert "twice" in refused(models=pair, sha256=[f"a={tiny}", f"a={tiny}"])


def test_files_beside_the_weights_change_the_digest(files: Mapping[str, str]) -> None:
    found = made(models=["m=demo"], drafts=[files["tiny"]], projectors=[files["projector"]])
    assert found["m"].digests == {
        Role.MODEL: DEMO_MODEL_SHA256,
        Role.DRAFT: digest_of(files["tiny"]),
        Role.PROJECTOR: digest_of(files["projector"]),
    }
    assert found["m"].sha256 == model_digest(found["m"].digests) != DEMO_MODEL_SHA256
    assert found["m"].context_length == made()[DEMO_MODEL_NAME].context_length


def test_an_adapter_is_a_model_of_its_own_beside_the_one_it_is_for(
    files: Mapping[str, str],
) -> None:
    found = made(models=["m=demo"], projectors=["demo"], adapters=[f"polite={files['adapter']}"])
    assert list(found) == ["m", "polite"]
    assert found["m"].digests.keys() == {Role.MODEL, Role.PROJECTOR}
    assert found["polite"].digests == {
        **found["m"].digests,
        Role.ADAPTER: digest_of(files["adapter"]),
    }


def test_what_belongs_to_one_of_several_models_names_it(files: Mapping[str, str]) -> None:
    pair = ["a=demo", f"b={files['tiny']}"]
    found = made(
        models=pair,
        drafts=["b=demo"],
        projectors=[f"a={files['projector']}"],
        adapters=[f"c@b={files['adapter']}"],
    )
    assert {name: set(model.digests) for name, model in found.items()} == {
        "a": {Role.MODEL, Role.PROJECTOR},
        "b": {Role.MODEL, Role.DRAFT},
        "c": {Role.MODEL, Role.DRAFT, Role.ADAPTER},
    }
    adapter = files["adapter"]
    assert "--draft-model MODEL=FILE" in refused(models=pair, drafts=["demo"])
    assert "these are: a, b" in refused(models=pair, projectors=["x=demo"])
    assert "twice for a" in refused(models=pair, drafts=["a=demo", "a=demo"])
    assert "NAME@MODEL=FILE" in refused(models=pair, adapters=[f"c={adapter}"])
    assert "these are: a, b" in refused(models=pair, adapters=[f"c@x={adapter}"])
    assert "called a" in refused(models=pair, adapters=[f"a@b={adapter}"])
    assert "called c" in refused(models=pair, adapters=[f"c@b={adapter}", f"c@a={adapter}"])
    for written in (adapter, "=x", "c@b", "a b=x", "c@=x"):
        assert "is written" in refused(models=["demo"], adapters=[written]), written


def test_what_is_not_there_or_no_model_is_refused(tmp_path: Path) -> None:
    assert "no model file" in refused(drafts=[str(tmp_path / "missing.gguf")])
    assert "no model file" in refused(adapters=[f"a={tmp_path / 'missing.gguf'}"])
    assert "SHA-256 beforehand" in refused(projectors=["https://example.com/x.gguf"])
