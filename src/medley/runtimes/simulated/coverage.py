"""Which fault met which operation. A check whose faults missed what they must meet says nothing, so it is not green."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Pair = tuple[str, str]  # fault, operation
ENOUGH = 1000  # seeds, from which on a pair that was missed counts against a run


@dataclass(slots=True)
class Coverage:
    """How often each pair happened, over all seeds."""

    met: dict[Pair, int] = field(default_factory=dict)

    def add(self, met: Mapping[Pair, int]) -> None:
        for pair, times in met.items():
            self.met[pair] = self.met.get(pair, 0) + times

    def uncovered(self, required: Iterable[Pair]) -> list[Pair]:
        return sorted(pair for pair in required if not self.met.get(pair))

    def table(self, required: Iterable[Pair]) -> list[str]:
        """One line a fault: every operation that it met or should have met, and how often."""
        wanted = set(required)
        faults: dict[str, list[str]] = {}
        for fault, operation in sorted({*self.met, *wanted}):
            times = self.met.get((fault, operation), 0)
            mark = "!" if not times and (fault, operation) in wanted else ""
            faults.setdefault(fault, []).append(f"{mark}{operation} {times}")
        width = max((len(fault) for fault in faults), default=0)
        return [f"{fault:{width}}  {', '.join(operations)}" for fault, operations in faults.items()]
