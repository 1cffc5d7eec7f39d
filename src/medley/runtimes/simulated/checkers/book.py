"""An account of every job, kept from its records alone and without the roles' own code: what parameters must be,
which samples they contain, who holds which lease. The checkers hold roles and engines against it.

The arithmetic is the proof's: the gradient of position i is one in coordinate i of the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medley.policies.schedule import Plateau, measured
from medley.protocol.codec import parse
from medley.protocol.ids import Generation, JobId, LeaseId, NodeId, UpdateId, Version
from medley.protocol.layout import Layout
from medley.protocol.messages import Span
from medley.protocol.plan import Plan
from medley.protocol.records import (
    Aborted,
    Backed,
    CheckpointDamaged,
    CheckpointSealed,
    Committed,
    HeldoutMeasured,
    Leased,
    Placed,
    Prepared,
    Promoted,
    Record,
    Returned,
    ShardPlace,
    StateChanged,
    Submitted,
)
from medley.protocol.spec import JobSpec
from medley.runtimes.simulated.checkers.violation import Violation

Vector = NDArray[np.float64]
Used = NDArray[np.bool_]  # by position, all epochs after each other
START = 2.0


@dataclass(frozen=True, slots=True)
class Held:
    node: NodeId
    span: Span
    round: int
    generation: Generation
    backs: LeaseId = 0


@dataclass(frozen=True, slots=True)
class Moment:
    """A version of one generation: what its parameters are and what made them."""

    params: Vector
    used: Used
    spans: tuple[Span, ...]  # of the commit that made it, in order of merging
    record: Committed | None


@dataclass(slots=True)
class Account:
    """One job's."""

    job: JobId
    spec: JobSpec
    state: str = "queued"
    plan: Plan | None = None
    layout: Layout | None = None
    generation: Generation = 0
    version: Version = 0
    places: dict[int, ShardPlace] = field(default_factory=dict)
    leases: dict[LeaseId, Held] = field(default_factory=dict)
    taken: Used = field(default_factory=lambda: np.zeros(0, bool))  # leased or used
    numbers: set[LeaseId] = field(default_factory=set)  # every lease that ever was
    carried: dict[NodeId, set[LeaseId]] = field(default_factory=dict)
    decided: dict[UpdateId, str] = field(default_factory=dict)  # of this generation
    history: dict[Version, Moment] = field(default_factory=dict)  # of the generation that is
    checkpoints: list[Version] = field(default_factory=list)
    plateaus: list[tuple[Version, Plateau]] = field(default_factory=list)  # by the version that was measured
    commits: int = 0
    rollbacks: int = 0

    @property
    def now(self) -> Moment:
        return self.history[self.version]

    @property
    def plateau(self) -> Plateau:
        return self.plateaus[-1][1] if self.plateaus else Plateau()

    def positions(self, span: Span) -> slice:
        assert self.plan is not None
        offset = span.epoch * self.plan.samples
        return slice(offset + span.start, offset + span.stop)

    def total(self) -> int:
        assert self.plan is not None
        return max(1, round(self.plan.samples * self.spec.train.epochs))


class Book:
    """Follows the log as it becomes durable; raises Violation where a record contradicts those before it."""

    def __init__(self) -> None:
        self.jobs: dict[JobId, Account] = {}
        self.revoked: dict[NodeId, str] = {}

    def of(self, stream: str) -> Account:
        return self.jobs[stream.removeprefix("job/")]

    def follow(self, stream: str, record: Record) -> None:
        match record:
            case Submitted():
                if record.job in self.jobs:
                    raise Violation("J2", f"{record.job} was accepted a second time")
                self.jobs[record.job] = Account(record.job, parse(record.spec, JobSpec))
            case Prepared():
                _prepared(self.of(stream), record)
            case StateChanged():
                account = self.of(stream)
                _legal(account, record)
                account.state = record.state
            case Placed():
                _placed(self.of(stream), record)
            case Promoted():
                _promoted(self.of(stream), record)
            case Leased():
                _leased(self.of(stream), record)
            case Backed():
                _backed(self.of(stream), record)
            case Returned():
                _returned(self.of(stream), record.leases)
            case Committed():
                _committed(self.of(stream), record)
            case Aborted():
                _aborted(self.of(stream), record)
            case CheckpointSealed():
                account = self.of(stream)
                account.checkpoints = [*account.checkpoints, record.version][-account.spec.checkpoint.keep :]
            case CheckpointDamaged():
                account = self.of(stream)
                account.checkpoints = [v for v in account.checkpoints if v != record.version]
            case HeldoutMeasured():
                _measured(self.of(stream), record)
            case _:
                pass


