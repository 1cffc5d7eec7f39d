"""The autoscaler: limits always, deadlines when possible, nothing when idle, and calm in between."""

from __future__ import annotations

from itertools import product
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from medley.policies.autoscaling import Demand, Habits, Limits, Memory, Offer, cheapest, scale

SLOW = Offer("slow", 10.0, 1.0, 8, start_s=0)
FAST = Offer("fast", 50.0, 8.0, 4, start_s=0)
SPOT = Offer("spot", 10.0, 0.3, 8, interruptions_per_h=4, start_s=60, lost_s=30)
PLENTY = Limits(20)


def test_a_deadline_far_away_is_met_by_the_cheapest_kind() -> None:
    decision = scale(0, [Demand("j", 36_000, 3600)], [SLOW, FAST], {}, PLENTY)
    assert decision.plan.nodes == {"slow": 2}
    assert decision.reason == "j's deadline needs 11.5 tokens/s: 2 x slow"


def test_a_near_deadline_buys_speed_only_as_far_as_needed() -> None:
    decision = scale(0, [Demand("j", 30_000, 300)], [SLOW, FAST], {}, PLENTY)
    assert decision.plan.nodes == {"slow": 7, "fast": 1}


def test_the_earliest_deadline_goes_first_and_later_work_does_not_count_for_it() -> None:
    soon, later = Demand("soon", 3600, 360), Demand("later", 36_000, 36_000)
    assert scale(0, [later, soon], [SLOW], {}, PLENTY).plan.nodes == {"slow": 2}


def test_what_no_fleet_can_meet_gets_the_fastest_and_is_said() -> None:
    decision = scale(0, [Demand("j", 1e9, 60)], [SLOW, FAST], {}, Limits(6))
    assert decision.plan.nodes == {"slow": 2, "fast": 4}
    assert "j's deadline cannot be met" in decision.reason


def test_spot_machines_count_for_what_interruptions_leave_of_them() -> None:
    """Four times an hour 90 s are lost: nine tenths remain, and they are still the cheapest."""
    decision = scale(0, [Demand("j", 36_000, 3660)], [SLOW, SPOT], {}, PLENTY)
    assert decision.plan.nodes == {"spot": 2}
    assert abs(SPOT.effective_tokens_per_s - 10 / 1.1) < 1e-9


def test_idle_machines_go_after_a_while_and_not_before() -> None:
    memory, running = Memory(changed_s=-1000), {"slow": 3}
    for now, expected in ((0, {"slow": 3}), (299, {"slow": 3}), (300, {})):
        plan = scale(now, [], [SLOW], running, PLENTY, memory=memory).plan
        memory, running = plan.memory, plan.nodes
        assert running == expected


def test_a_queue_that_comes_and_goes_changes_nothing() -> None:
    memory, running, seen = Memory(), {"slow": 2}, set()
    for now in range(0, 3600, 30):
        demands = [Demand("j", 72_000)] if now // 120 % 2 else []
        plan = scale(now, demands, [SLOW], running, PLENTY, memory=memory).plan
        memory, running = plan.memory, plan.nodes
        seen.add(tuple(running.items()))
    assert seen == {(("slow", 2),)}


def test_growth_without_a_deadline_waits_for_the_cooldown() -> None:
    demands = [Demand("j", 360_000)]
    waiting = scale(30, demands, [SLOW], {"slow": 1}, PLENTY, memory=Memory(changed_s=0))
    assert waiting.plan.nodes == {"slow": 1} and "waits until 60 s" in waiting.reason
    assert scale(60, demands, [SLOW], {"slow": 1}, PLENTY, memory=Memory(changed_s=0)).plan.nodes == {"slow": 8}


def test_a_spent_budget_ends_everything() -> None:
    decision = scale(0, [Demand("j", 1e6, 60)], [SLOW], {"slow": 2}, Limits(8, usd_left=0))
    assert decision.plan.nodes == {} and decision.reason == "the budget is spent"


offers = st.lists(
    st.builds(
        Offer,
        st.sampled_from(["a", "b", "c"]),
        st.floats(1, 100),
        st.floats(0, 10),
        st.integers(0, 5),
        st.floats(0, 5),
        st.floats(0, 300),
    ),
    max_size=3,
    unique_by=lambda o: o.kind,
)
demands = st.lists(
    st.builds(Demand, st.sampled_from(["x", "y", "z"]), st.floats(0, 1e6), st.floats(-100, 1e5) | st.just(inf)),
    max_size=4,
)
limits = st.builds(
    Limits, st.integers(0, 8), st.floats(0, 40) | st.just(inf), st.floats(-1, 10) | st.just(inf), st.integers(0, 3)
)
fleets = st.dictionaries(st.sampled_from(["a", "b", "c", "gone"]), st.integers(0, 9), max_size=4)
memories = st.builds(Memory, st.floats(-1000, 1000) | st.just(-inf), st.none() | st.floats(-1000, 1000))


