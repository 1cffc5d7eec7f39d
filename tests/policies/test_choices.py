"""Grace, staleness, weights, rates, rounds and pace: small pure functions at their edges."""

from __future__ import annotations

from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.policies import backups, pace, rounds, schedule, staleness
from medley.policies.backups import Given, Idle, Late
from medley.policies.grace import FIRST_WAIT_NS, FLOOR_NS, allowance_ns
from medley.policies.liveness import SILENCE_FLOOR_NS, silent_too_long
from medley.policies.rounds import RoundView
from medley.policies.schedule import Plateau
from medley.policies.weights import Candidate, member_weights, step_scale
from medley.protocol.codec import parse, text
from medley.protocol.ids import NS_PER_S
from medley.protocol.spec import Optimizer, Sync, Train

durations = st.lists(st.integers(1, 10**12), min_size=3, max_size=20)


# -- grace ------------------------------------------------------------------------------------------------------


@given(durations)
def test_nobody_of_the_typical_is_late(seen: list[int]) -> None:
    middle = sorted(seen)[len(seen) // 2]
    assert allowance_ns(seen, 6.0) >= min(middle, allowance_ns([middle] * 3, 0.0))
    assert allowance_ns(seen, 6.0) >= FLOOR_NS


@given(durations, st.integers(2, 50))
def test_one_outlier_hardly_moves_the_grace(seen: list[int], factor: int) -> None:
    steady = [NS_PER_S] * 9
    assert allowance_ns([*steady, NS_PER_S * factor], 6.0) == allowance_ns(steady, 6.0)


def test_before_anything_is_known_the_grace_is_long() -> None:
    assert allowance_ns([], 6.0) == allowance_ns([1, 1], 6.0) == FIRST_WAIT_NS


def test_silence() -> None:
    assert not silent_too_long([NS_PER_S] * 5, SILENCE_FLOOR_NS)
    assert silent_too_long([NS_PER_S] * 5, SILENCE_FLOOR_NS + NS_PER_S)
    assert not silent_too_long([10 * NS_PER_S] * 5, 20 * NS_PER_S)


# -- staleness and weights ----------------------------------------------------------------------------------------


@given(st.floats(0.0, 1.0), st.integers(1, 8))
def test_the_adaptive_bound_stays_in_its_limits(speed: float, limit: int) -> None:
    adaptive = Sync(mode="async", staleness_bound=limit, staleness_adaptive=True)
    assert 1 <= staleness.bound(adaptive, speed) <= 4 * limit
    assert staleness.bound(Sync(mode="async", staleness_bound=limit), speed) == limit
    assert staleness.bound(Sync(mode="sync", staleness_bound=limit), speed) == 0


candidates = st.lists(
    st.builds(Candidate, tokens=st.floats(1, 1e6), staleness=st.integers(0, 9)),
    min_size=1,
    max_size=8,
)


@given(candidates)
def test_a_mean_is_a_mean(members: list[Candidate]) -> None:
    train = Train(sync=Sync(mode="local-sgd", local_steps=4, staleness_power=0.0))
    assert isclose(sum(member_weights(train, members)), 1.0)
    weights = member_weights(Train(optimizer=Optimizer(clip_norm=0.0), sync=Sync(staleness_power=0.0)), members)
    assert isclose(
        sum(w * m.tokens for w, m in zip(weights, members, strict=True)), sum(m.tokens for m in members) * weights[0]
    )


@given(candidates)
def test_clipping_is_the_workers_business(members: list[Candidate]) -> None:
    sync = Sync(mode="async")
    clipped, free = (Train(optimizer=Optimizer(clip_norm=norm), sync=sync) for norm in (1e-3, 0.0))
    assert member_weights(clipped, members) == member_weights(free, members)


@given(candidates)
def test_the_freshest_member_counts_in_full_and_the_step_is_scaled_instead(members: list[Candidate]) -> None:
    train = Train(optimizer=Optimizer(clip_norm=0.0), sync=Sync(mode="async", staleness_power=0.5))
    freshest = min(m.staleness for m in members)
    assert isclose(step_scale(train, members), (1 + freshest) ** -0.5)
    total = sum(m.tokens for m in members)
    for weight, m in zip(member_weights(train, members), members, strict=True):
        assert m.staleness > freshest or isclose(weight, 1 / total)


def test_a_sum_counts_everything_once() -> None:
    train = Train(aggregation="sum", sync=Sync(mode="async", staleness_power=0.0))
    members = [Candidate(3.0, 0), Candidate(5.0, 2)]
    assert member_weights(train, members) == (1.0, 1.0)
    assert step_scale(train, members) == 1.0


# -- rates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "plateau"])
@given(progress=st.floats(-1, 2))
def test_rates_stay_between_their_ends(kind: str, progress: float) -> None:
    optimizer = Optimizer(lr=1.0, schedule=kind)  # type: ignore[arg-type]
    assert 0 < schedule.rate(optimizer, progress, Plateau()) <= 1.0
    assert isclose(schedule.rate(optimizer, optimizer.warmup_fraction, Plateau()), 1.0)
    if kind in ("cosine", "linear"):
        assert isclose(schedule.rate(optimizer, 1.0, Plateau()), optimizer.min_lr_fraction)


@given(st.floats(0, 1), st.floats(0, 1))
def test_after_the_warm_up_the_rate_only_falls(a: float, b: float) -> None:
    for kind in ("cosine", "linear"):
        optimizer = Optimizer(schedule=kind, warmup_fraction=0.0)  # type: ignore[arg-type]
        low, high = sorted((a, b))
        assert schedule.rate(optimizer, low, Plateau()) >= schedule.rate(optimizer, high, Plateau()) - 1e-12


def test_a_plateau_halves_the_rate_and_survives_a_restart() -> None:
    optimizer = Optimizer(schedule="plateau", plateau_patience=2, min_lr_fraction=0.3, warmup_fraction=0.0, lr=1.0)
    seen = Plateau()
    rates = []
    for loss in (3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 1.0):
        seen = parse(text(schedule.measured(optimizer, seen, loss)), Plateau)
        rates.append(schedule.rate(optimizer, 0.5, seen))
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.3, 0.3]


