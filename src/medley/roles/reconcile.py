"""What a node says of itself against what the log says it should be: whatever a broken stream swallowed is said again.

A `Hello` begins a stream: nothing said earlier can still arrive, so what was on its way is said anew. A `Heartbeat`
comes in order with everything else, so it is compared but proves nothing lost that was sent a moment ago.
"""

from __future__ import annotations

from medley.protocol.ids import NS_PER_S, LeaseId, NodeId, UpdateId
from medley.protocol.messages import (
    Commit,
    Heartbeat,
    Hello,
    Lease,
    Leave,
    Outcome,
    Revoke,
    ShardStatus,
    Unpin,
    WorkerStatus,
)
from medley.protocol.records import TERMINAL
from medley.roles import commits, grants, recovery, saving
from medley.roles.context import Context
from medley.roles.roster import ReplicaView, WorkerView, replica_nodes

IDLE = TERMINAL | {"queued"}  # nobody works for a job in one of these states
RECENT_NS = 5 * NS_PER_S  # a heartbeat may cross a lease that was granted this lately


def compare(ctx: Context, node: NodeId, message: Hello | Heartbeat, now_ns: int) -> None:
    """Bring the coordinator's view of a node, and the node, up to what is durable."""
    fresh = isinstance(message, Hello)
    mine = [w for w in message.workers if w.job == ctx.job]
    for worker in mine:
        _compare_worker(ctx, node, worker, fresh, now_ns)
    if fresh:
        _forget_what_was_said(ctx, node)
    if fresh and not any(w.generation == ctx.generation for w in mine):
        ctx.roster.workers.pop(node, None)
        ctx.roster.forget((node, -1))
        lose_work(ctx, node, f"{node} started anew")
    if not fresh and not message.shards:
        return
    shards = {s.shard: s for s in message.shards if s.job == ctx.job}
    for status in shards.values():
        _compare_shard(ctx, node, status, fresh)
    if fresh:
        _notice_missing_shards(ctx, node, shards)


def _forget_what_was_said(ctx: Context, node: NodeId) -> None:
    """A stream ended, and with it whatever was on its way in either direction."""
    saving.lose_measurer(ctx, node)
    if any(p.primary == node for p in ctx.state.places) and ctx.saving is not None and not ctx.saving.sealing:
        saving.abandon(ctx)
    if node in ctx.roster.workers:
        ctx.roster.workers[node].routes = ()
    for replica in ctx.roster.replicas.values():
        if replica.node == node:
            replica.told_peers, replica.told_relay = -1, None


# -- workers ------------------------------------------------------------------------------------------------------


def lose_work(ctx: Context, node: NodeId, reason: str) -> None:
    """Leases of a dead worker are open again, except those whose updates every replica already holds."""
    if ctx.state.samples is None:
        return
    ctx.unpin_everything_of(node)
    saving.lose_measurer(ctx, node)
    saved: set[LeaseId] = set()
    for update, flight in list(ctx.roster.updates.items()):
        if flight.node == node and ctx.roster.complete(update, ctx.state.places):
            saved.update(flight.report.leases)
        elif flight.node == node:
            ctx.drop_update(update)
    gone = tuple(n for n, h in ctx.ledger.leases.items() if h.node == node and n not in saved)
    grants.take_back(ctx, gone, reason)


def _compare_worker(ctx: Context, node: NodeId, status: WorkerStatus, fresh: bool, now_ns: int) -> None:
    if ctx.state.state in IDLE:
        ctx.send(node, Leave(ctx.job, status.generation, -1, ctx.state.state))
        return
    if node not in ctx.allotted:
        ctx.send(node, Leave(ctx.job, status.generation, -1, "its machine is not this job's any more"))
        return
    if status.generation != ctx.generation:
        return
    if reason := ctx.unfit_reason(node):
        ctx.send(node, Leave(ctx.job, status.generation, -1, reason))
        return
    if fresh:
        ctx.roster.workers.setdefault(node, WorkerView(node))
        for update in status.updates:  # it has them still: what was said of them was lost with its stream
            ctx.roster.refused.pop(update, None)
    if status.phase not in ("wanting", "pulling"):
        ctx.unpin_everything_of(node)
    if status.phase in ("idle", "wanting") and node in ctx.roster.workers:
        grants.moves_again(ctx, ctx.roster.workers[node], now_ns)
    held = ctx.leases_of(node)
    if held == set(status.leases):
        return
    foreign = set(status.leases) - held - _say_committed(ctx, node, status)
    if foreign:
        ctx.send(node, Revoke(ctx.job, ctx.generation, tuple(sorted(foreign)), "they are not this worker's"))
    missed = [n for n in held - set(status.leases) if now_ns - ctx.granted_ns.get(n, -RECENT_NS) >= RECENT_NS]
    _say_leases_again(ctx, node, missed)


