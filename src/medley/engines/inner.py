"""The optimiser that makes a worker's own steps between two updates, on one flat fp32 vector.

AdamW: Loshchilov and Hutter, arXiv:1711.05101. Its state lives in the worker and outlasts a round, as in
DiLoCo.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medley.protocol.spec import Optimizer


class InnerOptimizer:
    """`values` is the local vector, fp32 [numel]."""

    def __init__(self, options: Optimizer, numel: int, device: torch.device) -> None:
        self._parameter = torch.nn.Parameter(torch.zeros(numel, device=device))
        self._optimizer = _made(options, self._parameter)

    @property
    def values(self) -> Tensor:
        return self._parameter.data

    def start(self, base: Tensor) -> None:
        """Begin a round from `base`; moments are kept."""
        self._parameter.data.copy_(base)

    def step(self, gradient: Tensor, lr: float) -> None:
        """One step along `gradient`, fp32 [numel]."""
        self._optimizer.param_groups[0]["lr"] = lr
        self._parameter.grad = gradient
        self._optimizer.step()


def _made(options: Optimizer, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
    match options.kind:
        case "adamw":
            return torch.optim.AdamW(
                [parameter], options.lr, options.betas, options.eps, options.weight_decay, fused=True
            )
        case "sgd":
            return torch.optim.SGD(
                [parameter], options.lr, options.momentum, weight_decay=options.weight_decay, fused=True
            )
