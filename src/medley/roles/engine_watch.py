"""Whether a worker's engine will ever answer: judged by what it does, not by how long a lease takes.

An engine that says that it moves may take as long as it likes. Leaves to the role what follows when it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from medley.protocol.ids import NS_PER_S

FUTILE_NS = 60 * NS_PER_S  # an engine that still computes what was taken back so long ago hangs
STILL_NS = 300 * NS_PER_S  # ... or one that has not done one micro-batch of what it computes for so long
MEASURING_NS = 900 * NS_PER_S  # and so does one that measures for so long


@dataclass(slots=True)
class EngineWatch:
    futile_ns: int = 0  # when the lease at hand was taken back
    measuring_ns: int = 0  # when measuring began
    done: int = -1  # what the engine has done, as it says itself
    moved_ns: int = 0  # when that last changed; 0 until the engine says how far it is

    def begun(self) -> None:
        """It computes something that is wanted."""
        self.futile_ns = 0

    def taken_back(self, now_ns: int) -> None:
        """What it computes is not wanted any more."""
        self.futile_ns = now_ns

    def says(self, done: int, computing: bool, now_ns: int) -> None:
        if done != self.done or not computing:
            self.done, self.moved_ns = done, now_ns

    def hangs(self, phase: str, now_ns: int) -> bool:
        if phase == "measuring":
            self.measuring_ns = self.measuring_ns or now_ns
            return now_ns - self.measuring_ns > MEASURING_NS
        self.measuring_ns = 0
        futile = self.futile_ns > 0 and now_ns - self.futile_ns > FUTILE_NS
        still = self.moved_ns > 0 and now_ns - self.moved_ns > STILL_NS
        return phase == "computing" and (futile or still)
