"""What a role asks of its engine (commands, down a pipe) and hears from it (reports, up the pipe).

The engine is a child process that owns tensors and tensor sockets; it may die at any time, and then the host of the
role reports `EngineExited`. Commands for one engine are executed in order, except that transfers and one
computation overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medley.protocol.ids import Generation, JobId, LeaseId, NodeId, UpdateId, Version
from medley.protocol.messages import Address, Member, PartWritten, Route, Span

# -- to a worker's engine -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenWorker:
    """Bind the tensor socket. `micro_batch` 0 lets the engine choose; `threads` 0 too."""

    job: JobId
    generation: Generation
    plan: str
    threads: int
    micro_batch: int
    allow_code: bool


@dataclass(frozen=True, slots=True)
class LoadWorker:
    """Fetch data and tokenizer from the vault and build the model."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class ResetWorker:
    """Forget updates, carry and residuals: a rollback made them meaningless."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class SetRoutes:
    generation: Generation
    routes: tuple[Route, ...]
    vault: Address


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Tokenise this lease while something else computes."""

    lease: LeaseId
    span: Span
    steps: int


@dataclass(frozen=True, slots=True)
class Pull:
    """Fetch one pinned version from all shards into the spare buffer."""

    generation: Generation
    version: Version


@dataclass(frozen=True, slots=True)
class Compute:
    """Run `steps` local steps on `span` from the pulled `base`; with `carry`, add what an earlier refusal left."""

    update: UpdateId
    span: Span
    steps: int
    base: Version
    lr: float
    carry: bool


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop computing this update: its lease was taken back. The answer is its `Failed`, unless it was done already."""

    update: UpdateId


@dataclass(frozen=True, slots=True)
class Push:
    """Send an update's parts to every shard that does not hold them yet."""

    generation: Generation
    update: UpdateId


@dataclass(frozen=True, slots=True)
class Settle:
    """The fate of an update: free it, keep it as the carry, or drop it."""

    update: UpdateId
    verdict: Literal["committed", "carry", "drop"]


@dataclass(frozen=True, slots=True)
class DropCarry:
    generation: Generation


@dataclass(frozen=True, slots=True)
class Measure:
    """Held-out loss of the pulled version."""

    version: Version


# -- to a shard's engine ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenShard:
    job: JobId
    generation: Generation
    shard: int
    plan: str
    blocks: tuple[int, ...]
    threads: int


@dataclass(frozen=True, slots=True)
class LoadShard:
    """Load this version's blocks and optimiser state from the vault, forgetting everything else."""

    generation: Generation
    version: Version


@dataclass(frozen=True, slots=True)
class SetPeers:
    """Admit these keys and no others. `vault` is where artifacts and checkpoints lie (unused by the vault itself)."""

    number: int
    keys: tuple[str, ...]
    vault: Address


@dataclass(frozen=True, slots=True)
class SetRelay:
    backup: Address


@dataclass(frozen=True, slots=True)
class Apply:
    generation: Generation
    number: Version
    members: tuple[Member, ...]
    lr: float


@dataclass(frozen=True, slots=True)
class Discard:
    updates: tuple[UpdateId, ...]


@dataclass(frozen=True, slots=True)
class PinVersion:
    version: Version


@dataclass(frozen=True, slots=True)
class UnpinVersion:
    version: Version


@dataclass(frozen=True, slots=True)
class WriteVersion:
    """Write the pinned version to the vault as this shard's checkpoint part."""

    generation: Generation
    version: Version


# -- to a pipeline stage's engine ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenStage:
    """Bind the tensor socket, and do what a serving's front posts there, as `node`; `threads` 0 lets torch choose.

    `SetPeers` names the front's plane as `vault`: weights are asked for there.
    """

    job: JobId
    generation: Generation
    node: NodeId
    threads: int


# -- to the coordinator's own children ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenVault:
    root: str
    host: str
    port: int
    encrypt: bool


