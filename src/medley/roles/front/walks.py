"""Probes that walk the hops of a pipeline: who is there, how long answers take, who is silent when a batch is late.

One walks every second while answers are under way, so that it is known how long an answer takes here and now, on busy
machines and long links; what then counts as silence follows from that, never from a constant alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from medley.protocol.ids import NS_PER_MS, NS_PER_S
from medley.protocol.stages.words import Hop

FLOOR_NS = 300 * NS_PER_MS
TIMES = 6.0  # what others took
EVERY_NS = NS_PER_S
FORGET_NS = 5 * NS_PER_S
WEIGHT = 0.3


@dataclass(slots=True)
class Walk:
    """`late`: a batch is missed, so who does not answer is suspected. `alive`: place -> for how long it computes."""

    number: int
    since_ns: int
    late: bool
    alive: dict[int, int] = field(default_factory=dict)


class Walks:
    """Of one generation: a new layout begins anew, and keeps what answers took."""

    def __init__(self) -> None:
        self.round_ns = 0.0  # of the slowest answer, on average
        self.now: Walk | None = None
        self._last_ns = 0

    def stop(self) -> None:
        self.now = None

    def wanted(self, late: bool, hops: int, now_ns: int) -> bool:
        """Whether a new one should begin; one under way whose answers are missing will do."""
        walk = self.now
        if walk is None:
            return late or now_ns - self._last_ns >= EVERY_NS
        if len(walk.alive) == hops:
            return not walk.late and (late or now_ns - walk.since_ns >= EVERY_NS)
        walk.late = walk.late or late
        return not walk.late and now_ns - walk.since_ns > FORGET_NS

    def begin(self, number: int, late: bool, now_ns: int) -> None:
        self.now, self._last_ns = Walk(number, now_ns, late), now_ns

    def answered(self, number: int, place: int, busy_ns: int, now_ns: int) -> None:
        walk = self.now
        if walk is None or walk.number != number or place in walk.alive:
            return
        walk.alive[place] = busy_ns
        took_ns = now_ns - walk.since_ns
        self.round_ns = took_ns if not self.round_ns else self.round_ns + WEIGHT * (took_ns - self.round_ns)

    def limit_ns(self) -> int:
        return int(max(FLOOR_NS, TIMES * self.round_ns))

    def over(self, now_ns: int) -> Walk | None:
        """A late one that has waited long enough; it ends with this."""
        walk = self.now
        if walk is None or not walk.late or now_ns - walk.since_ns < self.limit_ns():
            return None
        self.now = None
        return walk


def silent(walk: Walk, hops: Sequence[Hop]) -> Hop | None:
    """The first one that did not answer: it is gone, or cut off from the one before it."""
    return next((hop for hop in hops if hop.place not in walk.alive), None)
