"""Smaller copies of GGUF models, read back with another reader."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest

from cloister.engine import quantize
from cloister.engine.demo_model import demo_model_path
from cloister.engine.ggml import SIMPLE, TYPES, WeightType
from cloister.engine.gguf import parse_gguf
from cloister.engine.model_record import ModelRecord, read_record
from cloister.engine.quantize import (
    NumpyQuantiser,
    Quantiser,
    QuantizeOptions,
    find_quantiser,
    parse_kinds,
    quantize_model,
)
from cloister.errors import ConfigurationError, MalformedError
from support.tiny_gguf import write_tiny

WORDS = 256
"""Of the models' vocabulary: they are copied here, and not run."""

# The largest error of a weight as a share of the largest weight of its block, with room.
TOLERANCE = {"Q8_0": 0.005, "Q6_K": 0.04, "Q5_1": 0.04, "Q5_K": 0.06, "Q4_0": 0.14, "Q4_K": 0.12}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny-F16.gguf", words=WORDS)


def made(
    source: Path,
    folder: Path,
    types: str,
    *,
    quantiser: Quantiser | None = None,
    **options: bool | int,
) -> ModelRecord:
    return quantize_model(
        source,
        parse_kinds(types),
        folder,
        quantiser=quantiser or find_quantiser(),
        options=QuantizeOptions(**options),  # type: ignore[arg-type]  # tests pass what it names
    )


