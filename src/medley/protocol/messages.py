"""The control plane's vocabulary: what nodes and the coordinator say to each other.

Facts and requests, idempotent, without tensors. Delivery is at most once and, within a stream, in order: what a lost
one would have said, the next heartbeat's status says again. `job` and `generation` come first wherever they fence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medley.protocol.ids import Generation, JobId, LeaseId, NodeId, Term, UpdateId, Version


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Positions [start, stop) of one epoch's seeded order."""

    epoch: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine's tensor socket listens, and its CURVE public key (empty: no encryption)."""

    endpoint: str
    key: str


@dataclass(frozen=True, slots=True)
class Capability:
    """What a machine said of itself when it joined."""

    cores: int
    memory_bytes: int
    platform: str
    worker: bool
    shard: bool


@dataclass(frozen=True, slots=True)
class HeldUpdate:
    """An update that a worker has sent and whose fate it does not know, or an update that a shard has staged."""

    update: UpdateId
    finite: bool
    squared_norm: float


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """Everything the coordinator may have missed about a worker."""

    job: JobId
    generation: Generation
    leases: tuple[LeaseId, ...]
    updates: tuple[UpdateId, ...]
    phase: str


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """Everything the coordinator may have missed about one shard replica."""

    job: JobId
    generation: Generation
    shard: int
    version: Version
    staged: tuple[HeldUpdate, ...]
    pinned: tuple[Version, ...]
    ready: bool


