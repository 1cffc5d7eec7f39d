"""What each member of a commit counts.

`mean`: the merged update is sum(clip_i * s_i * U_i) / sum(t_i) for summed gradients U_i over t_i answer tokens, and
the t_i-weighted mean of pseudo-gradients. `sum`: everything counts once. Clipping is of each worker's own mean
gradient, by the norm that all shards report together, so no shard decides alone.

With one member an adaptive optimiser cancels any factor on the gradient, so staleness scales the *step* there
(`step_scale`), and the members' relative weights where there are several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from medley.policies import staleness
from medley.protocol.spec import Train


@dataclass(frozen=True, slots=True)
class Candidate:
    """One complete update: its weight (answer tokens), squared norm over all shards, and staleness."""

    tokens: float
    squared_norm: float
    staleness: int


def member_weights(train: Train, members: Sequence[Candidate]) -> tuple[float, ...]:
    """A factor for each member's update, in order."""
    if train.aggregation == "sum":
        return tuple(1.0 if m.staleness == 0 else staleness.weight(train.sync, m.staleness) for m in members)
    aged = [staleness.weight(train.sync, m.staleness) for m in members]
    newest = max(aged)
    if train.sync.mode == "local-sgd":
        total = sum(m.tokens for m in members)
        return tuple(a / newest * m.tokens / total for a, m in zip(aged, members, strict=True))
    total = sum(m.tokens for m in members)
    return tuple(a / newest * _clip(train.optimizer.clip_norm, m) / total for a, m in zip(aged, members, strict=True))


def step_scale(train: Train, members: Sequence[Candidate]) -> float:
    """Factor on the learning rate of this commit: the weight of its freshest member."""
    if train.aggregation == "sum":
        return 1.0
    return max(staleness.weight(train.sync, m.staleness) for m in members)


def _clip(limit: float, member: Candidate) -> float:
    if limit <= 0:
        return 1.0
    norm = sqrt(member.squared_norm) / member.tokens
    return min(1.0, limit / norm) if norm > 0 else 1.0
