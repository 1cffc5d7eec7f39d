"""No arithmetic at all: versions, weights and bytes, for fleets that no memory could hold the parameters of.

The loss it reports is a stand-in with the usual shape, a power law of the samples seen, so that curves can be drawn
and plateaus met; it knows nothing of the data, and nothing may be concluded from it. Loss curves that mean something
come from `real`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from medley.policies.costs import block_nbytes
from medley.protocol.layout import Layout, TensorSpec
from medley.protocol.messages import Span
from medley.protocol.plan import Plan
from medley.protocol.spec import JobSpec
from medley.runtimes.simulated.arithmetic import Blocks, Result

FIRST, LAST, POWER = 4.0, 1.5, 0.5
HALF_VERSIONS = 20.0


def stand_in_loss(version: int) -> float:
    return LAST + (FIRST - LAST) * (1.0 + max(0, version) / HALF_VERSIONS) ** -POWER


@dataclass(slots=True)
class SizesWorker:
    nbytes: dict[int, int]
    tokens_per_sample: int
    version: int = -1
    carrying: bool = False

    def load(self, version: int, blocks: Blocks) -> None:
        self.version = version

    def compute(self, update: str, span: Span, steps: int, lr: float, carry: bool) -> Result:
        assert self.carrying or not carry, "a carry that the engine does not have"
        self.carrying = self.carrying and not carry
        samples = span.stop - span.start
        tokens = samples * self.tokens_per_sample
        blocks = dict.fromkeys(self.nbytes)
        loss_sum = stand_in_loss(self.version) * tokens
        return Result(blocks, self.nbytes, float(tokens), loss_sum, 0.0, samples, tokens, 0.0, True)

    def settle(self, update: str, carry: bool) -> None:
        self.carrying = self.carrying or carry

    def drop_carry(self) -> None:
        self.carrying = False

    def reset(self) -> None:
        self.version, self.carrying = -1, False

    def measure(self, samples: int) -> tuple[float, int, float]:
        return stand_in_loss(self.version), max(1, samples * self.tokens_per_sample), 0.0


@dataclass(slots=True)
class SizesShard:
    blocks: tuple[int, ...]
    version: int = -1
    staged: set[str] = field(default_factory=set)
    pins: set[int] = field(default_factory=set)

    def load(self, version: int, saved: Blocks) -> None:
        self.version = version
        self.staged, self.pins = set(), set()

    def stage(self, update: str, blocks: Blocks) -> tuple[bool, float]:
        self.staged.add(update)
        return True, 1.0

    def drop(self, update: str) -> None:
        self.staged.discard(update)

    def apply(self, number: int, members: Sequence[tuple[str, float]], lr: float) -> None:
        self.staged.difference_update(update for update, _ in members)
        self.version = number

    def pin(self, version: int) -> None:
        self.pins.add(version)

    def unpin(self, version: int) -> None:
        self.pins.discard(version)

    def read(self, version: int) -> Blocks | None:
        there = version == self.version or version in self.pins
        return dict.fromkeys(self.blocks) if there else None

    def saved(self, version: int) -> Blocks:
        return dict.fromkeys(self.blocks)


@dataclass(slots=True)
class SizesArithmetic:
    spec: JobSpec
    samples: int
    heldout: int
    parameters: int
    tokens_per_sample: int
    _nbytes: dict[int, int] = field(default_factory=dict)

    def plan(self) -> Plan:
        tensors = (TensorSpec("parameters", (max(1, self.parameters),)),)
        return Plan(self.spec, self.samples, self.heldout, tensors, ())

    def initial(self) -> Blocks:
        return dict.fromkeys(b.index for b in self._layout().blocks)

    def worker(self, plan: Plan) -> SizesWorker:
        if not self._nbytes:
            compression = self.spec.train.compression
            self._nbytes = {b.index: block_nbytes(compression, b.numel) for b in self._layout().blocks}
        return SizesWorker(self._nbytes, self.tokens_per_sample)

    def shard(self, plan: Plan, blocks: Sequence[int]) -> SizesShard:
        return SizesShard(tuple(blocks))

    def _layout(self) -> Layout:
        return self.plan().layout()
