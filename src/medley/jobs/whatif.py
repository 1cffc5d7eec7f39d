"""What a job would take on some machines: the real roles train it in virtual time, without its arithmetic.

Time, bytes, money and energy come from one simulated world; of a long job only the beginning is simulated, and the rest
goes on at the pace of the part after the warm-up. What limits is found by asking again: each kind of machine, and each
kind's link, is made twice as fast in turn, and what helps most was limiting. Whether one more machine would help is
asked in the same way. Everything is a function of the arguments and the seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from medley.jobs.machines import Fleet, Group
from medley.policies.costs import (
    NS_PER_H,
    NS_PER_S,
    Size,
    energy_j,
    half_pulls,
    lease_ns,
    price_usd,
    pull_nbytes,
    push_nbytes,
    shard_nbytes,
    size_of,
    worker_nbytes,
)
from medley.policies.devices import Device
from medley.protocol.conditions import Conditions, goodput_bytes_per_s
from medley.protocol.errors import UserError
from medley.protocol.ids import NodeId
from medley.protocol.spec import JobSpec
from medley.runtimes.simulated import facts as f
from medley.runtimes.simulated.setup import Arrival, Machine, Setup, Workload
from medley.runtimes.simulated.world import World

JOB = "job"
WARM_ROUNDS = 6  # until every machine is at work and speeds are measured
ROUNDS = 40  # simulated after that
SHORT_ROUNDS = 20  # of fleets that are only compared
BUSY_LEASES_MAX = 4000  # simulated at most, for large fleets
GROUPS_MAX = 6  # kinds of machines that are made faster in turn
EVENTS_MAX = 3_000_000  # of one world: more is a fleet that gets nothing done
UNTIL_NS = 400 * 24 * NS_PER_H
NOTICED = 0.02  # a gain below it is none

Kind = Literal["speed", "link", "one more", "added", "without"]


@dataclass(frozen=True, slots=True)
class Question:
    """A job and how large it is."""

    spec: JobSpec
    workload: Workload
    seed: int = 1

    def size(self, device: Device) -> Size:
        work = self.workload
        return size_of(self.spec, work.parameters, work.frozen_parameters, work.tokens_per_sample, device)

    @property
    def samples(self) -> int:
        """Of all epochs."""
        return max(1, round(self.workload.samples * self.spec.train.epochs))


@dataclass(frozen=True, slots=True)
class Share:
    """What one machine did of the time: fractions, of the part that was looked at."""

    node: NodeId
    device: str
    trains: bool
    keeps: bool  # parameters
    computes: float
    moves: float  # pulls or pushes, while nothing is computed or not


@dataclass(frozen=True, slots=True)
class Estimate:
    """`simulated` of `commits` commits were simulated; `energy_kwh` and `usd` are of all machines, busy or idle.
    `seconds` ends at train.max_minutes, `whole_s` is what all epochs would take; both count from the submission,
    `start_s` of them until the first machine begins to train.
    """

    seconds: float
    whole_s: float
    start_s: float
    commits: int
    simulated: int
    nbytes: float
    usd: float
    energy_kwh: float
    tokens_per_s: float
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What would be if something were different. `gain` is the fraction of time saved; below 0, lost."""

    what: str
    kind: Kind
    estimate: Estimate
    gain: float


@dataclass(frozen=True, slots=True)
class Verdict:
    estimate: Estimate
    unfit: tuple[str, ...]  # why machines take no part
    limits: tuple[Change, ...] = ()  # best first
    others: tuple[Change, ...] = ()


# -- the question -------------------------------------------------------------------------------------------------


def answer(question: Question, fleet: Fleet, added: Sequence[Group] = (), without: Sequence[str] = ()) -> Verdict:
    """Estimate, limits and alternatives. Raises UserError where no machine could do it."""
    fit, unfit = fitting(question, fleet)
    asker = _Asker(question, fit)
    limits = asker.limits()
    others = [asker.changed(name, "without", fit.without(name)) for name in without]
    others += [asker.changed(_kind(group), "added", fit.joined([group])) for group in added]
    if not added and not without:
        others += [asker.changed(g.name, "one more", fit.joined([_one_of(g)])) for g in _kinds(fit)]
        others += [asker.changed(g.name, "without", left) for g, left in _spared(fit, limits)]
    return Verdict(asker.base, tuple(unfit), tuple(limits), tuple(others))


