"""The only place in Medley that reads a clock.

Everything else is told the time: roles receive `now_ns` with each event, engines and stores receive a `Clock`
or a function. A test or the simulated runtime passes its own clock, and nothing notices.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Two readings that must not be mixed: one for durations, one for people."""

    def now_ns(self) -> int:
        """Nanoseconds on a monotonic scale whose zero means nothing; for durations and deadlines."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch; may jump, so only for records that people read."""
        ...


class SystemClock:
    """The machine's own clocks."""

    __slots__ = ()

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        """Let time pass: for a host's ticks and a supervisor's backoff, never to wait for a condition."""
        await asyncio.sleep(seconds)
