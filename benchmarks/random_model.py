"""A randomly initialised Llama-shape model of about a billion parameters, for timing only.

Sealing costs the same for every token, so what matters is how much computing stands beside it.
The demo model computes very little; this one is of the size people serve on small machines. It
talks nonsense, at exactly the speed of a trained one. In Q4_0 the blocks are drawn at random
directly instead of quantising random floats: only their distribution matters for speed. In F16 the
weights are drawn as they are initialised for training, for comparing quantised copies with it.
"""

from __future__ import annotations

import argparse
import enum
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
from numpy.typing import NDArray

CACHE = Path(__file__).resolve().parent.parent / ".cloister" / "bench"
SEED = 20

# A Q4_0 block: half-precision scale, then 32 weights of 4 bits (weight = scale * (q - 8)).
_BLOCK_WEIGHTS = 32
_BLOCK_BYTES = 18
# Standard deviation of q - 8 for q uniform in 0..15.
_Q_DEVIATION = float(np.sqrt((16**2 - 1) / 12))
_ROWS_AT_A_TIME = 1024
_TOKEN_TYPE_NORMAL = 1


class Weights(enum.Enum):
    """How weights are stored; the value is llama.cpp's number for such a file (LLAMA_FTYPE)."""

    F16 = 1
    Q4_0 = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama-architecture model; rows must be multiples of 32."""

    name: str
    width: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int

    @property
    def head_width(self) -> int:
        """Numbers per attention head."""
        return self.width // self.heads

    def layer_tensors(self) -> dict[str, tuple[int, int]]:
        """Matrices of one layer: name -> (rows, columns)."""
        kv = self.kv_heads * self.head_width
        return {
            "attn_q": (self.width, self.width),
            "attn_k": (kv, self.width),
            "attn_v": (kv, self.width),
            "attn_output": (self.width, self.width),
            "ffn_gate": (self.feed_forward, self.width),
            "ffn_up": (self.feed_forward, self.width),
            "ffn_down": (self.width, self.feed_forward),
        }

    @property
    def parameters(self) -> int:
        """Number of weights in all matrices."""
        layer = sum(rows * columns for rows, columns in self.layer_tensors().values())
        return self.layers * layer + 2 * self.vocabulary * self.width


ONE_BILLION = Shape(
    name="random-1b",
    width=2048,
    layers=22,
    feed_forward=5632,
    heads=32,
    kv_heads=4,
    vocabulary=32_000,
    context=2048,
)
# Small enough for a smoke run: it only has to load and answer.
MINIATURE = Shape(
    name="random-mini",
    width=128,
    layers=2,
    feed_forward=256,
    heads=4,
    kv_heads=2,
    vocabulary=4_352,
    context=512,
)


def random_q4_0(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Return `rows` rows of random Q4_0 blocks; weights deviate by 1/sqrt(columns)."""
    if columns % _BLOCK_WEIGHTS:
        raise ValueError("a quantised row is a multiple of 32 weights")
    count = rows * columns // _BLOCK_WEIGHTS
    blocks = np.empty((count, _BLOCK_BYTES), dtype=np.uint8)
    scale = np.float16(1.0 / (np.sqrt(columns) * _Q_DEVIATION))
    blocks[:, :2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
    drawn = np.frombuffer(rng.bytes(count * (_BLOCK_BYTES - 2)), dtype=np.uint8)
    blocks[:, 2:] = drawn.reshape(count, _BLOCK_BYTES - 2)
    return blocks.reshape(rows, columns // _BLOCK_WEIGHTS * _BLOCK_BYTES)


def random_f16(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float16]:
    """Return `rows` rows of normal weights that deviate by 1/sqrt(columns)."""
    made = np.empty((rows, columns), dtype=np.float16)
    for begin in range(0, rows, _ROWS_AT_A_TIME):
        part = made[begin : begin + _ROWS_AT_A_TIME]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32) / np.sqrt(columns)
    return made


def _copy_tokenizer(writer: Any, source: Path, vocabulary: int) -> None:
    """Take the tokenizer of the GGUF at `source`, and pad its vocabulary with words."""
    fields = gguf.GGUFReader(source).fields
    tokens = cast("list[str]", fields["tokenizer.ggml.tokens"].contents())
    types = cast("list[int]", fields["tokenizer.ggml.token_type"].contents())
    if len(tokens) > vocabulary:
        raise ValueError("the tokenizer's vocabulary is larger than the model's")
    padding = range(len(tokens), vocabulary)
    writer.add_tokenizer_model(fields["tokenizer.ggml.model"].contents())
    writer.add_tokenizer_pre(fields["tokenizer.ggml.pre"].contents())
    writer.add_token_list([*tokens, *(f" w{index}" for index in padding)])
    writer.add_token_types([*types, *(_TOKEN_TYPE_NORMAL for _ in padding)])
    writer.add_token_merges(fields["tokenizer.ggml.merges"].contents())
    writer.add_bos_token_id(fields["tokenizer.ggml.bos_token_id"].contents())
    writer.add_eos_token_id(fields["tokenizer.ggml.eos_token_id"].contents())
    writer.add_pad_token_id(fields["tokenizer.ggml.padding_token_id"].contents())
    writer.add_add_bos_token(False)
    writer.add_chat_template(fields["tokenizer.chat_template"].contents())


def write_model(path: Path, shape: Shape, tokenizer: Path, weights: Weights = Weights.Q4_0) -> None:
    """Write a GGUF of `shape` to `path`, always the same bytes for the same inputs."""
    rng = np.random.default_rng(SEED)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(shape.name)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(weights.value)
    writer.add_quantization_version(2)
    _copy_tokenizer(writer, tokenizer, shape.vocabulary)

    def matrix(name: str, rows: int, columns: int) -> None:
        if weights is Weights.F16:
            writer.add_tensor(f"{name}.weight", random_f16(rng, rows, columns))
            return
        data = random_q4_0(rng, rows, columns)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    norm = np.ones(shape.width, dtype=np.float32)
    matrix("token_embd", shape.vocabulary, shape.width)
    for layer in range(shape.layers):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", norm)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", norm)
        for name, (rows, columns) in shape.layer_tensors().items():
            matrix(f"blk.{layer}.{name}", rows, columns)
    writer.add_tensor("output_norm.weight", norm)
    matrix("output", shape.vocabulary, shape.width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_model(
    shape: Shape, tokenizer: Path, cache: Path = CACHE, weights: Weights = Weights.Q4_0
) -> Path:
    """Return the model file of `shape`, writing it first unless the cache holds it."""
    # The demo model's tokenizer changes when that model is trained anew.
    mark = hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:12]
    path = cache / f"{shape.name}-{weights.name.lower()}-{mark}.gguf"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    write_model(partial, shape, tokenizer, weights)
    return partial.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the one-billion model and say how long it took."""
    from cloister.engine.demo_model import demo_model_path

    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_model", description=__doc__)
    parser.add_argument("--type", choices=[one.name for one in Weights], default="Q4_0")
    weights = Weights[parser.parse_args(arguments).type]
    started = time.monotonic()
    path = random_model(ONE_BILLION, demo_model_path(), weights=weights)
    size = path.stat().st_size / 1e6
    print(
        f"{path}: {size:.0f} MB, {ONE_BILLION.parameters / 1e9:.2f} billion parameters, "
        f"{time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    main()
