"""Servings under a virtual clock: real front and stages, a few faults, every token that of an undisturbed run."""

from __future__ import annotations

import pytest

from medley.runtimes.simulated.serving.faults import FAULTS
from medley.runtimes.simulated.serving.storm import weather

BLOCKS = [range(start, start + 20) for start in range(5000, 5100, 20)]
HIGHEST = {name: fault.rates[1] for name, fault in FAULTS.items()}

# Seeds that once found something, and what.
REGRESSIONS = {
    131: "a reserve kept what its source had no time to call ended",
    213: "two pipelines were loaded onto one machine, and what a dead one had remembered was never freed",
    885: "a request failed where the pass that opened it was lost before the one that went on",
    7114: "one pipeline's move unloaded what another one had just loaded and was about to use",
    390: "two pipelines that had lost one machine were both given it when it came back, and hung there in turn",
    181: "a machine that was silent and came back kept what had ended meanwhile",
}


@pytest.mark.parametrize("seed", range(6))
def test_every_request_is_answered_where_nothing_fails(seed: int) -> None:
    found = weather(seed, chosen={})
    assert not found.invariant, found.sentence
    assert not [name for name in found.met if not name.startswith("serving client leaves")]


@pytest.mark.parametrize("name", FAULTS)
def test_one_fault_alone(name: str) -> None:
    for seed in range(200, 204):
        found = weather(seed, chosen={name: HIGHEST[name]})
        assert not found.invariant, f"seed {seed}: {found.invariant}: {found.sentence}"


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_regressions(seed: int) -> None:
    found = weather(seed)
    assert not found.invariant, f"{found.invariant}: {found.sentence}"


@pytest.mark.parametrize("seeds", BLOCKS, ids=lambda r: f"{r.start}-{r.stop - 1}")
def test_storms(seeds: range) -> None:
    for seed in seeds:
        found = weather(seed)
        assert not found.invariant, f"seed {seed}: {found.invariant}: {found.sentence}"


def test_one_seed_is_one_history() -> None:
    assert weather(7) == weather(7)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(40))
def test_thousands_of_storms(block: int) -> None:
    for seed in range(6000 + 50 * block, 6050 + 50 * block):
        found = weather(seed)
        assert not found.invariant, f"seed {seed}: {found.invariant}: {found.sentence}"
