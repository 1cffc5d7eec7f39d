"""What the parts of a run share: its durable state, its roster, and the effects of the event at hand.

The parts (`recovery`, `grants`, `commits`, `saving`) are functions over this context, each with one concern;
`run.Run` calls them in a fixed order after every event.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from medley.protocol.effects import Effect, Explain, Persist, Run, Send
from medley.protocol.engine import Command
from medley.protocol.ids import NS_PER_S, Generation, JobId, LeaseId, NodeId, UpdateId, Version
from medley.protocol.messages import Address, Capability, Drop, PartWritten, Pin, ToNode, Unpin
from medley.protocol.plan import Plan
from medley.protocol.records import Committed, JobRecord, Placed, Promoted
from medley.roles.holdings import Holdings
from medley.roles.ledger import LedgerState
from medley.roles.roster import KeyLists, Roster, replica_nodes
from medley.roles.state import RunState, apply

NOWHERE = Address("", "")
CHECKPOINT, MEASUREMENT = "/checkpoint", "/measurement"  # who pins versions, besides nodes: no name of theirs
SHARD_PATIENCE_NS = 5 * NS_PER_S  # a shard's machine may restart for so long before another one takes its place

NEWS = 0.25  # a speed that moved by so much may change who gets which machine
BACKUP_PATIENCE_NS = 3 * NS_PER_S // 2  # ... where a backup could take over


@dataclass(slots=True)
class NodeView:
    """A machine of the pool, as every run sees it."""

    node: NodeId
    boot: str
    capability: Capability
    connected: bool
    heard_ns: int
    lost_ns: int = 0
    given_up: bool = False
    revoked: bool = False
    job: JobId = ""  # which it works for
    tokens_per_s: float = 0.0  # moving averages over all jobs, 0 until something was measured
    work_per_s: float = 0.0  # tokens/s times parameters
    step_ns: int = 0
    told_per_s: float = 0.0  # the work_per_s that the scheduler has seen

    @property
    def keeper(self) -> bool:
        """It only holds parameters, of any number of jobs at once."""
        return self.capability.shard and not self.capability.worker


@dataclass(slots=True)
class Shared:
    """What the runs of one coordinator share besides the machines."""

    lists: KeyLists = field(default_factory=KeyLists)
    keepers: dict[NodeId, NodeView] = field(default_factory=dict)
    hosting: dict[NodeId, dict[JobId, int]] = field(default_factory=dict)  # replicas on each machine
    joined_ns: int = 0  # when a machine came that had not been here before
    changed: bool = True  # something that the scheduler should know has happened


@dataclass(slots=True)
class Saving:
    """A checkpoint under way."""

    version: Version
    parts: dict[int, PartWritten] = field(default_factory=dict)
    sealing: bool = False


@dataclass(slots=True)
class Context:
    """One run, between two events. `pool` and `shared` are the coordinator's."""

    state: RunState
    pool: dict[NodeId, NodeView]
    vault: Address = NOWHERE
    wall_ns: int = 0
    shared: Shared = field(default_factory=Shared)
    allotted: set[NodeId] = field(default_factory=set)  # the machines that train it
    been: set[NodeId] = field(default_factory=set)  # ... and those that ever did
    hosts: set[NodeId] = field(default_factory=set)  # counted in `shared.hosting`
    roster: Roster = field(default_factory=Roster)
    out: list[Effect] = field(default_factory=list)
    plan: Plan | None = None
    pins: dict[Version, set[str]] = field(default_factory=dict)
    lost_shards: dict[tuple[NodeId, int], str] = field(default_factory=dict)
    reload: bool = False  # what was lost is loaded anew, even if a machine says that it has it still
    broken_ns: int = 0
    began_ns: int = 0  # when this coordinator began with this run
    stopping: bool = False
    moving: bool = False  # shards go to other machines at the next checkpoint
    leaving: str = ""  # it gives up all machines at the next checkpoint, and why
    leaving_ns: int = 0
    looked_ns: int = 0  # when everybody was last considered for leases, news or not
    hung_checked_ns: int = 0
    hung_ns: int = 0  # how long a lease may take, as of then; 0 while too few are known
    seeding: int = -1  # the shard that gets a new backup
    seeded_ns: int = 0
    tries: int = 0  # of preparing or exporting
    round_size: dict[int, int] = field(default_factory=dict)
    round_opened_ns: int = 0
    arrivals_ns: deque[int] = field(default_factory=lambda: deque(maxlen=64))  # of members, since their round opened
    lease_times_ns: deque[int] = field(default_factory=lambda: deque(maxlen=64))
    failures: dict[tuple[int, int], int] = field(default_factory=dict)  # of a span: (epoch, start)
    granted_ns: dict[LeaseId, int] = field(default_factory=dict)
    not_finite: int = 0
    parameters: int = 0
    engines_ended: int = 0  # of workers, since the last commit
    measure_failures: int = 0
    saving: Saving | None = None
    saved_ns: int = 0
    save_failures: int = 0
    save_now: bool = False
    measuring: Version = -1
    measuring_node: NodeId = ""
    measuring_ns: int = 0
    mark_ns: int = 0  # when training time last counted; 0 until somebody works: loading a model is not training
    preparing: bool = False  # a preparer is at work, whoever still waits for it
    exporting: bool = False
    news: int = 0  # counts what a part of the run may have to act on
    granted_news: int = -1  # as of which nothing is left to be granted
    introduced: tuple[int, int, int] = (-1, -1, -1)  # news, and lists of keys, as of which everybody knows everybody
    records: int = 0  # counts what was persisted
    holdings: Holdings = field(default_factory=Holdings)
    opened: tuple[int, int, dict[NodeId, list[LeaseId]]] = (-1, -1, {})  # at so many records: leases to be computed
    merged: dict[UpdateId, Committed] = field(default_factory=dict)  # of `merged_of`, its first `merged_to` commits
    merged_of: list[Committed] = field(default_factory=list)
    merged_to: int = 0
    granted: tuple[int, int] = (-1, 0)  # at so many records: leases that the present round may wait for
    allowance: tuple[Version, int] = (-1, 0)  # the grace of the round after this version
    unfit: dict[tuple[NodeId, str], str] = field(default_factory=dict)  # (node, boot) that cannot do it, and why
    explained: dict[str, str] = field(default_factory=dict)

    # -- short words ------------------------------------------------------------------------------------------

    @property
    def job(self) -> JobId:
        return self.state.job

    @property
    def generation(self) -> Generation:
        return self.state.generation

    @property
    def ledger(self) -> LedgerState:
        return self.state.ledger

    @property
    def prepared(self) -> Plan:
        assert self.plan is not None, "the plan exists once the job is prepared"
        return self.plan

    def persist(self, record: JobRecord) -> None:
        """Make one fact durable and true, in that order for everyone outside."""
        self.news += 1
        self.records += 1
        self.out.append(Persist(stream(self.job), record))
        keep = self.plan.spec.checkpoint.keep if self.plan is not None else 1
        self.holdings.follow(self.state.samples, record)
        apply(self.state, record, keep)
        if isinstance(record, (Placed, Promoted)):
            self.count_replicas()

    def leases_of(self, node: NodeId) -> set[LeaseId]:
        """All leases that a machine holds, computed or not."""
        return self.holdings.look(self.ledger).of.get(node, set())

    def send(self, node: NodeId, message: ToNode) -> None:
        """To a node that is there; another one is told everything that still matters when it says Hello."""
        if (view := self.pool.get(node)) is not None and view.connected:
            self.out.append(Send(node, message))

    def run(self, command: Command) -> None:
        self.out.append(Run(command))

    def explain(self, subject: str, text: str) -> None:
        """Say why, once: a sentence that did not change is not repeated."""
        if self.explained.get(subject) != text:
            self.explained[subject] = text
            self.out.append(Explain(subject, text))

    # -- machines ---------------------------------------------------------------------------------------------

    def taken(self, node: NodeId) -> bool:
        """It is here, and trains for somebody else."""
        view = self.pool.get(node)
        return view is not None and view.connected and not view.keeper and view.job not in ("", self.job)

    def count_replicas(self) -> None:
        """Tell everybody which machines hold how much of this job."""
        hosting, job = self.shared.hosting, self.job
        held: dict[NodeId, int] = {}
        for node in (n for p in self.state.places for n in replica_nodes(p)):
            held[node] = held.get(node, 0) + 1
        for node in self.hosts - held.keys():
            hosting[node].pop(job, None)
        for node, count in held.items():
            hosting.setdefault(node, {})[job] = count
        self.hosts = set(held)

    def forget_replicas(self) -> None:
        for node in self.hosts:
            self.shared.hosting[node].pop(self.job, None)
        self.hosts = set()

    # -- workers ----------------------------------------------------------------------------------------------

    def measured(self, node: NodeId, tokens_per_s: float, lease_ns: int) -> None:
        """What this machine can do, for the scheduler; it is asked again when that is news."""
        view = self.pool.get(node)
        if view is None or tokens_per_s <= 0:
            return
        work = tokens_per_s * max(1, self.work)
        view.tokens_per_s = _average(view.tokens_per_s, tokens_per_s)
        view.work_per_s = _average(view.work_per_s, work)
        view.step_ns = int(_average(view.step_ns, lease_ns)) if lease_ns else view.step_ns
        if abs(view.work_per_s - view.told_per_s) > NEWS * view.told_per_s:
            self.shared.changed = True

    @property
    def work(self) -> int:
        """Trained parameters: what one token costs, as far as the plan tells."""
        self.parameters = self.parameters or sum(tensor.numel for tensor in self.prepared.tensors)
        return self.parameters

    def unfit_reason(self, node: NodeId) -> str:
        """Why this machine, in its present life, cannot train this job; empty if it may."""
        view = self.pool.get(node) if self.unfit else None
        return self.unfit.get((node, view.boot), "") if view is not None else ""

    # -- shards -----------------------------------------------------------------------------------------------

    @property
    def holding(self) -> bool:
        """No commits now: a checkpoint of the present version is on its way."""
        return self.stopping or self.moving or bool(self.leaving) or self.seeding >= 0

    def shards_ready(self) -> bool:
        """Every replica in the placement is loaded in this generation."""
        if not self.state.places or self.lost_shards:
            return False
        views = self.roster.replicas
        return all(
            (view := views.get((n, p.shard))) is not None and view.ready
            for p in self.state.places
            for n in replica_nodes(p)
        )

    def pin(self, version: Version, owner: str) -> None:
        """Keep the present version readable for `owner`."""
        owners = self.pins.setdefault(version, set())
        if not owners:
            for place in self.state.places:
                self.send(place.primary, Pin(self.job, self.generation, place.shard, version))
        owners.add(owner)

    def unpin(self, version: Version, owner: str) -> None:
        owners = self.pins.get(version)
        if owners is None:
            return
        if owner in owners and version != self.state.version:
            self.news += 1  # nobody begins from the present one while an older one is pinned
        owners.discard(owner)
        if not owners:
            del self.pins[version]
            for place in self.state.places:
                self.send(place.primary, Unpin(self.job, self.generation, place.shard, version))

    def forget_pins(self) -> None:
        """Those who kept the pinned versions are gone: whoever reads or writes them must ask again."""
        self.pins.clear()
        self.measuring, self.measuring_node = -1, ""
        if self.saving is not None and not self.saving.sealing:
            self.saving = None

    def unpin_everything_of(self, owner: str) -> None:
        for version in [v for v, owners in self.pins.items() if owner in owners]:
            self.unpin(version, owner)

    def drop_update(self, update: str) -> None:
        """Free an update everywhere; its leases are somebody else's concern."""
        self.roster.drop(update)
        for place in self.state.places:
            for node in replica_nodes(place):
                self.send(node, Drop(self.job, self.generation, place.shard, (update,)))


def _average(before: float, seen: float) -> float:
    return seen if before == 0 else 0.8 * before + 0.2 * seen


def stream(job: JobId) -> str:
    return f"job/{job}"
