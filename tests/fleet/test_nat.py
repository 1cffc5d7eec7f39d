"""Training and serving over networks that stand in the way: routers that translate addresses, a firewall for ZeroMQ.

The job is the integer proof: every sample was counted exactly once, whichever way its bytes took. What is served over
two homes answers as the whole model does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fleet.namespaces import Machine, two_machines
from tests.fleet.nat import COORDINATOR, only_ports, three_machines, translating
from tests.fleet.test_two_machines import DEADLINE_S, Fleet
from tests.serving.conftest import byte_tokenizer, tiny_llama
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


def test_a_model_is_served_by_machines_in_two_homes(homes: tuple[Fleet, Fleet], tmp_path: Path) -> None:
    """Nobody can dial in there: the front end calls its stages, and they each other, through the coordinator."""
    near, far = homes
    model = tmp_path / "model"
    tiny_llama().save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    near.join(near.b, "kitchen", near.token(), "--no-shard")
    far.join(far.b, "attic", far.token(), "--no-shard")
    joined(near, 2)
    coordinator = near.a
    names = sorted(node["node"] for node in near.medley("status")["nodes"])  # attic-..., kitchen-...
    layout = ("--pin", f"{names[1]}=1,{names[0]}=1", "--weights", "fp32", "--kv-tokens", "512")
    coordinator.start("serve", "-m", "medley", "serve", str(model), "--pool", "--port", "8080", *layout)
    asked = ("-m", "medley", "ask", "model", "how are you", "--max-tokens", "20", "--json")

    def answer() -> str | None:
        assert coordinator.started[-1].poll() is None, coordinator.said("serve")
        done = coordinator.run(*asked)
        return str(json.loads(done.stdout)["answer"]) if done.returncode == 0 else None

    until(lambda: answer() is not None, deadline_s=DEADLINE_S, what="an answer")
    whole = coordinator.run(*asked[:3], str(model), *asked[4:], "--local")
    assert answer() == json.loads(whole.stdout)["answer"]
    assert near.told("operator.*reaches the stage of .* on kitchen-.* through the coordinator")
    assert near.told("kitchen-.*reaches the stage of .* on attic-.* through the coordinator")


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
