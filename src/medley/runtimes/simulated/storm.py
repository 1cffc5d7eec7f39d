"""A whole run under seeded faults: a storm of deaths, then calm, in which the run must finish.

Each seed draws the job, the pool, and which kinds of fault happen how often (swarm testing): a fault that is always
there hides bugs that need its absence.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Literal

from medley.policies.devices import Device
from medley.protocol.conditions import Conditions
from medley.protocol.events import Expel
from medley.protocol.spec import Checkpoint, JobSpec, Optimizer, Placement, Sync, Train
from medley.runtimes.simulated.kernel import MS, S
from medley.runtimes.simulated.node import Node
from medley.runtimes.simulated.proof import ProofWatcher, check_export, check_fold
from medley.runtimes.simulated.setup import Arrival, Machine, Setup, Workload
from medley.runtimes.simulated.world import World

STORM_NS = 40 * S
DEADLINE_NS = 400 * S
CHANCES = {
    "crash": 0.01,
    "pull fails": 0.05,
    "push fails": 0.1,
    "compute fails": 0.005,
    "out of memory": 0.03,
    "not finite": 0.01,
    "write fails": 0.05,
    "seal fails": 0.05,
    "prepare fails": 0.3,
    "export fails": 0.3,
}


def draw_spec(random: Random) -> JobSpec:
    mode = random.choice(["sync", "async", "local-sgd"])
    deterministic = mode == "sync" and random.random() < 0.4
    schedule: Literal["plateau", "constant"] = "plateau" if deterministic and random.random() < 0.5 else "constant"
    return JobSpec(
        name="j",
        train=Train(
            epochs=random.choice([1.0, 1.0, 1.5, 2.0]),
            batch_samples=random.choice([1, 2, 3]),
            aggregation="sum",
            optimizer=Optimizer(
                kind="sgd", lr=1.0, schedule=schedule, plateau_patience=10**6, warmup_fraction=0.0, clip_norm=0.0
            ),
            sync=Sync(
                mode=mode,  # type: ignore[arg-type]
                local_steps=random.choice([1, 2, 4]) if mode == "local-sgd" else 1,
                slots=random.choice([2, 3]) if deterministic else random.choice([0, 0, 2, 4]),
                quorum=random.choice([0.5, 0.75, 1.0]),
                staleness_bound=random.choice([0, 1, 4]),
                staleness_adaptive=random.random() < 0.3,
                staleness_power=0.0,
                in_flight=random.choice([1, 2, 3]),
            ),
            deterministic=deterministic,
            eval_every_commits=random.choice([0, 3, 7]),
        ),
        placement=Placement(shards=random.choice([1, 2, 3]), replication=random.choice([1, 1, 2]), block_elements=4),
        checkpoint=Checkpoint(every_s=random.choice([1.0, 3.0, 10.0]), every_commits=random.choice([0, 0, 4]), keep=2),
    )


JOB = "j"
DEVICE = Device("sim", 1e12, 2**33, 1e11, 0, 0, 0, "invented")


def draw_setup(seed: int) -> Setup:
    random = Random(seed)
    spec = draw_spec(random)
    workload = Workload(random.randint(6, 80), random.choice([0, 4]))
    latency_ms = random.choice([1, 10, 100])
    link = Conditions(rtt_ms=latency_ms, jitter_ms=0.3 * latency_ms)
    machines = []
    for i in range(random.randint(2, 5)):
        kind = random.random()
        machines.append(Machine(f"n{i}", DEVICE, link, worker=i == 0 or kind < 0.8, shard=i < 2 or kind > 0.3))
    return Setup(tuple(machines), (Arrival(JOB, spec, workload),))


def draw_world(seed: int) -> World:
    return World(draw_setup(seed), seed=seed, watchers=[ProofWatcher()])


class Storm:
    """Faults by the rates that a seed drew, until the calm."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.kernel.random("storm")
        self.calm = False
        faults: list[Callable[[], None]] = [
            self._node,
            self._engine,
            self._coordinator,
            self._vault,
            self._link,
            self._hang,
            self._slow,
            self._damage,
            self._cancel,
            self._expel,
        ]
        for fault in faults:
            if self.random.random() < 0.5:
                self._again(fault, int(self.random.choice([2, 5, 15]) * S))
        for what, chance in CHANCES.items():
            if self.random.random() < 0.4:
                world.rates[what] = chance * self.random.choice([0.3, 1, 2])
        world.kernel.after(STORM_NS, self._end)

    def _again(self, fault: Callable[[], None], mean_ns: int) -> None:
        def strike() -> None:
            if not self.calm:
                self.world.happened[fault.__name__] += 1
                fault()
                self._again(fault, mean_ns)

        self.world.kernel.after(int(self.random.expovariate(1 / mean_ns)), strike)

    def _end(self) -> None:
        self.calm = True
        self.world.rates.clear()
        for node in self.world.nodes.values():
            node.start()
        self._watch()

    def _watch(self) -> None:
        """A person resumes what was stopped."""
        run = self.world.run_of(JOB)
        if self.world.coordinator is not None and run is None:
            self.world.submit(JOB)
        elif run is not None and run.state.state in ("failed", "cancelled"):
            self.world.resume(JOB)
        self.world.kernel.after(S, self._watch)

    # -- faults ---------------------------------------------------------------------------------------------------

    def _some_node(self) -> Node:
        return self.world.nodes[self.random.choice(sorted(self.world.nodes))]

    def _node(self) -> None:
        node = self._some_node()
        node.die()
        self.world.kernel.after(int(self.random.choice([50 * MS, 300 * MS, 2 * S, 9 * S])), node.start)

    def _engine(self) -> None:
        node = self._some_node()
        if node.roles:
            node.kill_engine(self.random.choice(sorted(node.roles)), "killed", self.random.random() < 0.2)

    def _coordinator(self) -> None:
        self.world.kill_coordinator()

    def _vault(self) -> None:
        self.world.kill_vault()

    def _link(self) -> None:
        stream = self.world.streams.get(self._some_node().name)
        if stream is not None:
            stream.cut()

    def _hang(self) -> None:
        for key, hosted in self._some_node().roles.items():
            if key[1] < 0 and hosted.engine is not None:
                hosted.engine.hung_ns = self.world.kernel.now  # type: ignore[union-attr]

    def _slow(self) -> None:
        slowness = self.random.choice([1.0, 5.0, 30.0])
        for key, hosted in self._some_node().roles.items():
            if key[1] < 0 and hosted.engine is not None:
                hosted.engine.slowness = slowness  # type: ignore[union-attr]

    def _damage(self) -> None:
        """The newest of several checkpoints, at rest."""
        kept, run = self.world.kept(JOB), self.world.run_of(JOB)
        if run is not None and len(run.state.checkpoints) > 1 and not kept.damaged:
            kept.damaged.add(run.state.checkpoints[-1].version)

    def _expel(self) -> None:
        """A machine beyond the two that a job needs is thrown out for good."""
        name = self.random.choice(sorted(self.world.nodes))
        if name not in ("n0", "n1") and self.random.random() < 0.3 and self.world.host is not None:
            self.world.host.handle(Expel(name, "its owner left"))

    def _cancel(self) -> None:
        run = self.world.run_of(JOB)
        if run is None:
            return
        if run.state.state in ("failed", "cancelled"):
            self.world.resume(JOB)
        elif self.random.random() < 0.3:
            self.world.cancel(JOB)


def weather(seed: int, *, faults: bool = True, trace: Path | None = None) -> World:
    """Run one seed to its end and check everything; raises AssertionError where something is wrong."""
    watcher = ProofWatcher()
    setup = draw_setup(seed)
    world = World(setup, seed=seed, trace=trace, watchers=[watcher])
    if faults:
        Storm(world)
    finished = world.run(DEADLINE_NS, lambda: world.states.get(JOB) == "done")
    world.trace.close()
    assert finished, f"not done after {world.kernel.now / S:.0f} s: {stuck(world)}"
    check_fold(world)
    arrival = setup.arrivals[0]
    check_export(world, watcher.of(JOB), JOB, arrival.spec, arrival.workload.samples)
    return world


def stuck(world: World) -> str:
    """What a run that does not finish looks like."""
    run = world.run_of(JOB)
    if run is None:
        return "no job"
    state = run.state
    return (
        f"{state.state} ({state.reason}) version {state.version} generation {state.generation}; "
        f"last: {[e.text for _, e in world.remarks if hasattr(e, 'text')][-3:]}"
    )
