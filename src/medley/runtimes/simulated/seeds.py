"""What one seed of a check came to."""

from __future__ import annotations

from dataclasses import dataclass

from medley.runtimes.simulated.coverage import Pair


@dataclass(frozen=True, slots=True)
class Seed:
    """`invariant` is empty where nothing was wrong. `serving`: that is about its serving, not its training."""

    seed: int
    digest: str
    virtual_s: float
    events: int
    met: dict[str, int]  # "fault/operation"
    invariant: str = ""
    sentence: str = ""
    serving: bool = False

    def pairs(self) -> dict[Pair, int]:
        return {_pair(name): times for name, times in self.met.items()}


def _pair(name: str) -> Pair:
    fault, _, operation = name.partition("/")
    return fault, operation