LEGAL: dict[str, frozenset[str]] = {
    "queued": frozenset({"preparing", "running", "cancelled", "failed"}),
    "preparing": frozenset({"running", "cancelled", "failed", "queued"}),
    "running": frozenset({"finishing", "cancelling", "cancelled", "failed", "queued"}),
    "finishing": frozenset({"done", "running", "cancelled", "failed", "queued"}),
    "cancelling": frozenset({"cancelled", "failed"}),
    "cancelled": frozenset({"queued"}),
    "failed": frozenset({"queued"}),
    "done": frozenset(),
}


def _legal(account: Account, record: StateChanged) -> None:
    if record.state not in LEGAL[account.state]:
        raise Violation("J1", f"{account.job} went from {account.state} to {record.state}")
    if record.state == "running" and account.plan is None:
        raise Violation("J1", f"{account.job} runs and was never prepared")


def _prepared(account: Account, record: Prepared) -> None:
    if account.plan is not None:
        raise Violation("J1", f"{account.job} was prepared twice")
    account.plan = parse(record.plan, Plan)
    account.layout = account.plan.layout()
    account.taken = np.zeros(account.total(), bool)
    start = np.full(account.plan.samples, START)
    account.history[0] = Moment(start, account.taken.copy(), (), None)
    account.checkpoints = [0]


def _placed(account: Account, record: Placed) -> None:
    if record.generation != account.generation + 1:
        raise Violation("T5", f"generation {record.generation} after {account.generation}")
    if record.version not in account.checkpoints:
        raise Violation("C1", f"version {record.version} is placed, checkpoints are {account.checkpoints}")
    account.rollbacks += account.generation > 0
    account.generation, account.version = record.generation, record.version
    account.history = {v: m for v, m in account.history.items() if v <= record.version}
    account.checkpoints = [v for v in account.checkpoints if v <= record.version]
    account.plateaus = [(v, p) for v, p in account.plateaus if v <= record.version]
    account.places = {p.shard: p for p in record.shards}
    account.leases.clear()
    account.carried.clear()
    account.decided = {
        m.update: "committed" for moment in account.history.values() if moment.record for m in moment.record.members
    }
    account.taken = account.now.used.copy()
    _gang(account, record)


def _gang(account: Account, record: Placed) -> None:
    assert account.layout is not None
    wanted = account.spec.placement
    if sorted(account.places) != list(range(wanted.shards)) or len(record.shards) != wanted.shards:
        raise Violation("J6", f"{account.job} wants {wanted.shards} shards and begins with {sorted(account.places)}")
    blocks = sorted(b for p in record.shards for b in p.blocks)
    if blocks != [b.index for b in account.layout.blocks]:
        raise Violation("J6", f"the blocks of {account.job} are not all at one shard each: {blocks}")
    for place in record.shards:
        if place.primary == place.backup or bool(place.backup) != (wanted.replication == 2):
            raise Violation("J6", f"shard {place.shard} is on '{place.primary}' with the backup '{place.backup}'")


def _promoted(account: Account, record: Promoted) -> None:
    old = account.places[record.shard]
    if record.primary not in (old.primary, old.backup) or record.primary == record.backup:
        raise Violation("T4", f"shard {record.shard} of {old.primary} and '{old.backup}' goes to {record.primary}")
    account.places[record.shard] = ShardPlace(record.shard, record.primary, record.backup, old.blocks)


def _leased(account: Account, record: Leased) -> None:
    if record.lease in account.numbers:
        raise Violation("J3", f"lease {record.lease} was given twice")
    where = account.positions(record.span)
    if account.taken[where].any() or where.stop > len(account.taken):
        raise Violation("D3", f"lease {record.lease} is of {record.span}, which is leased or used already")
    account.taken[where] = True
    account.numbers.add(record.lease)
    account.leases[record.lease] = Held(record.node, record.span, record.round, account.generation)