def types_in(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def weights(path: Path, name: str) -> np.ndarray:
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    found: np.ndarray = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return found


@pytest.mark.parametrize("name", TOLERANCE)
def test_weights_stay_near_what_they_were(name: str, tiny: Path, tmp_path: Path) -> None:
    made(tiny, tmp_path, name, pure=True)
    path = tmp_path / f"tiny-{name}.gguf"
    before, after = (weights(p, "blk.0.attn_q.weight") for p in (tiny, path))
    assert types_in(path)["blk.0.attn_q.weight"] == name
    error = np.abs(after - before).max() / np.abs(before).max()
    assert 0 < error < TOLERANCE[name]


def test_the_file_says_what_it_is_and_keeps_the_rest(tiny: Path, tmp_path: Path) -> None:
    made(tiny, tmp_path, "Q4_K")
    path = tmp_path / "tiny-Q4_K.gguf"
    with path.open("rb") as file:
        assert parse_gguf(file).quantisation == "Q4_K_S"
    before, after = (gguf.GGUFReader(p).fields for p in (tiny, path))
    changed = {"GGUF.kv_count", "general.file_type", "general.quantization_version"}
    assert set(after) == set(before) | changed
    for name in set(before) - changed:
        assert after[name].contents() == before[name].contents(), name
        assert after[name].types == before[name].types, name


def test_which_matrices_become_what(tiny: Path, tmp_path: Path) -> None:
    made(tiny, tmp_path, "Q4_K")
    found = types_in(tmp_path / "tiny-Q4_K.gguf")
    assert found["token_embd.weight"] == "Q6_K"  # it is the output matrix as well
    assert found["blk.0.ffn_up.weight"] == "Q4_K"
    assert found["blk.0.ffn_down.weight"] == "Q5_0"  # rows of 288
    assert found["blk.0.attn_norm.weight"] == "F32"
    made(tiny, tmp_path / "pure", "Q4_K", pure=True)
    assert types_in(tmp_path / "pure/tiny-Q4_K.gguf")["token_embd.weight"] == "Q4_K"


@pytest.mark.parametrize(
    ("name", "columns", "becomes"),
    [
        ("blk.0.ffn_gate_inp.weight", 256, None),
        ("blk.0.attn_q_norm.weight", 256, None),
        ("position_embd.weight", 256, None),
        ("blk.0.attn_q.bias", 256, None),
        ("blk.0.ffn_down.weight", 256, "Q2_K"),
        ("blk.0.ffn_down.weight", 64, "Q4_0"),
        ("blk.0.ffn_down.weight", 48, None),  # it is F16 already
    ],
)
def test_names_and_rows_decide(name: str, columns: int, becomes: str | None) -> None:
    class Tensor:
        tensor_type = gguf.GGMLQuantizationType.F16

    tensor = Tensor()
    tensor.name, tensor.shape = name, (columns, 8)  # type: ignore[attr-defined]
    kind = quantize._choose(tensor, TYPES["Q2_K"], pure=False, sensitive="output.weight")
    assert (kind.name if kind else None) == becomes


def test_the_same_bytes_each_time_and_with_any_number_of_threads(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(tiny, tmp_path / "a", "Q8_0,Q4_K", threads=1)
    monkeypatch.setattr(quantize, "_CHUNK", 4096)
    second = made(tiny, tmp_path / "b", "Q8_0,Q4_K", threads=3)
    assert first == second
    assert (tmp_path / "a/model.json").read_bytes() == (tmp_path / "b/model.json").read_bytes()


def test_numpy_alone_gives_the_same_files(tiny: Path, tmp_path: Path) -> None:
    types = ",".join(SIMPLE)
    first = made(tiny, tmp_path / "a", types, pure=True)
    second = made(tiny, tmp_path / "b", types, pure=True, quantiser=NumpyQuantiser())
    assert first.outputs == second.outputs
    assert set(first.tools) - set(second.tools) == {"xllamacpp"}


def test_numpy_alone_cannot_make_all_types(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        made(tiny, tmp_path, "Q4_K", quantiser=NumpyQuantiser())
    assert caught.value.code == "configuration.engine_missing"
    assert list(tmp_path.iterdir()) == []


def test_an_unquantised_copy_is_the_file_itself(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "t.gguf", words=WORDS)
    made(source, tmp_path / "a", "F16")
    made(tmp_path / "a/t-F16.gguf", tmp_path / "b", "F16")
    first, second = (tmp_path / folder / "t-F16.gguf" for folder in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert (
        weights(first, "token_embd.weight").tobytes()
        == weights(source, "token_embd.weight").tobytes()
    )


def test_the_record_names_every_file_by_its_digest(tiny: Path, tmp_path: Path) -> None:
    record = made(tiny, tmp_path, "Q8_0,Q5_1")
    assert read_record(tmp_path) == record
    assert [file.path for file in record.inputs] == ["tiny-F16.gguf"]
    for file in record.outputs:
        data = (tmp_path / file.path).read_bytes()
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert record.options == {"types": "Q8_0,Q5_1", "pure": "no", "requantize": "no"}
    assert set(record.tools) == {"cloister", "gguf", "numpy", "xllamacpp"}


def test_progress_reaches_the_end(tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    quantize_model(
        tiny,
        parse_kinds("Q8_0"),
        tmp_path,
        quantiser=find_quantiser(),
        options=QuantizeOptions(),
        progress=lambda *now: seen.append(now),
    )
    assert seen[-1][0] == "Q8_0"
    assert seen[-1][1] == seen[-1][2] > 0
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_a_quantised_model_has_to_be_asked_for(tmp_path: Path) -> None:
    demo = demo_model_path()
    with pytest.raises(ConfigurationError, match="quantised already") as caught:
        made(demo, tmp_path, "Q4_0")
    assert caught.value.code == "quantize.source"
    made(demo, tmp_path, "Q8_0,F16", requantize=True, pure=True)
    again = tmp_path / "cloister-demo-Q8_0.gguf"
    assert again.read_bytes() == demo.read_bytes()
    assert set(types_in(tmp_path / "cloister-demo-F16.gguf").values()) == {"F16", "F32"}


def test_a_record_of_something_else_is_not_lost(tiny: Path, tmp_path: Path) -> None:
    made(tiny, tmp_path, "Q8_0")
    made(tiny, tmp_path, "Q8_0,Q4_0")  # the same source again
    other = write_tiny(tmp_path / "other.gguf", layers=2, words=WORDS)
    with pytest.raises(ConfigurationError) as caught:
        made(other, tmp_path, "Q8_0")
    assert caught.value.code == "model.out_taken"


def test_the_source_is_not_overwritten(tiny: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        made(tiny, tiny.parent, "F16")
    assert caught.value.code == "model.out_taken"
    assert not (tiny.parent / "model.json").exists()


def test_a_model_in_parts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 2)
    writer.add_tensor("a.weight", np.zeros((2, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigurationError) as caught:
        made(path, tmp_path / "out", "Q8_0")
    assert caught.value.code == "quantize.split"


@pytest.mark.parametrize("keep", [0, 3, 100, 2000, 5000])
def test_what_is_no_model_is_malformed(keep: int, tiny: Path, tmp_path: Path) -> None:
    made(tiny, tmp_path / "whole", "Q8_0")
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny.read_bytes()[:keep])
    with pytest.raises(MalformedError):
        made(path, tmp_path / "out", "Q8_0")


def test_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        made(tmp_path / "none.gguf", tmp_path, "Q8_0")


@pytest.mark.parametrize("text", ["", ",", "Q8_0,q8_0", "Q9_9"])
def test_lists_of_types_that_are_none(text: str) -> None:
    assert parse_kinds("Q8_0, f16,") == (TYPES["Q8_0"], TYPES["F16"])
    with pytest.raises(ConfigurationError) as caught:
        parse_kinds(text)
    assert caught.value.code == "quantize.type"


def test_a_full_disk_leaves_nothing_half(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloister.errors import BuildError

    class Full:
        tool = ("full", "1")

        def quantise(self, rows: object, kind: WeightType) -> object:
            raise OSError(28, "no space")

    with pytest.raises(BuildError):
        made(tiny, tmp_path, "Q8_0", quantiser=Full())
    assert list(tmp_path.iterdir()) == []
