"""Files beside a model's weights, made up: an adapter, a projector; and another chat template."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from cloister.engine.demo_model import demo_model_path

WIDTH = 256
"""Of the demonstration model, and of `support.tiny_gguf`."""
LAYERS = 6
RANK = 4

PATCH = 14
IMAGE = 28
"""Pixels of each side: four patches, so an image costs four tokens."""
VISION = 32


def write_adapter(path: Path, *, seed: int = 1, scale: float = 1.0, layers: int = LAYERS) -> Path:
    """Write a low-rank adapter for the demonstration model; with `scale` 0 it changes nothing."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for layer in range(layers):
        name = f"blk.{layer}.attn_q.weight"
        down = rng.standard_normal((RANK, WIDTH), dtype=np.float32)
        up = rng.standard_normal((WIDTH, RANK), dtype=np.float32) * scale
        writer.add_tensor(f"{name}.lora_a", down)
        writer.add_tensor(f"{name}.lora_b", up)
    return _written(writer, path)


def write_projector(path: Path, *, seed: int = 1) -> Path:
    """Write a random vision encoder of one layer with LLaVA's two-layer projection."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", IMAGE)
    writer.add_uint32("clip.vision.patch_size", PATCH)
    writer.add_uint32("clip.vision.embedding_length", VISION)
    writer.add_uint32("clip.vision.feed_forward_length", VISION)
    writer.add_uint32("clip.vision.block_count", 2)
    writer.add_uint32("clip.vision.attention.head_count", 2)
    writer.add_uint32("clip.vision.projection_dim", WIDTH)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])

    def tensor(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape, dtype=np.float32) / np.sqrt(shape[-1])
        writer.add_tensor(name, values.astype(np.float32))

    def linear(name: str, rows: int, columns: int) -> None:
        tensor(f"{name}.weight", rows, columns)
        tensor(f"{name}.bias", rows)

    patches = (IMAGE // PATCH) ** 2
    tensor("v.class_embd", VISION)
    tensor("v.patch_embd.weight", VISION, 3, PATCH, PATCH)
    tensor("v.position_embd.weight", patches + 1, VISION)
    tensor("v.pre_ln.weight", VISION)
    tensor("v.pre_ln.bias", VISION)
    for layer in range(2):
        for name in ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down"):
            linear(f"v.blk.{layer}.{name}", VISION, VISION)
        for name in ("ln1", "ln2"):
            tensor(f"v.blk.{layer}.{name}.weight", VISION)
            tensor(f"v.blk.{layer}.{name}.bias", VISION)
    linear("mm.0", WIDTH, VISION)
    linear("mm.2", WIDTH, WIDTH)
    return _written(writer, path)


def write_with_template(path: Path, template: str) -> Path:
    """Write the demonstration model with another chat template."""
    reader = gguf.GGUFReader(demo_model_path())
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        kept = not name.startswith("GGUF.") and name != "general.architecture"
        if kept and name != "tokenizer.chat_template":
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    return _written(writer, path)


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
