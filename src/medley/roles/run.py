"""One training run, from queued to done: routes every event to the part whose concern it is, then lets all parts
advance.

    recovery   who holds which shard; promotion and rollback
    grants     leases and bases
    commits    updates: committed, carried or dropped
    saving     checkpoints, held-out loss, the end

Parts are functions over one `Context`; after each event they advance in this order, so a consequence is acted on at
once.
"""

from __future__ import annotations

from typing import assert_never

from medley.protocol.effects import Effect
from medley.protocol.engine import (
    Exported,
    Failed,
    JobPrepared,
    PeersKnown,
    PrepareJob,
    Sealed,
    SetPeers,
    VaultReport,
)
from medley.protocol.ids import LeaseId, NodeId, UpdateId
from medley.protocol.messages import (
    Address,
    Applied,
    BaseHeld,
    BaseWanted,
    Commit,
    EngineDown,
    EngineUp,
    Evaluated,
    FromNode,
    Heartbeat,
    HeldUpdate,
    Hello,
    Lease,
    LeaseFailed,
    Leave,
    LoadFailed,
    Outcome,
    PartFailed,
    PartWritten,
    PeersSet,
    Ready,
    Revoke,
    ShardStatus,
    Staged,
    Unpin,
    UpdateReady,
    WorkerStatus,
)
from medley.protocol.records import TERMINAL, CheckpointDamaged, JobRecord, Prepared, StateChanged
from medley.roles import commits, grants, recovery, saving
from medley.roles.context import Context, NodeView
from medley.roles.roster import ReplicaView, WorkerView, replica_nodes
from medley.roles.state import RunState, apply

RECENT_NS = 5_000_000_000  # a heartbeat may cross a lease that was granted this lately
POISON = 4  # failures of one span before the job stops with the reason


