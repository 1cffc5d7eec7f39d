"""How long an engine's work takes, in virtual nanoseconds: reckoned from a described device (`policies.costs`), or
invented for the proof, where only the order of things matters and chance should mix it well.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Protocol

from medley.policies import costs
from medley.policies.devices import Device
from medley.protocol.plan import Plan
from medley.protocol.spec import Train
from medley.runtimes.simulated.kernel import MS
from medley.runtimes.simulated.setup import Workload

OPEN_WORKER_NS = 1_500 * MS  # a process of Python with torch
OPEN_SHARD_NS = 1_000 * MS
SPREAD = 0.04  # relative standard deviation of repeated work on one machine


class Durations(Protocol):
    """Of one engine of one job on one machine. `slowness` multiplies what it computes."""

    def open_ns(self) -> int: ...

    def build_ns(self) -> int:
        """A worker's model, once its data is there."""

    def compute_ns(self, samples: int, steps: int, slowness: float) -> int: ...

    def measure_ns(self, samples: int, slowness: float) -> int: ...

    def stage_ns(self, elements: int) -> int: ...

    def apply_ns(self, elements: int, members: int) -> int: ...

    def disk_ns(self, nbytes: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Invented:
    """Around 100 ms a sample, as the storms have it."""

    random: Random

    def _jitter(self, mean_ns: int) -> int:
        return int(mean_ns * (0.5 + self.random.random()))

    def open_ns(self) -> int:
        return self._jitter(20 * MS)

    def build_ns(self) -> int:
        return self._jitter(50 * MS)

    def compute_ns(self, samples: int, steps: int, slowness: float) -> int:
        return self._jitter(int(50 * MS * samples * slowness))

    def measure_ns(self, samples: int, slowness: float) -> int:
        return self._jitter(200 * MS)

    def stage_ns(self, elements: int) -> int:
        return self._jitter(MS)

    def apply_ns(self, elements: int, members: int) -> int:
        return self._jitter(3 * MS)

    def disk_ns(self, nbytes: int) -> int:
        return self._jitter(80 * MS)


@dataclass(frozen=True, slots=True)
class Charged:
    """What a device takes, varied a little from time to time as real machines do."""

    device: Device
    size: costs.Size
    train: Train
    random: Random
    shard: bool

    def _varied(self, mean_ns: int) -> int:
        return int(mean_ns * max(0.5, 1.0 + SPREAD * self.random.gauss(0.0, 1.0)))

    def open_ns(self) -> int:
        return self._varied(OPEN_SHARD_NS if self.shard else OPEN_WORKER_NS)

    def build_ns(self) -> int:
        nbytes = self.size.every_parameter * self.size.compute_nbytes
        return self._varied(costs.checkpoint_ns(self.device, nbytes) + costs.LEASE_NS)

    def compute_ns(self, samples: int, steps: int, slowness: float) -> int:
        return self._varied(costs.lease_ns(self.device, self.size, self.train, samples, steps, slowness))

    def measure_ns(self, samples: int, slowness: float) -> int:
        return self._varied(costs.measure_ns(self.device, self.size, samples, slowness))

    def stage_ns(self, elements: int) -> int:
        return costs.stage_ns(self.device, elements, self.train.compression)

    def apply_ns(self, elements: int, members: int) -> int:
        return costs.apply_ns(self.device, elements, members, self.train)

    def disk_ns(self, nbytes: int) -> int:
        return self._varied(costs.checkpoint_ns(self.device, nbytes))


def charged(device: Device, plan: Plan, workload: Workload, random: Random, *, shard: bool) -> Charged:
    """For an engine of this job on this device."""
    parameters = workload.parameters or plan.layout().numel
    size = costs.size_of(plan.spec, parameters, workload.frozen_parameters, workload.tokens_per_sample, device)
    return Charged(device, size, plan.spec.train, random, shard)
