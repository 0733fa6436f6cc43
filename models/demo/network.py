"""A Llama-architecture network in PyTorch, small and plain."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from chatml import CONTEXT

ROPE_BASE = 10_000.0
NORM_EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the network. Rows are multiples of 256, so that every GGUF type applies."""

    vocabulary: int = 4096
    width: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 768

    @property
    def head_width(self) -> int:
        """Return the width of one attention head."""
        return self.width // self.heads


class Norm(nn.Module):
    """Root mean square normalisation with a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return functional.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), NORM_EPSILON)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn neighbouring pairs by their position: the pairing that llama.cpp calls "norm"."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-2)


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_width
        self.attn_norm, self.ffn_norm = Norm(shape.width), Norm(shape.width)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_gate = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def _heads(self, x: Tensor, count: int) -> Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, count, self.shape.head_width).transpose(1, 2)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape; each position sees only earlier ones."""
        shape = self.shape
        normed = self.attn_norm(x)
        query = rotate(self._heads(self.attn_q(normed), shape.heads), cosine, sine)
        key = rotate(self._heads(self.attn_k(normed), shape.kv_heads), cosine, sine)
        value = self._heads(self.attn_v(normed), shape.kv_heads)
        group = shape.heads // shape.kv_heads
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attn_output(mixed.transpose(1, 2).flatten(2))
        normed = self.ffn_norm(x)
        gated = functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed)
        added: Tensor = x + self.ffn_down(gated)
        return added


class Network(nn.Module):
    """Embedding, blocks, final norm; the output matrix is the embedding itself.

    Parameter names follow GGUF's tensor names, so that exporting needs no table.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = Norm(shape.width)
        half = torch.arange(0, shape.head_width, 2).float() / shape.head_width
        angles = torch.outer(torch.arange(CONTEXT).float(), ROPE_BASE**-half)
        self.cosine: Tensor
        self.sine: Tensor
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() != 2:
                continue
            deviation = 1 / math.sqrt(parameter.shape[1])
            if name.startswith("token_embd"):
                deviation = 0.02
            elif "attn_output" in name or "ffn_down" in name:
                # What is added to the residual stream shrinks with the depth.
                deviation /= math.sqrt(2 * self.shape.layers)
            nn.init.normal_(parameter, 0.0, deviation)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the hidden state of every position, before the output matrix."""
        x = self.token_embd(ids)
        length = ids.shape[1]
        cosine, sine = self.cosine[:length].to(x.dtype), self.sine[:length].to(x.dtype)
        for block in self.blk:
            x = block(x, cosine, sine)
        normed: Tensor = self.output_norm(x)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every token of the vocabulary for some hidden states."""
        return functional.linear(hidden, self.token_embd.weight).float()
