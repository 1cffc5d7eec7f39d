"""Links between machines that serve are measured before layers are dealt out, and what was measured decides."""

from __future__ import annotations

import pytest

from medley.policies.pipeline.describe import ModelShape, Wanted
from medley.protocol.conditions import Conditions
from medley.protocol.stages.events import Asked
from medley.protocol.stages.words import WireType
from medley.runtimes.simulated.kernel import S
from medley.runtimes.simulated.serving.checkers import everything, finished
from medley.runtimes.simulated.serving.setup import Client, Host, ServingSetup, even
from medley.runtimes.simulated.serving.world import ServingWorld

MIB = 1 << 20
SHAPE = ModelShape("toy", 6, MIB, MIB, MIB, 64, 4096)
ROOM = 6 * MIB  # two of them hold the model, less the fifth that stays free
NEAR = Conditions(rtt_ms=1.0, up_bytes_per_s=1e8, down_bytes_per_s=1e8)
SLOW = Conditions(rtt_ms=1.0, up_bytes_per_s=1e6, down_bytes_per_s=1e6)
FAR = Conditions(rtt_ms=300.0, up_bytes_per_s=1e6, down_bytes_per_s=1e6)


def world(*conditions: Conditions, reach: bool = True, wire: WireType = "bf16") -> ServingWorld:
    hosts = tuple(Host(even(f"n{i}", 0.002, ROOM), c) for i, c in enumerate(conditions))
    client = Client(30 * S, Asked(1, (1, 2, 3), 20, frozenset()))
    wanted = Wanted("latency", kv_tokens=2048, process_nbytes=0)
    setup = ServingSetup(SHAPE, hosts, (client,), wanted, expected=len(hosts), wire=wire, reach=reach, narrow=True)
    return ServingWorld(setup, seed=1, watchers=everything(SHAPE.layers))


def wire_of(here: ServingWorld) -> str:
    here.start()
    here.run(29 * S)
    return here.front.role.pipelines[0].wire


def machines(world: ServingWorld) -> set[str]:
    return {hop.node for hop in world.front.role.pipelines[0].hops}


def test_what_is_measured_is_what_the_links_are() -> None:
    here = world(NEAR, NEAR)
    here.start()
    here.run(20 * S)
    link = here.front.role.layouts.distances.known["n0", "n1"]
    assert link.rtt_s == pytest.approx(0.002, rel=0.2)  # both machines' access links
    assert link.bandwidth_bytes_per_s == pytest.approx(1e8, rel=0.3)


def test_a_machine_that_is_far_away_gets_no_layers() -> None:
    here = world(FAR, NEAR, NEAR)
    here.start()
    here.run(29 * S)
    assert machines(here) == {"n1", "n2"}
    assert here.run(200 * S, here.answered)
    here.run(here.kernel.now + 8 * S)
    finished(here)


def test_a_pair_that_cannot_be_reached_keeps_nobody_waiting() -> None:
    here = world(NEAR, NEAR)
    here.start()
    here.run(S // 2)
    here.cut("n0", "n1")
    here.run(12 * S)
    assert here.front.role.pipelines
    assert not here.front.role.layouts.distances.known


def test_nothing_is_measured_where_all_machines_are_one_computer() -> None:
    here = world(NEAR, NEAR, reach=False)
    here.start()
    here.run(12 * S)
    assert here.front.role.pipelines and not here.front.role.layouts.distances.known


def test_hidden_states_travel_in_eight_bits_where_the_link_is_slower_than_the_slowest_stage() -> None:
    here = world(SLOW, SLOW)
    assert wire_of(here) == "int8"
    assert any("for 8 rows" in text and "int8" in text for _, text in here.remarks)
    assert here.run(200 * S, here.answered)
    here.run(here.kernel.now + 8 * S)
    finished(here)


def test_they_stay_as_they_are_computed_on_a_link_that_is_fast_enough() -> None:
    assert wire_of(world(NEAR, NEAR)) == "bf16"


def test_they_are_never_made_coarser_where_a_person_wants_exact_numbers() -> None:
    assert wire_of(world(SLOW, SLOW, wire="fp32")) == "fp32"


def test_they_are_never_made_coarser_without_a_measurement() -> None:
    assert wire_of(world(SLOW, SLOW, reach=False)) == "bf16"
