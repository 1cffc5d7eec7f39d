"""Several jobs in one pool: whole runs of real roles in virtual time, judged by all checkers at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from medley.policies.devices import DEVICES
from medley.policies.scheduling.names import NAMES
from medley.protocol import effects as fx
from medley.protocol.engine import SetPeers
from medley.protocol.events import Event, Heard
from medley.protocol.messages import EngineUp
from medley.protocol.records import Placed, StateChanged
from medley.protocol.spec import Schedule
from medley.runtimes.simulated.checkers import everything
from medley.runtimes.simulated.checkers.data import finished
from medley.runtimes.simulated.drawing import draw_spec
from medley.runtimes.simulated.kernel import S
from medley.runtimes.simulated.setup import Arrival, Machine, Setup, Workload
from medley.runtimes.simulated.watch import COORDINATOR, Watcher
from medley.runtimes.simulated.world import World


class Diary(Watcher):
    """What the coordinator persisted, said to its vault, and explained."""

    def __init__(self) -> None:
        self.states: list[tuple[str, str]] = []
        self.placed: list[tuple[str, int, int, set[str]]] = []
        self.lists: list[set[str]] = []
        self.keys: dict[str, set[str]] = {}
        self.sentences: list[tuple[str, str]] = []

    def handled(
        self, world: World, who: str, key: tuple[str, int] | None, event: Event, effects: Sequence[fx.Effect]
    ) -> None:
        if who != COORDINATOR:
            return
        match event:
            case Heard(_, EngineUp(job, _, _, address)):
                self.keys.setdefault(job, set()).add(address.key)
        for effect in effects:
            match effect:
                case fx.Persist(_, StateChanged(job, state)):
                    self.states.append((job, state))
                case fx.Persist(stream, Placed(generation, version, shards)):
                    hosts = {place.primary for place in shards}
                    self.placed.append((stream.removeprefix("job/"), generation, version, hosts))
                case fx.Run(SetPeers(_, keys)):
                    self.lists.append(set(keys))
                case fx.Explain(subject, text):
                    self.sentences.append((subject, text))


def job(name: str, at_s: float, samples: int = 40, seed: int = 1, **schedule: object) -> Arrival:
    """One that trains exactly, so that every sample can be found in its parameters."""
    spec = draw_spec(Random(seed), name)
    spec = replace(
        spec,
        train=replace(
            spec.train, deterministic=False, sync=replace(spec.train.sync, mode="async", slots=0, local_steps=1)
        ),
        placement=replace(spec.placement, shards=1, replication=1),
        checkpoint=replace(spec.checkpoint, every_s=30.0, every_commits=0),
        schedule=Schedule(**schedule),  # type: ignore[arg-type]
    )
    return Arrival(name, spec, Workload(samples=samples, tokens_per_sample=10), at_ns=int(at_s * S))


def pool(count: int, slowness: float = 1.0) -> tuple[Machine, ...]:
    return tuple(Machine(f"n{i}", DEVICES["cloud-2vcpu"], slowness=slowness) for i in range(count))


def play(setup: Setup, deaths: Sequence[float] = (), seed: int = 3) -> tuple[World, Diary]:
    """Run until every job is done; `deaths`: at these seconds the coordinator dies."""
    book, watchers = everything()
    diary = Diary()
    world = World(setup, seed=seed, watchers=[*watchers, diary])
    world.start()
    for at_s in deaths:
        world.kernel.at(int(at_s * S), world.kill_coordinator)
    assert world.run(1200 * S, world.is_over), world.states
    assert set(world.states.values()) == {"done"}
    for account in book.jobs.values():
        finished(account)
    return world, diary


@pytest.mark.parametrize("scheduler", NAMES)
def test_three_jobs_end_and_every_sample_counts_once(scheduler: str) -> None:
    jobs = (job("a", 0), job("b", 3, priority=1, workers_max=2), job("c", 6, priority=3, workers_min=2))
    _, diary = play(Setup(pool(4), jobs, scheduler))
    assert [state for name, state in diary.states if name == "a"][-1] == "done"


def test_fifo_takes_nothing_away() -> None:
    _, diary = play(Setup(pool(3), (job("a", 0), job("b", 2, priority=9)), "fifo"))
    assert [name for name, state in diary.states if state == "done"] == ["a", "b"]
    assert ("a", "queued") not in diary.states
    assert all(generation == 1 for _, generation, _, _ in diary.placed)


def test_a_job_that_loses_all_machines_is_saved_and_goes_on_later() -> None:
    low = job("low", 0, samples=150, workers_min=1)
    high = job("high", 38, samples=12, priority=3, workers_min=3)
    _, diary = play(Setup(pool(3, 20.0), (low, high), "priority"))
    story = [state for name, state in diary.states if name == "low"]
    assert story == ["preparing", "running", "queued", "running", "finishing", "done"]
    again = [version for name, generation, version, _ in diary.placed if name == "low" and generation == 2]
    assert again and again[0] > 0, "it went on from what was committed"
    assert any("gave its machines to high" in text for subject, text in diary.sentences if subject == "low")
    assert [name for name, state in diary.states if state == "done"] == ["high", "low"]


def test_shards_follow_when_a_machine_goes_to_another_job() -> None:
    """Two jobs share the pool by weight; whoever held parameters on a machine that went moves them."""
    first = job("a", 0, samples=150, workers_min=1)
    second = job("b", 38, samples=30, workers_min=2, seed=2, priority=1)
    _, diary = play(Setup(pool(3, 20.0), (first, second), "priority"))
    hosts = {name: found for name, _, _, found in diary.placed}
    assert hosts["a"].isdisjoint(hosts["b"])
    assert ("a", "queued") not in diary.states


def test_the_vault_hears_one_list_for_all_jobs() -> None:
    _, diary = play(Setup(pool(4), (job("a", 0), job("b", 0, seed=2)), "priority"))
    assert any(diary.keys["a"] & keys and diary.keys["b"] & keys for keys in diary.lists)


class OnItsList(Watcher):
    """Whom each job has had admitted, after every step: nobody that it has forgotten."""

    def handled(
        self, world: World, who: str, key: tuple[str, int] | None, event: Event, effects: Sequence[fx.Effect]
    ) -> None:
        role = world.host.role if world.host is not None else None
        for name, keys in role.admission.runs.items() if role is not None else ():
            assert set(keys) <= set(role.runs[name].ctx.roster.keys()), f"{name} after {event}"


def test_who_went_to_another_job_is_on_no_list_of_the_first_any_more() -> None:
    """Were it revoked there, nobody would think of the first job, and its key would be admitted for ever."""
    first = job("a", 0, samples=150, workers_min=1)
    second = job("b", 38, samples=30, workers_min=2, seed=2, priority=1)
    world = World(Setup(pool(3, 20.0), (first, second), "priority"), seed=3, watchers=[OnItsList()])
    assert world.run(1200 * S, world.is_over), world.states


@pytest.mark.parametrize("scheduler", NAMES)
def test_jobs_keep_their_machines_over_a_restart_of_the_coordinator(scheduler: str) -> None:
    jobs = (job("a", 0, 60), job("b", 1, 60, workers_max=2, seed=2))
    _, diary = play(Setup(pool(4, 10.0), jobs, scheduler), deaths=(12, 20))
    assert ("a", "queued") not in diary.states and ("b", "queued") not in diary.states
