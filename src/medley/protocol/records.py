"""What the coordinator persists: its state is the fold of these, and of nothing else.

Each record is one durable fact. A stream per job (`job/<id>`) and one for the pool (`pool`). `Snapshot` replaces a
prefix of a job's stream when a checkpoint makes it unnecessary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medley.protocol.ids import Generation, JobId, LeaseId, NodeId, UpdateId, Version
from medley.protocol.messages import Member, Span

JobState = Literal["queued", "preparing", "running", "finishing", "cancelling", "done", "failed", "cancelled"]
TERMINAL: frozenset[JobState] = frozenset({"done", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Submitted:
    """`spec` is the JSON of the JobSpec, exactly as it was accepted."""

    job: JobId
    spec: str
    wall_ns: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """`plan` is the JSON of the Plan; checkpoint 0 holds the initial parameters."""

    job: JobId
    plan: str


@dataclass(frozen=True, slots=True)
class StateChanged:
    job: JobId
    state: JobState
    reason: str
    wall_ns: int


@dataclass(frozen=True, slots=True)
class ShardPlace:
    shard: int
    primary: NodeId
    backup: NodeId  # empty: none
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """Who holds which shard from here on. A new generation with `version` given means: reload that checkpoint."""

    generation: Generation
    version: Version
    shards: tuple[ShardPlace, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Promoted:
    """A backup became primary; nothing was lost, so the generation stays."""

    shard: int
    primary: NodeId
    backup: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Leased:
    lease: LeaseId
    node: NodeId
    span: Span
    steps: int
    round: int


@dataclass(frozen=True, slots=True)
class Backed:
    """A second lease, on the samples of lease `backs`: whichever is merged first, the other one is given back."""

    lease: LeaseId
    node: NodeId
    backs: LeaseId


@dataclass(frozen=True, slots=True)
class Returned:
    """Leases whose samples are open again, unless another lease still has them."""

    leases: tuple[LeaseId, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """One merged update, as the ledger counts it."""

    update: UpdateId
    node: NodeId
    leases: tuple[LeaseId, ...]
    weight: float
    staleness: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The place of these updates in the one order. `elapsed_ns` is training time so far, over all lives."""

    number: Version
    members: tuple[MemberRecord, ...]
    lr: float
    loss: float
    tokens: int
    samples: int
    elapsed_ns: int

    def wire_members(self) -> tuple[Member, ...]:
        return tuple(Member(m.update, m.weight) for m in self.members)


@dataclass(frozen=True, slots=True)
class Aborted:
    """An update that was refused. With `carry` its leases stay with the worker, else they are open again."""

    update: UpdateId
    node: NodeId
    leases: tuple[LeaseId, ...]
    carry: bool
    reason: str


@dataclass(frozen=True, slots=True)
class CheckpointSealed:
    version: Version
    generation: Generation
    digest: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class CheckpointDamaged:
    """This checkpoint cannot be trusted any more; the one before it is the newest now."""

    version: Version
    reason: str


@dataclass(frozen=True, slots=True)
class HeldoutMeasured:
    version: Version
    loss: float
    tokens: int
    accuracy: float
    elapsed_ns: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole of a job's state at one point of its stream, as JSON of `roles.run.RunState`."""

    state: str


@dataclass(frozen=True, slots=True)
class TokenCreated:
    token: str
    secret_sha256: str
    expires_wall_ns: int
    uses: int
    role: str


@dataclass(frozen=True, slots=True)
class TokenRedeemed:
    token: str
    node: NodeId
    key_sha256: str


@dataclass(frozen=True, slots=True)
class NodeRevoked:
    node: NodeId
    reason: str


JobRecord = (
    Submitted
    | Prepared
    | StateChanged
    | Placed
    | Promoted
    | Leased
    | Backed
    | Returned
    | Committed
    | Aborted
    | CheckpointSealed
    | CheckpointDamaged
    | HeldoutMeasured
    | Snapshot
)
PoolRecord = TokenCreated | TokenRedeemed | NodeRevoked
Record = JobRecord | PoolRecord
