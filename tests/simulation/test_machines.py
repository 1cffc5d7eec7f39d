"""Machines that come and go: who has left stays away, whatever was to happen to it later."""

from __future__ import annotations

from dataclasses import replace

from tests.simulation.worlds import fleet, setup

from medley.runtimes.simulated import facts as f
from medley.runtimes.simulated.faults.storm import Storm
from medley.runtimes.simulated.kernel import S
from medley.runtimes.simulated.world import World


def test_a_machine_that_is_taken_back_before_it_came_never_comes() -> None:
    first, second = fleet(2)
    heard: list[tuple[str, str]] = []
    machines = (first, replace(second, joins_ns=60 * S))
    world = World(setup(machines=machines), seed=1, observers=(lambda fact: _node(fact, heard),))
    world.run(30 * S)
    world.remove("n1", "left")
    world.run(120 * S)
    assert [state for node, state in heard if node == "n1"] == ["left"]


def test_a_machine_that_is_taken_away_while_it_is_down_does_not_start_again() -> None:
    heard: list[tuple[str, str]] = []
    world = World(setup(machines=fleet(2)), seed=1, observers=(lambda fact: _node(fact, heard),))
    world.run(5 * S)
    node = world.nodes["n1"]
    world.crash(node)
    world.remove("n1", "interrupted")
    world.run(60 * S)
    assert [state for name, state in heard if name == "n1"] == ["up", "down", "interrupted"]
    assert not node.alive


def test_faults_find_nobody_once_every_machine_has_left() -> None:
    world = World(setup(machines=tuple(replace(one, leaves_ns=S) for one in fleet(2))), seed=1)
    Storm(world, {"machine dies": 60.0, "pause": 60.0}, 60 * S)
    world.run(30 * S)
    assert not world.nodes


def _node(fact: f.Fact, heard: list[tuple[str, str]]) -> None:
    if isinstance(fact, f.NodeState):
        heard.append((fact.node, fact.state))