@dataclass(frozen=True, slots=True)
class PrepareJob:
    """Read the data, train the tokenizer, build the model once, write artifacts and checkpoint 0."""

    job: JobId
    spec: str
    root: str


@dataclass(frozen=True, slots=True)
class SealCheckpoint:
    """Make a checkpoint visible in one atomic step; afterwards only the versions in `keep` stay.

    `layout` is the fingerprint, `committed` the positions that these parameters contain.
    """

    job: JobId
    generation: Generation
    version: Version
    layout: str
    parts: tuple[PartWritten, ...]
    committed: tuple[Span, ...]
    keep: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class ExportJob:
    """Assemble a checkpoint into a Hugging Face directory."""

    job: JobId
    version: Version
    plan: str
    root: str


# -- reports ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """The engine's tensor socket listens here."""

    address: Address


@dataclass(frozen=True, slots=True)
class Loaded:
    """The engine is ready for work, in this generation, at this version (workers: -1).

    `micro_batch`: how many rows a worker's will compute at once, until memory says otherwise.
    """

    generation: Generation
    version: Version
    micro_batch: int = 0


@dataclass(frozen=True, slots=True)
class Pulled:
    generation: Generation
    version: Version
    nbytes: int


@dataclass(frozen=True, slots=True)
class Computed:
    update: UpdateId
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
class Pushed:
    generation: Generation
    update: UpdateId
    nbytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    version: Version
    loss: float
    tokens: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class PartArrived:
    """A shard's engine holds all of one update's part."""

    generation: Generation
    update: UpdateId
    finite: bool
    squared_norm: float
    nbytes: int


@dataclass(frozen=True, slots=True)
class AppliedVersion:
    generation: Generation
    version: Version


@dataclass(frozen=True, slots=True)
class PeersKnown:
    number: int


@dataclass(frozen=True, slots=True)
class WroteVersion:
    generation: Generation
    version: Version
    file: str
    digest: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A command could not be done. `what` names it: pull, push, compute, load, write, prepare, seal, export."""

    what: str
    subject: str
    reason: str
    memory: bool
    fatal: bool  # trying again cannot help


@dataclass(frozen=True, slots=True)
class JobPrepared:
    job: JobId
    plan: str


@dataclass(frozen=True, slots=True)
class Sealed:
    job: JobId
    generation: Generation
    version: Version
    digest: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Exported:
    job: JobId
    version: Version
    path: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The process is alive and has done this much; every child says so once a second, a stage's more often."""

    done: int


@dataclass(frozen=True, slots=True)
class EngineExited:
    """Said by the host, not the engine: the child is gone. `memory`: killed for it, as far as one can tell."""

    reason: str
    memory: bool


WorkerCommand = (
    OpenWorker
    | LoadWorker
    | ResetWorker
    | SetRoutes
    | Prefetch
    | Pull
    | Compute
    | Abandon
    | Push
    | Settle
    | DropCarry
    | Measure
)
ShardCommand = OpenShard | LoadShard | SetPeers | SetRelay | Apply | Discard | PinVersion | UnpinVersion | WriteVersion
StageCommand = OpenStage | SetPeers
VaultCommand = OpenVault | SetPeers | SealCheckpoint
Command = WorkerCommand | ShardCommand | StageCommand | VaultCommand | PrepareJob | ExportJob
WorkerReport = Opened | Loaded | Pulled | Computed | Pushed | Measured | Failed | Progress | EngineExited
ShardReport = (
    Opened | Loaded | PartArrived | AppliedVersion | PeersKnown | WroteVersion | Failed | Progress | EngineExited
)
StageReport = Opened | PeersKnown | Progress | EngineExited
VaultReport = Opened | PeersKnown | Sealed | Failed | JobPrepared | Exported | Progress | EngineExited
Report = WorkerReport | ShardReport | StageReport | VaultReport
