"""One training run, from queued to done: routes every event to the part whose concern it is, then lets all parts
advance.

    reconcile  what nodes say of themselves, against what is durable
    recovery   who holds which shard; promotion and rollback
    grants     leases and bases
    commits    updates: committed, carried or dropped
    saving     checkpoints, held-out loss, the end

Parts are functions over one `Context`; after each event they advance in this order, so a consequence is acted on at
once.
"""

from __future__ import annotations

from typing import assert_never

from medley.policies.scheduling.line import next_hold_ns
from medley.policies.scheduling.view import HOLD_NS
from medley.protocol.effects import Effect, Reject
from medley.protocol.engine import (
    Exported,
    Failed,
    JobPrepared,
    Sealed,
    SetPeers,
    VaultReport,
)
from medley.protocol.ids import NodeId
from medley.protocol.messages import (
    Address,
    Applied,
    BaseHeld,
    BaseWanted,
    EngineDown,
    EngineUp,
    Evaluated,
    FromNode,
    Heartbeat,
    HeldUpdate,
    Hello,
    LeaseFailed,
    Leave,
    LoadFailed,
    PartFailed,
    PartWritten,
    PeersSet,
    Ready,
    Staged,
    UpdateReady,
)
from medley.protocol.records import TERMINAL, CheckpointDamaged, JobRecord, Prepared, StateChanged
from medley.roles import commits, grants, ledger, moving, reconcile, recovery, saving
from medley.roles.context import Context, NodeView, Shared
from medley.roles.roster import ReplicaView, WorkerView, replica_nodes
from medley.roles.state import RunState, apply

FUTILE = 24  # engines that end, one after the other, before the job stops with the reason
POISON = 4  # failures of one span before the job stops with the reason
OF_WORKERS = (EngineUp, EngineDown, Ready)  # ... where the shard is -1
OF_SHARDS = (*OF_WORKERS, PeersSet, Staged, Applied, PartWritten, PartFailed, LoadFailed)


