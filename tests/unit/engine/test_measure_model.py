"""Measuring real models in processes of their own, and perplexity by a second route."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from cloister.engine.demo_model import demo_model_path
from cloister.engine.ggml import open_library
from cloister.engine.llama_api import LlamaModel
from cloister.engine.measure_model import Measured, MeasureOptions, measure_model, rows
from cloister.engine.perplexity import Perplexity, scored
from cloister.errors import ConfigurationError, EngineError, MalformedError, UnsupportedError
from support.tiny_gguf import write_tiny

TEXT = (
    "What is remote attestation? It is a way to check what a machine runs before you trust it. "
    "Who can read my prompts? Your prompt is sealed for the worker that you have checked. "
) * 12
WINDOW = 64

# Asks llama.cpp's own server for one token at a time: the next token of the text is forced, and
# its probability before the forcing is read. Nothing of ours computes a softmax on this route.
SERVER = """
import json, math, os, sys
import xllamacpp
model, socket, tokens, window = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
p = xllamacpp.CommonParams()
p.model.path, p.hostnames, p.n_ctx, p.n_parallel, p.ui, p.verbosity = (
    model, [socket], window, 1, False, -1)
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(p)
found = []
for begin in range(0, len(tokens), window):
    part = tokens[begin : begin + window]
    for at in range(window // 2 + 1, window):
        answer = server.handle_completions({
            "prompt": part[:at], "n_predict": 1, "n_probs": 1, "temperature": 0,
            "logit_bias": [[part[at], 1000]], "cache_prompt": False})
        (step,) = answer["choices"][0]["logprobs"]["content"]
        assert step["id"] == part[at]
        found.append(-step["logprob"])
print("RESULT" + json.dumps(found), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def options(text: Path, **more: int) -> MeasureOptions:
    return MeasureOptions(text=text, window=WINDOW, windows=2, steps=8, **more)  # type: ignore[arg-type]  # tests pass numbers only


@pytest.fixture(scope="module")
def demo(text: Path) -> Measured:
    return measure_model(demo_model_path(), options(text))


def test_what_is_told_of_a_model(demo: Measured) -> None:
    assert (demo.quantisation, demo.parameters) == ("Q8_0", 5_770_496)
    assert demo.file_bytes == demo_model_path().stat().st_size
    assert demo.resident - demo.resident_before > demo.file_bytes
    assert len(demo.times) == 5
    assert min(demo.times) <= demo.seconds_per_token <= max(demo.times)
    assert demo.perplexity.tokens == 2 * scored(WINDOW) == 62
    assert demo.text_tokens > 2 * WINDOW
    assert 1 < demo.perplexity.value < 4096
    assert 0 < demo.perplexity.error < demo.perplexity.value


def test_the_server_computes_the_same_surprises(demo: Measured, tmp_path: Path) -> None:
    model = LlamaModel(open_library(), demo_model_path(), context=WINDOW, threads=1)
    tokens = model.tokenise(TEXT.encode(), special=False)[: 2 * WINDOW]
    command = [sys.executable, "-c", SERVER, str(demo_model_path()), str(tmp_path / "e.sock")]
    answer = subprocess.run(
        [*command, json.dumps(tokens), str(WINDOW)], capture_output=True, text=True, check=False
    ).stdout
    other = json.loads(answer.partition("RESULT")[2])
    steps = step_by_step(model, [tokens[:WINDOW], tokens[WINDOW:]])
    assert steps == pytest.approx(other, abs=1e-3)
    # A window at a time goes through other kernels, which round otherwise.
    assert sum(demo.surprises) == pytest.approx(sum(other), rel=0.005)


def step_by_step(model: LlamaModel, windows: list[list[int]]) -> list[float]:
    """As `cloister.engine.perplexity.surprises`, computing one token at a time."""
    found = []
    for window in windows:
        model.forget()
        for index, token in enumerate(window[:-1]):
            model.feed([token], index, scored_from=0)
            if index >= len(window) // 2:
                row = np.asarray(model.logits(1)[0], dtype=np.float64)
                found.append(float(np.logaddexp.reduce(row) - row[window[index + 1]]))
    return found


def test_control_tokens_are_read_only_where_asked() -> None:
    model = LlamaModel(open_library(), demo_model_path(), context=32, threads=1)
    spelt = b"<|im_start|>"
    assert len(model.tokenise(spelt, special=True)) == 1 < len(model.tokenise(spelt, special=False))
    assert model.tokenise(b"", special=False) == []
    with pytest.raises(ValueError, match="fit"):
        model.feed([1] * 33, 0, scored_from=0)


def test_an_unquantised_model_and_a_random_one(text: Path, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    tiny = measure_model(path, options(text))
    assert tiny.quantisation == "F16"
    assert tiny.perplexity.value > 4096  # it knows less than nothing


def measured(quantisation: str, surprises: tuple[float, ...], tokens: str = "t") -> Measured:
    return Measured(
        name=quantisation,
        quantisation=quantisation,
        file_bytes=1,
        parameters=1,
        resident=1,
        resident_before=0,
        times=(1.0,) * 5,
        perplexity=Perplexity(value=1, error=0, tokens=2),
        text_tokens=2,
        tokens_sha256=tokens,
        surprises=surprises,
    )


def test_ratios_are_to_the_model_that_is_not_quantised() -> None:
    base, other = measured("F16", (1.0, 2.0)), measured("Q4_0", (1.5, 2.5))
    foreign = measured("Q8_0", (1.0, 2.0), tokens="u")
    found = {row.model.name: row.ratio for row in rows([other, foreign, base])}
    assert found["F16"] == (1.0, 0.0)
    assert found["Q4_0"] == pytest.approx((1.6487, 0.0), abs=1e-4)
    assert found["Q8_0"] is None
    assert [row.ratio for row in rows([other])] == [None]


def test_a_file_that_the_engine_does_not_load(text: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(demo_model_path().read_bytes()[:-1_000_000])
    with pytest.raises(EngineError) as caught:
        measure_model(path, options(text))
    assert caught.value.code == "engine.model_refused"
    path.write_bytes(b"x")
    with pytest.raises(MalformedError):
        measure_model(path, options(text))


def test_a_process_that_dies_says_so(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho 'not json'\nkill -SEGV $$\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(EngineError, match="-11") as caught:
        measure_model(demo_model_path(), options(text))
    assert caught.value.code == "engine.ended"


def test_deliberate_errors_of_the_process_keep_their_kind(text: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Hello.")
    with pytest.raises(ConfigurationError, match="too few") as caught:
        measure_model(demo_model_path(), options(short))
    assert caught.value.code == "perplexity.text"


def test_sizes_that_make_no_sense(text: Path) -> None:
    options(text)
    for more in ({"rounds": 4}, {"threads": 0}):
        with pytest.raises(ConfigurationError):
            options(text, **more)
    with pytest.raises(ConfigurationError):
        MeasureOptions(text=text, window=16, steps=9)
    with pytest.raises(ConfigurationError) as caught:
        measure_model(demo_model_path(), MeasureOptions(text=text, window=4096))
    assert caught.value.code == "perplexity.window"


def test_moved_members_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.engine import llama_api

    monkeypatch.setattr(llama_api, "_DEFAULTS", (512, 2048, 512, 1, 0, 0, 1, 8, 8))
    with pytest.raises(UnsupportedError) as caught:
        LlamaModel(open_library(), demo_model_path(), context=32, threads=1)
    assert caught.value.code == "engine.interface"


def test_a_model_without_numbers_is_no_result(text: Path, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    reader = gguf.GGUFReader(path, "r+")
    next(t for t in reader.tensors if t.name == "output_norm.weight").data[:] = np.nan
    reader.data.flush()
    with pytest.raises(EngineError) as caught:
        measure_model(path, options(text))
    assert caught.value.code == "engine.not_finite"
