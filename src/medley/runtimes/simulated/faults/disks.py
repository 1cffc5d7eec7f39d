"""Disks: no room, a write that the power interrupted, a bit that flipped."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING

from medley.runtimes.simulated.faults.deaths import RECORDS
from medley.runtimes.simulated.faults.fault import Fault
from medley.runtimes.simulated.kernel import MS, S

if TYPE_CHECKING:
    from medley.runtimes.simulated.faults.storm import Storm

FULL_NS = (200 * MS, S, 4 * S)


def _fill(storm: Storm, rate: float) -> None:
    """Parts, seals and the preparers' files fail one by one; the log's disk is full for a while."""

    def strike(storm: Storm, random: Random) -> Iterator[str]:
        disk = storm.world.disk
        disk.full = True
        storm.world.kernel.after(int(random.choice(FULL_NS)), setattr, disk, "full", False)
        yield "log"

    storm.often("full disk", 40 * rate, strike)


def _flip(storm: Storm, rate: float) -> None:
    """The newest of several checkpoints, at rest: its digest does not match any more."""

    def strike(storm: Storm, random: Random) -> Iterator[str]:
        coordinator = storm.world.coordinator
        if coordinator is None:
            return
        for job, run in sorted(coordinator.runs.items()):
            kept = storm.world.kept(job)
            if len(run.state.checkpoints) > 1 and not kept.damaged:
                kept.damaged.add(run.state.checkpoints[-1].version)
                yield "checkpoint"

    storm.often("bit flip", rate, strike)


FAULTS = (
    Fault(
        "torn write",
        "the power fails during a write to the log: the transaction is gone as a whole, and its writer with it",
        (0.001, 0.02),
        "of the operations",
        RECORDS,
        chances={"torn write": 1.0},
    ),
    Fault(
        "full disk",
        "no room for the log (for 0.2 to 4 s), a checkpoint's part, its seal, what a preparer writes or exports",
        (0.02, 0.15),
        "of the operations",
        ("log", "write part", "seal", "prepare", "export"),
        _fill,
        chances={"write fails": 1.0, "seal fails": 1.0, "prepare fails": 3.0, "export fails": 3.0},
    ),
    Fault(
        "bit flip",
        "a bit of the newest checkpoint changes at rest",
        (2, 20),
        "strikes a minute",
        ("checkpoint",),
        _flip,
    ),
)
