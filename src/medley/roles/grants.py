"""Who gets which samples, and from which version to begin.

In `sync`, leases belong to rounds: round r starts from version r - 1, and its slots are the next spans of the
order; leases of the following round are given out early so that they are tokenised in time. Elsewhere a worker
always has one lease in hand and one ahead. A base is pinned at every shard before its worker is told.
"""

from __future__ import annotations

from medley.policies import pace, schedule
from medley.policies.grace import allowance_ns
from medley.protocol.ids import NS_PER_S, LeaseId, NodeId
from medley.protocol.messages import Base, Evaluate, Lease, Revoke
from medley.protocol.records import Leased, Returned
from medley.roles import ledger
from medley.roles.context import Context
from medley.roles.ledger import HeldLease

AHEAD = 1  # leases beyond the one being computed
HUNG_FLOOR_NS = 30 * NS_PER_S


def advance(ctx: Context, now_ns: int) -> None:
    if ctx.state.state == "running":
        _revoke_hung(ctx, now_ns)
        if ctx.prepared.spec.train.sync.mode == "sync":
            _grant_rounds(ctx, now_ns)
        else:
            _grant_freely(ctx, now_ns)
    if ctx.shards_ready():
        _answer_bases(ctx, now_ns)


def progress(ctx: Context) -> float:
    """How far the run is, in [0, 1]: by samples or by its time limit, whichever is further."""
    done = ledger.committed_samples(ctx.ledger) / ctx.ledger.total
    limit_s = ctx.prepared.spec.train.max_minutes * 60
    timed = ctx.state.elapsed_ns / NS_PER_S / limit_s if limit_s > 0 else 0.0
    return min(1.0, max(done, timed))


def rate(ctx: Context) -> float:
    return schedule.rate(ctx.prepared.spec.train.optimizer, progress(ctx), ctx.state.plateau)


def take_back(ctx: Context, leases: tuple[LeaseId, ...], reason: str) -> None:
    """Open these leases again and drop every update that contains one of them."""
    gone = set(leases)
    held = [n for n in leases if n in ctx.ledger.leases]
    if not held:
        return
    owners = {ctx.ledger.leases[n].node for n in held}
    for update, flight in list(ctx.roster.updates.items()):
        if gone & set(flight.report.leases):
            ctx.drop_update(update)
    ctx.persist(Returned(tuple(held), reason))
    for node in owners:
        ctx.send(node, Revoke(ctx.job, ctx.generation, tuple(held), reason))
        ctx.explain(f"leases of {node}", reason)


def open_leases(ctx: Context, node: NodeId) -> list[LeaseId]:
    """Leases that this worker has yet to compute."""
    sent = {n for f in ctx.roster.updates.values() for n in f.report.leases}
    return [n for n, h in ctx.ledger.leases.items() if h.node == node and not h.carried and n not in sent]


def _grant_rounds(ctx: Context, now_ns: int) -> None:
    ready = ctx.roster.ready_workers()
    if not ready:
        return
    train = ctx.prepared.spec.train
    present = ctx.state.version + 1
    for number in (present, present + AHEAD):
        size = ctx.round_size.setdefault(number, train.sync.slots or len(ready))
        if number == present and not train.sync.slots and not _round(ctx, number):
            size = ctx.round_size[number] = len(ready)
        while len(_round(ctx, number)) < size:
            node = _least_busy(ctx, ready, number - present)
            if node is None or not _grant(ctx, node, train.batch_samples, number, now_ns):
                break
    ctx.round_size = {n: k for n, k in ctx.round_size.items() if n >= present}


def _round(ctx: Context, number: int) -> list[HeldLease]:
    return [h for h in ctx.ledger.leases.values() if h.round == number and not h.carried]


def _least_busy(ctx: Context, ready: list[NodeId], ahead: int) -> NodeId | None:
    """The worker with the fewest open leases, if it may have one more."""
    counts = {node: len(open_leases(ctx, node)) for node in ready}
    best = min(ready, key=lambda n: (counts[n], n))
    return best if counts[best] <= ahead else None


def _grant_freely(ctx: Context, now_ns: int) -> None:
    train = ctx.prepared.spec.train
    speeds = ctx.roster.speeds()
    for node in ctx.roster.ready_workers():
        while len(open_leases(ctx, node)) <= AHEAD:
            steps = pace.local_steps(train.sync.local_steps, node, speeds)
            if not _grant(ctx, node, train.batch_samples * steps, 0, now_ns):
                return


def _grant(ctx: Context, node: NodeId, size: int, number: int, now_ns: int) -> bool:
    span = ledger.next_span(ctx.ledger, size)
    if span is None:
        return False
    train = ctx.prepared.spec.train
    steps = max(1, -(-(span.stop - span.start) // train.batch_samples)) if train.sync.local_steps > 1 else 1
    lease = ctx.ledger.next_lease
    ctx.persist(Leased(lease, node, span, steps, number))
    ctx.granted_ns[lease] = now_ns
    ctx.send(node, Lease(ctx.job, ctx.generation, lease, span, steps, number))
    return True


def _answer_bases(ctx: Context, now_ns: int) -> None:
    """Let workers that wait begin, from the present version."""
    version = ctx.state.version
    others = [v for v, owners in ctx.pins.items() if v != version and owners != {"checkpoint"}]
    if others:
        return  # one older version may be pinned besides a checkpoint's: that bounds a shard's memory
    for node in ctx.roster.ready_workers():
        worker = ctx.roster.workers[node]
        lease = ctx.ledger.leases.get(worker.wanting)
        if lease is None or lease.node != node or not _may_begin(ctx, node, lease):
            continue
        ctx.pin(version, node)
        if ctx.measuring == version and ctx.measuring_node == "":
            ctx.measuring_node, ctx.measuring_ns = node, now_ns
        worker.begun[worker.wanting] = now_ns
        ctx.send(node, Base(ctx.job, ctx.generation, worker.wanting, version, rate(ctx)))
        worker.wanting = 0


def _may_begin(ctx: Context, node: NodeId, lease: HeldLease) -> bool:
    if ctx.state.state != "running":
        return False
    sync = ctx.prepared.spec.train.sync
    if sync.mode == "sync":
        return lease.round <= ctx.state.version + 1
    unsettled = sum(f.node == node for f in ctx.roster.updates.values())
    return unsettled < sync.in_flight


def _revoke_hung(ctx: Context, now_ns: int) -> None:
    """A lease that takes far longer than leases do is given to somebody else."""
    limit = max(HUNG_FLOOR_NS, 4 * allowance_ns(list(ctx.lease_times_ns), 10.0))
    sent = {n for f in ctx.roster.updates.values() for n in f.report.leases}
    for worker in ctx.roster.workers.values():
        for lease, begun_ns in list(worker.begun.items()):
            if lease not in ctx.ledger.leases:
                del worker.begun[lease]
            elif lease not in sent and now_ns - begun_ns > limit:
                del worker.begun[lease]
                waited = (now_ns - begun_ns) / NS_PER_S
                take_back(
                    ctx,
                    (lease,),
                    f"{worker.node} has computed lease {lease} for {waited:.0f} s; others need {limit / NS_PER_S:.0f} s at most",
                )


def measure_message(ctx: Context) -> Evaluate:
    return Evaluate(ctx.job, ctx.generation, ctx.measuring)
