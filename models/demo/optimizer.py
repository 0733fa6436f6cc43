"""Muon: momentum whose update is made nearly orthogonal, for the weight matrices.

K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024): five steps of a
Newton-Schulz iteration with quintic coefficients. Embedding and norms use AdamW instead.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_MOMENTUM = 0.95
_DECAY = 0.05


@torch.no_grad()
def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a matrix with nearly the same row and column spaces and singular values near 1."""
    a, b, c = _COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(_STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.T if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float) -> None:
        super().__init__(parameters, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is needed
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            rate = group["lr"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.mul_(_MOMENTUM).add_(gradient)
                update = orthogonalised(gradient + _MOMENTUM * momentum)
                rows, columns = parameter.shape
                parameter.mul_(1 - rate * _DECAY)
                parameter.add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)
