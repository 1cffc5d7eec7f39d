"""The durable half of a training run: a fold of records, and nothing else.

`apply` is the only way it changes, in a live coordinator as in a restarted one, so both are the same by
construction.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import assert_never

from medley.policies import schedule
from medley.policies.schedule import Plateau
from medley.protocol.codec import parse
from medley.protocol.ids import Generation, JobId, LeaseId, UpdateId, Version
from medley.protocol.plan import Plan
from medley.protocol.records import (
    Aborted,
    Backed,
    CheckpointDamaged,
    CheckpointSealed,
    Committed,
    HeldoutMeasured,
    JobRecord,
    JobState,
    Leased,
    Placed,
    Prepared,
    Promoted,
    Returned,
    ShardPlace,
    Snapshot,
    StateChanged,
    Submitted,
)
from medley.protocol.spec import JobSpec
from medley.roles import ledger
from medley.roles.ledger import LedgerState

PARSED = 16  # job files and plans that are kept as objects; a plan may be a megabyte of text


@dataclass(frozen=True, slots=True)
class Mark:
    """Where the learning rate stood after a measurement; a return to a checkpoint returns to the last one before it."""

    version: Version
    plateau: Plateau


@dataclass(slots=True)
class RunState:
    """Everything about one job that must survive the coordinator."""

    job: JobId
    spec: str
    submitted_wall_ns: int = 0
    changed_wall_ns: int = 0
    state: JobState = "queued"
    reason: str = ""
    plan: str = ""
    generation: Generation = 0
    version: Version = 0
    places: list[ShardPlace] = field(default_factory=list)
    samples: LedgerState | None = None
    checkpoints: list[CheckpointSealed] = field(default_factory=list)  # good ones, newest last
    tail: list[Committed] = field(default_factory=list)  # since the oldest checkpoint; a shard may have missed them
    carried: dict[UpdateId, tuple[LeaseId, ...]] = field(default_factory=dict)
    elapsed_ns: int = 0
    tokens: int = 0
    plateau: Plateau = field(default_factory=Plateau)
    measured: Version = -1
    marks: list[Mark] = field(default_factory=list)  # since the oldest checkpoint
    heldout_first: float = 0.0
    heldout_last: float = 0.0
    accuracy_last: float = 0.0
    rollbacks: int = 0
    aborted: int = 0

    @property
    def ledger(self) -> LedgerState:
        assert self.samples is not None, "the ledger exists once the job is prepared"
        return self.samples

    def parsed_spec(self) -> JobSpec:
        return _parsed_spec(self.spec)

    def parsed_plan(self) -> Plan:
        return _parsed_plan(self.plan)


# A job's own are asked for again and again, and many jobs of a pool are alike; what is parsed nobody can change.
@lru_cache(maxsize=PARSED)
def _parsed_spec(body: str) -> JobSpec:
    return parse(body, JobSpec)  # type: ignore[no-any-return]


@lru_cache(maxsize=PARSED)
def _parsed_plan(body: str) -> Plan:
    return parse(body, Plan)  # type: ignore[no-any-return]


def apply(state: RunState, record: JobRecord, keep: int) -> None:
    """Fold one record in. `keep` is how many checkpoints are kept."""
    match record:
        case Submitted():
            state.submitted_wall_ns = state.changed_wall_ns = record.wall_ns
        case Prepared():
            state.plan = record.plan
            plan = state.parsed_plan()
            state.samples = ledger.fresh(plan.samples, plan.spec.train.epochs)
            state.checkpoints = [CheckpointSealed(0, 0, "", 0)]
        case StateChanged():
            state.state, state.reason, state.changed_wall_ns = record.state, record.reason, record.wall_ns
        case Placed():
            _placed(state, record)
        case Promoted():
            state.places = [
                replace(p, primary=record.primary, backup=record.backup) if p.shard == record.shard else p
                for p in state.places
            ]
        case Leased():
            ledger.lease(state.ledger, record)
        case Backed():
            ledger.back(state.ledger, record)
        case Returned():
            ledger.give_back(state.ledger, record)
            _forget_carried(state, record.leases)
        case Committed():
            _committed(state, record)
        case Aborted():
            state.aborted += 1
            ledger.abort(state.ledger, record)
            if record.carry:
                state.carried[record.update] = record.leases
            else:
                _forget_carried(state, record.leases)
        case CheckpointSealed():
            _sealed(state, record, keep)
        case CheckpointDamaged():
            state.checkpoints = [c for c in state.checkpoints if c.version != record.version]
        case HeldoutMeasured():
            _measured(state, record)
        case Snapshot():
            raise AssertionError("a snapshot starts a stream; it is not folded in")
        case _:
            assert_never(record)


def _placed(state: RunState, record: Placed) -> None:
    if record.version != state.version or state.generation > 0:
        state.rollbacks += state.generation > 0
        ledger.rollback(state.ledger, record.version)
        state.tail = [c for c in state.tail if c.number <= record.version]
        state.checkpoints = [c for c in state.checkpoints if c.version <= record.version]
        state.carried.clear()
        state.version = record.version
        state.marks = [m for m in state.marks if m.version <= record.version]
        mark = state.marks[-1] if state.marks else Mark(-1, Plateau())
        state.plateau, state.measured = mark.plateau, mark.version
    state.generation = record.generation
    state.places = list(record.shards)


def _committed(state: RunState, record: Committed) -> None:
    for member in record.members:
        _forget_carried(state, member.leases)
    ledger.commit(state.ledger, record)
    state.version = record.number
    state.tail.append(record)
    state.elapsed_ns = record.elapsed_ns
    state.tokens += record.tokens


def _sealed(state: RunState, record: CheckpointSealed, keep: int) -> None:
    state.checkpoints = [*state.checkpoints, record][-keep:]
    kept = [c.version for c in state.checkpoints]
    ledger.seal(state.ledger, record.version, kept)
    state.marks = [
        *[m for m in state.marks if m.version <= min(kept)][-1:],
        *[m for m in state.marks if m.version > min(kept)],
    ]
    state.tail = [c for c in state.tail if c.number > min(kept)]


def _measured(state: RunState, record: HeldoutMeasured) -> None:
    spec = state.parsed_plan().spec
    state.plateau = schedule.measured(spec.train.optimizer, state.plateau, record.loss)
    state.heldout_first = state.heldout_first or record.loss
    state.heldout_last = record.loss
    state.accuracy_last = record.accuracy
    state.measured = record.version
    state.marks.append(Mark(record.version, state.plateau))


def _forget_carried(state: RunState, leases: tuple[LeaseId, ...]) -> None:
    gone = set(leases)
    state.carried = {u: held for u, held in state.carried.items() if not gone & set(held)}
