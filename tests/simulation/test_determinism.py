"""One seed is one history: in one process, in another one, whatever the hashes of strings are there."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from tests.simulation.worlds import digests, fleet, run, setup, spec

from medley.runtimes.simulated.facts import Fact
from medley.runtimes.simulated.kernel import S
from medley.runtimes.simulated.setup import Arrival, Workload
from medley.runtimes.simulated.world import World

ROOT = Path(__file__).parents[2]
SEEDS = range(20, 26)


def elsewhere(hash_seed: str) -> str:
    code = f"from tests.simulation.worlds import digests; print(digests({SEEDS!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def test_the_same_seed_in_two_processes_with_different_hash_seeds() -> None:
    here = digests(SEEDS)
    assert len(set(here.split())) == len(SEEDS), "different seeds are different histories"
    assert elsewhere("1") == here
    assert elsewhere("2") == here


def test_observers_change_nothing_and_hear_the_whole_story() -> None:
    told: list[Fact] = []
    heard = run(9, observers=[told.append])
    assert heard.digest() == run(9).digest()
    kinds = {type(fact).__name__ for fact in told}
    assert {"Committed", "Busy", "Moved", "JobState", "NodeState", "Decided"} <= kinds
    assert all(a.at_ns <= b.at_ns for a, b in pairwise(told))


def test_two_jobs_of_one_world_are_both_done() -> None:
    arrivals = (Arrival("a", spec("sync", "a"), Workload(20)), Arrival("b", spec("async", "b"), Workload(10), at_ns=S))
    world = World(setup(arrivals=arrivals), seed=3)
    assert world.run(120 * S, world.is_over)
    assert world.states == {"a": "done", "b": "done"}


def test_machines_come_and_go_at_their_times() -> None:

    stays, late, leaves = fleet(3)
    machines = (stays, replace(late, joins_ns=2 * S), replace(leaves, leaves_ns=S))
    told: list[Fact] = []
    world = World(setup(machines=machines), seed=3, observers=[told.append])
    world.run(30 * S, world.is_over)
    states = [(f.node, f.state, f.at_ns // S) for f in told if type(f).__name__ == "NodeState"]
    assert ("n1", "up", 2) in states
    assert ("n2", "left", 1) in states
    assert world.states == {"j": "done"}
    assert "n2" not in world.nodes
