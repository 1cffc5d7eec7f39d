"""One run's world, hosted until its jobs are over or its time is, and what a tally made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medley.jobs.experiments.fleet import setup_of
from medley.jobs.experiments.runs import seed_of
from medley.jobs.experiments.scaling import Scaler
from medley.jobs.experiments.spec import Experiment
from medley.jobs.experiments.tally import Tally
from medley.protocol.ids import NS_PER_S
from medley.runtimes.clock import SystemClock
from medley.runtimes.simulated.faults.storm import Storm
from medley.runtimes.simulated.setup import Setup
from medley.runtimes.simulated.world import World

SLICES = 400  # of the time limit, at least: after each, progress is told
SLICE_S = 30.0  # virtual, at most
LOSSES = ("train_loss", "final_loss", "best_loss", "accuracy")
TELL_NS = NS_PER_S  # on this computer's clock, between two words of progress


def simulate(
    experiment: Experiment, repeat: int, progress: Callable[[float], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Row and curves. The same experiment and repeat give the same world, to the last event."""
    setup = setup_of(experiment, repeat)
    tally = Tally(setup, experiment.target_loss)
    clock = SystemClock()
    began_ns = told_ns = clock.now_ns()
    until_ns = int(experiment.until_s * NS_PER_S)
    world = _world(experiment, setup, tally, repeat)
    if experiment.faults:
        Storm(world, dict(experiment.faults), until_ns + 1)
    slice_ns = int(min(SLICE_S, experiment.until_s / SLICES) * NS_PER_S)
    while not world.is_over() and world.kernel.now < until_ns:
        world.run(min(world.kernel.now + slice_ns, until_ns), world.is_over)
        if clock.now_ns() - told_ns >= TELL_NS:
            told_ns = clock.now_ns()
            progress(world.kernel.now / NS_PER_S)
    row, curves = tally.outcome(world.kernel.now)
    if experiment.engine != "real":
        row |= dict.fromkeys(LOSSES)  # stand-ins, which must not be read as results
    row |= {"events": world.kernel.steps, "wall_s": (clock.now_ns() - began_ns) / NS_PER_S, "digest": world.digest()}
    return row, curves.plain()


def _world(experiment: Experiment, setup: Setup, tally: Tally, repeat: int) -> World:
    """Started; with its autoscaler where it has one."""
    seed = seed_of(experiment.seed, repeat)
    if not experiment.autoscaling.max_nodes:
        world = World(setup, seed=seed, observers=[tally.note])
        world.start()
        return world
    scaler = Scaler(experiment, setup, tally.expect)
    world = World(setup, seed=seed, observers=[scaler.note, tally.note])
    world.start()
    scaler.begin(world)
    return world
