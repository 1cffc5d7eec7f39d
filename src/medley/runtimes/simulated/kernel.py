"""A seeded world in which time is an integer of nanoseconds and everything happens in one total order.

Promises: calls happen in order of their time, equal times in order of asking; nothing is read from the machine's own
clock, from hashes or from the order of a set; each use of chance has a generator of its own, so that a new use in one
place does not move the others. Whoever acts for a reason sets `cause`; what is asked for meanwhile carries it.
"""

from __future__ import annotations

import gc
import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

MS = 1_000_000
S = 1_000 * MS
COLLECT_EVERY = 5_000  # new objects; Python's own habit, 700, costs a twentieth of a run and finds little


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Meanwhile garbage is looked for seldom: nearly all that a world leaves behind is in no cycle."""
    young, *older = gc.get_threshold()
    gc.set_threshold(max(young, COLLECT_EVERY) if young else 0, *older)
    try:
        yield
    finally:
        gc.set_threshold(young, *older)


class Kernel:
    """Calls what was asked for, in order of time, then of asking."""

    __slots__ = ("_asked", "_halted", "_queue", "_randoms", "cause", "now", "seed", "steps")

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0
        self.steps = 0
        self.cause = 0
        self._asked = 0
        self._halted = False
        self._queue: list[tuple[int, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._randoms: dict[str, Random] = {}

    def random(self, use: str) -> Random:
        """The generator of this use of chance, the same object each time."""
        found = self._randoms.get(use)
        if found is None:
            # A text as seed is hashed by SHA-512, the same everywhere.
            found = self._randoms[use] = Random(f"{self.seed} {use}")
        return found

    def after(self, delay_ns: int, call: Callable[..., None], *args: Any) -> None:
        """Call this so many nanoseconds from now; at once, but not before what is due already, for 0 or less."""
        self._asked = asked = self._asked + 1
        at_ns = self.now + delay_ns if delay_ns > 0 else self.now
        heapq.heappush(self._queue, (at_ns, asked, self.cause, call, args))

    def at(self, at_ns: int, call: Callable[..., None], *args: Any) -> None:
        """Call this then, or at once if that is over."""
        self._asked = asked = self._asked + 1
        heapq.heappush(self._queue, (at_ns if at_ns > self.now else self.now, asked, self.cause, call, args))

    def halt(self) -> None:
        """`run` returns after the present call."""
        self._halted = True

    def run(self, until_ns: int, stop: Callable[[], bool] | None = None) -> bool:
        """True once halted or once `stop` says so (asked after each call); False when the time is over or nothing is
        left to happen. Time stands at the last call then, or at `until_ns`.
        """
        queue, pop = self._queue, heapq.heappop
        self._halted = False
        while queue and queue[0][0] <= until_ns:
            self.now, _, self.cause, call, args = pop(queue)
            call(*args)
            self.steps += 1
            if self._halted or (stop is not None and stop()):
                return True
        self.now = max(self.now, until_ns)
        return stop is not None and stop()
