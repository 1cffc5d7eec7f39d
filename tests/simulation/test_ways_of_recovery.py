"""Each way in which a serving recovers, forced fifty times at other moments: it was that way, and no token was lost.

The checkers compare every token with the undisturbed text, and look that nothing is held at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

import pytest

from medley.policies.pipeline.describe import ModelShape, Wanted
from medley.protocol.stages.events import Asked
from medley.runtimes.simulated.kernel import MS, S
from medley.runtimes.simulated.serving.checkers import everything, finished
from medley.runtimes.simulated.serving.setup import Client, Host, ServingSetup, even
from medley.runtimes.simulated.serving.world import ServingWorld

MIB = 1 << 20
SHAPE = ModelShape("toy", 6, MIB, MIB, MIB, 64, 64)
TIMES = pytest.mark.parametrize(
    "times", [range(5), pytest.param(range(5, 50), marks=pytest.mark.slow)], ids=["5", "50"]
)
PINS = "n0=2,n1=2,n2=2"
COMPUTED_AGAIN = r"go on after .*, (\d+) of \d+ positions are computed again"
NOTHING_AGAIN = r"go on after .*, nothing is computed again"


def serving(time: int, *, survive: int = 0, machines: int = 4) -> ServingWorld:
    """Three machines that serve, one that is spare, and four answers of 80 tokens, sampled and greedy."""
    room = 1 << 40 if survive else 2 * (MIB + 2048 * 64) + 2 * MIB  # without reserves: for two layers, and both ends
    hosts = tuple(Host(even(f"n{i}", 0.01, room), load_bytes_per_s=1e8) for i in range(machines))
    asked = [Asked(n, tuple(range(1, 20 + n)), 80, frozenset(), n % 2 * 0.9, seed=n, draft=False) for n in range(1, 5)]
    clients = tuple(Client(3 * S, request) for request in asked)
    wanted = Wanted("latency", kv_tokens=2048, process_nbytes=0)
    pins = PINS if survive else ""  # pinned layers wait for their machine; others go to whoever has room
    setup = ServingSetup(SHAPE, hosts, clients, wanted, pins=pins, survive=survive, expected=machines, boot_ns=300 * MS)
    return ServingWorld(setup, seed=time, watchers=everything(SHAPE.layers))


def answering(world: ServingWorld, random: Random) -> None:
    """Until each of the four has had some of its tokens."""
    wanted = random.randint(5, 60)
    answers = world.front.answers
    assert world.run(60 * S, lambda: len(answers) == 4 and all(len(a.draws) >= wanted for a in answers.values()))


def kill(world: ServingWorld, victim: str) -> None:
    world.crash_engine(victim, "killed")


def stop(world: ServingWorld, victim: str) -> None:
    """Nobody but its peers can notice."""
    world.pause_engine(victim, 1000 * S)


def cut_off(world: ServingWorld, victim: str) -> None:
    for other in ("front", "n0", "n1", "n2", "n3"):
        if other != victim:
            world.cut(victim, other)
            world.cut(other, victim)


def lose_a_pass(world: ServingWorld, _victim: str) -> None:
    """The next one is lost with its connection; every machine lives on."""
    left = ["Pass"]

    def strike(fault: str, operation: str) -> bool:
        if fault == "post lost" and operation in left:
            left.remove(operation)
            return True
        return False

    world.strike = strike


def drain(world: ServingWorld, victim: str) -> None:
    world.drain(victim)


def recovered(time: int, happens: Callable[[ServingWorld, str], None], survive: int) -> tuple[ServingWorld, list[str]]:
    """The world at the end, and every sentence that was said."""
    world = serving(time, survive=survive)
    said: list[str] = []
    remark = world.remark
    world.remark = lambda who, effect: (said.append(getattr(effect, "text", "")), remark(who, effect))[1]  # type: ignore[method-assign]
    random = Random(f"{time} {happens.__name__}")
    world.start()
    answering(world, random)
    happens(world, random.choice(world.front.role.pipelines[0].hops).node)
    assert world.run(600 * S, world.answered)
    for source, target in sorted(world.network.blocked):
        world.mend(source, target)
    for name in world.machines:
        world.resume(name)
    world.run(world.kernel.now + 8 * S)
    finished(world)
    assert all(answer.ended in ("stop", "length") for answer in world.front.answers.values())
    return world, said


@TIMES
@pytest.mark.parametrize("happens", [kill, stop, cut_off])
def test_without_reserves_all_positions_are_computed_again(
    happens: Callable[[ServingWorld, str], None], times: range
) -> None:
    for time in times:
        world, said = recovered(time, happens, survive=0)
        assert any(re.search(COMPUTED_AGAIN, text) for text in said), (time, said)
        assert world.front.role.pipelines[0].recomputed > 0


@TIMES
@pytest.mark.parametrize("happens", [kill, stop, cut_off])
def test_with_reserves_the_copies_go_on(happens: Callable[[ServingWorld, str], None], times: range) -> None:
    """What was on its way to the copy is computed again: no more than a few positions of each answer."""
    for time in times:
        world, said = recovered(time, happens, survive=1)
        assert any(re.search(f"{NOTHING_AGAIN}|{COMPUTED_AGAIN}", text) for text in said), (time, said)
        assert world.front.role.pipelines[0].recomputed <= 4 * 3, (time, said)


@TIMES
def test_a_batch_that_was_lost_costs_its_own_way_only(times: range) -> None:
    for time in times:
        world, said = recovered(time, lose_a_pass, survive=0)
        assert any("a batch was lost on its way" in text for text in said), (time, said)
        assert world.front.role.pipelines[0].recomputed <= 4, (time, said)


@TIMES
def test_layers_that_move_take_their_kv_along(times: range) -> None:
    for time in times:
        world, said = recovered(time, drain, survive=0)
        assert any("is drained: its layers move" in text for text in said), (time, said)
        assert world.front.role.pipelines[0].recomputed == 0, (time, said)
