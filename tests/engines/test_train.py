"""What a lease becomes: gradients and deltas checked against plain autograd, whatever the micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from medley.data.order import epoch_order
from medley.engines.task import Loss, Task
from medley.engines.train import Stopped, TrainEngine, Work
from medley.protocol.errors import UserError
from medley.protocol.spec import Optimizer, Placement, Sync, Train

SAMPLES = 40
PLAIN = Train(optimizer=Optimizer(clip_norm=0.0), seed=5)


class Curve(Task):
    """A small network on points; `fail_above` plays a machine that cannot hold more rows at once."""

    def __init__(self, fail_above: int = 10**9, poison: int = -1) -> None:
        self.fail_above, self.poison = fail_above, poison
        draw = torch.Generator().manual_seed(0)
        self.points = torch.randn(SAMPLES, 3, generator=draw)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.0), nn.Linear(5, 1))

    def dataset(self) -> Sequence[tuple[Tensor, Tensor]]:
        wanted = self.points.sum(1, keepdim=True)
        if self.poison >= 0:
            wanted[self.poison] = float("nan")
        return list(zip(self.points, wanted, strict=True))

    def heldout(self) -> Sequence[tuple[Tensor, Tensor]]:
        return self.dataset()[:8]

    def loss(self, model: nn.Module, batch: Any) -> Loss | Tensor:
        if len(batch[0]) > self.fail_above:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        return functional.mse_loss(model(batch[0]), batch[1])


def engine(task: Task, train: Train = PLAIN) -> TrainEngine:
    ticks = iter(range(0, 10**15, 10**9))
    return TrainEngine(task, train, Placement(block_elements=7), torch.float32, lambda: next(ticks))


def flat(parameters: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


def slopes(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def reference(start: int, stop: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The same network with plain tensors of the same samples."""
    task = Curve()
    torch.manual_seed(PLAIN.seed)
    network = task.model()
    picked = torch.from_numpy(epoch_order(SAMPLES, PLAIN.seed, 0)[start:stop].copy())
    points = task.points[picked]
    return network, points, points.sum(1, keepdim=True)


@pytest.mark.parametrize("micro_batch", [0, 1, 3, 64])
def test_one_step_gives_the_summed_gradient(micro_batch: int) -> None:
    made = engine(Curve(), replace(PLAIN, micro_batch=micro_batch))
    result = made.run(Work(((0, 4, 20),)), 0.1)
    network, points, wanted = reference(4, 20)
    (functional.mse_loss(network(points), wanted) * 16).backward()
    torch.testing.assert_close(result.update, slopes(network))
    assert (result.weight, result.samples, result.finite) == (16.0, 16, True)
    assert torch.equal(made.initial(), flat(network.parameters()))
    assert result.seconds == 1.0


def test_a_lease_of_two_pieces_across_epochs_is_one_update() -> None:
    made = engine(Curve())
    both = made.run(Work(((0, 36, 40), (1, 0, 4))), 0.1)
    parts = [made.run(Work((piece,)), 0.1) for piece in ((0, 36, 40), (1, 0, 4))]
    torch.testing.assert_close(both.update, parts[0].update + parts[1].update)


def test_clipping_bounds_the_mean_gradient() -> None:
    result = engine(Curve(), replace(PLAIN, optimizer=Optimizer(clip_norm=0.01))).run(Work(((0, 0, 8),)), 0.1)
    assert result.gradient_norm > 0.01
    assert float(result.update.norm() / result.weight) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(kind="adamw", clip_norm=0.0),
        Optimizer(kind="adamw", clip_norm=0.5),
        Optimizer(kind="sgd", momentum=0.9, weight_decay=0.0, clip_norm=0.0),
    ],
)
def test_local_steps_give_the_difference_of_a_plain_loop(optimizer: Optimizer) -> None:
    made = engine(Curve(), replace(PLAIN, optimizer=optimizer))
    network, points, wanted = reference(0, 24)
    if optimizer.kind == "adamw":
        plain: Any = torch.optim.AdamW(_spared(network, 0.01), 0.05, optimizer.betas, optimizer.eps)
    else:
        plain = torch.optim.SGD(network.parameters(), 0.05, 0.9)
    # Two rounds from the same base: the optimiser's state outlasts the first.
    base = made.initial().clone()
    for number in range(2):
        made.load_base(number, base)
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(base.clone(), network.parameters())
        for step in range(4):
            plain.zero_grad()
            part = slice(step * 6, step * 6 + 6)
            functional.mse_loss(network(points[part]), wanted[part]).backward()
            if optimizer.clip_norm:
                torch.nn.utils.clip_grad_norm_(network.parameters(), optimizer.clip_norm)
            plain.step()
        result = made.run(Work(((0, 0, 24),), steps=4), 0.05)
        torch.testing.assert_close(result.update, base - flat(network.parameters()), atol=1e-5, rtol=1e-4)
    assert result.weight == 24.0
    assert torch.equal(flat(made.network.parameters()), base)


