"""Stable matching against a textbook, and against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.policies.scheduling.gale_shapley import match, preferences
from medley.policies.scheduling.matching import REFUSED, deferred_acceptance, is_stable
from medley.policies.scheduling.view import JobFacts, NodeFacts, fits


@st.composite
def markets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Few different scores, so that there are ties; some pairs are impossible for one side or both."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shape = (draw(st.integers(0, 12)), draw(st.integers(1, 6)))
    wishes = rng.integers(0, draw(st.sampled_from([2, 100])), shape).astype(np.float32)
    favours = rng.integers(0, draw(st.sampled_from([2, 100])), shape).astype(np.float32)
    wishes[rng.random(shape) < 0.2] = REFUSED
    favours[rng.random(shape) < 0.2] = REFUSED
    return wishes, favours, rng.integers(0, 4, shape[1])


def textbook(wishes: np.ndarray, favours: np.ndarray, capacity: np.ndarray) -> list[int]:
    """One free proposer after the other (Gale and Shapley 1962)."""
    proposers, receivers = wishes.shape
    lists = [
        sorted(
            (r for r in range(receivers) if wishes[p, r] > REFUSED and favours[p, r] > REFUSED and capacity[r] > 0),
            key=lambda r: (-wishes[p, r], r),
        )
        for p in range(proposers)
    ]
    held: list[list[int]] = [[] for _ in range(receivers)]
    free = list(range(proposers))
    while free:
        p = free.pop()
        if not lists[p]:
            continue
        r = lists[p].pop(0)
        held[r] = sorted([*held[r], p], key=lambda q: (-favours[q, r], q))
        free += held[r][capacity[r] :]
        del held[r][capacity[r] :]
    matched = [-1] * proposers
    for r, found in enumerate(held):
        for p in found:
            matched[p] = r
    return matched


@settings(max_examples=150, deadline=None)
@given(market=markets())
def test_it_is_stable_and_what_the_textbook_says(market: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    matched = deferred_acceptance(*market)
    assert matched.tolist() == textbook(*market)
    assert is_stable(*market, matched)


def test_a_pair_that_would_both_rather_have_each_other_is_found() -> None:
    wishes = np.array([[2, 1], [2, 1]], dtype=np.float32)
    favours = np.array([[1, 1], [2, 2]], dtype=np.float32)
    capacity = np.array([1, 1])
    assert is_stable(wishes, favours, capacity, np.array([1, 0]))
    assert not is_stable(wishes, favours, capacity, np.array([0, 1]))
    assert not is_stable(wishes, favours, capacity, np.array([0, -1]))
    assert not is_stable(wishes, favours, capacity, np.array([0, 0])), "over its capacity"


@settings(max_examples=60, deadline=None)
@given(
    needs=st.lists(
        st.tuples(st.sampled_from([0, 4, 8]), st.integers(-1, 1), st.integers(1, 3)), min_size=1, max_size=4
    ),
    sizes=st.lists(st.tuples(st.sampled_from([2, 4, 8, 16]), st.sampled_from([1e6, 1e7])), min_size=1, max_size=10),
)
def test_jobs_and_machines_are_matched_stably(
    needs: list[tuple[int, int, int]], sizes: list[tuple[int, float]]
) -> None:
    jobs = [JobFacts(f"j{i}", i, memory_bytes=size, priority=p) for i, (size, p, _) in enumerate(needs)]
    nodes = [NodeFacts(f"n{i}", size, work_per_s=speed) for i, (size, speed) in enumerate(sizes)]
    wanted = [(job, count) for job, (_, _, count) in zip(jobs, needs, strict=True)]
    found = match(wanted, nodes)
    where = {node.node: number for number, job in enumerate(jobs) for node in found[job.job]}
    matched = np.array([where.get(node.node, -1) for node in nodes])
    wishes, favours = preferences(jobs, nodes)
    assert is_stable(wishes, favours, np.array([count for _, count in wanted]), matched)
    assert all(fits(job, node) for job in jobs for node in found[job.job])


@pytest.mark.parametrize("seed", range(3))
def test_hundreds_of_tasks_are_matched_as_by_the_textbook(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wishes, favours = rng.random((300, 40)).astype(np.float32), rng.random((300, 40)).astype(np.float32)
    capacity = np.full(40, 7)
    assert deferred_acceptance(wishes, favours, capacity).tolist() == textbook(wishes, favours, capacity)
