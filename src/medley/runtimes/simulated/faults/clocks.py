"""Clocks of machines: an hour off, five per cent fast or slow, set back while everything runs."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING

from medley.runtimes.simulated.faults.fault import Fault
from medley.runtimes.simulated.kernel import S

if TYPE_CHECKING:
    from medley.runtimes.simulated.faults.storm import Storm

HOUR_NS = 3600 * S
DRIFT = 0.05


def _skew(storm: Storm, rate: float) -> None:
    """From the beginning: each machine's clock has its own idea."""
    random = storm.random("clock skew")
    for node in storm.world.nodes.values():
        if random.random() < rate:
            node.clock.skew_ns = random.randint(0, HOUR_NS)
            node.clock.drift = random.uniform(-DRIFT, DRIFT)
            storm.strike("clock skew", "machine")
    if random.random() < rate:
        storm.world.clock.skew_ns = random.randint(0, HOUR_NS)
        storm.world.clock.drift = random.uniform(-DRIFT, DRIFT)
        storm.strike("clock skew", "coordinator")


def _jump(storm: Storm, rate: float) -> None:
    """Somebody sets the coordinator's clock: what people read jumps, what measures durations does not."""

    def strike(storm: Storm, random: Random) -> Iterator[str]:
        jump_ns = random.randint(-HOUR_NS, HOUR_NS)
        storm.world.clock.wall_skew_ns += jump_ns
        yield "backward" if jump_ns < 0 else "forward"

    storm.often("clock jump", rate, strike)


FAULTS = (
    Fault(
        "clock skew",
        "clocks are up to an hour ahead, and up to 5 % fast or slow",
        (0.3, 1.0),
        "once",
        ("machine", "coordinator"),
        _skew,
    ),
    Fault(
        "clock jump",
        "the coordinator's wall clock is set forward or back by up to an hour",
        (2, 20),
        "strikes a minute",
        ("forward", "backward"),
        _jump,
    ),
)
