"""The registry of faults: every name has what a check needs, each strikes when it alone is switched on, and all of them
together leave the jobs done.
"""

from __future__ import annotations

import pytest

from medley.runtimes.simulated.faults import BY_CHANCE, FAULTS, required
from medley.runtimes.simulated.faults.storm import weather

LONG = 6  # a seed whose jobs take some twenty seconds where nothing fails
OFTEN = {
    name: fault.rates[1] * (3 if "minute" in fault.unit or fault.rates[1] < 0.01 else 1)
    for name, fault in FAULTS.items()
}
# These need a rare moment: a second generation, a worker's NaN, a second checkpoint.
RARE = {"replay", "false claims", "bit flip", "lies", "machine is revoked", "machine is lost", "torn write"}


def test_every_fault_says_what_it_is_and_what_it_must_meet() -> None:
    for fault in FAULTS.values():
        assert fault.what and fault.meets, fault.name
        assert 0 < fault.rates[0] <= fault.rates[1], fault.name
        assert fault.arm is not None or fault.chances, f"{fault.name} is never switched on"
    assert len(required()) == len(set(required()))
    assert {fault for fault, _ in BY_CHANCE.values()} <= set(FAULTS)


@pytest.mark.parametrize("name", sorted(set(FAULTS) - RARE))
def test_a_fault_alone_strikes_and_is_survived(name: str) -> None:
    found = weather(LONG, chosen={name: OFTEN[name]})
    assert not found.invariant, f"{found.invariant}: {found.sentence}"
    assert any(pair.startswith(f"{name}/") for pair in found.met), f"{name} met nothing"
    assert all(pair.startswith(f"{name}/") for pair in found.met), found.met


def test_a_world_without_faults_meets_none() -> None:
    assert weather(3, chosen={}).met == {}
