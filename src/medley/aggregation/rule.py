"""What a rule sees: the members of one commit, in commit order, each able to decode its part of one segment.

A rule may decode a member more than once and must not keep what it decoded, so that a shard's memory does not
depend on how many members a commit has. Rules over whole vectors (Krum, NNM) will get their weights from the
coordinator, which adds up the shards' partial distances; on the shard they remain a weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Member:
    """`decode(out)` writes this member's values fp32 [n] into `out` and returns it."""

    update_id: str
    weight: float
    decode: Callable[[Tensor], Tensor]


class Rule(Protocol):
    def combine(self, members: Sequence[Member], out: Tensor, room: Tensor) -> Tensor:
        """One update fp32 [n] of at least one member, written into `out`; `room` [n] is scratch."""
        ...
