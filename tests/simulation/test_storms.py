"""Whole runs, from a seed each, with real roles and a modelled world: safety in the storm, completion in the calm."""

from __future__ import annotations

import pytest

from medley.protocol.spec import Checkpoint, JobSpec, Optimizer, Placement, Sync, Train
from medley.runtimes.simulated.kernel import S
from medley.runtimes.simulated.proof import ProofWatcher, check_export, check_fold
from medley.runtimes.simulated.setup import Arrival, Machine, Setup, Workload
from medley.runtimes.simulated.storm import DEVICE, JOB, weather
from medley.runtimes.simulated.world import World

# Seeds that once found something, and what.
REGRESSIONS = {
    0: "a carry was counted with an update whose computation had begun before it",
    2: "deterministic: fewer workers than slots waited for each other",
    3: "a late lease of an earlier round hid the present one",
    7: "an engine that was replaced while its shard loaded was taken for a loaded one",
    13: "a pull that failed for ever left its version pinned and everybody waiting",
    17: "a run that was finishing exported what a rollback had taken away",
    36: "hosts that never came back after the coordinator restarted were waited for",
    96: "a computation of an earlier generation ran after the reset",
    97: "an engine that loaded after a rollback pulled in the generation it was opened in",
}
BLOCKS = [range(start, start + 10) for start in range(1000, 1120, 10)]


@pytest.mark.parametrize("mode", ["sync", "async", "local-sgd"])
@pytest.mark.parametrize("replication", [1, 2])
def test_every_sample_is_used_once_where_nothing_fails(mode: str, replication: int) -> None:
    spec = JobSpec(
        train=Train(
            batch_samples=2,
            aggregation="sum",
            optimizer=Optimizer(kind="sgd", lr=1.0, schedule="constant", warmup_fraction=0.0, clip_norm=0.0),
            sync=Sync(mode=mode, local_steps=2 if mode == "local-sgd" else 1, staleness_power=0.0),  # type: ignore[arg-type]
        ),
        placement=Placement(shards=2, replication=replication, block_elements=4),  # type: ignore[arg-type]
        checkpoint=Checkpoint(every_s=2.0),
    )
    machines = tuple(Machine(f"n{i}", DEVICE, worker=i < 3, shard=i >= 1) for i in range(4))
    watcher = ProofWatcher()
    world = World(Setup(machines, (Arrival(JOB, spec, Workload(40)),)), seed=1, watchers=[watcher])
    assert world.run(60 * S, world.is_over)
    check_fold(world)
    check_export(world, watcher.of(JOB), JOB, spec, 40)
    assert watcher.of(JOB).rollbacks == 0


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_regressions(seed: int) -> None:
    weather(seed)


@pytest.mark.parametrize("seeds", BLOCKS, ids=lambda r: f"{r.start}-{r.stop - 1}")
def test_storms(seeds: range) -> None:
    for seed in seeds:
        try:
            weather(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_one_seed_is_one_history() -> None:
    first, second = weather(7), weather(7)
    assert first.digest() == second.digest()
    assert first.disk.read() == second.disk.read()


@pytest.mark.slow
@pytest.mark.parametrize("block", range(40))
def test_thousands_of_storms(block: int) -> None:
    for seed in range(2000 + 50 * block, 2050 + 50 * block):
        try:
            weather(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
