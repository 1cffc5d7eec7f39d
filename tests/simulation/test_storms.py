"""Whole worlds, from a seed each, with real roles: safety in the storm, completion in the calm."""

from __future__ import annotations

import pytest

from medley.runtimes.simulated.check import run_seed
from medley.runtimes.simulated.faults.storm import weather

# Seeds that once found something, and what.
REGRESSIONS = {
    14: "a worker that left and was assigned again, in one life of its machine, repeated its update ids",
    48: "a machine that stood still was told, when it went on, what a stream had said that was gone by then",
    669: "a job that was queued when its coordinator restarted never heard that machines with its shards had died",
    1512: "the checker took for lost what was unpinned at a machine that was no primary any more",
    20349: "a machine that had gone from one job to another and was then revoked was still on the first job's keys",
    20168: "an old acknowledgement of a list of keys took back a newer one: a backup was never introduced",
    40072: "the checker took the word of a liar, which the coordinator had refused, for that of the primary",
    40995: "the checker wanted a replica that was only just chosen to be told what to drop",
    3280: "a worker that announced a lease which it had no base for had more updates under way than it may",
    3566: "what an engine had said of itself, said again after another had followed it, took that one's key away",
    3829: "a worker that told the truth before it heard that its lie was refused was told to drop what was then merged",
}
BLOCKS = [range(start, start + 10) for start in range(1000, 1080, 10)]


@pytest.mark.parametrize("seed", range(8))
def test_every_sample_is_used_once_where_nothing_fails(seed: int) -> None:
    found = weather(seed, chosen={})
    assert not found.invariant, found.sentence
    assert not found.met


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_regressions(seed: int) -> None:
    found = weather(seed)
    assert not found.invariant, f"{found.invariant}: {found.sentence}"


@pytest.mark.parametrize("seeds", BLOCKS, ids=lambda r: f"{r.start}-{r.stop - 1}")
def test_storms(seeds: range) -> None:
    for seed in seeds:
        found = run_seed(seed)
        assert not found.invariant, f"seed {seed}: {found.invariant}: {found.sentence}"


def test_one_seed_is_one_history() -> None:
    assert weather(7) == weather(7)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(40))
def test_thousands_of_storms(block: int) -> None:
    for seed in range(2000 + 50 * block, 2050 + 50 * block):
        found = run_seed(seed)
        assert not found.invariant, f"seed {seed}: {found.invariant}: {found.sentence}"