def _spared(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Groups for torch's own optimiser: matrices decay, biases do not, as on the shards."""
    found = list(network.parameters())
    return [
        {"params": [p for p in found if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in found if p.dim() < 2], "weight_decay": 0.0},
    ]


def test_a_single_step_of_local_sgd_is_a_difference_too() -> None:
    """The last lease of an epoch may be that short; a gradient in its place once wrecked whole runs."""
    plain = Optimizer(kind="sgd", clip_norm=0.0, weight_decay=0.0)
    made = engine(Curve(), replace(PLAIN, sync=Sync(mode="local-sgd", local_steps=4), optimizer=plain))
    base = made.initial().clone()
    made.load_base(0, base)
    update = made.run(Work(((0, 0, 8),), 1), lr=1e-3).update
    gradients = engine(Curve())
    gradients.load_base(0, base)
    summed = gradients.run(Work(((0, 0, 8),), 1), lr=1e-3).update
    torch.testing.assert_close(update, 1e-3 * summed / 8, rtol=1e-3, atol=1e-7)


def test_running_out_of_memory_halves_the_micro_batch_and_changes_no_sum() -> None:
    small, whole = engine(Curve(fail_above=5)), engine(Curve())
    result = small.run(Work(((0, 0, 32),)), 0.1)
    assert (result.micro_batch, result.memory_ran_out) == (4, 3)
    torch.testing.assert_close(result.update, whole.run(Work(((0, 0, 32),)), 0.1).update)
    assert small.run(Work(((0, 0, 32),)), 0.1).memory_ran_out == 0


def test_a_row_that_never_fits_is_one_sentence_and_other_errors_pass() -> None:
    with pytest.raises(UserError, match="even one sequence at a time does not fit"):
        engine(Curve(fail_above=0)).run(Work(((0, 0, 8),)), 0.1)

    class Broken(Curve):
        def loss(self, model: nn.Module, batch: Any) -> Tensor:
            raise RuntimeError("a mistake in a person's code")

    with pytest.raises(RuntimeError, match="a person's code"):
        engine(Broken()).run(Work(((0, 0, 8),)), 0.1)


@pytest.mark.parametrize("steps", [1, 4])
def test_what_is_not_finite_is_reported(steps: int) -> None:
    poisoned = int(epoch_order(SAMPLES, PLAIN.seed, 0)[3])
    made = engine(Curve(poison=poisoned))
    assert not made.run(Work(((0, 0, 8),), steps), 0.1).finite
    assert made.run(Work(((0, 8, 16),)), 0.1).finite


def test_asked_to_stop_it_stops_between_micro_batches() -> None:
    made = engine(Curve(), replace(PLAIN, micro_batch=2))
    answers = iter([False, False, True])
    with pytest.raises(Stopped):
        made.run(Work(((0, 0, 8),)), 0.1, lambda: next(answers))
    assert next(answers, None) is None
    assert made.run(Work(((0, 0, 8),)), 0.1).finite


def test_prefetched_work_is_the_same_work() -> None:
    made = engine(Curve())
    for at in range(4):
        made.prefetch(Work(((0, at, at + 8),)))
    for at in range(4):
        result = made.run(Work(((0, at, at + 8),)), 0.1)
        assert torch.equal(result.update, engine(Curve()).run(Work(((0, at, at + 8),)), 0.1).update)
    made.close()


def test_evaluation_is_the_mean_over_held_out_samples() -> None:
    made = engine(Curve(), replace(PLAIN, micro_batch=3))
    task = Curve()
    expected = functional.mse_loss(made.network(task.points[:8]), task.points[:8].sum(1, keepdim=True))
    got = made.evaluate(64)
    assert got.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert got.tokens == 8
    assert made.network.training


def test_a_loss_object_carries_its_own_weight() -> None:
    class Ones(Curve):
        def loss(self, model: nn.Module, batch: Any) -> Loss:
            return Loss(model(batch[0]).sum(), weight=2.0 * len(batch[0]), correct=1, tokens=7)

    result = engine(Ones(), replace(PLAIN, micro_batch=4)).run(Work(((0, 0, 8),)), 0.1)
    assert (result.weight, result.correct, result.tokens) == (16.0, 2, 14)


def test_layout_follows_the_network_and_blocks_stay_inside_tensors() -> None:
    layout = engine(Curve()).layout
    assert [t.name for t in layout.tensors] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert layout.numel == 26
    assert [b.numel for b in layout.blocks] == [7, 7, 1, 5, 5, 1]


def test_a_saved_person_s_model_is_safetensors(tmp_path: Path) -> None:
    made = engine(Curve())
    made.save(tmp_path, torch.arange(26.0))
    assert load_file(tmp_path / "model.safetensors")["3.bias"].tolist() == [25.0]


def test_bf16_sums_micro_batches_in_fp32() -> None:
    class Ones(Curve):
        def model(self) -> nn.Module:
            return nn.Linear(3, 1, bias=False)

        def loss(self, model: nn.Module, batch: Any) -> Tensor:
            return model(torch.ones(1, 3, dtype=torch.bfloat16)).sum()

    train = replace(PLAIN, micro_batch=1)
    made = TrainEngine(Ones(), train, Placement(), torch.bfloat16, lambda: 0)
    # In bf16 a sum of ones stops at 256.
    ranges = tuple((epoch, 0, SAMPLES) for epoch in range(10))
    assert made.run(Work(ranges), 0.1).update.tolist() == [400.0] * 3


@pytest.mark.parametrize("bad", ["frozen", "empty"])
def test_nothing_to_train_is_said(bad: str) -> None:
    class Nothing(Curve):
        def model(self) -> nn.Module:
            return super().model().requires_grad_(bad != "frozen")

        def dataset(self) -> Sequence[Any]:
            return [] if bad == "empty" else super().dataset()

    with pytest.raises(UserError, match="nothing to train" if bad == "frozen" else "dataset is empty"):
        engine(Nothing())
