"""Held-out loss of a GGUF file: grade_loss.py MODEL TOKENIZER DIALOGUES [--count 300].

Reads the weights back from the file, so that quantisation is part of the figure and the
file's tensor names and layout are checked against the network that was trained.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import gguf
import torch
from tokenizers import Tokenizer

from chatml import read_examples
from network import Network, Shape
from train import held_out_loss


def network_of(path: Path) -> Network:
    """Return the network with the dequantised weights of a GGUF file of the default shape."""
    network = Network(Shape())
    weights = {
        tensor.name: torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in gguf.GGUFReader(path).tensors
    }
    network.load_state_dict(weights)
    return network


def main() -> None:
    """Print loss and perplexity per answer token."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("dialogues", type=Path)
    parser.add_argument("--count", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    examples = read_examples(arguments.dialogues, tokenizer)[: arguments.count]
    loss = held_out_loss(network_of(arguments.model), examples)
    print(f"{arguments.model.name}: {loss:.4f} nats per answer token, {math.exp(loss):.4f}")


if __name__ == "__main__":
    main()
