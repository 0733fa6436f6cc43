"""llama.cpp's C interface is used only where it is the one that was tried."""

from __future__ import annotations

import ctypes
import importlib.metadata

import gguf
import numpy as np
import pytest

from cloister.engine import ggml
from cloister.engine.ggml import SIMPLE, TYPES, GgmlQuantiser, Library, open_library, weight_type
from cloister.errors import ConfigurationError, UnsupportedError


def test_the_table_is_that_of_the_format() -> None:
    for kind in TYPES.values():
        number = gguf.GGMLQuantizationType[kind.name]
        assert (kind.number, kind.block, kind.block_bytes) == (
            number.value,
            *gguf.GGML_QUANT_SIZES[number],
        )
        names = {f"MOSTLY_{kind.name}", f"MOSTLY_{kind.name}_S", f"ALL_{kind.name}"}
        assert gguf.LlamaFileType(kind.file_type).name in names
        if kind.fallback is not None:
            assert kind.block % TYPES[kind.fallback].block == 0


def test_names_of_types_in_any_case() -> None:
    assert weight_type(" q4_k") is TYPES["Q4_K"]
    with pytest.raises(ConfigurationError) as caught:
        weight_type("Q4_K_M")
    assert caught.value.code == "quantize.type"


@pytest.mark.parametrize("name", SIMPLE)
def test_simple_types_are_the_same_bytes_by_numpy_and_by_llama_cpp(name: str) -> None:
    rows = np.random.default_rng(3).standard_normal((5, 96), dtype=np.float32)
    rows[0] = 0
    kind = TYPES[name]
    made = GgmlQuantiser(open_library()).quantise(rows, kind)
    assert (made == gguf.quants.quantize(rows, gguf.GGMLQuantizationType(kind.number))).all()


def test_rows_of_another_kind_are_a_mistake_of_ours() -> None:
    quantiser, kind = GgmlQuantiser(open_library()), TYPES["Q8_0"]
    assert quantiser.quantise(np.zeros((2, 32), np.float32), kind).shape == (2, 34)
    for rows in (np.zeros((2, 32)), np.zeros(32, np.float32), np.zeros((32, 2), np.float32).T):
        with pytest.raises(TypeError):
            quantiser.quantise(rows, kind)
    with pytest.raises(ValueError, match="multiple"):
        quantiser.quantise(np.zeros((2, 33), np.float32), kind)


def test_a_version_that_was_not_tried_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_library().version in ggml.TRIED
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2027.1.0")
    with pytest.raises(UnsupportedError, match=r"2027\.1\.0.*pip install") as caught:
        open_library()
    assert caught.value.code == "engine.interface"


def test_without_the_library_it_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError) as caught:
        open_library()
    assert caught.value.code == "configuration.engine_missing"


def test_a_symbol_that_is_not_exported_is_found_before_it_is_called() -> None:
    library = open_library()
    library.declare("ggml_row_size", ctypes.c_size_t, ctypes.c_int, ctypes.c_int64)
    with pytest.raises(UnsupportedError, match="does not export ggml_no_such_thing"):
        library.declare("ggml_no_such_thing", None)


class Changed(Library):
    """The real library with one function replaced."""

    def __init__(self, name: str, function: object) -> None:
        real = open_library()
        super().__init__(real.version, real._handle)
        self._changed = {name: function}

    def declare(self, name: str, result: object, *arguments: object) -> object:
        return self._changed.get(name) or super().declare(name, result, *arguments)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("ggml_row_size", lambda _kind, count: 2 * count),
        ("ggml_type_name", lambda _kind: b"q8_1"),
        ("ggml_type_name", lambda _kind: None),
        ("ggml_quantize_chunk", lambda *_: 34),
    ],
)
def test_another_layout_is_noticed_at_the_start(name: str, function: object) -> None:
    GgmlQuantiser(Changed("", None))
    with pytest.raises(UnsupportedError) as caught:
        GgmlQuantiser(Changed(name, function))
    assert caught.value.code == "engine.interface"
