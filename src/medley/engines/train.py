"""Local training: a lease of samples becomes an update of one flat fp32 vector.

One step (H = 1): the update is the summed gradient over the lease, its weight the number of answer tokens.
Several steps (H > 1): the update is base minus local after H steps of the inner optimiser (DiLoCo,
arXiv:2311.08105).
Promises: micro-batches never change what is summed; running out of memory halves the micro-batch and repeats
the step; a loss or gradient that is not finite is reported, never hidden.
Leaves to others: leases, versions, learning-rate schedules, compression, sending.
"""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medley.data.order import samples_at
from medley.engines.flat import FlatParameters
from medley.engines.inner import InnerOptimizer
from medley.engines.memory import is_out_of_memory
from medley.engines.prefetch import Prefetcher
from medley.engines.task import Loss, Task
from medley.models.dtype import choose_device
from medley.protocol.errors import MedleyError, UserError
from medley.protocol.layout import Layout
from medley.protocol.spec import Placement, Train


@dataclass(frozen=True, slots=True)
class Work:
    """Positions (epoch, start, stop) of a lease, to be used in `steps` optimiser steps."""

    ranges: tuple[tuple[int, int, int], ...]
    steps: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """What a lease gave. `update` is fp32 [numel] on the processor; `finite` is False where loss or gradient
    was not.

    `weight` counts answer tokens (or samples of a person's task), `loss_sum` and `correct` are over them;
    `tokens` counts every real token read. `gradient_norm` is of the mean gradient before clipping, largest of
    all steps.
    """

    update: Tensor
    weight: float
    loss_sum: float
    correct: int
    samples: int
    tokens: int
    seconds: float
    micro_batch: int
    finite: bool
    gradient_norm: float
    memory_ran_out: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`loss` is the mean over `tokens` scored tokens (natural logarithm), `accuracy` of next-token
    prediction.
    """

    loss: float
    tokens: int
    accuracy: float


@dataclass(slots=True)
class Sums:
    """Running totals over micro-batches."""

    loss: float = 0.0
    weight: float = 0.0
    correct: int = 0
    tokens: int = 0

    def add(self, loss: Loss) -> None:
        self.loss += float(loss.total.detach())
        self.weight += loss.weight
        self.correct += int(loss.correct)
        self.tokens += loss.tokens

    def join(self, other: Sums) -> None:
        self.loss += other.loss
        self.weight += other.weight
        self.correct += other.correct
        self.tokens += other.tokens


class Stopped(MedleyError):
    """`should_stop` said so; nothing of the lease is kept."""


class TrainEngine:
    """One network, its flat vector, and the loop over micro-batches. Not thread-safe; one run at a time."""

    def __init__(
        self,
        task: Task,
        train: Train,
        placement: Placement,
        compute_dtype: torch.dtype,
        now_ns: Callable[[], int],
    ) -> None:
        self._task, self._train, self._now_ns = task, train, now_ns
        fix_arithmetic(train)
        torch.manual_seed(train.seed)
        self.network = task.model().train()
        self._flat = FlatParameters(self.network, compute_dtype, choose_device())
        self.layout: Layout = self._flat.layout(placement.block_elements)
        self._samples = task.dataset()
        if not len(self._samples):
            raise UserError("the task's dataset is empty")
        self._inner: InnerOptimizer | None = None
        self._base = self._flat.initial
        self._sum = torch.zeros_like(self._base, device=self._flat.values.device)
        self._ahead: Prefetcher[Work, list[list[Any]]] = Prefetcher(self._rows_by_step)
        self.micro_batch = train.micro_batch or task.micro_batch()
        self.version = 0

    def initial(self) -> Tensor:
        """The fp32 vector [numel] of the seeded or pretrained network, before it was cast."""
        return self._flat.initial

    def load_base(self, version: int, flat: Tensor) -> None:
        """Continue from `flat`, fp32 [numel];

        It is read again when `run` ends, so the caller must not change it.
        """
        if flat.shape != self._base.shape:
            raise ValueError(f"a base of {tuple(flat.shape)} elements for a model of {self.layout.numel}")
        self.version, self._base = version, flat
        self._flat.values.copy_(flat)

    def prefetch(self, work: Work) -> None:
        """Read, tokenise and pack in the background."""
        self._ahead.request(work)

    def run(self, work: Work, lr: float, should_stop: Callable[[], bool] = lambda: False) -> Result:
        """Train on a lease from the loaded base.

        Raises `Stopped`, `UserError`, and what a person's task raises.
        """
        began_ns = self._now_ns()
        steps = self._ahead.take(work)
        self._shrunk = 0
        # A lease at the end of an epoch may have one step in local-sgd too, where shards expect a difference.
        if work.steps == 1 and self._train.sync.mode != "local-sgd":
            sums, norm = self._accumulate(steps[0], _seed(self._train.seed, work, 0), should_stop)
            update = self._sum.to("cpu", copy=True)
        else:
            sums, norm, update = self._local_steps(work, steps, lr, should_stop)
        finite = math.isfinite(sums.loss) and math.isfinite(norm)
        samples = sum(stop - start for _, start, stop in work.ranges)
        return Result(
            update, sums.weight, sums.loss, sums.correct, samples, sums.tokens or samples,
            (self._now_ns() - began_ns) / 1e9, self.micro_batch, finite, norm, self._shrunk,
        )  # fmt: skip

    def evaluate(self, max_samples: int, unseen: bool = False) -> Evaluation:
        """Held-out loss and accuracy of the loaded base; zeros where nothing is held out.

        `unseen` asks for whole groups that were never trained on, which only the built-in corpus tells apart.
        """
        heldout = self._task.unseen() if unseen else self._task.heldout()
        samples = [] if heldout is None else [heldout[i] for i in range(min(max_samples, len(heldout)))]
        sums = Sums()
        self.network.eval()
        with torch.no_grad():
            for batch, count in self._batches(self._task.rows(samples) if samples else []):
                sums.add(_as_loss(self._task.loss(self.network, batch), count))
        self.network.train()
        scored = max(sums.weight, 1.0)
        return Evaluation(sums.loss / scored, int(sums.weight), sums.correct / scored)

    def save(self, directory: Path, flat: Tensor) -> None:
        """Write a network with these parameters as the task does it (a Hugging Face directory for language
        models).
        """
        self.load_base(self.version, flat)
        self._task.save(self.network, directory)

    def close(self) -> None:
        self._ahead.close()

    def _rows_by_step(self, work: Work) -> list[list[Any]]:
        seed, n = self._train.seed, len(self._samples)
        picked = np.concatenate([samples_at(n, seed, *at) for at in work.ranges])
        parts = np.array_split(picked, work.steps)
        return [self._task.rows([self._samples[int(i)] for i in part]) for part in parts if len(part)]

    def _local_steps(
        self, work: Work, steps: list[list[Any]], lr: float, should_stop: Callable[[], bool]
    ) -> tuple[Sums, float, Tensor]:
        local = self._inner_optimizer()
        local.start(self._base)
        sums, largest = Sums(), 0.0
        for number, rows in enumerate(steps):
            step, norm = self._accumulate(rows, _seed(self._train.seed, work, number), should_stop)
            sums.join(step)
            largest = norm if not norm <= largest else largest
            local.step(self._sum.div_(max(step.weight, 1.0)), lr)
            self._flat.values.copy_(local.values)
        update = torch.sub(self._base, local.values.cpu())
        self._flat.values.copy_(self._base)
        return sums, largest, update

    def _inner_optimizer(self) -> InnerOptimizer:
        # A deterministic run must not depend on which leases this machine had before, so it starts afresh
        # each time.
        if self._inner is None or self._train.deterministic:
            self._inner = InnerOptimizer(self._train.optimizer, self.layout, self._flat.values.device)
        return self._inner

    def _accumulate(self, rows: list[Any], seed: int, should_stop: Callable[[], bool]) -> tuple[Sums, float]:
        """Leave the summed, clipped gradient of one optimiser step in `_sum`;

        Halve the micro-batch as often as needed.
        """
        while True:
            torch.manual_seed(seed)
            try:
                sums = self._attempt(rows, should_stop)
                return sums, self._clip(sums.weight)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(min(self.micro_batch, len(rows)), error)

    def _halve(self, tried: int, error: BaseException) -> None:
        if tried <= 1:
            raise UserError(
                "even one sequence at a time does not fit into this machine's memory; "
                "lower model.context_tokens, switch model.gradient_checkpointing on, or take a smaller model"
            ) from error
        self.micro_batch = tried // 2
        self._shrunk += 1
        gc.collect()

    def _attempt(self, rows: list[Any], should_stop: Callable[[], bool]) -> Sums:
        sums = Sums()
        self._sum.zero_()
        self._flat.zero_slopes()
        for batch, count in self._batches(rows):
            if should_stop():
                raise Stopped("asked to stop in the middle of a lease")
            loss = _as_loss(self._task.loss(self.network, batch), count)
            loss.total.backward()
            sums.add(loss)
            # Sums of many small gradients are kept in fp32 whatever the network computes in.
            self._sum.add_(self._flat.slopes)
            self._flat.zero_slopes()
        return sums

    def _clip(self, weight: float) -> float:
        """Scale `_sum` so that its mean is no longer than clip_norm; the norm of the mean before that."""
        norm = float(torch.linalg.vector_norm(self._sum)) / max(weight, 1.0)
        limit = self._train.optimizer.clip_norm
        if limit and math.isfinite(norm) and norm > limit:
            self._sum.mul_(limit / norm)
        return norm

    def _batches(self, rows: list[Any]) -> Iterator[tuple[Any, int]]:
        for at in range(0, len(rows), self.micro_batch):
            part = rows[at : at + self.micro_batch]
            yield self._moved(self._task.collate(part)), len(part)

    def _moved(self, batch: Any) -> Any:
        """A person's batch on the device of the network; language models put theirs there themselves."""
        device = self._flat.values.device
        match batch:
            case _ if device.type == "cpu":
                return batch
            case Tensor():
                return batch.to(device)
            case list() | tuple():
                return type(batch)(self._moved(part) for part in batch)
            case dict():
                return {key: self._moved(part) for key, part in batch.items()}
        return batch


def fix_arithmetic(train: Train) -> None:
    """Set torch's threads and, where asked, deterministic kernels; both hold for the whole process."""
    threads = train.threads or (1 if train.deterministic else 0)
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(train.deterministic)


def _as_loss(loss: Loss | Tensor, count: int) -> Loss:
    return loss if isinstance(loss, Loss) else Loss(loss * count, float(count))


def _seed(seed: int, work: Work, step: int) -> int:
    """Dropout depends on what is learned, not on who learns it."""
    epoch, start, _ = work.ranges[0]
    digest = hashlib.sha256(f"{seed} {epoch} {start} {step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
