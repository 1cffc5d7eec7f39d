"""Small worlds that the tests of the simulated runtime share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medley.policies.devices import Device
from medley.protocol.conditions import Conditions
from medley.protocol.spec import Checkpoint, JobSpec, Optimizer, Placement, Sync, Train
from medley.runtimes.simulated.kernel import S
from medley.runtimes.simulated.setup import Arrival, Machine, Setup, Workload
from medley.runtimes.simulated.world import World

DEVICE = Device("sim", 1e12, 1 << 33, 1e11, 0, 0, 0, "invented")
LINK = Conditions(rtt_ms=20, jitter_ms=5, loss=0.01)
FAULTS = {"crash": 0.003, "push fails": 0.05, "pull fails": 0.05, "out of memory": 0.02, "node crash": 0.002}


def spec(mode: str = "async", name: str = "j", **train: Any) -> JobSpec:
    """A job of the integer proof."""
    sync = Sync(mode=mode, local_steps=2 if mode == "local-sgd" else 1, staleness_power=0.0)  # type: ignore[arg-type]
    optimizer = Optimizer(kind="sgd", lr=1.0, schedule="constant", warmup_fraction=0.0, clip_norm=0.0)
    options = {"batch_samples": 2, "aggregation": "sum", "optimizer": optimizer, "sync": sync} | train
    return JobSpec(
        name=name,
        train=Train(**options),
        placement=Placement(shards=2, block_elements=4),
        checkpoint=Checkpoint(every_s=2.0),
    )


def fleet(count: int = 4, conditions: Conditions = LINK) -> tuple[Machine, ...]:
    return tuple(Machine(f"n{i}", DEVICE, conditions) for i in range(count))


def setup(**options: Any) -> Setup:
    given = {"machines": fleet(), "arrivals": (Arrival("j", spec(), Workload(30)),)} | options
    return Setup(**given)


def run(seed: int, *, trace: Path | None = None, faults: bool = True, until_s: float = 60, **options: Any) -> World:
    """A world with a few faults until its job is done, or for so long."""
    world = World(setup(), seed=seed, trace=trace, **options)
    if faults:
        world.rates.update(FAULTS)
    world.run(int(until_s * S), world.is_over)
    world.trace.close()
    return world


def digests(seeds: range) -> str:
    """One word a seed, for comparing processes."""
    return " ".join(run(seed).digest() for seed in seeds)
