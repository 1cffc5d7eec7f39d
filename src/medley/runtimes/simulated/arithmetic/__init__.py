"""What a simulated engine computes: integers for the proof, nothing but sizes, or a real tiny model.

Time is charged elsewhere (`policies.costs`); these objects answer at once. One `Arithmetic` serves one job of a world.
What is sent, read, saved and loaded are values by block index, so that whoever carries them can take them apart and
join them without knowing what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from medley.protocol.messages import Span
from medley.protocol.plan import Plan

Blocks = dict[int, Any]  # the arithmetic's own values, by block index


@dataclass(frozen=True, slots=True)
class Result:
    """One lease's update. `blocks` is what is pushed, already encoded where the job compresses."""

    blocks: Blocks
    nbytes: dict[int, int]  # by block, as they travel
    weight: float
    loss_sum: float
    correct: float
    samples: int
    tokens: int
    residual_norm: float
    finite: bool


class WorkerArithmetic(Protocol):
    """One worker engine's side; forgets everything when the engine dies."""

    def load(self, version: int, blocks: Blocks) -> None: ...

    def compute(self, update: str, span: Span, steps: int, lr: float, carry: bool) -> Result: ...

    def settle(self, update: str, carry: bool) -> None: ...

    def drop_carry(self) -> None: ...

    def reset(self) -> None: ...

    def measure(self, samples: int) -> tuple[float, int, float]:
        """Held-out loss, its tokens, accuracy, at the loaded version."""


class ShardArithmetic(Protocol):
    """One shard engine's side."""

    @property
    def version(self) -> int: ...

    def load(self, version: int, saved: Blocks) -> None:
        """Be at this version and forget everything else; `saved` has this shard's blocks and perhaps others."""

    def stage(self, update: str, blocks: Blocks) -> tuple[bool, float]:
        """(finite, squared norm); a second call with the same update answers as the first."""

    def drop(self, update: str) -> None: ...

    def apply(self, number: int, members: Sequence[tuple[str, float]], lr: float) -> None: ...

    def pin(self, version: int) -> None: ...

    def unpin(self, version: int) -> None: ...

    def read(self, version: int) -> Blocks | None:
        """This version's blocks, or None when it is gone."""

    def saved(self, version: int) -> Blocks:
        """What a checkpoint of a pinned version keeps, by block, optimiser state included; `load` takes it."""


class Arithmetic(Protocol):
    def plan(self) -> Plan: ...

    def initial(self) -> Blocks:
        """What checkpoint 0 holds, for all blocks, as `ShardArithmetic.load` takes it."""

    def worker(self, plan: Plan) -> WorkerArithmetic: ...

    def shard(self, plan: Plan, blocks: Sequence[int]) -> ShardArithmetic: ...