# -- rounds -----------------------------------------------------------------------------------------------------------


def view(complete: int, expected: int, waited_s: float = 0.0, allowance_s: float = 10.0) -> RoundView:
    return RoundView(complete, expected, 0, 0, int(allowance_s * NS_PER_S))


def closed(train: Train, complete: int, expected: int, waited_s: float) -> bool:
    return rounds.close(train, view(complete, expected), int(waited_s * NS_PER_S)).plan


def test_rounds_close() -> None:
    train = Train(sync=Sync(mode="sync", quorum=0.75))
    assert closed(train, 4, 4, 0.0)
    assert not closed(train, 3, 4, 9.0)
    assert closed(train, 3, 4, 11.0)
    assert not closed(train, 2, 4, 1000.0)
    assert not closed(train, 0, 0, 1000.0)


def test_a_deterministic_round_waits_for_every_slot() -> None:
    assert not closed(Train(deterministic=True, sync=Sync(quorum=0.5)), 3, 4, 1000.0)


def test_async_commits_at_once_and_local_sgd_gives_a_little_slack() -> None:
    assert closed(Train(sync=Sync(mode="async")), 1, 9, 0.0)
    local = Train(sync=Sync(mode="local-sgd", quorum=0.5))
    assert not closed(local, 2, 4, 1.0)
    assert closed(local, 2, 4, 3.0)


def test_the_latest_lease_goes_to_the_fastest_idle_machine() -> None:
    late = [Late(1, "a", 3 * NS_PER_S), Late(2, "b", 9 * NS_PER_S), Late(3, "c", NS_PER_S)]
    idle = [Idle("x", 10.0), Idle("y", 40.0), Idle("z", 0.0)]
    chosen = backups.choose(late, idle, 2 * NS_PER_S, room=4)
    assert [one.plan for one in chosen] == [Given(2, "y"), Given(1, "x")]  # the third is not late
    assert "lease 2 of b has taken 9.0 s, others need 2.0 s at most; y, which is idle" in chosen[0].reason
    assert [one.plan for one in backups.choose(late, idle, 2 * NS_PER_S, room=1)] == [Given(2, "y")]
    assert backups.choose(late, [], 2 * NS_PER_S, room=4) == []


@given(st.integers(0, 9), st.integers(0, 9), st.floats(0, 100))
def test_every_decision_has_a_reason(complete: int, expected: int, waited_s: float) -> None:
    for mode in ("sync", "async", "local-sgd"):
        decision = rounds.close(Train(sync=Sync(mode=mode)), view(complete, expected), int(waited_s * NS_PER_S))  # type: ignore[arg-type]
        assert decision.reason
        assert not (decision.plan and complete == 0)


# -- pace -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.floats(0.01, 100), st.floats(0.01, 100))
def test_slower_workers_get_fewer_steps(wanted: int, mine: float, other: float) -> None:
    steps = pace.local_steps(wanted, mine, max(mine, other))
    assert max(1, wanted // 8) <= steps <= wanted
    assert pace.local_steps(wanted, 0.0, other) == wanted  # nothing is known of it yet
    assert mine < other or steps == wanted
