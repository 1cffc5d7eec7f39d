"""Optimisers as plain arithmetic on flat fp32 vectors: no groups, no hidden state, the same bits every time.

An update is something to walk against: a gradient, or for local-sgd the pseudo-gradient base - local. State
is named tensors that the caller owns, together with the count of steps made; checkpoints store them as they
are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medley.protocol.errors import UserError, did_you_mean
from medley.protocol.layout import TensorSpec
from medley.protocol.spec import Optimizer, Outer, Train


@dataclass(frozen=True, slots=True)
class Step:
    """One step on n elements: theta, update, room and the state are fp32 [n].

    `out` may be `theta` itself or new room; `number` counts from 1; `room` and `update`
    are scratch afterwards; `decay` False spares norms and biases.
    """

    theta: Tensor
    update: Tensor
    state: Mapping[str, Tensor]
    room: Tensor
    out: Tensor
    number: int
    lr: float
    decay: bool


class FlatOptimizer(Protocol):
    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state tensors, all of them zero before the first step."""
        ...

    def step(self, s: Step) -> None: ...


@dataclass(frozen=True, slots=True)
class AdamW:
    """Decoupled weight decay and bias correction (arXiv 1711.05101), as torch.optim.AdamW has it."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    slots: tuple[str, ...] = ("m", "v")

    def step(self, s: Step) -> None:
        m, v = s.state["m"], s.state["v"]
        m.lerp_(s.update, 1.0 - self.beta1)
        v.mul_(self.beta2).addcmul_(s.update, s.update, value=1.0 - self.beta2)
        # m/c1 / (sqrt(v/c2) + eps), with both corrections moved into scalars to save two passes over memory.
        root = (1.0 - self.beta2**s.number) ** 0.5
        denominator = torch.sqrt(v, out=s.room).add_(self.eps * root)
        length = s.lr * root / (1.0 - self.beta1**s.number)
        _decayed(s, self.weight_decay).addcdiv_(m, denominator, value=-length)


@dataclass(frozen=True, slots=True)
class SGD:
    """Momentum as torch.optim.SGD has it, Nesterov's form included; weight decay is decoupled as in AdamW."""

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def step(self, s: Step) -> None:
        direction = s.update
        if self.momentum:
            kept = s.state["momentum"].mul_(self.momentum).add_(s.update)
            direction = s.update.add_(kept, alpha=self.momentum) if self.nesterov else kept
        _decayed(s, self.weight_decay).add_(direction, alpha=-s.lr)


@dataclass(frozen=True, slots=True)
class Subtract:
    """theta - lr x update: at rate 1 the members' mean."""

    slots: tuple[str, ...] = ()

    def step(self, s: Step) -> None:
        torch.sub(s.theta, s.update, alpha=s.lr, out=s.out)


def make_optimizer(options: Optimizer) -> FlatOptimizer:
    """The optimiser that steps along gradients. Raises UserError for an unknown kind."""
    match options.kind:
        case "adamw":
            return AdamW(*options.betas, options.eps, options.weight_decay)
        case "sgd":
            return SGD(options.momentum, weight_decay=options.weight_decay)
    raise UserError(f"train.optimizer.kind: '{options.kind}'; {did_you_mean(options.kind, ('adamw', 'sgd'))}")


def make_outer(options: Outer) -> FlatOptimizer:
    """The optimiser that merges pseudo-gradients; nesterov is DiLoCo's, arXiv 2311.08105. Or UserError."""
    match options.kind:
        case "none":
            return Subtract()
        case "sgd":
            return SGD()
        case "nesterov":
            return SGD(options.momentum, nesterov=True)
    hint = did_you_mean(options.kind, ("none", "sgd", "nesterov"))
    raise UserError(f"train.outer.kind: '{options.kind}'; {hint}")


def make_shard_optimizer(train: Train) -> FlatOptimizer:
    """What shards step with: the outer optimiser in local-sgd, the optimiser itself otherwise."""
    return make_outer(train.outer) if train.sync.mode == "local-sgd" else make_optimizer(train.optimizer)


def decays(tensor: TensorSpec) -> bool:
    """Whether weight decay applies: to matrices, not to norms and biases."""
    return len(tensor.shape) > 1


def _decayed(s: Step, weight_decay: float) -> Tensor:
    """`s.out`, holding theta after decay: where a step that may be out of place begins."""
    if s.decay and weight_decay:
        return torch.mul(s.theta, 1.0 - s.lr * weight_decay, out=s.out)
    return s.out if s.out is s.theta else s.out.copy_(s.theta)
