"""What a worker keeps between leases: a carry that counts by its weight, and threads that fix the bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medley.engines.task import Task
from medley.engines.train import Stopped, TrainEngine
from medley.engines.worker import WorkerEngine
from medley.protocol.messages import Span
from medley.protocol.plan import Plan
from medley.protocol.spec import Compression, JobSpec, Optimizer, Placement, Sync, Train

SAMPLES = 40
PLAIN = Train(optimizer=Optimizer(clip_norm=0.0), compression=Compression(kind="none"))


class Line(Task):
    """A small network on points."""

    def __init__(self) -> None:
        self.points = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(0))

    def model(self) -> nn.Module:
        return nn.Linear(3, 1)

    def dataset(self) -> Sequence[tuple[Tensor, Tensor]]:
        return list(zip(self.points, self.points.sum(1, keepdim=True), strict=True))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return functional.mse_loss(model(batch[0]), batch[1])


def engine(train: Train, threads: int = 0) -> WorkerEngine:
    spec = JobSpec(train=train, placement=Placement(block_elements=2))
    made = TrainEngine(Line(), train, spec.placement, torch.float32, lambda: 0)
    plan = Plan(spec=spec, samples=SAMPLES, heldout=0, tensors=made.layout.tensors, artifacts=())
    worker = WorkerEngine(Line(), plan, threads, 0, lambda: 0)
    base = worker.base()
    base.flat.copy_(made.initial())
    worker.arrived(0, base)
    return worker


def decoded(worker: WorkerEngine, update: str) -> Tensor:
    parts = worker.parts(update, range(3))
    assert parts is not None
    return torch.cat([torch.frombuffer(bytearray(p), dtype=torch.float32) for p in parts])


@pytest.mark.parametrize("mode", ["sync", "local-sgd"])
@pytest.mark.usefixtures("threads")
def test_a_carry_counts_by_its_weight(mode: str) -> None:
    """Gradients are sums and add up; differences are means already, so theirs is weighed by samples."""
    train = replace(PLAIN, sync=Sync(mode=mode, local_steps=2))  # type: ignore[arg-type]
    steps = 2 if mode == "local-sgd" else 1
    fresh = engine(replace(train, deterministic=True))
    spans = Span(0, 0, 8), Span(0, 8, 32)
    apart = []
    for number, span in enumerate(spans):
        fresh.compute(f"u{number}", span, steps, 0.1, False, lambda: False)
        apart.append(decoded(fresh, f"u{number}"))
    whole = engine(replace(train, deterministic=True))
    whole.compute("u0", spans[0], steps, 0.1, False, lambda: False)
    whole.settle("u0", True)
    outcome = whole.compute("u1", spans[1], steps, 0.1, True, lambda: False)
    expected = apart[0] + apart[1] if mode == "sync" else (8 * apart[0] + 24 * apart[1]) / 32
    torch.testing.assert_close(decoded(whole, "u1"), expected)
    assert outcome.weight == 32.0


def test_work_that_nobody_wants_ends_early_and_takes_its_carry_along() -> None:
    worker = engine(replace(PLAIN, micro_batch=2))
    worker.compute("u0", Span(0, 0, 8), 1, 0.1, False, lambda: False)
    worker.settle("u0", True)
    answers = iter([False, True])
    with pytest.raises(Stopped):
        worker.compute("u1", Span(0, 8, 32), 1, 0.1, True, lambda: next(answers))
    assert worker.parts("u1", range(3)) is None
    assert worker.compute("u2", Span(0, 8, 16), 1, 0.1, True, lambda: False).weight == 8.0


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("threads")
def test_a_deterministic_run_computes_with_one_thread_on_every_machine() -> None:
    engine(PLAIN, threads=3)
    assert torch.get_num_threads() == 3
    engine(replace(PLAIN, deterministic=True), threads=3)
    assert torch.get_num_threads() == 1
