"""What the world of a seed consists of: its jobs, its machines, their links. Small, because a small world meets as many
boundaries as a large one, in a hundredth of the time.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Literal

from medley.policies.devices import DEVICES
from medley.policies.scheduling.names import NAMES as SCHEDULERS
from medley.protocol.conditions import PRESETS, Conditions
from medley.protocol.spec import Checkpoint, JobSpec, Optimizer, Placement, Sync, Train
from medley.runtimes.simulated.kernel import S
from medley.runtimes.simulated.setup import Arrival, Machine, Setup, Workload

NEVER = 10**6
ONE_WAY_MS = (1, 10, 100)  # of the links of a world where no preset is drawn
HOSTILE = ("checkpoint", "measurement", "coordinator.1")
SURE = ("n0", "n1")  # machines that every job may count on in the calm: a worker and a shard, and a second shard


def draw_setup(seed: int) -> Setup:
    """The world of this seed, always the same."""
    random = Random(f"{seed} world")
    machines = _machines(random)
    jobs = 1 if random.random() < 0.75 else 2
    arrivals = tuple(_arrival(random, f"j{i}" if i else "j", i) for i in range(jobs))
    if jobs == 1:
        return Setup(machines, arrivals, scheduler="fifo")
    workers = random.randint(1, sum(machine.worker for machine in machines[: len(SURE)]))
    return Setup(machines, tuple(_needing(one, workers) for one in arrivals), scheduler=random.choice(SCHEDULERS))


def _needing(arrival: Arrival, workers: int) -> Arrival:
    """So many machines at least: what others hold, it waits for or takes."""
    schedule = replace(arrival.spec.schedule, workers_min=workers)
    return replace(arrival, spec=replace(arrival.spec, schedule=schedule))


def _machines(random: Random) -> tuple[Machine, ...]:
    link = Conditions(rtt_ms=float(random.choice(ONE_WAY_MS)))
    if random.random() < 0.25:
        link = PRESETS[random.choice(["cellular", "good", "satellite"])]
    machines = []
    others = HOSTILE if random.random() < 0.1 else ()  # names that somebody could choose
    for i in range(random.randint(2, 5)):
        kind = random.random()
        machines.append(
            Machine(
                name=others[i - 2] if 2 <= i < 2 + len(others) else f"n{i}",
                device=DEVICES["cloud-2vcpu"],
                conditions=link,
                worker=i == 0 or kind < 0.8,
                shard=i < len(SURE) or kind > 0.3,
            )
        )
    return tuple(machines)


def _arrival(random: Random, name: str, number: int) -> Arrival:
    size = random.randint(6, 60) if number == 0 else random.randint(4, 20)
    work = Workload(samples=size, heldout=random.choice([0, 4]), tokens_per_sample=10)
    return Arrival(name, draw_spec(random, name), work, at_ns=int(number * random.random() * 20 * S))


def draw_spec(random: Random, name: str = "j") -> JobSpec:
    """A job of the integer proof: sums, plain SGD; a rate that a plateau halves stays exact."""
    mode: Literal["sync", "async", "local-sgd"] = random.choice(["sync", "async", "local-sgd"])
    deterministic = mode == "sync" and random.random() < 0.4
    plateau = mode != "local-sgd" and random.random() < 0.4
    every = random.choice([1, 3]) if plateau else random.choice([0, 3, 7])
    return JobSpec(
        name=name,
        train=Train(
            epochs=random.choice([1.0, 1.0, 1.5, 2.0]),
            batch_samples=random.choice([1, 2, 3]),
            aggregation="sum",
            optimizer=Optimizer(
                kind="sgd",
                lr=1.0,
                schedule="plateau" if plateau else "constant",
                plateau_patience=random.choice([1, 2]) if plateau else NEVER,
                min_lr_fraction=0.125,
                warmup_fraction=0.0,
                clip_norm=0.0,
            ),
            sync=_sync(random, mode, deterministic),
            deterministic=deterministic,
            eval_every_commits=every,
        ),
        placement=Placement(shards=random.choice([1, 2, 3]), replication=random.choice([1, 1, 2]), block_elements=4),
        checkpoint=Checkpoint(every_s=random.choice([1.0, 3.0, 10.0]), every_commits=random.choice([0, 0, 4]), keep=2),
    )


def _sync(random: Random, mode: Literal["sync", "async", "local-sgd"], deterministic: bool) -> Sync:
    sync = Sync(
        mode=mode,
        local_steps=random.choice([1, 2, 4]) if mode == "local-sgd" else 1,
        slots=random.choice([2, 3]) if deterministic else random.choice([0, 0, 2, 4]),
        quorum=random.choice([0.5, 0.75, 1.0]),
        staleness_bound=random.choice([0, 1, 4]),
        staleness_adaptive=random.random() < 0.3,
        staleness_power=random.choice([0.0, 1.0]),
        in_flight=random.choice([1, 2, 3]),
    )
    return replace(sync, backups=sync.in_flight - 1) if mode == "sync" else sync  # there the one drawn means nothing
