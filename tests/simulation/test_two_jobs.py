"""Two jobs at work at once, which share the machines that hold parameters."""

from __future__ import annotations

from tests.simulation.worlds import DEVICE, setup, spec

from medley.protocol.effects import Persist
from medley.protocol.events import Expel
from medley.protocol.records import NodeRevoked
from medley.runtimes.simulated.checkers import everything
from medley.runtimes.simulated.kernel import S
from medley.runtimes.simulated.setup import Arrival, Machine, Workload
from medley.runtimes.simulated.world import World


def test_a_keeper_of_both_that_is_revoked_is_on_no_list_of_keys_any_more() -> None:
    """Each run says its own list; none that goes out may still name the machine for the other's sake."""
    machines = [Machine(f"n{i}", DEVICE) for i in range(2)] + [Machine("keeper", DEVICE, worker=False)]
    arrivals = tuple(Arrival(name, spec(name=name), Workload(4000, tokens_per_sample=10)) for name in ("j", "j1"))
    _, watchers = everything()
    world = World(setup(machines=tuple(machines), arrivals=arrivals, scheduler="priority"), seed=1, watchers=watchers)
    assert world.run(60 * S, lambda: _both_train(world))
    host = world.host
    assert host is not None
    record = NodeRevoked("keeper", "its owner left")
    body = world.disk.append(host.term, [Persist("pool", record)])[0]
    world.persisted("pool", record, body)
    host.role.revoked["keeper"] = record.reason
    host.handle(Expel("keeper", record.reason))
    world.run(world.kernel.now + 30 * S)


def _both_train(world: World) -> bool:
    runs = [world.run_of(job) for job in ("j", "j1")]
    return all(run is not None and run.state.version > 0 and _kept(run.state.places) for run in runs)


def _kept(places: list[object]) -> bool:
    return any(place.primary == "keeper" for place in places)  # type: ignore[attr-defined]