@given(demands, offers, fleets, limits, memories)
@settings(max_examples=300, deadline=None)
def test_limits_hold_whatever_runs_and_whatever_is_asked(
    asked: list[Demand], offered: list[Offer], running: dict[str, int], limit: Limits, memory: Memory
) -> None:
    plan = scale(1000, asked, offered, running, limit, memory=memory).plan
    by_kind = {o.kind: o for o in offered}
    assert set(plan.nodes) <= set(by_kind)
    assert all(0 < n <= by_kind[kind].available for kind, n in plan.nodes.items())
    assert sum(plan.nodes.values()) <= limit.max_nodes
    assert sum(n * by_kind[kind].usd_per_h for kind, n in plan.nodes.items()) <= limit.usd_per_h + 1e-6
    if limit.usd_left <= 0:
        assert not plan.nodes


@given(st.floats(1, 300), offers, limits)
@settings(max_examples=200, deadline=None)
def test_a_rate_is_reached_whenever_some_fleet_reaches_it_and_at_the_lowest_price(
    rate: float, offered: list[Offer], limit: Limits
) -> None:
    every = [
        {o.kind: n for o, n in zip(offered, counts, strict=True)}
        for counts in product(*(range(o.available + 1) for o in offered))
    ]
    by_kind = {o.kind: o for o in offered}

    def price(fleet: dict[str, int]) -> float:
        return sum(n * by_kind[k].usd_per_h for k, n in fleet.items())

    def reaches(fleet: dict[str, int]) -> bool:
        return sum(n * by_kind[k].effective_tokens_per_s for k, n in fleet.items()) >= rate

    good = [f for f in every if sum(f.values()) <= limit.max_nodes and price(f) <= limit.usd_per_h and reaches(f)]
    usable = [o for o in offered if o.available]
    found = cheapest(rate, usable, limit)
    if good:
        assert found is not None
        assert price(found) <= min(map(price, good)) + 1e-6
    elif found is not None:
        assert reaches(found) or price(found) > limit.usd_per_h - 1e-6  # within rounding of a limit


@given(offers, fleets, st.integers(0, 8))
@settings(max_examples=100, deadline=None)
def test_an_idle_pool_is_empty_in_the_end_and_stays_so(
    offered: list[Offer], running: dict[str, int], most: int
) -> None:
    memory, now, habits = Memory(), 0.0, Habits()
    for _ in range(20):
        plan = scale(now, [], offered, running, Limits(most), habits, memory).plan
        memory, running, now = plan.memory, plan.nodes, now + 60
    assert running == {}


@given(st.floats(1e3, 1e6), st.floats(600, 1e5), offers)
@settings(max_examples=100, deadline=None)
def test_followed_to_its_end_a_deadline_that_can_be_met_is_met(
    tokens: float, deadline: float, offered: list[Offer]
) -> None:
    """Machines that start in no time and work as they say: if the first plan believed in it, so does the clock."""
    steady = [Offer(o.kind, o.tokens_per_s, o.usd_per_h, o.available, 0, 0) for o in offered]
    first = scale(0, [Demand("j", tokens, deadline)], steady, {}, PLENTY)
    if first.plan.tokens_per_s * deadline < tokens * 1.15:
        return
    left, now, running, memory = tokens, 0.0, {}, Memory()
    while left > 0:
        plan = scale(now, [Demand("j", left, deadline)], steady, running, PLENTY, memory=memory).plan
        memory, running = plan.memory, plan.nodes
        step = min(deadline / 50, left / plan.tokens_per_s if plan.tokens_per_s else inf)
        assert step < inf
        left, now = left - plan.tokens_per_s * step, now + step
        left = 0.0 if left < tokens * 1e-9 else left
    assert now <= deadline * (1 + 1e-6)


def test_a_deadline_that_can_be_met_is_not_blamed_for_a_queue_that_is_too_long() -> None:
    soon, much = Demand("soon", 1000, deadline_s=1000), Demand("much", 1e9)
    decided = scale(0, [soon, much], [SLOW], {}, PLENTY)
    assert decided.reason.startswith("a queue of 1e+09 tokens is more than the limits allow")
    late = scale(0, [Demand("late", 1e9, deadline_s=10), much], [SLOW], {}, PLENTY)
    assert late.reason.startswith("late's deadline cannot be met")
