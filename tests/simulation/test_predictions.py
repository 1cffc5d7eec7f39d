"""What `medley plan` predicts for described machines is what the roles reach on them, under a virtual clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from medley.jobs.machines import read_fleet
from medley.jobs.planning import read_machines, subject
from medley.policies.costs import Size
from medley.policies.pipeline.describe import Plan, Wanted
from medley.policies.pipeline.planner import plan
from medley.protocol.stages.events import Asked
from medley.runtimes.simulated.kernel import S
from medley.runtimes.simulated.serving.setup import Client, Host, ServingSetup
from medley.runtimes.simulated.serving.world import ServingWorld

FLEET = Path(__file__).parents[2] / "examples" / "fleet.yaml"
BEGIN_NS = 60 * S
WITHIN = 0.15
SPLITS = ("", "desk=6,laptops-1=8,mac=8", "laptops-1=11,laptops-2=11")


@dataclass(frozen=True)
class Described:
    """The machines of the example, a model, and what is planned for both."""

    setup: ServingSetup
    plan: Plan


def described(pins: str, wanted: Wanted) -> Described:
    of = subject("tinyllama-1.1b", "bf16")
    machines, links = read_machines(FLEET, of)
    decision = plan(of.shape, machines, links, wanted, pins)
    assert decision.plan is not None, decision.reason
    fleet = {m.name: m for m in read_fleet(FLEET, lambda device: Size(1)).machines}
    hosts = tuple(Host(m, fleet[m.name].conditions, load_bytes_per_s=1e10) for m in machines)
    first = decision.plan.layout.replicas[0][0].machine
    setup = ServingSetup(
        of.shape, hosts, (), wanted, pins, expected=len(hosts), positions=2048, links=links, front_at=first
    )
    return Described(setup, decision.plan)


def asked(request: int, prompt: int, limit: int) -> Asked:
    """Without drafts, which no plan counts on; no two begin alike."""
    tokens = tuple(1 + (request + i * i * request) % 7 for i in range(prompt))
    return Asked(request, tokens, limit, frozenset(), draft=False)


def served(given: Described, clients: list[Asked]) -> ServingWorld:
    setup = replace(given.setup, clients=tuple(Client(BEGIN_NS, one) for one in clients))
    world = ServingWorld(setup, seed=1)
    world.start()
    assert world.run(BEGIN_NS + 3600 * S, world.answered)
    assert all(answer.ended == "length" for answer in world.front.answers.values())
    return world


@pytest.mark.parametrize("pins", SPLITS)
def test_one_stream(pins: str) -> None:
    given = described(pins, Wanted("latency", prompt_tokens=512))
    (answer,) = served(given, [asked(1, 512, 40)]).front.answers.values()
    first_s = (answer.times_ns[0] - BEGIN_NS) / S
    rate = (len(answer.times_ns) - 1) / ((answer.times_ns[-1] - answer.times_ns[0]) / S)
    assert rate == pytest.approx(given.plan.prediction.stream_tokens_per_s, rel=WITHIN)
    assert first_s == pytest.approx(given.plan.prediction.first_token_s, rel=WITHIN)


@pytest.mark.parametrize("pins", SPLITS[1:])
def test_all_streams(pins: str) -> None:
    given = described(pins, Wanted("throughput", kv_tokens=64 * 256))
    streams = given.plan.prediction.streams
    world = served(given, [asked(number, 4, 60) for number in range(1, streams + 1)])
    times = sorted(t for answer in world.front.answers.values() for t in answer.times_ns)
    steady = times[len(times) // 4 : -len(times) // 4]
    rate = (len(steady) - 1) / ((steady[-1] - steady[0]) / S)
    assert rate == pytest.approx(given.plan.prediction.tokens_per_s, rel=WITHIN)
