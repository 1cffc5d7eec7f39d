"""Servings and training jobs in one pool: whole runs of real roles in virtual time, judged by all checkers."""

from __future__ import annotations

from dataclasses import dataclass

from tests.roles.test_many_jobs import Diary, job, pool

from medley.protocol.hosting import BeginServing, EndServing, FrontAsks, ServingSpec
from medley.protocol.messages import Address
from medley.protocol.spec import Schedule
from medley.runtimes.simulated.checkers import everything
from medley.runtimes.simulated.checkers.data import finished
from medley.runtimes.simulated.kernel import S
from medley.runtimes.simulated.setup import Setup
from medley.runtimes.simulated.world import World

SERVING = "chat-1"
FRONT = Address("tcp://front:1", "front-key")


@dataclass(slots=True)
class Fleet:
    """A world in which a front wants machines for a while. `shares`: who has how many, whenever that changes."""

    world: World
    spec: ServingSpec
    shares: list[dict[str, int]]
    over: bool = False

    def ask(self) -> None:
        """Every second, as a front does, which begins again where nobody knows it; and note who has what."""
        if self.over:
            return
        self.world.kernel.after(S, self.ask)
        role = self.world.coordinator
        if role is None:
            return
        if SERVING not in role.servings.live:
            self.say(BeginServing(SERVING, FRONT, self.spec, self.world.kernel.now))
        self.say(FrontAsks(SERVING))
        self.look()

    def look(self) -> None:
        role = self.world.coordinator
        assert role is not None
        jobs = [view.job for view in role.pool.values()]
        now = {name: jobs.count(name) for name in sorted(set(jobs))}
        if not self.shares or self.shares[-1] != now:
            self.shares.append(now)

    def end(self) -> None:
        self.over = True
        self.say(EndServing(SERVING, "its front end stopped"))

    def say(self, event: BeginServing | EndServing | FrontAsks) -> None:
        assert self.world.host is not None
        self.world.host.handle(event)


def play(
    setup: Setup, spec: ServingSpec, begin_s: int, end_s: int, deaths: tuple[int, ...] = ()
) -> tuple[Fleet, Diary]:
    """Run until every job is done and every sample has counted once; `deaths`: of the coordinator."""
    book, watchers = everything()
    diary = Diary()
    world = World(setup, seed=3, watchers=[*watchers, diary])
    fleet = Fleet(world, spec, [])
    world.start()
    for at_s in deaths:
        world.kernel.at(at_s * S, world.kill_coordinator)
    world.kernel.at(begin_s * S, fleet.ask)
    world.kernel.at(end_s * S, fleet.end)
    world.kernel.at((end_s + 2) * S, fleet.look)
    assert world.run(2400 * S, world.is_over), world.states
    assert set(world.states.values()) == {"done"}
    for account in book.jobs.values():
        finished(account)
    return fleet, diary


def test_idle_machines_serve_and_nobody_trains_less_for_it() -> None:
    setup = Setup(pool(4, 20.0), (job("a", 0, samples=60, workers_max=2),), "priority")
    fleet, diary = play(setup, ServingSpec(), 5, 30)
    assert fleet.shares[0] == {"a": 2, SERVING: 2}
    assert ("a", "queued") not in diary.states


def test_a_serving_of_higher_priority_takes_machines_from_training_and_gives_them_back() -> None:
    setup = Setup(pool(3, 20.0), (job("a", 0, samples=150),), "priority")
    spec = ServingSpec(schedule=Schedule(priority=3, workers_min=2, workers_max=2))
    fleet, diary = play(setup, spec, 38, 90)
    assert {"a": 1, SERVING: 2} in fleet.shares
    assert fleet.shares[-1] == {"a": 3}
    assert ("a", "queued") not in diary.states, "one machine was left to it"
    first, *moved = [hosts for name, _, _, hosts in diary.placed if name == "a"]
    assert moved or len(first) == 1, "its shards went with it, or were there already"


def test_a_job_that_gives_all_machines_to_a_serving_is_saved_and_goes_on_afterwards() -> None:
    setup = Setup(pool(2, 20.0), (job("a", 0, samples=150),), "priority")
    spec = ServingSpec(schedule=Schedule(priority=3, workers_min=2))
    fleet, diary = play(setup, spec, 38, 80)
    story = [state for name, state in diary.states if name == "a"]
    assert story == ["preparing", "running", "queued", "running", "finishing", "done"]
    assert fleet.shares[-1] == {"a": 2}
    assert any(f"gave its machines to {SERVING}" in text for subject, text in diary.sentences if subject == "a")


def test_a_coordinator_that_dies_meanwhile_costs_no_sample_and_no_serving() -> None:
    setup = Setup(pool(3, 20.0), (job("a", 0, samples=150),), "priority")
    spec = ServingSpec(schedule=Schedule(priority=3, workers_min=2, workers_max=2))
    fleet, _ = play(setup, spec, 38, 100, deaths=(45, 70))
    assert fleet.shares.count({"a": 1, SERVING: 2}) >= 1
    assert fleet.shares[-1] == {"a": 3}


def test_where_the_first_is_served_a_serving_waits_for_its_turn() -> None:
    setup = Setup(pool(2, 20.0), (job("a", 0, samples=30),), "fifo")
    fleet, diary = play(setup, ServingSpec(schedule=Schedule(priority=9)), 5, 2000)
    assert {"a": 2} in fleet.shares
    assert ("a", "queued") not in diary.states
    assert (SERVING, "it waits: every machine works for another job") in diary.sentences


def test_a_quota_holds_for_servings_as_for_jobs() -> None:
    setup = Setup(pool(3, 20.0), (job("a", 0, samples=40, queue="small", workers_max=1),), "priority")
    fleet, _ = play(setup, ServingSpec(schedule=Schedule(workers_max=1)), 5, 40)
    assert max(share.get(SERVING, 0) for share in fleet.shares) == 1
