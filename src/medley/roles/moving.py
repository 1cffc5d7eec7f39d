"""A run whose machines change: who goes gives its leases back at once, and its shards follow at a checkpoint.

With a backup on a machine that stays, nothing waits: the backup is promoted. Without, commits are held, the present
version is sealed, and a new generation begins from it elsewhere: what was committed stays, what was being computed is
computed again. A run that is left without machines goes back into the queue in the same way.
"""

from __future__ import annotations

from medley.policies.placement import choose_hosts
from medley.protocol.ids import NS_PER_S, NodeId
from medley.protocol.messages import Leave
from medley.protocol.records import Placed, Returned, ShardPlace, StateChanged
from medley.roles import reconcile, recovery, saving
from medley.roles.context import Context
from medley.roles.roster import replica_nodes

LEAVING_PATIENCE_NS = 120 * NS_PER_S  # a checkpoint may take so long before a run is left where its last one is


def allot(ctx: Context, nodes: set[NodeId], reason: str) -> None:
    """From now on these machines train it, and no others. `reason` is for those that go."""
    gone, ctx.allotted = ctx.allotted - nodes, set(nodes)
    if ctx.plan is None:
        return
    for node in sorted(gone):
        _dismiss(ctx, node, reason)


def _dismiss(ctx: Context, node: NodeId, reason: str) -> None:
    worker = ctx.roster.workers.pop(node, None)
    if worker is not None:
        ctx.send(node, Leave(ctx.job, ctx.generation, -1, reason))
        if worker.residual_norm > 0:
            ctx.explain(node, f"gave up a compression residual of norm {worker.residual_norm:.3g}")
    ctx.roster.forget((node, -1))
    reconcile.lose_work(ctx, node, f"{node} is not this job's any more: {reason}")


def advance(ctx: Context, now_ns: int) -> None:
    """Bring the shards to where they belong."""
    ctx.moving = False
    if not ctx.state.places or ctx.state.state != "running" or ctx.leaving:
        return
    strangers = {n for p in ctx.state.places for n in replica_nodes(p) if ctx.taken(n)}
    if strangers:
        _strike_off(ctx, strangers)
    if strangers and not ctx.lost_shards:
        _move(ctx, strangers, now_ns)


def _strike_off(ctx: Context, strangers: set[NodeId]) -> None:
    """Where the other replica is ready and stays, the one that goes is not needed."""
    for place in ctx.state.places:
        for goes, stays in ((place.primary, place.backup), (place.backup, place.primary)):
            other = ctx.roster.replicas.get((stays, place.shard))
            if goes in strangers and stays and stays not in strangers and other is not None and other.ready:
                reason = f"{goes} works for another job"
                recovery.lose_shard(ctx, goes, place.shard, reason)
                ctx.send(goes, Leave(ctx.job, ctx.generation, place.shard, reason))


def _move(ctx: Context, strangers: set[NodeId], now_ns: int) -> None:
    spec = ctx.prepared.spec.placement
    keep = {p.shard: (p.primary, p.backup) for p in ctx.state.places}
    chosen = choose_hosts(recovery.hosts_of(ctx), spec.shards, spec.replication, keep).plan
    if chosen is None or not ctx.shards_ready():
        return
    names = ", ".join(sorted(strangers))
    ctx.moving = True
    if ctx.state.checkpoints[-1].version < ctx.state.version:
        ctx.save_now = True
        ctx.explain(ctx.job, f"is saved, then its shards move: {names} works for another job")
        return
    old = [(n, p.shard) for p in ctx.state.places for n in replica_nodes(p) if n in strangers]
    generation, version = ctx.generation, ctx.state.version
    blocks = {p.shard: p.blocks for p in ctx.state.places}
    places = tuple(ShardPlace(s, p, b, blocks[s]) for s, (p, b) in sorted(chosen.items()))
    reason = f"at checkpoint {version} its shards move from {names} to machines of its own"
    ctx.persist(Placed(generation + 1, version, places, reason))
    ctx.explain(ctx.job, reason)
    for node, shard in old:
        ctx.send(node, Leave(ctx.job, generation, shard, reason))
    recovery.begin_generation(ctx, now_ns)
    ctx.moving = False


def left(ctx: Context, now_ns: int) -> bool:
    """True once a run that gives up all machines has done so: saved if possible, back in the queue."""
    if ctx.state.state != "running":
        return False
    late = now_ns - ctx.leaving_ns > LEAVING_PATIENCE_NS
    if not late and ctx.shards_ready():
        if ctx.state.checkpoints[-1].version < ctx.state.version:
            ctx.save_now = True
            return False
        if ctx.saving is not None:
            return False
    for update in list(ctx.roster.updates):
        ctx.drop_update(update)
    if ctx.ledger.leases:
        ctx.persist(Returned(tuple(ctx.ledger.leases), ctx.leaving))
    ctx.persist(StateChanged(ctx.job, "queued", ctx.leaving, ctx.wall_ns))
    ctx.explain(ctx.job, f"back in the queue at version {ctx.state.checkpoints[-1].version}: {ctx.leaving}")
    saving.release(ctx, ctx.leaving)
    return True
