"""One job of a world: its arithmetic, its plan once it is prepared, and how many bytes its parts are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from medley.policies import costs
from medley.protocol.codec import text
from medley.protocol.layout import Layout
from medley.protocol.plan import Plan
from medley.runtimes.simulated.arithmetic import Arithmetic, Blocks
from medley.runtimes.simulated.arithmetic.proof import ProofArithmetic
from medley.runtimes.simulated.arithmetic.sizes import SizesArithmetic
from medley.runtimes.simulated.setup import ArithmeticKind, Arrival

TOKEN_NBYTES = 4  # of prepared data, for each token


@dataclass(slots=True)
class Job:
    """What engines of one job share. Made when it is submitted, so that any coordinator's life finds it."""

    arrival: Arrival
    arithmetic: Arithmetic
    plan: Plan
    plan_text: str
    layout: Layout
    _elements: dict[tuple[int, ...], int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.arrival.job

    @property
    def heldout(self) -> int:
        return self.arrival.workload.heldout

    @property
    def data_nbytes(self) -> int:
        work = self.arrival.workload
        return work.samples * work.tokens_per_sample * TOKEN_NBYTES

    def elements(self, blocks: Iterable[int]) -> int:
        key = tuple(blocks)
        found = self._elements.get(key)
        if found is None:
            found = self._elements[key] = sum(self.layout.blocks[i].numel for i in key)
        return found

    def pull_nbytes(self, blocks: Iterable[int]) -> int:
        return costs.pull_nbytes(self.elements(blocks))

    def checkpoint_nbytes(self, blocks: Iterable[int]) -> int:
        return costs.checkpoint_nbytes(self.elements(blocks), self.plan.spec.train)


@dataclass(slots=True)
class Kept:
    """What the vault has of one job: it outlives every process."""

    parts: dict[str, Blocks] = field(default_factory=dict)
    sealed: dict[int, Blocks] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)
    exports: list[tuple[int, Blocks]] = field(default_factory=list)


def make_job(arrival: Arrival, kind: ArithmeticKind, alike: Job | None = None) -> Job:
    """The job as its preparer will make it; one that is `alike` but for its name has the same plan."""
    arithmetic = make_arithmetic(arrival, kind)
    if alike is not None:
        return replace(alike, arrival=arrival, arithmetic=arithmetic)
    plan = arithmetic.plan()
    return Job(arrival, arithmetic, plan, text(plan), plan.layout())


def make_arithmetic(arrival: Arrival, kind: ArithmeticKind) -> Arithmetic:
    work = arrival.workload
    match kind:
        case "proof":
            return ProofArithmetic(arrival.spec, work.samples, work.heldout)
        case "sizes":
            return SizesArithmetic(arrival.spec, work.samples, work.heldout, work.parameters, work.tokens_per_sample)
        case "real":
            from medley.runtimes.simulated.arithmetic.real import RealArithmetic  # torch: only where it is wanted

            return RealArithmetic(arrival.spec, work)
