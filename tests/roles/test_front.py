"""The front and its stages, end to end over a perfect network: every token is that of an undisturbed run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from medley.policies.pipeline.describe import ModelShape, Wanted
from medley.protocol.stages.events import Asked
from medley.runtimes.simulated.kernel import MS, S
from medley.runtimes.simulated.serving.setup import Client, Host, ServingSetup, even
from medley.runtimes.simulated.serving.text import POISON, reference
from medley.runtimes.simulated.serving.world import ServingWorld

SHAPE = ModelShape("toy", 6, 1 << 20, 1 << 20, 1 << 20, 64, 64)
PROMPT = (1, 2, 3, 4, 5, 6, 7, 1, 2, 3)


def asked(request: int, prompt: Sequence[int] = PROMPT, limit: int = 24, **options: object) -> Asked:
    return Asked(request, tuple(prompt), limit, options.pop("ends", frozenset()), **options)  # type: ignore[arg-type]


def setup(*clients: Client, hosts: int = 3, kv_tokens: int = 8 * 256, **options: object) -> ServingSetup:
    given = {
        "shape": SHAPE,
        "hosts": tuple(Host(even(f"n{i}", 0.001)) for i in range(hosts)),
        "clients": clients,
        "wanted": Wanted(kv_tokens=kv_tokens),
        "pins": "n0=2,n1=2,n2=2",
        "expected": hosts,
    }
    return ServingSetup(**{**given, **options})  # type: ignore[arg-type]


def served(given: ServingSetup, until_s: float = 60) -> ServingWorld:
    world = ServingWorld(given, seed=1)
    world.start()
    world.run(int(until_s * S), world.answered)
    return world


def right(world: ServingWorld) -> None:
    """Everybody has the tokens of the undisturbed run."""
    for answer in world.front.answers.values():
        assert answer.ended in ("stop", "length"), f"request {answer.asked.request}: {answer.ended!r}; {world.remarks}"
        assert answer.draws == reference(answer.asked, SHAPE.layers)


def test_one_request_over_three_stages() -> None:
    right(served(setup(Client(0, asked(1)))))


def test_one_machine_alone() -> None:
    right(served(setup(Client(0, asked(1)), hosts=1, pins="n0=6")))


def test_a_planned_layout() -> None:
    right(served(setup(Client(0, asked(1)), pins="")))


@pytest.mark.parametrize("draft", [True, False])
def test_several_requests_at_once(draft: bool) -> None:
    clients = [
        Client(5 * S + i * 7 * MS, asked(i, [1 + (i + k) % 7 for k in range(3 + 5 * i)], draft=draft))
        for i in range(1, 9)
    ]
    world = served(setup(*clients))
    right(world)


def test_sampled_requests_and_ends() -> None:
    clients = [
        Client(i * 50 * MS, asked(i, temperature=1.0, seed=i % 3, choice=i, limit=60, ends=frozenset({0})))
        for i in range(1, 7)
    ]
    right(served(setup(*clients)))


def test_a_long_prompt_goes_in_chunks_and_the_others_go_on() -> None:
    long = [1 + (i * i) % 7 for i in range(900)]
    world = served(setup(Client(0, asked(1, limit=200)), Client(6 * S, asked(2, long)), positions=2048))
    right(world)


def test_prefixes_are_copied_from_whoever_has_them() -> None:
    shared = [1 + (i * i) % 7 for i in range(80)]
    clients = [Client((5 + i) * S, asked(i, [*shared, i])) for i in range(1, 5)]
    world = served(setup(*clients))
    right(world)


def test_more_requests_than_there_is_room_for() -> None:
    clients = [Client(5 * S, asked(i)) for i in range(1, 8)]
    world = served(setup(*clients, kv_tokens=2 * 256))
    right(world)


def test_one_that_can_never_fit_fails_at_once() -> None:
    world = served(setup(Client(0, asked(1, limit=600)), kv_tokens=256))
    assert "this serving holds 256" in world.front.answers[1].ended


def test_a_client_that_leaves_frees_every_stage() -> None:
    clients = [Client(5 * S, asked(1, limit=200), leaves_ns=S), Client(5 * S, asked(2, limit=100))]
    world = served(setup(*clients))
    assert world.front.answers[1].ended == "left"
    assert world.front.answers[2].draws == reference(clients[1].asked, SHAPE.layers)


def test_numbers_that_are_not_finite_end_one_request_only() -> None:
    clients = [Client(5 * S, asked(1, limit=60)), Client(5 * S + 100 * MS, asked(2, seed=POISON))]
    world = served(setup(*clients))
    assert "not finite" in world.front.answers[2].ended
    assert world.front.answers[1].draws == reference(clients[0].asked, SHAPE.layers)


def test_nothing_is_held_when_everybody_has_left() -> None:
    clients = [Client(5 * S + i * MS, asked(i, limit=200), leaves_ns=S) for i in range(1, 8)]
    world = served(setup(*clients))
    assert any(answer.draws for answer in world.front.answers.values())
    world.run(world.kernel.now + 2 * S)
    assert {m.process.engine.kv_nbytes for m in world.machines.values() if m.process} == {0}


def begun(given: ServingSetup, tokens: int) -> ServingWorld:
    """A world in which the first request has so many tokens."""
    world = ServingWorld(given, seed=1)
    world.start()
    assert world.run(60 * S, lambda: 1 in world.front.answers and len(world.front.answers[1].draws) > tokens)
    return world


def said(world: ServingWorld, words: str) -> bool:
    return any(words in text for _, text in world.remarks)


def test_a_stage_that_dies_and_returns() -> None:
    world = begun(setup(Client(0, asked(1, limit=300))), 40)
    world.crash_engine("n1", "killed")
    world.run(120 * S, world.answered)
    right(world)
    assert said(world, "of the positions") or said(world, "positions are computed again")


@pytest.mark.parametrize("bits", [True, False])
def test_a_stage_that_dies_with_a_reserve(bits: bool) -> None:
    world = begun(setup(Client(0, asked(1, limit=300)), hosts=4, survive=1, bits=bits), 100)
    assert said(world, "in reserve")
    world.crash("n1", 0)
    world.run(120 * S, world.answered)
    right(world)
    assert said(world, "has layers 2 to 3 in reserve")


def test_a_stage_that_hangs_is_probed_suspected_and_started_again() -> None:
    world = begun(setup(Client(0, asked(1, limit=300))), 40)
    world.pause_engine("n1", 1000 * S)
    world.run(120 * S, world.answered)
    right(world)
    assert said(world, "n1 is gone (it does not answer)")


def hung_often(given: ServingSetup, times: int) -> ServingWorld:
    """Machines at work hang so many times, one after the other, and come back within seconds."""
    world = begun(given, 10)
    layouts = world.front.role.layouts
    for n in range(times):
        hops = layouts.pipelines[0].hops
        world.pause_engine(hops[n % len(hops)].node, 1000 * S)
        world.run(world.kernel.now + 15 * S)
        assert layouts.pipelines[0].state == "serving", n
    assert sum(view.suspicions for view in layouts.machines.known.values()) > times // 2
    return world


ONE_AFTER_ANOTHER = [Client(i * S, asked(i, limit=60)) for i in range(1, 400)]


def test_machines_that_hang_again_and_again_are_still_better_than_none() -> None:
    world = hung_often(setup(*ONE_AFTER_ANOTHER, hosts=4, survive=1), 24)
    layouts = world.front.role.layouts
    assert len(layouts.machines.usable(world.kernel.now)) < 2
    hops = {(hop.first, hop.end) for hop in layouts.pipelines[0].hops}
    assert {(part.first, part.end) for _, part in layouts.reserved} == hops
    world.run(world.kernel.now + 200 * S, world.answered)
    right(world)


def test_without_reserves_a_doubtful_machine_loads_its_layers_again() -> None:
    world = hung_often(setup(*ONE_AFTER_ANOTHER), 18)
    world.run(world.kernel.now + 200 * S, world.answered)
    right(world)


def test_a_doubtful_machine_that_was_never_measured_keeps_nobody_from_a_plan_of_the_others() -> None:
    world = begun(setup(Client(0, asked(1, limit=700)), hosts=4, pins="", positions=2048), 100)
    layouts, busy = world.front.role.layouts, world.front.role.pipelines[0].hops[0].node
    idle = next(view for view in layouts.machines.known.values() if view.node != busy)
    idle.measured, idle.distrusted_ns = None, 3600 * S
    world.crash(busy, 3600 * S)
    world.run(world.kernel.now + 200 * S, world.answered)
    right(world)


def test_a_machine_that_is_drained_moves_its_kv_away() -> None:
    world = begun(setup(Client(0, asked(1, limit=700)), pins="", positions=2048), 100)
    busy = world.front.role.pipelines[0].hops[0].node
    world.drain(busy)
    world.run(120 * S, world.answered)
    right(world)
    assert said(world, "nothing is computed again")


def test_a_faster_replica_gets_more_of_the_requests() -> None:
    clients = [Client(20 * S, asked(i, limit=40, draft=False)) for i in range(1, 11)]
    hosts = (Host(even("n0", 0.001)), Host(even("n1", 0.004)))
    wanted = Wanted("throughput", kv_tokens=16 * 256)
    world = served(replace(setup(*clients, hosts=2, pins="", wanted=wanted), hosts=hosts))
    right(world)
    told = {p.hops[0].node: p.emitted for p in world.front.role.pipelines}
    assert len(told) == 2
    assert told["n0"] >= 3 * told["n1"]
