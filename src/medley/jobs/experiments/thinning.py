"""Series of unknown length in bounded room: points thinned by powers of two, and time in bins that grow wider."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

BINS = 240
POINTS = 1500
Point = TypeVar("Point")


@dataclass(slots=True)
class Thinned(Generic[Point]):
    """Every k-th of many points and always the last; k doubles whenever there are too many."""

    most: int = POINTS
    every: int = 1
    seen: int = 0
    kept: list[Point] = field(default_factory=list)
    last: Point | None = None

    def add(self, point: Point) -> None:
        if self.seen % self.every == 0:
            self.kept.append(point)
        self.seen += 1
        self.last = point
        if len(self.kept) >= self.most:
            self.kept, self.every = self.kept[::2], self.every * 2

    def points(self) -> list[Point]:
        tail = [self.last] if self.last is not None and (self.seen - 1) % self.every else []
        return [*self.kept, *tail]


@dataclass(slots=True)
class Bins:
    """How long something went on in each bin of time, ns; the bins double in width when time runs past them."""

    width_ns: int = 1_000_000
    values: list[int] = field(default_factory=lambda: [0] * BINS)

    def add(self, start_ns: int, stop_ns: int) -> None:
        self.reach(stop_ns)
        first, last = start_ns // self.width_ns, (stop_ns - 1) // self.width_ns
        for index in range(first, last + 1):
            low, high = index * self.width_ns, (index + 1) * self.width_ns
            self.values[index] += min(high, stop_ns) - max(low, start_ns)

    def reach(self, at_ns: int) -> None:
        while at_ns > self.width_ns * BINS:
            pairs = zip(self.values[::2], self.values[1::2], strict=True)
            self.values = [one + other for one, other in pairs] + [0] * (BINS // 2)
            self.width_ns *= 2
