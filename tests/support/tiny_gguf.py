"""A random Llama model small enough to write in a test, with the demo model's tokenizer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from cloister.engine.demo_model import demo_model_path

WIDTH = 256
FEED_FORWARD = 288  # no multiple of 256: K-quants fall back
LAYERS = 1
HEADS = 2


@cache
def _tokenizer() -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types, and merges of the demo model."""
    fields = gguf.GGUFReader(demo_model_path()).fields
    tokens, types, merges = (
        fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges")
    )
    return tokens, types, merges


def write_tiny(
    path: Path, *, dtype: Any = np.float16, layers: int = LAYERS, words: int | None = None
) -> Path:
    """Write the model in `dtype` (float16 or float32), always the same for the same arguments.

    With `words` it has the first of the tokens only, and one merge: enough for whoever reads the
    file and runs no model, and much sooner read by gguf's own reader.
    """
    rng = np.random.default_rng(7)
    tokens, types, merges = _tokenizer()
    tokens, types, merges = tokens[:words], types[:words], merges[: None if words is None else 1]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(1 if dtype == np.float16 else 0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)

    def matrix(name: str, rows: int, columns: int) -> None:
        weights = rng.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)
        writer.add_tensor(f"{name}.weight", weights.astype(dtype))

    norm = np.ones(WIDTH, np.float32)
    matrix("token_embd", len(tokens), WIDTH)
    for layer in range(layers):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", norm)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{name}", WIDTH, WIDTH)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", norm)
        matrix(f"blk.{layer}.ffn_gate", FEED_FORWARD, WIDTH)
        matrix(f"blk.{layer}.ffn_up", FEED_FORWARD, WIDTH)
        matrix(f"blk.{layer}.ffn_down", WIDTH, FEED_FORWARD)
    writer.add_tensor("output_norm.weight", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
