"""What each member of a commit counts.

`mean`: the merged update is sum(s_i * U_i) / sum(t_i) for summed gradients U_i over t_i answer tokens, and the
t_i-weighted mean of pseudo-gradients. `sum`: everything counts once. Nothing is clipped here: a worker clips its own
mean gradient before it encodes it, since to shorten an update afterwards would also shorten what error feedback
added to it.

With one member an adaptive optimiser cancels any factor on the gradient, so staleness scales the *step* there
(`step_scale`), and the members' relative weights where there are several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medley.policies import staleness
from medley.protocol.spec import Train


@dataclass(frozen=True, slots=True)
class Candidate:
    """One complete update: its weight (answer tokens) and its staleness."""

    tokens: float
    staleness: int


def member_weights(train: Train, members: Sequence[Candidate]) -> tuple[float, ...]:
    """A factor for each member's update, in order."""
    if train.aggregation == "sum":
        return tuple(1.0 if m.staleness == 0 else staleness.weight(train.sync, m.staleness) for m in members)
    aged = [staleness.weight(train.sync, m.staleness) for m in members]
    newest, total = max(aged), sum(m.tokens for m in members)
    if train.sync.mode == "local-sgd":
        return tuple(a / newest * m.tokens / total for a, m in zip(aged, members, strict=True))
    return tuple(a / newest / total for a in aged)


def step_scale(train: Train, members: Sequence[Candidate]) -> float:
    """Factor on the learning rate of this commit: the weight of its freshest member."""
    if train.aggregation == "sum":
        return 1.0
    return max(staleness.weight(train.sync, m.staleness) for m in members)
