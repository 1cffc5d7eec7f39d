"""A seeded world in which time is an integer of nanoseconds and everything happens in one total order."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

MS = 1_000_000
S = 1_000 * MS


class Kernel:
    """Calls what was asked for, in order of time, then of asking."""

    def __init__(self, seed: int) -> None:
        self.now = 0
        self.random = Random(seed)
        self.steps = 0
        self._asked = 0
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []

    def after(self, delay_ns: int, call: Callable[..., None], *args: Any) -> None:
        self._asked += 1
        heapq.heappush(self._queue, (self.now + max(0, int(delay_ns)), self._asked, call, args))

    def run(self, until_ns: int, done: Callable[[], bool]) -> bool:
        """True once `done`; False when the time is over or nothing is left to happen."""
        while self._queue and self._queue[0][0] <= until_ns:
            self.now, _, call, args = heapq.heappop(self._queue)
            call(*args)
            self.steps += 1
            if done():
                return True
        return done()