def _say_committed(ctx: Context, node: NodeId, status: WorkerStatus) -> set[LeaseId]:
    """Tell a worker of its updates that were committed without its knowing; returns their leases."""
    known: set[LeaseId] = set()
    for update in status.updates:
        commit = commits.commit_of(ctx, update)
        if commit is not None:
            known.update(n for m in commit.members if m.update == update for n in m.leases)
            ctx.send(node, Outcome(ctx.job, ctx.generation, update, "committed", commit.number, ""))
    return known


def _say_leases_again(ctx: Context, node: NodeId, missed: list[LeaseId]) -> None:
    for number in sorted(missed):
        lease = ctx.ledger.leases.get(number)
        if lease is None:
            continue
        if lease.carried or number in grants.sent_leases(ctx):
            grants.take_back(ctx, (number,), f"{node} does not hold lease {number} any more")
        else:
            ctx.send(node, Lease(ctx.job, ctx.generation, number, lease.span, lease.steps, lease.round))


# -- shards -------------------------------------------------------------------------------------------------------


def _compare_shard(ctx: Context, node: NodeId, status: ShardStatus, fresh: bool) -> None:
    placed = any(p.shard == status.shard and node in replica_nodes(p) for p in ctx.state.places)
    if ctx.state.state in IDLE or not placed:
        ctx.send(node, Leave(ctx.job, status.generation, status.shard, "it is held elsewhere"))
        return
    if status.generation != ctx.generation:
        return
    key = (node, status.shard)
    staged = frozenset(h.update for h in status.staged)
    if key in ctx.lost_shards:
        if not fresh or ctx.reload or not status.ready or not _reaches_present(ctx, status.version, staged):
            return  # only a stream that begins says what is there now: anything else may have been said before
        del ctx.lost_shards[key]  # it was only away
    replica = ctx.roster.replicas.setdefault(key, ReplicaView(node, status.shard))
    if not status.ready:
        if replica.ready:
            recovery.lose_shard(ctx, node, status.shard, "its engine started anew")
        return
    if not replica.ready or replica.version != status.version:
        ctx.news += 1
    replica.ready, replica.version = True, status.version
    for held in status.staged:
        if ctx.roster.stage(key, held):
            ctx.news += 1
    for version in status.pinned:
        if version not in ctx.pins:
            ctx.send(node, Unpin(ctx.job, ctx.generation, status.shard, version))
    catch_up(ctx, replica, staged)


def catch_up(ctx: Context, replica: ReplicaView, staged: frozenset[UpdateId]) -> None:
    """Say the commits again that a replica has not applied, or give it up if it cannot apply them any more."""
    if not _reaches_present(ctx, replica.version, staged):
        reason = f"it is at version {replica.version} and lacks what was committed up to {ctx.state.version}"
        recovery.lose_shard(ctx, replica.node, replica.shard, reason)
        return
    for record in ctx.state.tail:
        if record.number > replica.version:
            again = Commit(ctx.job, ctx.generation, replica.shard, record.number, record.wire_members(), record.lr)
            ctx.send(replica.node, again)


def _reaches_present(ctx: Context, version: int, staged: frozenset[UpdateId]) -> bool:
    """Could a replica at this version, with these updates staged, be brought to the present version?"""
    behind = [c for c in ctx.state.tail if c.number > version]
    if version + len(behind) < ctx.state.version:
        return False
    return all(m.update in staged for c in behind for m in c.members)


def _notice_missing_shards(ctx: Context, node: NodeId, shards: dict[int, ShardStatus]) -> None:
    """A node that says Hello without a shard it should hold has lost it, or was never told of it."""
    for place in ctx.state.places:
        status = shards.get(place.shard)
        if node not in replica_nodes(place) or (status is not None and status.generation == ctx.generation):
            continue
        key = (node, place.shard)
        replica = ctx.roster.replicas.pop(key, None)
        ctx.roster.forget(key)
        loaded = replica is not None and replica.ready
        if loaded or ctx.state.version > ctx.state.checkpoints[-1].version:
            recovery.lose_shard(ctx, node, place.shard, f"{node} started anew")
