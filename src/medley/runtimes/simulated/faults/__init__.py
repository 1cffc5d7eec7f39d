"""Faults by name: each with the rates that a seed draws from, and the operations that it must meet."""

from __future__ import annotations

from medley.runtimes.simulated.coverage import Pair
from medley.runtimes.simulated.faults import clocks, deaths, disks, links, peers
from medley.runtimes.simulated.faults.fault import Fault

FAULTS: dict[str, Fault] = {
    fault.name: fault for room in (deaths, disks, links, clocks, peers) for fault in room.FAULTS
}
BY_CHANCE: dict[str, tuple[str, float]] = {
    chance: (fault.name, factor) for fault in FAULTS.values() for chance, factor in fault.chances.items()
}


def required() -> list[Pair]:
    """Every pair of fault and operation that a check of many seeds must meet."""
    return [(fault.name, operation) for fault in FAULTS.values() for operation in fault.meets]
