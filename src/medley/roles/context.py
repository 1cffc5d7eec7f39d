"""What the parts of a run share: its durable state, its roster, and the effects of the event at hand.

The parts (`recovery`, `grants`, `commits`, `saving`) are functions over this context, each with one concern;
`run.Run` calls them in a fixed order after every event.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from medley.protocol.effects import Effect, Explain, Persist, Run, Send
from medley.protocol.engine import Command
from medley.protocol.ids import NS_PER_S, Generation, JobId, LeaseId, NodeId, Version
from medley.protocol.messages import Address, Capability, Drop, PartWritten, Pin, ToNode, Unpin
from medley.protocol.plan import Plan
from medley.protocol.records import JobRecord
from medley.roles.ledger import LedgerState
from medley.roles.roster import Roster, replica_nodes
from medley.roles.state import RunState, apply

NOWHERE = Address("", "")
CHECKPOINT, MEASUREMENT = "checkpoint", "measurement"  # who pins versions, besides nodes
SHARD_PATIENCE_NS = 5 * NS_PER_S  # a shard's machine may restart for so long before another one takes its place

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


@dataclass(slots=True)
class Saving:
    """A checkpoint under way."""

    version: Version
    parts: dict[int, PartWritten] = field(default_factory=dict)
    sealing: bool = False


@dataclass(slots=True)
class Context:
    """One run, between two events. `pool` is shared with the coordinator."""

    state: RunState
    pool: dict[NodeId, NodeView]
    vault: Address = NOWHERE
    wall_ns: int = 0
    roster: Roster = field(default_factory=Roster)
    out: list[Effect] = field(default_factory=list)
    plan: Plan | None = None
    pins: dict[Version, set[str]] = field(default_factory=dict)
    lost_shards: dict[tuple[NodeId, int], str] = field(default_factory=dict)
    broken_ns: int = 0
    began_ns: int = 0  # when this coordinator began with this run
    stopping: bool = False
    hung_checked_ns: int = 0
    seeding: int = -1  # the shard that gets a new backup
    seeded_ns: int = 0
    tries: int = 0  # of preparing or exporting
    round_size: dict[int, int] = field(default_factory=dict)
    round_opened_ns: int = 0
    round_times_ns: deque[int] = field(default_factory=lambda: deque(maxlen=32))
    lease_times_ns: deque[int] = field(default_factory=lambda: deque(maxlen=64))
    failures: dict[tuple[int, int], int] = field(default_factory=dict)  # of a span: (epoch, start)
    granted_ns: dict[LeaseId, int] = field(default_factory=dict)
    not_finite: int = 0
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
        self.out.append(Persist(stream(self.job), record))
        keep = self.plan.spec.checkpoint.keep if self.plan is not None else 1
        apply(self.state, record, keep)

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

    # -- workers ----------------------------------------------------------------------------------------------

    def unfit_reason(self, node: NodeId) -> str:
        """Why this machine, in its present life, cannot train this job; empty if it may."""
        view = self.pool.get(node)
        return self.unfit.get((node, view.boot), "") if view is not None else ""

    # -- shards -----------------------------------------------------------------------------------------------

    @property
    def holding(self) -> bool:
        """No commits now: a checkpoint of the present version is on its way."""
        return self.stopping or self.seeding >= 0

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
        for version in list(self.pins):
            self.unpin(version, owner)

    def drop_update(self, update: str) -> None:
        """Free an update everywhere; its leases are somebody else's concern."""
        self.roster.drop(update)
        for place in self.state.places:
            for node in replica_nodes(place):
                self.send(node, Drop(self.job, self.generation, place.shard, (update,)))


def stream(job: JobId) -> str:
    return f"job/{job}"