# -- node to coordinator ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of every stream."""

    node: NodeId
    boot: str
    capability: Capability
    workers: tuple[WorkerStatus, ...]
    shards: tuple[ShardStatus, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    node: NodeId
    workers: tuple[WorkerStatus, ...]
    shards: tuple[ShardStatus, ...]


@dataclass(frozen=True, slots=True)
class EngineUp:
    """The engine of one role is there and listens. `shard` is -1 for a worker."""

    job: JobId
    generation: Generation
    shard: int
    address: Address


@dataclass(frozen=True, slots=True)
class EngineDown:
    """The engine of one role died; `memory` says the system or torch ran out of it."""

    job: JobId
    generation: Generation
    shard: int
    reason: str
    memory: bool


@dataclass(frozen=True, slots=True)
class BaseWanted:
    """The worker could begin this lease now, if it had parameters to begin from."""

    job: JobId
    generation: Generation
    lease: LeaseId


@dataclass(frozen=True, slots=True)
class BaseHeld:
    """The worker has pulled this version; its pin may go."""

    job: JobId
    generation: Generation
    version: Version


@dataclass(frozen=True, slots=True)
class UpdateReady:
    """An update has been computed and is on its way to the shards. `weight` is answer tokens (or samples)."""

    job: JobId
    generation: Generation
    update: UpdateId
    leases: tuple[LeaseId, ...]
    base: Version
    oldest_base: Version
    weight: float
    loss_sum: float
    correct: float
    samples: int
    tokens: int
    seconds: float
    micro_batch: int
    residual_norm: float
    finite: bool


@dataclass(frozen=True, slots=True)
class LeaseFailed:
    """The worker gives a lease back: its engine failed on it."""

    job: JobId
    generation: Generation
    leases: tuple[LeaseId, ...]
    reason: str
    fatal: bool


@dataclass(frozen=True, slots=True)
class Evaluated:
    job: JobId
    generation: Generation
    version: Version
    loss: float
    tokens: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Staged:
    """One shard replica holds every byte of this update's part."""

    job: JobId
    generation: Generation
    shard: int
    update: UpdateId
    finite: bool
    squared_norm: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class PeersSet:
    """The shard's tensor socket now admits list number `number`."""

    job: JobId
    generation: Generation
    shard: int
    number: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A role is loaded: a shard holds `version`, a worker (`shard` -1) can compute."""

    job: JobId
    generation: Generation
    shard: int
    version: Version


@dataclass(frozen=True, slots=True)
class Applied:
    job: JobId
    generation: Generation
    shard: int
    version: Version


@dataclass(frozen=True, slots=True)
class PartWritten:
    """A shard's part of a checkpoint is durable at the vault."""

    job: JobId
    generation: Generation
    shard: int
    version: Version
    file: str
    digest: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A shard cannot load this checkpoint, now or later: it is damaged or gone."""

    job: JobId
    generation: Generation
    shard: int
    version: Version
    reason: str


@dataclass(frozen=True, slots=True)
class PartFailed:
    job: JobId
    generation: Generation
    shard: int
    version: Version
    reason: str


# -- coordinator to node ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome:
    term: Term
    heartbeat_ms: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The coordinator will not talk to this node; `reason` is a sentence for its owner."""

    reason: str


@dataclass(frozen=True, slots=True)
class Called:
    """Somebody who cannot reach this node's engine `name` directly calls it: take the call `number` (Tunnel.Take)."""

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class Route:
    """Where one shard's parts go; its primary passes them on to its backup."""

    shard: int
    blocks: tuple[int, ...]
    primary: Address


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file tree at the vault, by digest."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class AssignWorker:
    """Become (or stay) a worker of this job, in this generation. `plan` is the JSON of `protocol.plan.Plan`."""

    job: JobId
    generation: Generation
    plan: str
    threads: int


@dataclass(frozen=True, slots=True)
class AssignShard:
    """Become (or stay) a replica of this shard, starting from this checkpoint version."""

    job: JobId
    generation: Generation
    shard: int
    plan: str
    blocks: tuple[int, ...]
    version: Version
    threads: int


@dataclass(frozen=True, slots=True)
class AssignStage:
    """Become (or stay) a pipeline stage of this serving; what to hold and compute the front says (`stages.words`)."""

    job: JobId
    generation: Generation
    threads: int


@dataclass(frozen=True, slots=True)
class Routes:
    """Where the shards and the vault are now; sent again whenever it changes."""

    job: JobId
    generation: Generation
    routes: tuple[Route, ...]
    vault: Address


@dataclass(frozen=True, slots=True)
class Peers:
    """Who may connect to a shard, and where the vault is. Acknowledged before any worker is told to connect."""

    job: JobId
    generation: Generation
    shard: int
    number: int
    keys: tuple[str, ...]
    vault: Address


@dataclass(frozen=True, slots=True)
class Relay:
    """To a primary: pass every part you receive on to this backup (empty endpoint: to nobody)."""

    job: JobId
    generation: Generation
    shard: int
    backup: Address


@dataclass(frozen=True, slots=True)
class Lease:
    """These samples are yours until committed or revoked. `steps` is H; `round` is 0 outside of rounds."""

    job: JobId
    generation: Generation
    lease: LeaseId
    span: Span
    steps: int
    round: int


@dataclass(frozen=True, slots=True)
class Base:
    """Begin this lease from this version; it is pinned at every shard until you say `BaseHeld`."""

    job: JobId
    generation: Generation
    lease: LeaseId
    version: Version
    lr: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an update. `carry`: keep what you sent and send it once more with the next one."""

    job: JobId
    generation: Generation
    update: UpdateId
    verdict: Literal["committed", "carry", "drop"]
    version: Version
    reason: str


@dataclass(frozen=True, slots=True)
class Revoke:
    """These leases are no longer yours; whatever contains them must not be sent."""

    job: JobId
    generation: Generation
    leases: tuple[LeaseId, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Evaluate:
    job: JobId
    generation: Generation
    version: Version


@dataclass(frozen=True, slots=True)
class Leave:
    """Give up this role (`shard` -1: the worker role) and free what it holds."""

    job: JobId
    generation: Generation
    shard: int
    reason: str


@dataclass(frozen=True, slots=True)
class Member:
    update: UpdateId
    weight: float


@dataclass(frozen=True, slots=True)
class Commit:
    """Apply these members, in this order, as version `number`. Persisted before it is sent.

    `lr` is the learning rate; in local-sgd it is the factor, for staleness, on the outer optimiser's own rate.
    """

    job: JobId
    generation: Generation
    shard: int
    number: Version
    members: tuple[Member, ...]
    lr: float


@dataclass(frozen=True, slots=True)
class Drop:
    """Free staged parts that will never be committed."""

    job: JobId
    generation: Generation
    shard: int
    updates: tuple[UpdateId, ...]


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep this version readable. Sent between Commit(version) and Commit(version + 1): that makes a consistent cut."""

    job: JobId
    generation: Generation
    shard: int
    version: Version


@dataclass(frozen=True, slots=True)
class Unpin:
    job: JobId
    generation: Generation
    shard: int
    version: Version


@dataclass(frozen=True, slots=True)
class WritePart:
    """Write this (pinned) version's part, optimiser state included, to the vault."""

    job: JobId
    generation: Generation
    shard: int
    version: Version


FromNode = (
    Hello
    | Heartbeat
    | EngineUp
    | EngineDown
    | BaseWanted
    | BaseHeld
    | UpdateReady
    | LeaseFailed
    | Evaluated
    | Staged
    | PeersSet
    | Ready
    | Applied
    | PartWritten
    | PartFailed
    | LoadFailed
)
ToWorker = AssignWorker | Routes | Lease | Base | Outcome | Revoke | Evaluate | Leave
ToShard = AssignShard | Peers | Relay | Commit | Drop | Pin | Unpin | WritePart | Leave
ToStage = AssignStage | Peers | Leave
ToNode = Welcome | Refused | Called | ToWorker | ToShard | ToStage
Message = FromNode | ToNode
