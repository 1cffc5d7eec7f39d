"""A task whose every row takes memory, for the test in which there is not enough of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medley.engines.proof import Counts, OneHot
from medley.engines.task import Loss


class Hungry(OneHot):
    """The integer proof, with `mib` of memory touched for each row of a micro-batch."""

    def __init__(self, samples: int, mib: int, micro_batch: int) -> None:
        super().__init__(samples, 0.0, micro_batch)
        self._mib = mib

    def loss(self, model: nn.Module, batch: Tensor) -> Loss:
        assert isinstance(model, Counts)
        eaten = torch.ones(len(batch) * self._mib, 1 << 18)
        loss = super().loss(model, batch)
        return Loss(loss.total + 0.0 * eaten[0, 0], loss.weight)
