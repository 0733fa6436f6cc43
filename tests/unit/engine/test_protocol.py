"""What an engine says of its model: it names no digest that does not cover its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cloister.engine.protocol import ModelFile, ModelInfo
from cloister.model_digest import Role, model_digest

WEIGHTS = ModelFile(path=Path("/models/weights.gguf"), sha256="1" * 64)
ADAPTER = ModelFile(path=Path("/models/adapter.gguf"), sha256="2" * 64)


def model(
    files: Mapping[Role, ModelFile], sha256: str, path: Path | None = WEIGHTS.path
) -> ModelInfo:
    return ModelInfo(
        name="m", sha256=sha256, path=path, context_length=1, quantisation="", files=files
    )


def test_a_models_digest_covers_all_its_files() -> None:
    both = {Role.MODEL: WEIGHTS, Role.ADAPTER: ADAPTER}
    digest = model_digest({role: file.sha256 for role, file in both.items()})
    assert model(both, digest).digests == {Role.MODEL: "1" * 64, Role.ADAPTER: "2" * 64}
    for wrong in (WEIGHTS.sha256, ADAPTER.sha256):
        with pytest.raises(ValueError, match="does not cover"):
            model(both, wrong)


def test_a_models_weights_are_among_its_files() -> None:
    assert model({Role.MODEL: WEIGHTS}, WEIGHTS.sha256).path == WEIGHTS.path
    with pytest.raises(ValueError, match="not those"):
        model({Role.MODEL: WEIGHTS}, WEIGHTS.sha256, ADAPTER.path)
    with pytest.raises(ValueError, match="not those"):
        model({Role.ADAPTER: ADAPTER}, ADAPTER.sha256)