def fitting(question: Question, fleet: Fleet) -> tuple[Fleet, list[str]]:
    """The fleet with each machine in the roles that its memory allows, and a sentence for each that lost one.

    Raises UserError when nobody is left to train, or to keep parameters.
    """
    spec, work = question.spec, question.workload
    workers = sum(m.worker for m in fleet.machines)
    keeps = shard_nbytes(-(-work.parameters // spec.placement.shards), spec.train, max(1, workers))
    said: list[str] = []

    def fit(machine: Machine) -> Machine:
        trains = worker_nbytes(question.size(machine.device), spec.train, spec.model.context_tokens)
        room = machine.device.memory_bytes
        worker, shard = machine.worker and trains <= room, machine.shard and keeps <= room
        if machine.worker and not worker:
            said.append(f"{machine.name} cannot train: that needs {_gib(trains)}, it has {_gib(room)}")
        if machine.shard and not shard:
            said.append(f"{machine.name} cannot keep parameters: that needs {_gib(keeps)}, it has {_gib(room)}")
        return replace(machine, worker=worker, shard=shard)

    groups = tuple(Group(g.name, tuple(fit(m) for m in g.machines)) for g in fleet.groups)
    _some(question, [m for g in groups for m in g.machines], workers, keeps)
    return replace(fleet, groups=groups), said


def _some(question: Question, machines: Sequence[Machine], workers: int, keeps: int) -> None:
    largest = max((m.device.memory_bytes for m in machines), default=0)
    if not workers:
        raise UserError("no machine of the fleet trains: leave 'worker' of one at true")
    if not any(m.worker for m in machines):
        device = max((m.device for m in machines), key=lambda d: d.memory_bytes)
        context = question.spec.model.context_tokens
        needs = worker_nbytes(question.size(device), question.spec.train, context)
        raise UserError(
            f"the model is too big for every machine: to train it needs {_gib(needs)} of memory, and the largest has "
            f"{_gib(largest)}; take a smaller model, or model.lora.rank 8"
        )
    placement = question.spec.placement
    if sum(m.shard for m in machines) < placement.replication:
        raise UserError(
            f"parameters in {placement.shards} shards need {_gib(keeps)} on {placement.replication} machines, and too "
            "few have that: raise placement.shards, or let more machines keep parameters"
        )


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"


# -- one world ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Seen:
    """An observer: what had happened at the end of the warm-up, and at the end."""

    warm: int  # members
    wanted: int
    members: int = 0
    commits: int = 0
    samples: int = 0
    tokens: int = 0
    nbytes: int = 0
    at_ns: int = 0
    first_ns: int = 0  # when the first base was granted that came to something
    state: str = ""
    reason: str = ""
    busy: Counter[tuple[NodeId, str]] = field(default_factory=Counter)
    keeps: set[NodeId] = field(default_factory=set)
    begin: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)  # at_ns, commits, samples, tokens, nbytes

    def hear(self, fact: f.Fact) -> None:
        match fact:
            case f.Committed():
                self._committed(fact)
            case f.Busy():
                began = max(fact.start_ns, self.begin[0])
                self.busy[fact.node, fact.what] += max(0, fact.at_ns - began)
            case f.Moved():
                self.nbytes += fact.nbytes
            case f.JobState():
                self.state, self.reason = fact.state, fact.reason
            case _:
                pass

    def _committed(self, fact: f.Committed) -> None:
        self.first_ns = self.first_ns or fact.opened_ns
        self.members += len(fact.members)
        self.commits += 1
        self.samples += fact.samples
        self.tokens += fact.tokens
        self.at_ns = fact.at_ns
        if not self.begin[0] and self.members >= self.warm:
            self.begin = (fact.at_ns, self.commits, self.samples, self.tokens, self.nbytes)
            self.busy.clear()

    def enough(self) -> bool:
        return self.members >= self.wanted or self.state in ("done", "failed", "cancelled")


def estimate(question: Question, fleet: Fleet, rounds: int = ROUNDS) -> Estimate:
    """One world, simulated until its pace is known. Raises UserError for a fleet that gets nothing done."""
    seen, world_ns = _simulated(question, fleet, rounds)
    total = question.samples
    if seen.state == "done":
        seconds, commits, nbytes = world_ns / NS_PER_S, seen.commits, float(seen.nbytes)
        tokens_per_s = seen.tokens / (seen.at_ns / NS_PER_S)
    else:
        at_ns, before, samples, tokens, moved = seen.begin
        span_s, done = (seen.at_ns - at_ns) / NS_PER_S, seen.samples - samples
        left = (total - samples) / done  # how often the part that was looked at is still to come
        seconds = at_ns / NS_PER_S + span_s * left
        commits = before + round((seen.commits - before) * left)
        nbytes = moved + (seen.nbytes - moved) * left
        tokens_per_s = (seen.tokens - tokens) / span_s
    limit_s = 60 * question.spec.train.max_minutes
    part = min(1.0, limit_s / seconds) if limit_s else 1.0
    made = Estimate(
        seconds * part,
        seconds,
        seen.first_ns / NS_PER_S,
        round(commits * part),
        seen.commits,
        nbytes * part,
        0.0,
        0.0,
        tokens_per_s,
        (),
    )
    return _billed(made, fleet, seen, world_ns)


def _simulated(question: Question, fleet: Fleet, rounds: int) -> tuple[_Seen, int]:
    """(what was seen, when it ended)."""
    workers = sum(m.worker for m in fleet.machines)
    every = max(1, question.spec.train.sync.slots or workers)
    most = max(4 * every, BUSY_LEASES_MAX)
    warm = min(WARM_ROUNDS * every, most // 4)
    seen = _Seen(warm, min(warm + rounds * every, most))
    train = replace(question.spec.train, max_minutes=0.0)  # the pace is wanted, wherever a limit ends it
    arrival = Arrival(JOB, replace(question.spec, train=train), question.workload)
    setup = Setup(fleet.machines, (arrival,), arithmetic="sizes", heartbeat_ms=_heartbeat_ms(question, fleet))
    world = World(setup, seed=question.seed, observers=(seen.hear,))
    world.run(UNTIL_NS, lambda: seen.enough() or world.kernel.steps > EVENTS_MAX)
    if (run := world.run_of(JOB)) is not None:
        seen.keeps = {node for place in run.state.places for node in (place.primary, place.backup) if node}
    if seen.state in ("failed", "cancelled"):
        raise UserError(f"on this fleet the job would fail: {seen.reason}")
    if not seen.enough():
        hours = world.kernel.now / NS_PER_H
        raise UserError(f"on this fleet only {seen.commits} steps are made in {hours:.1f} hours: its links are too bad")
    return seen, world.kernel.now


def _heartbeat_ms(question: Question, fleet: Fleet) -> int:
    """A second, as in production; slower where one lease takes minutes, so that heartbeats are not all there is."""
    shortest_ns = min(_round_ns(question, m) for m in fleet.machines if m.worker)
    return min(30_000, max(1000, round(5 * shortest_ns / 1e6)))


def _round_ns(question: Question, machine: Machine) -> float:
    """One lease of this machine alone: base in, steps, update out."""
    train, size = question.spec.train, question.size(machine.device)
    steps = train.sync.local_steps
    slowness = machine.slowness * machine.conditions.compute_factor
    computed = lease_ns(machine.device, size, train, train.batch_samples * steps, steps, slowness)
    base = pull_nbytes(size.parameters, half=half_pulls(size, train))
    update = push_nbytes(train.compression, [size.parameters])
    down, up = goodput_bytes_per_s(machine.conditions, "down"), goodput_bytes_per_s(machine.conditions, "up")
    return computed + (base / down + update / up) * NS_PER_S


def _billed(made: Estimate, fleet: Fleet, seen: _Seen, world_ns: int) -> Estimate:
    """With the bill, and with what each machine did."""
    span_ns, looked_ns = int(made.seconds * NS_PER_S), max(1, world_ns - seen.begin[0])
    usd = joules = 0.0
    shares = []
    for machine in fleet.machines:
        name, device = machine.name, machine.device
        computes = min(1.0, (seen.busy[name, "compute"] + seen.busy[name, "measure"]) / looked_ns)
        moves = min(1.0, (seen.busy[name, "pull"] + seen.busy[name, "push"]) / looked_ns)
        usd += price_usd(device, span_ns, spot=machine.spot)
        joules += energy_j(device, int(computes * span_ns), span_ns)
        shares.append(Share(name, device.kind, machine.worker, name in seen.keeps, computes, moves))
    simulated = min(seen.commits, made.commits)
    return replace(made, simulated=simulated, usd=usd, energy_kwh=joules / 3.6e6, shares=tuple(shares))


# -- what would be otherwise --------------------------------------------------------------------------------------


class _Asker:
    """Asks again about one fleet, a little changed."""

    def __init__(self, question: Question, fleet: Fleet) -> None:
        self._question, self._fleet = question, fleet
        self.base = estimate(question, fleet)
        self._short = self.base

    def changed(self, what: str, kind: Kind, fleet: Fleet) -> Change:
        """Over fewer rounds, and so against as many of the fleet as it is."""
        if self._short is self.base:
            self._short = estimate(self._question, self._fleet, SHORT_ROUNDS)
        try:
            fit, _ = fitting(self._question, fleet)
            made = estimate(self._question, fit, SHORT_ROUNDS)
        except UserError as error:
            raise UserError(f"{kind} {what}: {error}") from error
        return Change(what, kind, made, 1.0 - made.whole_s / self._short.whole_s)

    def limits(self) -> list[Change]:
        """Each kind of machine and its link twice as fast; those that would be noticed, the largest gain first."""
        found = []
        for group in _kinds(self._fleet):
            if any(m.worker for m in group.machines):
                found.append(self.changed(_kind(group), "speed", _each(self._fleet, group, _twice_as_fast)))
            if any(_matters(m.conditions) for m in group.machines):
                found.append(self.changed(_kind(group), "link", _each(self._fleet, group, _better_link)))
        return sorted((c for c in found if c.gain > NOTICED), key=lambda c: -c.gain)


def _kinds(fleet: Fleet) -> list[Group]:
    """Groups with machines in them, the largest first where there are too many."""
    groups = [g for g in fleet.groups if any(m.worker or m.shard for m in g.machines)]
    return sorted(groups, key=lambda g: -len(g.machines))[:GROUPS_MAX]


def _spared(fleet: Fleet, limits: Sequence[Change]) -> list[tuple[Group, Fleet]]:
    """The kind that limits most, and the fleet without it, where that can still work."""
    for group in fleet.groups:
        if limits and _kind(group) == limits[0].what:
            left = fleet.without(group.name)
            if any(m.worker for m in left.machines) and any(m.shard for m in left.machines):
                return [(group, left)]
    return []


def _kind(group: Group) -> str:
    return group.name if len(group.machines) == 1 else f"{group.name} ({len(group.machines)} machines)"


def _one_of(group: Group) -> Group:
    machine = group.machines[0]
    return Group(group.name, (replace(machine, name=f"{group.name}-more"),))


def _each(fleet: Fleet, group: Group, change: Callable[[Machine], Machine]) -> Fleet:
    groups = tuple(
        Group(g.name, tuple(change(m) for m in g.machines)) if g.name == group.name else g for g in fleet.groups
    )
    return replace(fleet, groups=groups)


def _twice_as_fast(machine: Machine) -> Machine:
    device = machine.device
    faster = replace(device, flops_per_s=2 * device.flops_per_s, memory_bytes_per_s=2 * device.memory_bytes_per_s)
    return replace(machine, device=faster)


def _better_link(machine: Machine) -> Machine:
    """Twice the rate and half the round trip; classes of traffic that are overridden stay."""
    c = machine.conditions
    better = replace(
        c, rtt_ms=c.rtt_ms / 2, up_bytes_per_s=2 * c.up_bytes_per_s, down_bytes_per_s=2 * c.down_bytes_per_s
    )
    return replace(machine, conditions=better)


def _matters(conditions: Conditions) -> bool:
    return bool(conditions.rtt_ms or conditions.up_bytes_per_s or conditions.down_bytes_per_s)
