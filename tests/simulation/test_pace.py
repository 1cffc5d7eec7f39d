"""Machines become slow while they serve: layers move away and back, every token stays; what only wobbles moves none."""

from __future__ import annotations

from random import Random

from medley.policies.pipeline.describe import ModelShape, Wanted
from medley.protocol.stages.events import Asked
from medley.runtimes.simulated.kernel import MS, S
from medley.runtimes.simulated.serving.checkers import everything, finished
from medley.runtimes.simulated.serving.setup import Client, Host, ServingSetup, even
from medley.runtimes.simulated.serving.world import ServingWorld

MIB = 1 << 20
SHAPE = ModelShape("toy", 6, MIB, MIB, MIB, 64, 64)
WANTED = Wanted("throughput", kv_tokens=2048, process_nbytes=0)
ROOM = 6 * (MIB + 2048 * 64)  # three machines of it hold twice the model


def world(seconds: int) -> ServingWorld:
    """Three machines that are alike, and four who ask one thing after the other for so long."""
    hosts = tuple(Host(even(f"n{i}", 0.01, ROOM), load_bytes_per_s=1e8) for i in range(3))
    asked = [Asked(n, tuple(range(1, 6 + n % 7)), 40, frozenset(), draft=False) for n in range(1, seconds)]
    clients = tuple(Client((2 * S) + request.request * S, request) for request in asked)
    setup = ServingSetup(SHAPE, hosts, clients, WANTED, expected=3)
    return ServingWorld(setup, seed=3, watchers=everything(SHAPE.layers))


def layers(world: ServingWorld) -> dict[str, int]:
    return {hop.node: hop.end - hop.first for hop in world.front.role.pipelines[0].hops}


def go(world: ServingWorld, seconds: int) -> None:
    world.run(seconds * S)


def to_the_end(world: ServingWorld) -> None:
    """Every answer is whole, and nothing is held any more; the checkers look at each token on the way."""
    assert world.run(1000 * S, world.answered)
    world.run(world.kernel.now + 8 * S)
    finished(world)


def generations(world: ServingWorld) -> int:
    return world.front.role.pipelines[0].generation


def test_a_machine_that_becomes_slow_while_it_serves_loses_layers_and_no_token() -> None:
    here = world(50)
    here.start()
    go(here, 10)
    before = layers(here)
    victim = max(before, key=lambda name: before[name])
    here.slow(victim, 4.0)
    go(here, 50)
    assert layers(here).get(victim, 0) <= before[victim] // 2
    assert sum(layers(here).values()) == SHAPE.layers
    assert any("times as long as when it was measured" in text for _, text in here.remarks)
    assert here.front.role.pipelines[0].recomputed == 0
    to_the_end(here)


def test_one_that_is_fast_again_gets_layers_back() -> None:
    here = world(160)
    here.start()
    go(here, 10)
    victim = max(layers(here), key=lambda name: layers(here)[name])
    here.slow(victim, 20.0)
    go(here, 60)
    slow = layers(here).get(victim, 0)
    here.slow(victim, 1.0)
    go(here, 160)
    assert layers(here).get(victim, 0) > slow
    to_the_end(here)


def test_times_that_wobble_by_a_fifth_move_nothing() -> None:
    here = world(60)
    random = Random(5)

    def wobble() -> None:
        for name in here.machines:
            here.slow(name, random.uniform(0.8, 1.2))
        here.kernel.after(50 * MS, wobble)

    here.start()
    go(here, 10)
    began = generations(here), layers(here)
    wobble()
    go(here, 60)
    assert (generations(here), layers(here)) == began


def test_all_that_serve_being_slower_than_measured_is_no_reason_to_move_to_one_that_does_not() -> None:
    here = world(60)
    here.start()
    go(here, 10)
    began = layers(here)
    for name in began:
        here.slow(name, 1.45)
    go(here, 60)
    assert layers(here) == began