class Run:
    """The coordinator's side of one job."""

    def __init__(self, state: RunState, pool: dict[NodeId, NodeView]) -> None:
        self.ctx = Context(state, pool)
        if state.plan:
            self.ctx.plan = state.parsed_plan()

    @property
    def state(self) -> RunState:
        return self.ctx.state

    @property
    def over(self) -> bool:
        return self.state.state in TERMINAL

    def begin(self, vault: Address, number: int) -> list[Effect]:
        """The pool is this job's now: prepare it, or carry on where its log ends.

        Lists of keys are numbered from `number`, so that what was said to an earlier coordinator is not taken for an
        answer to this one.
        """
        ctx = self.ctx
        ctx.roster.keys_number = max(ctx.roster.keys_number, number)
        if self.state.state == "queued":
            ctx.persist(StateChanged(ctx.job, "preparing", "its data and model are prepared", ctx.wall_ns))
        if self.state.state == "preparing":
            ctx.run(PrepareJob(ctx.job, self.state.spec, ""))
        self.vault_opened(vault)
        return self.take()

    def fold(self, record: JobRecord) -> None:
        """One record of the log, at a restart."""
        apply(self.state, record, self.ctx.plan.spec.checkpoint.keep if self.ctx.plan else 1)
        if isinstance(record, Prepared):
            self.ctx.plan = self.state.parsed_plan()

    def vault_opened(self, address: Address) -> None:
        """The vault listens (again): everyone is told, and it is told who may connect."""
        ctx = self.ctx
        ctx.vault = address
        ctx.roster.vault_number = -1
        for replica in ctx.roster.replicas.values():
            replica.told_peers = -1
        for worker in ctx.roster.workers.values():
            worker.routes = ()
        saving.abandon(ctx)
        ctx.run(SetPeers(ctx.roster.keys_number, ctx.roster.keys(), address))

    def unsaved(self) -> bool:
        if self.over or not self.state.checkpoints:
            return False
        return self.state.version > self.state.checkpoints[-1].version and self.ctx.shards_ready()

    def resume(self) -> list[Effect]:
        """From cancelled or failed back to running, from the newest checkpoint, in a new generation."""
        ctx = self.ctx
        if ctx.plan is None:
            ctx.persist(StateChanged(ctx.job, "preparing", "resumed by a person", ctx.wall_ns))
            return self.take()
        ctx.persist(StateChanged(ctx.job, "running", "resumed by a person", ctx.wall_ns))
        number = ctx.roster.keys_number
        self.ctx = ctx = Context(self.state, ctx.pool, ctx.vault, ctx.wall_ns, plan=ctx.plan, out=ctx.out)
        ctx.roster.keys_number = number
        for place in self.state.places:
            for node in replica_nodes(place):
                recovery.lose_shard(ctx, node, place.shard, "the job was resumed")
        return self.take()

    def take(self) -> list[Effect]:
        out, self.ctx.out = self.ctx.out, []
        return out

    def advance(self, now_ns: int) -> list[Effect]:
        """Let every part act on what has changed."""
        ctx = self.ctx
        if ctx.plan is not None and not self.over:
            if ctx.began_ns == 0:
                ctx.began_ns = ctx.mark_ns = ctx.saved_ns = ctx.round_opened_ns = now_ns
            recovery.advance(ctx, now_ns)
            commits.advance(ctx, now_ns)
            grants.advance(ctx, now_ns)
            saving.advance(ctx, now_ns)
        if self.over and (ctx.roster.workers or ctx.roster.replicas):
            saving.release(ctx, self.state.reason)
        return self.take()

    # -- what the vault and the preparers say -----------------------------------------------------------------

    def engine_said(self, report: VaultReport, now_ns: int) -> None:
        ctx = self.ctx
        match report:
            case PeersKnown(number):
                ctx.roster.vault_number = max(ctx.roster.vault_number, number)
            case JobPrepared():
                if self.state.state == "preparing":
                    ctx.persist(Prepared(ctx.job, report.plan))
                    ctx.plan = self.state.parsed_plan()
                    ctx.tries = 0
                    ctx.persist(StateChanged(ctx.job, "running", "", ctx.wall_ns))
            case Sealed():
                saving.sealed(ctx, report, now_ns)
            case Exported():
                saving.exported(ctx)
            case Failed(what) if what in ("prepare", "export"):
                saving.child_failed(ctx, report)
            case Failed(what) if what == "seal":
                saving.part_failed(ctx, report, now_ns)
            case _:
                pass

    # -- what nodes say ---------------------------------------------------------------------------------------

    def heard(self, node: NodeId, message: FromNode, now_ns: int) -> None:
        """A message of this job, from a connected node."""
        if isinstance(message, Hello | Heartbeat):
            self._reconcile(node, message, now_ns)
        elif message.job == self.ctx.job and message.generation == self.ctx.generation:
            self._heard_fenced(node, message, now_ns)

    def _heard_fenced(self, node: NodeId, message: FromNode, now_ns: int) -> None:
        ctx = self.ctx
        match message:
            case Hello() | Heartbeat():
                pass
            case EngineUp():
                self._engine_up(node, message)
            case EngineDown():
                self._engine_down(node, message)
            case PeersSet():
                self._replica(node, message.shard).peers = message.number
            case Ready():
                self._ready(node, message)
            case BaseWanted():
                ctx.unpin_everything_of(node)
                if node in ctx.roster.workers:
                    ctx.roster.workers[node].wanting = message.lease
                    ctx.roster.workers[node].hung = False
            case BaseHeld():
                saving.base_held(ctx, node, message.version)
            case UpdateReady():
                commits.announced(ctx, node, message, now_ns)
            case LeaseFailed():
                self._lease_failed(node, message)
            case Evaluated():
                saving.measured(ctx, node, message)
            case Staged():
                self._staged(node, message)
            case Applied():
                replica = self._replica(node, message.shard)
                replica.version = max(replica.version, message.version)
            case PartWritten():
                saving.part_written(ctx, message)
            case PartFailed():
                saving.part_failed(ctx, message, now_ns)
            case LoadFailed():
                self._load_failed(node, message)
            case _:
                assert_never(message)

    def _replica(self, node: NodeId, shard: int) -> ReplicaView:
        """The replica, or a throw-away if it is not in the placement (its words then change nothing)."""
        return self.ctx.roster.replicas.get((node, shard), ReplicaView(node, shard))

    def _engine_up(self, node: NodeId, message: EngineUp) -> None:
        ctx = self.ctx
        engine = (node, message.shard)
        if not ctx.roster.introduce(engine, message.address):
            return
        if message.shard < 0:
            if node in ctx.roster.workers:
                ctx.roster.workers[node].routes = ()
        elif self._replica(node, message.shard).ready:
            recovery.lose_shard(ctx, node, message.shard, "its engine is a new one")
            ctx.roster.introduce(engine, message.address)
        ctx.run(SetPeers(ctx.roster.keys_number, ctx.roster.keys(), ctx.vault))

    def _engine_down(self, node: NodeId, message: EngineDown) -> None:
        ctx = self.ctx
        if message.shard >= 0:
            recovery.lose_shard(ctx, node, message.shard, message.reason)
            return
        worker = ctx.roster.workers.get(node)
        if worker is not None:
            ctx.roster.workers[node] = WorkerView(node, tokens_per_s=worker.tokens_per_s)
            if worker.residual_norm > 0:
                ctx.explain(node, f"lost a compression residual of norm {worker.residual_norm:.3g} with its engine")
        ctx.roster.forget((node, -1))
        self._lose_work(node, f"the engine of {node} ended: {message.reason}", keep_complete=True)

    def _ready(self, node: NodeId, message: Ready) -> None:
        ctx = self.ctx
        if message.shard < 0:
            if node in ctx.roster.workers:
                ctx.roster.workers[node].ready = True
            return
        replica = self._replica(node, message.shard)
        replica.ready, replica.version = True, message.version
        self._catch_up(replica, frozenset())

    def _staged(self, node: NodeId, message: Staged) -> None:
        if (node, message.shard) in self.ctx.roster.replicas:
            held = HeldUpdate(message.update, message.finite, message.squared_norm)
            self.ctx.roster.stage((node, message.shard), held)

    def _lease_failed(self, node: NodeId, message: LeaseFailed) -> None:
        ctx = self.ctx
        if message.fatal:
            saving.fail(ctx, message.reason)
            return
        held = tuple(n for n in message.leases if n in ctx.ledger.leases and ctx.ledger.leases[n].node == node)
        for lease in held:
            span = ctx.ledger.leases[lease].span
            key = (span.epoch, span.start)
            ctx.failures[key] = ctx.failures.get(key, 0) + 1
            if ctx.failures[key] >= POISON:
                saving.fail(ctx, f"samples {span.start} to {span.stop} fail everywhere: {message.reason}")
                return
        grants.take_back(ctx, held, f"{node} gave them back: {message.reason}")

    def _load_failed(self, node: NodeId, message: LoadFailed) -> None:
        ctx = self.ctx
        if [c.version for c in ctx.state.checkpoints] == [message.version]:
            saving.fail(ctx, f"the last checkpoint ({message.version}) cannot be loaded: {message.reason}")
            return
        if any(c.version == message.version for c in ctx.state.checkpoints):
            ctx.persist(CheckpointDamaged(message.version, message.reason))
        reason = f"checkpoint {message.version} cannot be loaded: {message.reason}"
        recovery.lose_shard(ctx, node, message.shard, reason)

    # -- reconciliation ---------------------------------------------------------------------------------------

    def _reconcile(self, node: NodeId, message: Hello | Heartbeat, now_ns: int) -> None:
        """Compare what a node says it is with what it should be; say again what it missed."""
        fresh = isinstance(message, Hello)
        mine = [w for w in message.workers if w.job == self.ctx.job]
        for worker in mine:
            self._reconcile_worker(node, worker, fresh, now_ns)
        if fresh:
            self._forget_what_was_said(node)
        if fresh and not any(w.generation == self.ctx.generation for w in mine):
            self.ctx.roster.workers.pop(node, None)
            self.ctx.roster.forget((node, -1))
            self._lose_work(node, f"{node} started anew", keep_complete=True)
        shards = {s.shard: s for s in message.shards if s.job == self.ctx.job}
        for status in shards.values():
            self._reconcile_shard(node, status)
        if fresh:
            self._notice_missing_shards(node, shards)

    def _forget_what_was_said(self, node: NodeId) -> None:
        """A stream ended, and with it whatever was on its way in either direction."""
        ctx = self.ctx
        saving.lose_measurer(ctx, node)
        if any(p.primary == node for p in self.state.places) and ctx.saving is not None and not ctx.saving.sealing:
            saving.abandon(ctx)
        if node in ctx.roster.workers:
            ctx.roster.workers[node].routes = ()
        for replica in ctx.roster.replicas.values():
            if replica.node == node:
                replica.told_peers, replica.told_relay = -1, None

    def _reconcile_worker(self, node: NodeId, status: WorkerStatus, fresh: bool, now_ns: int) -> None:
        ctx = self.ctx
        if status.generation != ctx.generation or self.over:
            if self.over:
                self.ctx.send(node, Leave(ctx.job, status.generation, -1, self.state.state))
            return
        if fresh:
            ctx.roster.workers.setdefault(node, WorkerView(node))
        if status.phase not in ("wanting", "pulling"):
            ctx.unpin_everything_of(node)
        if status.phase in ("idle", "wanting") and node in ctx.roster.workers:
            ctx.roster.workers[node].hung = False
        held = {n for n, h in ctx.ledger.leases.items() if h.node == node}
        foreign = set(status.leases) - held - self._say_committed(node, status)
        if foreign:
            ctx.send(node, Revoke(ctx.job, ctx.generation, tuple(sorted(foreign)), "they are not this worker's"))
        missed = [n for n in held - set(status.leases) if now_ns - ctx.granted_ns.get(n, 0) > RECENT_NS]
        self._say_leases_again(node, missed)

    def _say_committed(self, node: NodeId, status: WorkerStatus) -> set[LeaseId]:
        """Tell a worker of its updates that were committed without its knowing; returns their leases."""
        ctx = self.ctx
        known: set[LeaseId] = set()
        for update in status.updates:
            commit = commits.commit_of(ctx, update)
            if commit is not None:
                known.update(n for m in commit.members if m.update == update for n in m.leases)
                ctx.send(node, Outcome(ctx.job, ctx.generation, update, "committed", commit.number, ""))
        return known

    def _say_leases_again(self, node: NodeId, missed: list[LeaseId]) -> None:
        ctx = self.ctx
        for number in sorted(missed):
            lease = ctx.ledger.leases[number]
            if lease.carried or any(number in f.report.leases for f in ctx.roster.updates.values()):
                grants.take_back(ctx, (number,), f"{node} does not hold lease {number} any more")
            else:
                ctx.send(node, Lease(ctx.job, ctx.generation, number, lease.span, lease.steps, lease.round))

    def _reconcile_shard(self, node: NodeId, status: ShardStatus) -> None:
        ctx = self.ctx
        placed = any(p.shard == status.shard and node in replica_nodes(p) for p in self.state.places)
        if self.over or not placed:
            ctx.send(node, Leave(ctx.job, status.generation, status.shard, "it is held elsewhere"))
            return
        if status.generation != ctx.generation:
            return
        key = (node, status.shard)
        staged = frozenset(h.update for h in status.staged)
        if key in ctx.lost_shards:
            if not status.ready or not self._complete_after(status.version, staged):
                return
            del ctx.lost_shards[key]  # it was only away
        replica = ctx.roster.replicas.setdefault(key, ReplicaView(node, status.shard))
        if not status.ready:
            if replica.ready:
                recovery.lose_shard(ctx, node, status.shard, "its engine started anew")
            return
        replica.ready, replica.version = True, status.version
        for held in status.staged:
            ctx.roster.stage(key, held)
        for version in status.pinned:
            if version not in ctx.pins:
                ctx.send(node, Unpin(ctx.job, ctx.generation, status.shard, version))
        self._catch_up(replica, staged)

    def _complete_after(self, version: int, staged: frozenset[UpdateId]) -> bool:
        """Could a replica at this version, with these updates staged, be brought to the present version?"""
        behind = [c for c in self.state.tail if c.number > version]
        return version + len(behind) >= self.state.version and all(
            m.update in staged for c in behind for m in c.members
        )

    def _catch_up(self, replica: ReplicaView, staged: frozenset[UpdateId]) -> None:
        """Say the commits again that a replica has not applied, or give it up if it cannot apply them any more."""
        ctx = self.ctx
        if not self._complete_after(replica.version, staged):
            reason = f"it is at version {replica.version} and lacks what was committed up to {self.state.version}"
            recovery.lose_shard(ctx, replica.node, replica.shard, reason)
            return
        for record in self.state.tail:
            if record.number > replica.version:
                again = Commit(ctx.job, ctx.generation, replica.shard, record.number, record.wire_members(), record.lr)
                ctx.send(replica.node, again)

    def _notice_missing_shards(self, node: NodeId, shards: dict[int, ShardStatus]) -> None:
        """A node that says Hello without a shard it should hold has lost it, or was never told of it."""
        ctx = self.ctx
        for place in self.state.places:
            status = shards.get(place.shard)
            if node not in replica_nodes(place) or (status is not None and status.generation == ctx.generation):
                continue
            key = (node, place.shard)
            replica = ctx.roster.replicas.pop(key, None)
            ctx.roster.forget(key)
            loaded = replica is not None and replica.ready
            if loaded or self.state.version > self.state.checkpoints[-1].version:
                recovery.lose_shard(ctx, node, place.shard, f"{node} started anew")

    def node_lost(self, node: NodeId) -> None:
        """A node's stream ended and it did not come back in time."""
        ctx = self.ctx
        if ctx.plan is None:
            return
        worker = ctx.roster.workers.pop(node, None)
        if worker is not None and worker.residual_norm > 0:
            ctx.explain(node, f"lost a compression residual of norm {worker.residual_norm:.3g} with it")
        ctx.roster.forget((node, -1))
        self._lose_work(node, f"{node} was lost", keep_complete=True)

    def _lose_work(self, node: NodeId, reason: str, *, keep_complete: bool) -> None:
        """Leases of a dead worker are open again, except those whose updates every shard already holds."""
        ctx = self.ctx
        if self.state.samples is None:
            return
        ctx.unpin_everything_of(node)
        saving.lose_measurer(ctx, node)
        saved: set[LeaseId] = set()
        for update, flight in list(ctx.roster.updates.items()):
            if flight.node == node:
                if keep_complete and ctx.roster.complete(update, self.state.places):
                    saved.update(flight.report.leases)
                else:
                    ctx.drop_update(update)
        gone = tuple(n for n, h in ctx.ledger.leases.items() if h.node == node and n not in saved)
        grants.take_back(ctx, gone, reason)

    def cancel(self) -> None:
        if self.state.state == "running" and self.state.version > 0:
            saving.cancel(self.ctx)
        elif not self.over:
            self.ctx.persist(StateChanged(self.ctx.job, "cancelled", "cancelled by a person", self.ctx.wall_ns))
