"""The flat optimisers against torch's own, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medley.engines.optimizers import FlatOptimizer, Step, make_optimizer, make_outer, make_shard_optimizer
from medley.protocol.errors import UserError
from medley.protocol.spec import Optimizer, Outer, Sync, Train

N, STEPS = 500, 30


def gradients() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(N, generator=generator) * 10 ** (i % 4 - 2) for i in range(STEPS)]


def ours(optimizer: FlatOptimizer, lr: float, decay: bool = True, in_place: bool = True) -> Tensor:
    theta = torch.linspace(-1, 1, N)
    state = {slot: torch.zeros(N) for slot in optimizer.slots}
    for number, gradient in enumerate(gradients(), 1):
        out = theta if in_place else torch.empty(N)
        optimizer.step(Step(theta, gradient, state, torch.empty(N), out, number, lr, decay))
        theta = out
    return theta


def theirs(kind: type[torch.optim.Optimizer], **options: object) -> Tensor:
    theta = torch.nn.Parameter(torch.linspace(-1, 1, N))
    optimizer = kind([theta], **options)
    for gradient in gradients():
        theta.grad = gradient.clone()
        optimizer.step()
    return theta.detach()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_torchs(weight_decay: float):
    spec = Optimizer(kind="adamw", betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)
    expected = theirs(torch.optim.AdamW, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)
    assert (ours(make_optimizer(spec), 1e-2) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum: float):
    spec = Optimizer(kind="sgd", momentum=momentum, weight_decay=0.0)
    expected = theirs(torch.optim.SGD, lr=1e-2, momentum=momentum)
    assert torch.allclose(ours(make_optimizer(spec), 1e-2), expected, rtol=1e-5, atol=1e-6)


def test_nesterov_is_dilocos_outer_optimiser():
    expected = theirs(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)
    assert torch.allclose(ours(make_outer(Outer("nesterov", 0.7, 0.9)), 0.7), expected, rtol=1e-5, atol=1e-5)


def test_none_subtracts_as_much_as_the_rate_says():
    outer = make_outer(Outer("none"))
    for rate in (1.0, 0.25):
        assert torch.allclose(ours(outer, rate), torch.linspace(-1, 1, N) - rate * sum(gradients()), atol=1e-4)


@pytest.mark.parametrize(
    "optimizer",
    [
        make_optimizer(Optimizer("adamw", weight_decay=0.1)),
        make_optimizer(Optimizer("sgd", momentum=0.9, weight_decay=0.1)),
        make_outer(Outer("none")),
        make_outer(Outer("sgd")),
        make_outer(Outer("nesterov")),
    ],
)
@pytest.mark.parametrize("decay", [True, False])
def test_out_of_place_gives_the_same_bits(optimizer: FlatOptimizer, decay: bool):
    assert torch.equal(ours(optimizer, 0.01, decay), ours(optimizer, 0.01, decay, in_place=False))


def test_norms_and_biases_do_not_decay():
    spec = Optimizer("sgd", weight_decay=0.1)
    plain = Optimizer("sgd", weight_decay=0.0)
    assert torch.equal(ours(make_optimizer(spec), 0.01, decay=False), ours(make_optimizer(plain), 0.01))
    assert not torch.equal(ours(make_optimizer(spec), 0.01), ours(make_optimizer(plain), 0.01))


@pytest.mark.parametrize("mode, slots", [("sync", ("m", "v")), ("async", ("m", "v")), ("local-sgd", ())])
def test_the_mode_says_what_shards_step_with(mode: str, slots: tuple[str, ...]):
    assert make_shard_optimizer(Train(sync=Sync(mode=mode))).slots == slots


def test_unknown_kinds_are_a_persons_mistake():
    with pytest.raises(UserError, match="adamw"):
        make_optimizer(Optimizer("adam"))
    with pytest.raises(UserError, match="nesterov"):
        make_outer(Outer("nestorov"))
