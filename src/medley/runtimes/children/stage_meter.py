"""What a stage says of itself once a second: written by the thread that computes, read by the others as it stands.

Every field is replaced whole, so a reader sees an older value at worst, and never waits for a computation.
"""

from __future__ import annotations

from collections import Counter

from medley.protocol.ids import NS_PER_S

WEIGHT = 0.2  # of the newest pass in the mean


class Meter:
    """`counters`: what was dropped, by reason."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.pass_s = 0.0
        self.queue = self.requests = self.kv_nbytes = self.shadow_nbytes = 0
        self._since_ns = 0  # of the pass that is computed; 0: none is
        self._total_ns = 0
        self._told_ns = self._told_total_ns = 0

    def begin(self, now_ns: int) -> None:
        self._since_ns = now_ns

    def end(self, now_ns: int) -> None:
        took_ns, self._since_ns = now_ns - self._since_ns, 0
        self._total_ns += took_ns
        took_s = took_ns / NS_PER_S
        self.pass_s = took_s if not self.pass_s else self.pass_s + WEIGHT * (took_s - self.pass_s)

    def busy_ns(self, now_ns: int) -> int:
        """How long the present pass has been computed."""
        since_ns = self._since_ns
        return max(1, now_ns - since_ns) if since_ns else 0

    def busy(self, now_ns: int) -> float:
        """The part of the time since the last question that was computed."""
        total_ns = self._total_ns + self.busy_ns(now_ns)
        span_ns, spent_ns = now_ns - self._told_ns, total_ns - self._told_total_ns
        self._told_ns, self._told_total_ns = now_ns, total_ns
        return max(0.0, min(1.0, spent_ns / span_ns)) if span_ns > 0 else 0.0
