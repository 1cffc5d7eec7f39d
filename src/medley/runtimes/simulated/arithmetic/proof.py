"""The integer proof's arithmetic: the gradient of position i is one in coordinate i, the optimiser is plain SGD at rate
one, and every parameter begins at START. Parameters are then a count of what was used, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medley.protocol.layout import Layout, TensorSpec
from medley.protocol.messages import Span
from medley.protocol.plan import Plan
from medley.protocol.spec import JobSpec
from medley.runtimes.simulated.arithmetic import Blocks, Result

Vector = NDArray[np.float64]
START = 2.0
_TENSOR = 8  # elements of one tensor, so that small jobs have several


@dataclass(slots=True)
class ProofWorker:
    samples: int
    layout: Layout
    updates: dict[str, Vector] = field(default_factory=dict)
    carry: Vector | None = None
    version: int = -1

    def load(self, version: int, blocks: Blocks) -> None:
        self.version = version

    def compute(self, update: str, span: Span, steps: int, lr: float, carry: bool) -> Result:
        vector = np.zeros(self.samples)
        vector[span.start : span.stop] += 1
        if carry:
            assert self.carry is not None, "a carry that the engine does not have"
            vector += self.carry
            self.carry = None
        self.updates[update] = vector
        blocks = {b.index: vector[b.offset : b.offset + b.numel] for b in self.layout.blocks}
        size = span.stop - span.start
        nbytes = {b.index: 4 * b.numel for b in self.layout.blocks}
        return Result(blocks, nbytes, float(size), float(size), 0.0, size, size * 10, 0.0, True)

    def settle(self, update: str, carry: bool) -> None:
        vector = self.updates.pop(update, None)
        if carry:
            assert vector is not None, f"{update} cannot be carried"
            assert self.carry is None, "one carry at a time"
            self.carry = vector

    def drop_carry(self) -> None:
        self.carry = None

    def reset(self) -> None:
        self.updates.clear()
        self.carry = None
        self.version = -1

    def measure(self, samples: int) -> tuple[float, int, float]:
        return 1.0 + 7 * self.version % 5, 10, 0.5  # up and down, so that a plateau is sometimes reached


@dataclass(slots=True)
class ProofShard:
    blocks: tuple[int, ...]
    version: int = -1
    params: Blocks = field(default_factory=dict)
    staged: dict[str, Blocks] = field(default_factory=dict)
    pins: dict[int, Blocks] = field(default_factory=dict)

    def load(self, version: int, saved: Blocks) -> None:
        self.version = version
        self.params = {i: saved[i] for i in self.blocks}
        self.staged, self.pins = {}, {}

    def stage(self, update: str, blocks: Blocks) -> tuple[bool, float]:
        assert set(blocks) == set(self.blocks), "every block of a shard, and no other"
        self.staged.setdefault(update, blocks)
        total = sum(float(part @ part) for part in blocks.values())
        return bool(np.isfinite(total)), total

    def drop(self, update: str) -> None:
        self.staged.pop(update, None)

    def apply(self, number: int, members: Sequence[tuple[str, float]], lr: float) -> None:
        params = {i: p.copy() for i, p in self.params.items()}
        for update, weight in members:
            for index, part in self.staged.pop(update).items():
                params[index] -= lr * weight * part
        self.params, self.version = params, number

    def pin(self, version: int) -> None:
        self.pins[version] = self.params

    def unpin(self, version: int) -> None:
        self.pins.pop(version, None)

    def read(self, version: int) -> Blocks | None:
        return self.params if version == self.version else self.pins.get(version)

    def saved(self, version: int) -> Blocks:
        found = self.read(version)
        assert found is not None, f"version {version} is not kept"
        return found


@dataclass(frozen=True, slots=True)
class ProofArithmetic:
    spec: JobSpec
    samples: int
    heldout: int = 1

    def plan(self) -> Plan:
        starts = range(0, self.samples, _TENSOR)
        tensors = tuple(TensorSpec(f"t{i}", (min(_TENSOR, self.samples - i),), "") for i in starts)
        return Plan(self.spec, self.samples, self.heldout, tensors, ())

    def initial(self) -> Blocks:
        return {b.index: np.full(b.numel, START) for b in self.plan().layout().blocks}

    def worker(self, plan: Plan) -> ProofWorker:
        return ProofWorker(plan.samples, plan.layout())

    def shard(self, plan: Plan, blocks: Sequence[int]) -> ProofShard:
        return ProofShard(tuple(blocks))


def join(blocks: Blocks) -> Vector:
    """The whole vector of all blocks in order."""
    return np.concatenate([blocks[i] for i in sorted(blocks)])
