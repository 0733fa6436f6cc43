"""The random model is a well-formed GGUF with the demo model's tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.random_model import (
    MINIATURE,
    ONE_BILLION,
    Weights,
    random_f16,
    random_model,
    random_q4_0,
)

from cloister.engine.demo_model import demo_model_path
from cloister.engine.models import describe_model


def test_blocks_have_the_size_and_the_spread_of_q4_0() -> None:
    blocks = random_q4_0(np.random.default_rng(1), 64, 256)
    assert blocks.shape == (64, 256 // 32 * 18)
    fields = blocks.reshape(-1, 18)
    scale = fields[:, :2].copy().view(np.float16).astype(np.float64)
    low, high = fields[:, 2:] & 15, fields[:, 2:] >> 4
    weights = scale * (np.concatenate([low, high], axis=1).astype(np.float64) - 8)
    assert np.std(weights) == pytest.approx(1 / np.sqrt(256), rel=0.05)
    with pytest.raises(ValueError, match="multiple of 32"):
        random_q4_0(np.random.default_rng(1), 1, 33)


def test_the_large_model_has_about_a_billion_parameters() -> None:
    assert 0.9e9 < ONE_BILLION.parameters < 1.2e9


def test_the_model_is_written_once_and_always_the_same(tmp_path: Path) -> None:
    first = random_model(MINIATURE, demo_model_path(), tmp_path / "a")
    second = random_model(MINIATURE, demo_model_path(), tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    before = first.stat().st_mtime_ns
    assert random_model(MINIATURE, demo_model_path(), tmp_path / "a") == first
    assert first.stat().st_mtime_ns == before
    info = describe_model(first)
    assert info.context_length == MINIATURE.context
    assert info.quantisation == "Q4_0"


def test_unquantised_weights_have_the_spread_of_an_initialised_model(tmp_path: Path) -> None:
    # More rows than are drawn at a time, and none of them left as it was.
    drawn = random_f16(np.random.default_rng(1), 2_500, 256).astype(np.float64)
    for part in (drawn[:1_000], drawn[2_100:]):
        assert np.std(part) == pytest.approx(1 / np.sqrt(256), rel=0.05)
    path = random_model(MINIATURE, demo_model_path(), tmp_path, weights=Weights.F16)
    assert describe_model(path).quantisation == "F16"