def _backed(account: Account, record: Backed) -> None:
    first = account.leases.get(record.backs)
    if record.lease in account.numbers:
        raise Violation("J3", f"lease {record.lease} was given twice")
    if first is None or first.node == record.node or _twin(account, record.backs):
        raise Violation("D3", f"lease {record.lease} of {record.node} is a second one of {record.backs}: {first}")
    account.numbers.add(record.lease)
    account.leases[record.lease] = replace(first, node=record.node, backs=record.backs)


def _twin(account: Account, number: LeaseId) -> LeaseId:
    """The other lease of the same samples; 0 if there is none."""
    return account.leases[number].backs or next((n for n, h in account.leases.items() if h.backs == number), 0)


def _returned(account: Account, leases: tuple[LeaseId, ...]) -> None:
    for number in leases:
        if number not in account.leases:
            raise Violation("J3", f"lease {number} is given back and nobody holds it")
        twin = _twin(account, number)
        held = account.leases.pop(number)
        if twin:
            account.leases[twin] = replace(account.leases[twin], backs=0)
        else:
            account.taken[account.positions(held.span)] = False
        account.carried.get(held.node, set()).discard(number)


def _committed(account: Account, record: Committed) -> None:
    assert account.plan is not None
    if record.number != account.version + 1:
        raise Violation("T5", f"version {record.number} after {account.version}")
    before = account.now
    params, used, spans = before.params.copy(), before.used.copy(), []
    for member in record.members:
        _decide(account, member.update, "committed")
        part = np.zeros(account.plan.samples)
        for number in member.leases:
            if number in account.leases and (twin := _twin(account, number)):
                raise Violation("D1", f"{member.update} is merged with lease {number}, its samples are in {twin} too")
            held = account.leases.pop(number, None)
            if held is None:
                raise Violation("J3", f"{member.update} is merged with lease {number}, which nobody holds")
            if held.node != member.node:
                raise Violation("S2", f"{member.update} of {member.node} names lease {number} of {held.node}")
            where = account.positions(held.span)
            if used[where].any():
                raise Violation("D1", f"{held.span} is used a second time by {member.update}")
            used[where] = True
            part[held.span.start : held.span.stop] += 1
            spans.append(held.span)
            account.carried.get(member.node, set()).discard(number)
        params -= record.lr * member.weight * part
    account.version = record.number
    account.commits += 1
    account.history[record.number] = Moment(params, used, tuple(spans), record)


def _aborted(account: Account, record: Aborted) -> None:
    _decide(account, record.update, "carried" if record.carry else "dropped")
    for number in record.leases:
        held = account.leases.get(number)
        if held is None or held.node != record.node:
            raise Violation("J3", f"{record.update} of {record.node} is refused with lease {number}, not its own")
    if not record.carry:
        _returned(account, record.leases)
        return
    if carried := account.carried.get(record.node):
        raise Violation("T2", f"{record.node} carries leases {sorted(carried)} and shall carry {record.update} too")
    account.carried[record.node] = set(record.leases)


def _decide(account: Account, update: UpdateId, verdict: str) -> None:
    before = account.decided.get(update)
    if before is not None:
        code = "J4" if verdict == before == "committed" else "T2"
        raise Violation(code, f"{update} is {verdict} after it was {before}")
    account.decided[update] = verdict


def _measured(account: Account, record: HeldoutMeasured) -> None:
    if record.version > account.version:
        raise Violation("S1", f"version {record.version} is measured, the newest is {account.version}")
    plateau = measured(account.spec.train.optimizer, account.plateau, record.loss)
    account.plateaus.append((record.version, plateau))


def in_order(samples: int, epochs: float, batch: int, slots: int) -> list[tuple[Span, ...]]:
    """The history of a deterministic run: every round the next `slots` spans of the order, whoever computes them."""
    total = max(1, round(samples * epochs))
    spans = []
    position = 0
    while position < total:
        epoch, start = divmod(position, samples)
        stop = min(start + batch, samples, total - epoch * samples)
        spans.append(Span(epoch, start, stop))
        position += stop - start
    return [tuple(spans[i : i + slots]) for i in range(0, len(spans), slots)]
