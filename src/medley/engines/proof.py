"""The integer proof: a task whose parameters count what was learned.

One vector of n elements that begins at 2; the loss of sample i is element i, so its gradient is exactly one in
coordinate i. Summed updates (`train.aggregation: sum`), staleness weight 1, SGD at rate 1 without clipping or
schedule leave every coordinate at exactly 1 after one epoch: 2 would be a sample that was lost, 0 one that was
counted twice. All values are small integers, so no order of sums can round.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from medley.engines.task import Loss, Task
from medley.protocol.errors import UserError

START = 2.0
HELDOUT = 8
# A step whose weight is below one is not averaged by a worker's own optimiser: this task counts.
WEIGHT = 2.0**-20


class Counts(nn.Module):
    """`values` [n], fp32."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.full((n,), START))


class OneHot(Task):
    """`samples` is n; `step_ms` is how long each micro-batch pretends to compute."""

    def __init__(self, samples: int = 4096, step_ms: float = 0.0, micro_batch: int = 64) -> None:
        if samples < 1 or micro_batch < 1 or step_ms < 0:
            raise UserError("task_options: samples and micro_batch must be at least 1, step_ms at least 0")
        self._samples, self._micro_batch = samples, micro_batch
        self._pause_s = step_ms / 1000

    def model(self) -> nn.Module:
        return Counts(self._samples)

    def dataset(self) -> Sequence[int]:
        return range(self._samples)

    def heldout(self) -> Sequence[int]:
        """A few of the same coordinates: measured to be measured, since nothing here generalises."""
        return range(min(HELDOUT, self._samples))

    def micro_batch(self) -> int:
        return self._micro_batch

    def loss(self, model: nn.Module, batch: Tensor) -> Loss:
        """`batch` [b] holds sample numbers."""
        if self._pause_s:
            threading.Event().wait(self._pause_s)
        assert isinstance(model, Counts)
        total = model.values[batch].sum()
        # Measuring wants a mean over samples; learning a sum.
        return Loss(total, len(batch) * (WEIGHT if model.training else 1.0))


def miscounted(directory: Path) -> tuple[int, int]:
    """(samples missing, samples doubled) in what `save` wrote, after one epoch."""
    return miscounted_values(load_file(directory / "model.safetensors")["values"])


def miscounted_values(values: Tensor) -> tuple[int, int]:
    """As `miscounted`, of parameters [n]. Raises ValueError for values that are no counts at all."""
    if not torch.equal(values, values.round()):
        raise ValueError("a parameter of the proof is not a whole number: something was averaged or rounded")
    excess = (values - (START - 1.0)).double()
    return int(excess.clamp(min=0).sum()), int((-excess).clamp(min=0).sum())
