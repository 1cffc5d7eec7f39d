"""Training over networks that stand in the way: routers that translate addresses, and a firewall that blocks ZeroMQ.

The job is the integer proof: every sample was counted exactly once, whichever way its bytes took.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fleet.namespaces import Machine, two_machines
from tests.fleet.nat import COORDINATOR, only_ports, three_machines, translating
from tests.fleet.test_two_machines import DEADLINE_S, Fleet
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not translating(), reason="network namespaces need root, `ip` and `nft`"),
    pytest.mark.timeout(600),
]


def start(coordinator: Machine, *more: str) -> None:
    coordinator.start("up", "-m", "medley", "up", *more)
    until(
        lambda: "medley join" in coordinator.said("up") or coordinator.started[0].poll() is not None,
        deadline_s=DEADLINE_S,
        what="the line to join with",
    )


def joined(fleet: Fleet, machines: int) -> None:
    until(lambda: len(fleet.told("joined: ")) == machines, deadline_s=DEADLINE_S, what=f"{machines} machines")


def doctor(machine: Machine) -> str:
    """What it says of the ways of tensors, at the machine itself."""
    done = machine.run("-m", "medley", "doctor", "--json")
    return "\n".join(one["says"] for one in json.loads(done.stdout)["findings"] if one["what"] in ("tensors", "relay"))


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Fleet, Fleet]]:
    with three_machines(tmp_path) as (c, a, b):
        start(c, "--no-workers", "--advertise", COORDINATOR)
        yield Fleet(c, a), Fleet(c, b)


def test_a_worker_at_home_trains_with_a_shard_in_another_home(homes: tuple[Fleet, Fleet]) -> None:
    near, far = homes
    near.join(near.b, "keeper", near.token(), "--allow-code", "--no-worker")
    far.join(far.b, "trainer", far.token(), "--allow-code", "--no-shard")
    joined(near, 2)
    job = near.submit(samples=2048, step_ms=20)
    near.finish(job)
    assert near.told("trainer-.*reaches shard . of .* on keeper-.* through the coordinator")
    assert not near.told("reaches the vault"), "the coordinator's own machine is reached directly"
    assert near.told("engine .* ended") == []


@pytest.mark.parametrize("transport", ["auto", "grpc"])
def test_training_where_only_grpc_is_let_through(tmp_path: Path, transport: str) -> None:
    with two_machines(tmp_path) as (a, b):
        fleet = Fleet(a, b)
        start(a, "--workers", "1")
        only_ports(b, 7070, 7071)
        fleet.join(b, "node", fleet.token(), "--allow-code", "--transport", transport)
        joined(fleet, 2)
        job = fleet.submit(samples=2048, step_ms=20)
        until(lambda: fleet.commits(job) > 2, deadline_s=DEADLINE_S, what="training")
        assert "tensors pass this coordinator for machines that cannot connect: " in doctor(a)
        fleet.finish(job)
        assert fleet.told("node-.*reaches the vault through the coordinator")
        assert "through the coordinator at 10.77.0.1:7070" in doctor(b)