class Run:
    """The coordinator's side of one job."""

    def __init__(self, state: RunState, pool: dict[NodeId, NodeView], shared: Shared | None = None) -> None:
        self.ctx = Context(state, pool, shared=shared or Shared())
        self.ctx.roster.lists = self.ctx.shared.lists
        self.since_ns = 0  # since when it waits, or has machines
        self.hold_ns = HOLD_NS
        self._begun_at = state.version
        self._calm = False  # the event at hand was acted on already, or changed nothing
        if state.plan:
            self.ctx.plan = state.parsed_plan()

    @property
    def state(self) -> RunState:
        return self.ctx.state

    @property
    def over(self) -> bool:
        return self.state.state in TERMINAL

    def begin(self, vault: Address) -> None:
        """It may have machines now: prepare it, or carry on where its log ends."""
        self._calm = False
        ctx = self.ctx
        ctx.news += 1
        ctx.roster.keys_number = ctx.roster.lists.last
        ctx.count_replicas()  # one that waited when its coordinator started has its places from the log alone
        if self.state.state == "queued" and ctx.plan is not None:
            ctx.persist(StateChanged(ctx.job, "running", "it goes on from its newest checkpoint", ctx.wall_ns))
        elif self.state.state == "queued":
            ctx.persist(StateChanged(ctx.job, "preparing", "its data and model are prepared", ctx.wall_ns))
        if self.state.state == "preparing":
            saving.prepare(ctx)
        if vault.endpoint:
            self.vault_opened(vault)
            ctx.run(SetPeers(ctx.roster.keys_number, ctx.roster.keys(), vault))

    def fold(self, record: JobRecord) -> None:
        """One record of the log, at a restart."""
        apply(self.state, record, self.ctx.plan.spec.checkpoint.keep if self.ctx.plan else 1)
        if isinstance(record, Prepared):
            self.ctx.plan = self.state.parsed_plan()

    def vault_opened(self, address: Address) -> None:
        """The vault listens (again): everyone is told."""
        ctx = self.ctx
        ctx.news += 1
        ctx.vault = address
        for replica in ctx.roster.replicas.values():
            replica.told_peers = -1
        for worker in ctx.roster.workers.values():
            worker.routes = ()
        saving.abandon(ctx)

    def unsaved(self) -> bool:
        if self.over or not self.state.checkpoints:
            return False
        return self.state.version > self.state.checkpoints[-1].version and self.ctx.shards_ready()

    def resume(self) -> list[Effect]:
        """From cancelled or failed back into the queue; then from the newest checkpoint, in a new generation."""
        ctx = self.ctx
        ctx.persist(StateChanged(ctx.job, "queued", "resumed by a person", ctx.wall_ns))
        if ctx.plan is None:
            ctx.tries = 0
        else:
            self._anew("the job was resumed")
        return self.take()

    def _anew(self, reason: str) -> None:
        """Nothing but the log counts any more; all shards will be loaded from the newest checkpoint."""
        old = self.ctx
        self.ctx = ctx = Context(
            self.state,
            old.pool,
            old.vault,
            old.wall_ns,
            shared=old.shared,
            been=old.been,
            hosts=old.hosts,
            plan=old.plan,
            out=old.out,
            preparing=old.preparing,
            exporting=old.exporting,
            reload=True,
        )
        ctx.roster.lists = ctx.shared.lists
        ctx.roster.keys_number = ctx.roster.lists.last
        ctx.forget_replicas()
        for place in self.state.places:
            for node in replica_nodes(place):
                recovery.lose_shard(ctx, node, place.shard, reason)

    def allot(self, nodes: set[NodeId], reason: str, now_ns: int) -> None:
        """These machines train it from now on; left with none that are here, it goes back into the queue."""
        self._calm = False
        ctx = self.ctx
        ctx.news += 1
        given_away = any(ctx.taken(node) for node in ctx.allotted - nodes)
        moving.allot(ctx, nodes, reason)
        if nodes:
            ctx.leaving = ""
        elif given_away and not ctx.leaving:
            ctx.leaving, ctx.leaving_ns = reason, now_ns

    def begins(self, now_ns: int) -> None:
        """It has machines from now on."""
        self.since_ns, self._begun_at = now_ns, self.state.version

    def waits(self, now_ns: int) -> None:
        """It is back in the queue."""
        self.since_ns = now_ns
        self.hold_ns = next_hold_ns(self.hold_ns, self.state.version > self._begun_at)

    def rest(self) -> None:
        """It is over: keep what a person may ask for, and nothing that takes room."""
        self.ctx.forget_replicas()
        self._anew("")
        self.ctx.lost_shards.clear()

    def take(self) -> list[Effect]:
        out, self.ctx.out = self.ctx.out, []
        return out

    def advance(self, now_ns: int) -> list[Effect]:
        """Let every part act on what has changed."""
        calm, self._calm = self._calm, False
        if calm:
            return self.take()
        ctx = self.ctx
        if ctx.plan is not None and not self.over:
            if ctx.began_ns == 0:
                ctx.began_ns = ctx.saved_ns = ctx.round_opened_ns = now_ns
            if ctx.leaving and moving.left(ctx, now_ns):
                self._anew(ctx.leaving)
                return self.take()
            moving.advance(ctx, now_ns)
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
        ctx.news += 1
        match report:
            case JobPrepared():
                ctx.preparing = False
                if self.state.state == "preparing":
                    ctx.persist(Prepared(ctx.job, report.plan))
                    ctx.plan = self.state.parsed_plan()
                    ctx.tries = 0
                    ctx.persist(StateChanged(ctx.job, "running", "", ctx.wall_ns))
            case Sealed():
                saving.sealed(ctx, report, now_ns)
            case Exported():
                saving.exported(ctx, report)
            case Failed(what) if what in ("prepare", "export"):
                saving.child_failed(ctx, report)
            case Failed(what) if what == "seal":
                saving.part_failed(ctx, report, now_ns)
            case _:
                pass

    # -- what nodes say ---------------------------------------------------------------------------------------

    def heard(self, node: NodeId, message: FromNode, now_ns: int) -> bool:
        """A message of this job, from a connected node; False if nothing follows from it, as from most heartbeats."""
        ctx, news = self.ctx, self.ctx.news
        if ctx.plan is None:
            return False  # nobody has a part in it yet
        self._calm = self._changes_nothing(node, message, now_ns)
        if not self._calm:
            ctx.news += 1
            return True
        if ctx.news != news and not ledger.exhausted(ctx.ledger):
            ctx.news = news  # what it led to is done
        if not ctx.out:
            self._calm = False  # `advance` is not asked
            return False
        return True

    def _changes_nothing(self, node: NodeId, message: FromNode, now_ns: int) -> bool:
        """True if the parts need not look at everything after it: it said nothing new, or what follows is done."""
        ctx = self.ctx
        news, said, turnover = ctx.news, len(ctx.out), ctx.roster.turnover
        if isinstance(message, (Hello, Heartbeat)):
            reconcile.compare(ctx, node, message, now_ns)
            return isinstance(message, Heartbeat) and ctx.news == news and len(ctx.out) == said
        if message.job != ctx.job or message.generation != ctx.generation or self.over or self.state.state == "queued":
            return False
        if not self._speaks(node, message):
            ctx.out.append(Reject(node, f"{type(message).__name__} of a shard that it does not hold"))
            return False
        self._heard_fenced(node, message, now_ns)
        if ctx.news != news or (len(ctx.out) != said and not isinstance(message, BaseHeld)):
            return False  # all that is said for a base that is held is that it need not be kept
        again = isinstance(message, UpdateReady) and ctx.roster.turnover == turnover
        return again or self._settle(node, message, now_ns)

    def _settle(self, node: NodeId, message: FromNode, now_ns: int) -> bool:
        """What follows from the messages that come most often, and nothing else: True if that is all there is to do.

        With a hundred workers, looking at everything after each of their words would be most of the work.
        """
        ctx = self.ctx
        if self.state.state != "running" or ctx.lost_shards or ctx.holding or saving.measurement_wanted(ctx):
            return False
        match message:
            case Applied() | BaseHeld():
                return True
            case BaseWanted():
                if node in ctx.roster.workers and ctx.shards_ready():
                    grants.answer_bases(ctx, now_ns, (node,))
                return True
            case UpdateReady() if not ctx.roster.complete(message.update, self.state.places):
                grants.grant(ctx, now_ns, node)
                return True
            case Staged():
                return self._is_merged_later(message, now_ns)
            case _:
                return False

    def _is_merged_later(self, message: Staged, now_ns: int) -> bool:
        """One more part is here, and nothing can be committed yet."""
        ctx = self.ctx
        if ctx.roster.complete(message.update, self.state.places) and not commits.only_waits(ctx, message.update):
            news = ctx.news
            commits.advance(ctx, now_ns)
            return ctx.news == news
        return True

    def _speaks(self, node: NodeId, message: FromNode) -> bool:
        """Only who holds a shard speaks of it, and only its primary of its part of a checkpoint."""
        if not isinstance(message, OF_SHARDS) or (message.shard == -1 and isinstance(message, OF_WORKERS)):
            return True
        place = next((p for p in self.state.places if p.shard == message.shard), None)
        if place is None:
            return False
        return node == place.primary if isinstance(message, (PartWritten, PartFailed)) else node in replica_nodes(place)

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
                replica = self._replica(node, message.shard)
                replica.peers = max(replica.peers, message.number)  # one that comes late takes nothing back
            case Ready():
                self._ready(node, message)
            case BaseWanted():
                ctx.unpin_everything_of(node)
                if node in ctx.roster.workers:
                    ctx.roster.workers[node].wanting = message.lease
                    grants.moves_again(ctx, ctx.roster.workers[node], now_ns)
            case BaseHeld():
                saving.base_held(ctx, node, message.version)
            case UpdateReady():
                if node in ctx.allotted:  # others were told to leave, and their leases are given to somebody else
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
        if message.shard < 0 and node not in ctx.allotted:
            return  # it was on its way when the machine went to another job
        another = engine in ctx.roster.addresses  # to a restarted coordinator, every engine only introduces itself
        if not ctx.roster.introduce(engine, message.address):
            return
        if message.shard < 0:
            if node in ctx.roster.workers:
                ctx.roster.workers[node].routes = ()
        elif another and self._replica(node, message.shard).ready:
            recovery.lose_shard(ctx, node, message.shard, "its engine is a new one")
            ctx.roster.introduce(engine, message.address)
        else:
            self._replica(node, message.shard).peers = 0  # it knows nobody yet
        ctx.run(SetPeers(ctx.roster.keys_number, ctx.roster.keys(), ctx.vault))

    def _engine_down(self, node: NodeId, message: EngineDown) -> None:
        ctx = self.ctx
        if message.shard >= 0:
            recovery.lose_shard(ctx, node, message.shard, message.reason)
            return
        worker = ctx.roster.workers.get(node)
        if worker is None:
            return
        ctx.roster.workers[node] = WorkerView(node, tokens_per_s=worker.tokens_per_s)
        if worker.residual_norm > 0:
            ctx.explain(node, f"lost a compression residual of norm {worker.residual_norm:.3g} with its engine")
        ctx.roster.forget((node, -1))
        reconcile.lose_work(ctx, node, f"the engine of {node} ended: {message.reason}")
        ctx.engines_ended += 1
        if ctx.engines_ended >= FUTILE + 2 * len(ctx.roster.workers) and ctx.state.state == "running":
            many = f"{ctx.engines_ended} engines of workers ended without one commit in between"
            saving.fail(ctx, f"{many}, the last one on {node}: {message.reason}")

    def _ready(self, node: NodeId, message: Ready) -> None:
        ctx = self.ctx
        if message.shard < 0:
            if node in ctx.roster.workers:
                ctx.roster.workers[node].ready = True
            return
        replica = self._replica(node, message.shard)
        replica.ready, replica.version = True, message.version
        reconcile.catch_up(ctx, replica, frozenset())

    def _staged(self, node: NodeId, message: Staged) -> None:
        if (node, message.shard) in self.ctx.roster.replicas:
            held = HeldUpdate(message.update, message.finite, message.squared_norm)
            self.ctx.roster.stage((node, message.shard), held)

    def _lease_failed(self, node: NodeId, message: LeaseFailed) -> None:
        ctx = self.ctx
        if message.fatal:
            self._exclude(node, message.reason)
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

    def _exclude(self, node: NodeId, reason: str) -> None:
        """This machine, as it is set up now, cannot train this job; the others go on, if there are others."""
        ctx = self.ctx
        if node not in ctx.pool or ctx.unfit_reason(node):
            return
        ctx.unfit[node, ctx.pool[node].boot] = reason
        ctx.explain(node, f"takes no part in {ctx.job}: {reason}")
        ctx.roster.workers.pop(node, None)
        ctx.roster.forget((node, -1))
        reconcile.lose_work(ctx, node, f"{node} cannot train it: {reason}")
        ctx.send(node, Leave(ctx.job, ctx.generation, -1, reason))
        ctx.shared.changed = True
        if not any(recovery.may_train(ctx, n) for n in ctx.pool):
            why = {n: ctx.unfit_reason(n) for n in sorted(ctx.pool) if ctx.unfit_reason(n)}
            alike = len(set(why.values())) == 1
            saving.fail(ctx, reason if alike else "; ".join(f"{n}: {r}" for n, r in why.items()))

    def _load_failed(self, node: NodeId, message: LoadFailed) -> None:
        ctx = self.ctx
        if [c.version for c in ctx.state.checkpoints] == [message.version]:
            saving.fail(ctx, f"the last checkpoint ({message.version}) cannot be loaded: {message.reason}")
            return
        if any(c.version == message.version for c in ctx.state.checkpoints):
            ctx.persist(CheckpointDamaged(message.version, message.reason))
        reason = f"checkpoint {message.version} cannot be loaded: {message.reason}"
        recovery.lose_shard(ctx, node, message.shard, reason)

    def node_lost(self, node: NodeId) -> None:
        """A node's stream ended and it did not come back in time."""
        ctx = self.ctx
        ctx.news += 1
        if ctx.plan is None:
            return
        worker = ctx.roster.workers.pop(node, None)
        if worker is not None and worker.residual_norm > 0:
            ctx.explain(node, f"lost a compression residual of norm {worker.residual_norm:.3g} with it")
        ctx.roster.forget((node, -1))
        reconcile.lose_work(ctx, node, f"{node} was lost")

    def cancel(self) -> None:
        if self.state.state == "running" and self.state.version > 0:
            saving.cancel(self.ctx)
        elif not self.over:
            self.ctx.persist(StateChanged(self.ctx.job, "cancelled", "cancelled by a person", self.ctx.wall_ns))
