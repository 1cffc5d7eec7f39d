"""The optimiser that makes a worker's own steps between two updates, on one flat fp32 vector.

The arithmetic is that of `optimizers`, as shards have it: decay is decoupled and spares norms and biases. Its
state lives in the worker and outlasts a round, as in DiLoCo.
"""

from __future__ import annotations

from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from medley.engines.optimizers import Step, decays, make_optimizer
from medley.protocol.layout import Layout
from medley.protocol.spec import Optimizer


class InnerOptimizer:
    """`values` is the local vector, fp32 [numel of `layout`]."""

    def __init__(self, options: Optimizer, layout: Layout, device: torch.device) -> None:
        self.values = torch.zeros(layout.numel, device=device)
        self._optimizer = make_optimizer(options)
        self._state = {slot: torch.zeros_like(self.values) for slot in self._optimizer.slots}
        self._room = torch.empty_like(self.values)
        self._runs = _runs(layout)
        self._steps = 0

    def start(self, base: Tensor) -> None:
        """Begin a round from `base`; moments are kept."""
        self.values.copy_(base)

    def step(self, gradient: Tensor, lr: float) -> None:
        """One step along `gradient`, fp32 [numel], which is scratch afterwards."""
        self._steps += 1
        for run, decay in self._runs:
            theta = self.values[run]
            state = {slot: values[run] for slot, values in self._state.items()}
            self._optimizer.step(Step(theta, gradient[run], state, self._room[run], theta, self._steps, lr, decay))


def _runs(layout: Layout) -> list[tuple[slice, bool]]:
    """The vector cut where decay begins or ends."""
    found = [(decay, sum(t.numel for t in alike)) for decay, alike in groupby(layout.tensors, decays)]
    bounds = pairwise(accumulate((numel for _, numel in found), initial=0))
    return [(slice(*ends), decay) for ends, (decay, _) in zip(bounds, found, strict=True)]
