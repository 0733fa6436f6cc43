"""Write a trained network as GGUF: export_gguf.py model.pt tokenizer.json OUT --type Q8_0."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from chatml import CONTEXT, END_ID, END_OF_TEXT_ID, TEMPLATE
from network import NORM_EPSILON, ROPE_BASE, Shape

FILE_TYPES = {
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q5_1": gguf.LlamaFileType.MOSTLY_Q5_1,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
PRE_TOKENIZER = "smollm"  # llama.cpp's name for: single digits, then GPT-2's byte-level split


def add_header(writer: gguf.GGUFWriter, shape: Shape, file_type: str) -> None:
    """Describe the model."""
    writer.add_name("cloister-demo")
    writer.add_description("Demonstration model, trained from scratch on generated dialogues")
    writer.add_license("apache-2.0")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(FILE_TYPES[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    """Store vocabulary, merges, special tokens and the chat template."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    by_id = {number: text for text, number in saved["model"]["vocab"].items()}
    control = {token["id"] for token in saved["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([by_id[number] for number in range(len(by_id))])
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if number in control else gguf.TokenType.NORMAL
            for number in range(len(by_id))
        ]
    )
    writer.add_token_merges([" ".join(merge) for merge in saved["model"]["merges"]])
    writer.add_bos_token_id(END_OF_TEXT_ID)
    writer.add_eos_token_id(END_ID)
    writer.add_eot_token_id(END_ID)
    writer.add_pad_token_id(END_OF_TEXT_ID)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def add_tensors(writer: gguf.GGUFWriter, weights: dict[str, torch.Tensor], file_type: str) -> None:
    """Store the weights: norms in full, matrices quantised. Names are GGUF's already."""
    for name, tensor in weights.items():
        values = tensor.float().numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values.astype(np.float32))
        elif file_type == "F16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            kind = Type[file_type]
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def main() -> None:
    """Export one file and print its size and digest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=FILE_TYPES, default="Q8_0")
    arguments = parser.parse_args()
    saved = torch.load(arguments.network, weights_only=True)
    writer = gguf.GGUFWriter(arguments.out, "llama")
    add_header(writer, Shape(**saved["shape"]), arguments.type)
    add_tokenizer(writer, arguments.tokenizer)
    add_tensors(writer, saved["weights"], arguments.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = arguments.out.read_bytes()
    print(f"{arguments.out.name} {len(content)} bytes sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
