"""The planner: equal to trying everything, up to six machines; honest about memory, hops and who does not help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medley.policies.pipeline.describe import Link, Links, Machine, ModelShape, Times, Wanted, layout_of
from medley.policies.pipeline.ground import ground, stage_nbytes
from medley.policies.pipeline.planner import plan, value
from medley.policies.pipeline.predict import predict
from medley.policies.pipeline.repair import Held, Part, repair
from medley.policies.pipeline.split import fastest_split, min_max_split
from medley.protocol.errors import UserError

GIB = 1 << 30
TINYLLAMA = ModelShape("tinyllama", 22, 88 << 20, 131_072_000, 131_076_096, 1024, 4096)
LAN = Links(Link(0.0003, 100e6))


def machine(name: str, layer_ms: float, gib: float, head_ms: float = 0.0) -> Machine:
    def times(ms: float) -> Times:
        return Times(ms * 1e-3, ms * 2e-3, ms * 20e-3)

    return Machine(name, int(gib * GIB), times(layer_ms), times(head_ms or layer_ms * 1.5))


# -- everything tried ---------------------------------------------------------------------------------------------


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    for cuts in combinations(range(1, total), parts - 1):
        yield tuple(b - a for a, b in pairwise((0, *cuts, total)))


def fits(model: ModelShape, wanted: Wanted, one: Sequence[tuple[Machine, int]]) -> bool:
    return all(
        stage_nbytes(model, wanted, n, place == 0, place == len(one) - 1) <= m.memory_nbytes
        for place, (m, n) in enumerate(one)
    )


def rate(model: ModelShape, links: Links, wanted: Wanted, one: Sequence[tuple[Machine, int]]) -> float:
    """The cost model, written a second time."""
    hops = [links.between(a.name, b.name) for (a, _), (b, _) in pairwise(one)]
    last, first = one[-1][0], one[0][0]
    if wanted.objective == "throughput":
        stages = [n * m.layer.at(wanted.streams_at_once) for m, n in one]
        stages[-1] += last.head.at(wanted.streams_at_once)
        sent = [wanted.streams_at_once * model.wire_nbytes / h.bandwidth_bytes_per_s for h in hops]
        return wanted.streams_at_once / max(*stages, *sent, 0)
    seconds = sum(n * m.layer.batch1_s for m, n in one) + last.head.batch1_s
    seconds += sum(h.rtt_s / 2 + model.wire_nbytes / h.bandwidth_bytes_per_s for h in hops)
    front = wanted.front or first.name
    for end in (first, last):
        seconds += 0 if end.name == front else links.between(end.name, front).rtt_s / 2
    return 1 / seconds


def best_by_trying(model: ModelShape, machines: Sequence[Machine], links: Links, wanted: Wanted) -> float:
    best: dict[int, float] = {}
    for size in range(1, len(machines) + 1):
        for members in combinations(range(len(machines)), size):
            mask = sum(1 << i for i in members)
            for order in permutations(members):
                for counts in compositions(model.layers, size):
                    one = [(machines[i], n) for i, n in zip(order, counts, strict=True)]
                    if fits(model, wanted, one):
                        best[mask] = max(best.get(mask, 0.0), rate(model, links, wanted, one))
    if wanted.objective == "latency":
        return max(best.values(), default=0.0)
    return _parted((1 << len(machines)) - 1, best)


def _parted(free: int, best: dict[int, float]) -> float:
    top = 0.0
    for mask, found in best.items():
        if mask & free == mask:
            # Pipelines are taken in the order of their lowest machine, so that no partition counts twice.
            top = max(top, found + _parted(free & ~mask & ~((mask & -mask) - 1), best))
    return top


@st.composite
def fleets(draw: st.DrawFn) -> tuple[ModelShape, list[Machine], Links, Wanted]:
    sizes = st.integers(1, 6)
    model = ModelShape(
        "drawn",
        draw(st.integers(1, 6)),
        10,
        draw(st.integers(0, 25)),
        draw(st.integers(0, 25)),
        1,
        100,
        draw(st.booleans()),
    )
    ms = st.sampled_from([1.0, 2.0, 3.0, 5.0, 8.0, 20.0])
    machines = []
    for i in range(draw(sizes)):
        one, head = draw(ms), draw(ms)
        times = Times(one, one * draw(st.sampled_from([1.0, 2.0, 6.0])), 1.0)
        machines.append(Machine(f"m{i}", draw(st.integers(0, 120)), times, Times(head, 2 * head, 1.0)))
    pair = st.tuples(st.sampled_from([0.0, 0.5, 4.0, 30.0]), st.sampled_from([50.0, 400.0, 1e9]))
    known = {(a.name, b.name): Link(*draw(pair)) for a, b in combinations(machines, 2)}
    front = draw(st.sampled_from(["", "m0", "elsewhere"]))
    objective = draw(st.sampled_from(["latency", "throughput"]))
    wanted = Wanted(objective, draw(st.integers(0, 4)), draw(st.sampled_from([1, 4])), 512, 1, front)
    return model, machines, Links(Link(1.0, 100.0), known), wanted


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(fleets())
def test_it_is_as_good_as_trying_everything(drawn: tuple[ModelShape, list[Machine], Links, Wanted]) -> None:
    model, machines, links, wanted = drawn
    expected = best_by_trying(model, machines, links, wanted)
    decision = plan(model, machines, links, wanted)
    if decision.plan is None:
        assert expected == 0
        assert "needs" in decision.reason
        return
    layout = decision.plan.layout
    assert value(ground(model, machines, links, wanted), layout) == pytest.approx(expected, rel=1e-9)
    by_name = {m.name: m for m in machines}
    assert len(set(layout.machines)) == len(layout.machines)
    for one in layout.replicas:
        assert [(s.first, s.end) for s in one] == list(pairwise([0, *(s.end for s in one)]))
        assert one[-1].end == model.layers
        assert fits(model, wanted, [(by_name[s.machine], s.layers) for s in one])
    assert {out.machine for out in decision.plan.left_out} == by_name.keys() - set(layout.machines)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 9), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 9),
)
def test_both_splits_are_exact(members: list[tuple[float, float, int]], layers: int) -> None:
    layer_s, fixed, caps = zip(*members, strict=True)
    every = [c for c in compositions(layers, len(members)) if all(n <= cap for n, cap in zip(c, caps, strict=True))]
    slowest, fastest = min_max_split(layers, layer_s, fixed, caps), fastest_split(layers, layer_s, caps)
    if not every:
        assert slowest is None and fastest is None
        return
    assert slowest is not None and fastest is not None
    assert slowest[0] == min(max(f + n * s for f, n, s in zip(fixed, c, layer_s, strict=True)) for c in every)
    assert fastest[0] == pytest.approx(min(sum(n * s for n, s in zip(c, layer_s, strict=True)) for c in every))
    assert sum(slowest[1]) == sum(fastest[1]) == layers


# -- what people would check --------------------------------------------------------------------------------------


def test_splitting_that_hurts_is_not_done() -> None:
    fleet = [machine("desktop", 10, 16), machine("old", 40, 16), machine("older", 40, 16)]
    decision = plan(TINYLLAMA, fleet, LAN, Wanted())
    assert decision.plan is not None
    assert decision.plan.layout.kind == "single"
    assert decision.plan.layout.machines == ("desktop",)
    assert all("a token takes" in out.reason for out in decision.plan.left_out)
    split = next(a for a in decision.plan.alternatives if a.kind == "split")
    assert split.value < decision.plan.prediction.stream_tokens_per_s


def test_a_model_that_fits_nowhere_alone_is_split_by_speed() -> None:
    wanted = Wanted("throughput", kv_tokens=2048)
    fleet = [machine("fast", 10, 2.2), machine("slow", 40, 2.2)]
    decision = plan(TINYLLAMA, fleet, LAN, wanted)
    assert decision.plan is not None
    layers = {s.machine: s.layers for s in decision.plan.layout.replicas[0]}
    assert layers["fast"] > 2 * layers["slow"]
    assert "no machine holds" in decision.reason
    here = ground(TINYLLAMA, fleet, LAN, wanted)
    even = predict(here, layout_of(((("fast", 11), ("slow", 11)),)))
    assert decision.plan.prediction.tokens_per_s > 1.5 * even.tokens_per_s


def test_many_streams_get_replicas_where_everybody_holds_the_model() -> None:
    decision = plan(TINYLLAMA, [machine(f"m{i}", 10, 16) for i in range(4)], LAN, Wanted("throughput"))
    assert decision.plan is not None
    assert decision.plan.layout.kind == "replicas"
    assert len(decision.plan.layout.machines) == 4


def test_a_far_machine_stays_out() -> None:
    links = Links(Link(0.0003, 100e6), {("a", "far"): Link(0.4, 1e6), ("b", "far"): Link(0.4, 1e6)})
    fleet = [machine("a", 10, 2.2), machine("b", 12, 2.2), machine("far", 9, 2.2)]
    decision = plan(TINYLLAMA, fleet, links, Wanted(kv_tokens=2048))
    assert decision.plan is not None
    assert [out.machine for out in decision.plan.left_out] == ["far"]


def test_a_machine_without_room_is_named_with_what_it_lacks() -> None:
    decision = plan(TINYLLAMA, [machine("a", 10, 8), machine("phone", 10, 0.5)], LAN, Wanted())
    assert decision.plan is not None
    assert "one layer with its KV cache needs" in decision.plan.left_out[0].reason


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_thirty_two_machines_get_a_plan_that_fits(objective: str) -> None:
    fleet = [machine(f"m{i}", 5 + i % 7, 1.0 + (i % 3) * 0.5) for i in range(32)]
    wanted = Wanted("latency" if objective == "latency" else "throughput", kv_tokens=4096)
    decision = plan(TINYLLAMA, fleet, LAN, wanted)
    assert decision.plan is not None
    by_name = {m.name: m for m in fleet}
    for one in decision.plan.layout.replicas:
        assert fits(TINYLLAMA, wanted, [(by_name[s.machine], s.layers) for s in one])
    if objective == "throughput":
        # No partition can beat all machines working without a pause.
        bound = sum(wanted.streams_at_once / (22 * m.layer.batch8_s) for m in fleet)
        assert decision.plan.prediction.tokens_per_s > 0.8 * bound


def test_the_model_that_is_too_big_says_by_how_much() -> None:
    decision = plan(TINYLLAMA, [machine("a", 10, 1.0)], LAN, Wanted())
    assert decision.plan is None
    assert "needs 2." in decision.reason


@pytest.mark.parametrize(
    ("pins", "says"),
    [
        ("fast=14,slov=8", "did you mean 'slow'"),
        ("fast=14,slow=9", "23 layers"),
        ("fast=22,slow", "is not MACHINE=LAYERS"),
        ("fast=0,slow=22", "is not MACHINE=LAYERS"),
        ("fast=11,fast=11", "twice"),
        ("slow=22", "holds"),
    ],
)
def test_pins_that_cannot_be_are_refused(pins: str, says: str) -> None:
    fleet = [machine("fast", 10, 8), machine("slow", 40, 2)]
    with pytest.raises(UserError, match=says):
        plan(TINYLLAMA, fleet, LAN, Wanted(), pins)


def test_pins_are_believed_and_held_against_the_planner() -> None:
    fleet = [machine("fast", 10, 8), machine("slow", 40, 2)]
    decision = plan(TINYLLAMA, fleet, LAN, Wanted(), "slow=4, fast=18")
    assert decision.plan is not None
    assert [(s.machine, s.layers) for s in decision.plan.layout.replicas[0]] == [("slow", 4), ("fast", 18)]
    assert "pinned by hand" in decision.reason and "the planner's own choice would do" in decision.reason


def test_the_first_token_waits_for_every_chunk_but_stages_overlap() -> None:
    fleet = [machine("a", 10, 8), machine("b", 10, 8)]
    here = ground(TINYLLAMA, fleet, LAN, Wanted(prompt_tokens=2048))
    whole = predict(here, layout_of(((("a", 22),),))).first_token_s
    halves = predict(here, layout_of(((("a", 11), ("b", 11)),))).first_token_s
    assert whole / halves == pytest.approx(2 * 8 / 9, rel=0.02)


def test_of_machines_that_hold_a_dead_ones_layers_a_doubtful_one_is_the_last_choice() -> None:
    hops = [Part("a", 0, 2), Part("b", 2, 4)]
    doubtful = [Held("y", frozenset({0, 1}), doubtful=True), Held("z", frozenset({2, 3}), doubtful=True)]
    decision = repair(hops, [Held("c", frozenset({0, 1})), *doubtful])
    assert decision.plan == (Part("c", 0, 2), Part("z", 2, 4))
