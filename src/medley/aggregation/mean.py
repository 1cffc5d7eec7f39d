"""Weighted sum in the order of the commit, one member decoded at a time: the same bits every time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from medley.aggregation.rule import Member


class WeightedSum:
    """Both `mean` and `sum`: the coordinator's weights, normalised for a mean, are used as they come."""

    def combine(self, members: Sequence[Member], out: Tensor, room: Tensor) -> Tensor:
        first, *others = members
        first.decode(out).mul_(first.weight)
        for member in others:
            out.add_(member.decode(room), alpha=member.weight)
        return out
