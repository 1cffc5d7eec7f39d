"""Who gets which samples, and from which version to begin.

In `sync`, leases belong to rounds: round r starts from version r - 1, and its slots are the next spans of the
order; leases of the following round are given out early so that they are tokenised in time; those that are late may
be computed by somebody idle as well. Elsewhere a worker always has one lease in hand and one ahead. A base is pinned
at every shard before its worker is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heapreplace

from medley.policies import backups, pace, schedule
from medley.policies.backups import Idle, Late
from medley.policies.grace import allowance_ns
from medley.protocol.ids import NS_PER_S, LeaseId, NodeId
from medley.protocol.messages import Base, Lease, Revoke
from medley.protocol.records import Backed, Leased, Returned
from medley.roles import ledger
from medley.roles.context import CHECKPOINT, MEASUREMENT, Context
from medley.roles.roster import WorkerView

AHEAD = 1  # leases beyond the one being computed
LOOK_NS = 15 * NS_PER_S  # how long everybody is taken at their word: between two looks only news matters
HUNG_FLOOR_NS = 30 * NS_PER_S
HUNG_LOOKS = 6  # at least, before a lease that takes too long has taken a sixth longer than it may
SAMPLES = 3  # durations known before anything is late; until then only an engine that stands still ends a lease
PATIENCE = 64  # at most so many times the common limit for a worker that was slow before


def advance(ctx: Context, now_ns: int) -> None:
    """Look at everybody if there is news, or now and then; otherwise time alone changes only who is late."""
    running, check = ctx.state.state == "running", now_ns - ctx.looked_ns > LOOK_NS
    if check:
        ctx.looked_ns = now_ns
    if running and now_ns - ctx.hung_checked_ns > (ctx.hung_ns or HUNG_FLOOR_NS) // HUNG_LOOKS:
        ctx.hung_checked_ns = now_ns
        _revoke_hung(ctx, now_ns)
    if running and (check or ctx.news != ctx.granted_news):
        _reopen_stranded(ctx)
        grant(ctx, now_ns)
    if running:
        _back_up(ctx, now_ns)
    if (check or ctx.news != ctx.granted_news) and ctx.shards_ready():
        answer_bases(ctx, now_ns)
    ctx.granted_news = ctx.news


def grant(ctx: Context, now_ns: int, node: NodeId = "") -> None:
    """Hand out the leases that there is room for; `node`: only of this one has anything changed."""
    if ctx.prepared.spec.train.sync.mode == "sync":
        _grant_rounds(ctx, now_ns)
    elif not node:
        _grant_freely(ctx, now_ns, ctx.roster.workers, open_leases(ctx))
    elif node in ctx.roster.workers:
        _grant_freely(ctx, now_ns, [node], {node: _open_leases_of(ctx, node)})


def progress(ctx: Context) -> float:
    """How far the run is, in [0, 1]: by samples or by its time limit, whichever is further."""
    done = ctx.holdings.done(ctx.ledger) / ctx.ledger.total
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
    for node in sorted(owners):
        ctx.send(node, Revoke(ctx.job, ctx.generation, tuple(held), reason))
        ctx.explain(f"leases of {node}", reason)


def sent_leases(ctx: Context) -> set[LeaseId]:
    """Leases of updates that have been announced and not decided."""
    return {n for f in ctx.roster.updates.values() for n in f.report.leases}


def open_leases(ctx: Context) -> dict[NodeId, list[LeaseId]]:
    """Leases that each worker has yet to compute."""
    if ctx.opened[:2] == (ctx.records, ctx.roster.turnover):
        return ctx.opened[2]
    sent = sent_leases(ctx)
    found: dict[NodeId, list[LeaseId]] = {}
    for number, held in ctx.ledger.leases.items():
        if not held.carried and number not in sent:
            found.setdefault(held.node, []).append(number)
    ctx.opened = (ctx.records, ctx.roster.turnover, found)
    return found


def _open_leases_of(ctx: Context, node: NodeId) -> list[LeaseId]:
    """The same of one worker, where little has changed since."""
    sent = {n for f in ctx.roster.sent_by(node) for n in f.report.leases}
    leases = ctx.ledger.leases
    return [n for n in sorted(ctx.leases_of(node)) if n not in sent and not leases[n].carried]


def _grant_rounds(ctx: Context, now_ns: int) -> None:
    """Fill the present round, and only then the next: which samples a round has does not depend on who is there."""
    ready = ctx.roster.ready_workers()
    if not ready:
        return
    train = ctx.prepared.spec.train
    present = ctx.state.version + 1
    ctx.round_size = {n: k for n, k in ctx.round_size.items() if n >= present}
    for number in (present, present + AHEAD):
        size = ctx.round_size.setdefault(number, train.sync.slots or len(ready))
        if not train.sync.slots and (number > present or not ctx.roster.updates):
            size = ctx.round_size[number] = max(_filled(ctx, number), len(ready))  # nothing of it is done yet
        missing = size - _filled(ctx, number)
        if missing <= 0:
            continue
        busy = _busy(ctx, number)
        least_busy = [(busy.get(node, 0), node) for node in ready]
        heapify(least_busy)
        for _ in range(missing):
            count, node = least_busy[0]
            if count > number - present or not _grant(ctx, node, train.batch_samples, number, now_ns):
                return
            heapreplace(least_busy, (count + 1, node))


def _filled(ctx: Context, number: int) -> int:
    """Slots of a round that somebody has."""
    return ctx.holdings.look(ctx.ledger).rounds.get(number, 0)


def _busy(ctx: Context, number: int) -> dict[NodeId, int]:
    """How many open leases of rounds up to this one each worker has."""
    leases = ctx.ledger.leases
    return {node: sum(leases[n].round <= number for n in held) for node, held in open_leases(ctx).items()}


def _back_up(ctx: Context, now_ns: int) -> None:
    """Leases of the present round that are late, to machines that have nothing to do in it."""
    sync = ctx.prepared.spec.train.sync
    if sync.mode != "sync" or sync.backups == 0:
        return
    room = max(0, sync.backups - sum(h.backs > 0 for h in ctx.ledger.leases.values()))
    busy, speeds = _busy(ctx, ctx.state.version + 1), ctx.roster.speeds()
    idle = [Idle(n, speeds.get(n, 0.0)) for n in ctx.roster.ready_workers() if not busy.get(n)]
    limit_ns = allowance_ns(list(ctx.lease_times_ns), sync.grace_mad)
    for given in backups.choose(_late(ctx, now_ns) if idle else [], idle, limit_ns, room):
        lease, held = ctx.ledger.next_lease, ctx.ledger.leases[given.plan.lease]
        ctx.persist(Backed(lease, given.plan.node, given.plan.lease))
        ctx.granted_ns[lease] = now_ns
        ctx.send(given.plan.node, Lease(ctx.job, ctx.generation, lease, held.span, held.steps, held.round))
        ctx.explain(f"leases of {held.node}", given.reason)


def _late(ctx: Context, now_ns: int) -> list[Late]:
    """Leases of rounds up to the present one that nobody has announced, and that have no second copy yet."""
    leases, sent = ctx.ledger.leases, sent_leases(ctx)
    found = []
    for number, held in leases.items():
        if held.carried or number in sent or held.round > ctx.state.version + 1 or ledger.twin(ctx.ledger, number):
            continue
        worker = ctx.roster.workers.get(held.node)
        granted_ns = max(ctx.round_opened_ns, ctx.granted_ns.get(number, 0))
        begun_ns = worker.begun.get(number, granted_ns) if worker is not None else granted_ns
        found.append(Late(number, held.node, now_ns - begun_ns))
    return found


def _grant_freely(ctx: Context, now_ns: int, nodes: Iterable[NodeId], held: Mapping[NodeId, Sequence[LeaseId]]) -> None:
    """Fill up those of these machines that have too few leases to compute: few do, most of the time."""
    workers = ctx.roster.workers
    short = sorted(n for n in nodes if len(held.get(n, ())) <= AHEAD and _free(workers[n]))
    if not short:
        return
    train = ctx.prepared.spec.train
    fastest = ctx.roster.fastest() if train.sync.local_steps > 1 else 0.0
    for node in short:
        for _ in range(len(held.get(node, ())), 1 + AHEAD):
            steps = pace.local_steps(train.sync.local_steps, workers[node].tokens_per_s, fastest)
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
    if len(ctx.granted_ns) > 4 * len(ctx.ledger.leases) + 64:
        ctx.granted_ns = {n: t for n, t in ctx.granted_ns.items() if n in ctx.ledger.leases}
    ctx.send(node, Lease(ctx.job, ctx.generation, lease, span, steps, number))
    return True


def answer_bases(ctx: Context, now_ns: int, among: Iterable[NodeId] | None = None) -> None:
    """Let workers that wait begin, from the present version; all of them, or only these."""
    version = ctx.state.version
    if any(v != version and owners - {CHECKPOINT, MEASUREMENT} for v, owners in ctx.pins.items()):
        return  # one older version may be pinned besides a checkpoint's and a measurement's: that bounds memory
    workers = ctx.roster.workers
    waiting = [n for n in (workers if among is None else among) if workers[n].wanting and _may_begin(ctx, workers[n])]
    if not waiting:
        return
    held = open_leases(ctx) if len(waiting) > 1 else {n: _open_leases_of(ctx, n) for n in waiting}
    lr = rate(ctx)
    for node in sorted(waiting):
        worker = workers[node]
        lease = _next_lease(ctx, held.get(node, []))
        if lease is None:
            continue
        ctx.pin(version, node)
        worker.begun[lease] = now_ns
        worker.wanting = 0
        ctx.mark_ns = ctx.mark_ns or now_ns
        ctx.send(node, Base(ctx.job, ctx.generation, lease, version, lr))


def _free(worker: WorkerView) -> bool:
    return worker.ready and not worker.hung


def _may_begin(ctx: Context, worker: WorkerView) -> bool:
    """Outside of rounds, only who has not too much unsettled."""
    sync = ctx.prepared.spec.train.sync
    return _free(worker) and (sync.mode == "sync" or len(ctx.roster.sent_by(worker.node)) < sync.in_flight)


def _next_lease(ctx: Context, wanted: list[LeaseId]) -> LeaseId | None:
    """What a worker that holds these may begin now: of the earliest round."""
    if ctx.state.state != "running":
        return None
    leases = ctx.ledger.leases
    if ctx.prepared.spec.train.sync.mode == "sync":
        wanted = [n for n in wanted if leases[n].round <= ctx.state.version + 1]
    return min(wanted, key=lambda n: (leases[n].round, n), default=None)


def _revoke_hung(ctx: Context, now_ns: int) -> None:
    """A lease that takes far longer than leases do is given to somebody else, and so is all that waits behind it."""
    common = max(HUNG_FLOOR_NS, 4 * allowance_ns(list(ctx.lease_times_ns), 10.0))
    ctx.hung_ns = common if len(ctx.lease_times_ns) >= SAMPLES else 0
    sent = sent_leases(ctx)
    for worker in ctx.roster.workers.values():
        worker.begun = {n: t for n, t in worker.begun.items() if n in ctx.ledger.leases and n not in sent}
        if len(ctx.lease_times_ns) < SAMPLES:
            continue
        limit = common * worker.patience
        late = [n for n, begun_ns in worker.begun.items() if now_ns - begun_ns > limit]
        if not late:
            continue
        worker.late_ns = worker.begun[late[0]]
        waited_s = (now_ns - worker.late_ns) / NS_PER_S
        worker.begun.clear()
        worker.hung = True
        ctx.unpin_everything_of(worker.node)
        gone = tuple(n for n, h in ctx.ledger.leases.items() if h.node == worker.node and n not in sent)
        reason = f"has computed lease {late[0]} for {waited_s:.0f} s; others need {limit / NS_PER_S:.0f} s at most"
        take_back(ctx, gone, f"{worker.node} {reason}")


def moves_again(ctx: Context, worker: WorkerView, now_ns: int) -> None:
    """A worker that was thought to hang asks for work: it was only slow, so it and everybody gets longer."""
    if worker.hung:
        ctx.news += 1
        worker.hung = False
        worker.patience = min(2 * worker.patience, PATIENCE)
        ctx.lease_times_ns.append(now_ns - worker.late_ns)


def _reopen_stranded(ctx: Context) -> None:
    """At the end of the samples a carry may find no next update to ride on: its samples are open again."""
    if not ledger.exhausted(ctx.ledger):
        return
    sent, busy = sent_leases(ctx), open_leases(ctx)
    for number, held in list(ctx.ledger.leases.items()):
        if held.carried and number not in sent and held.node not in busy:
            take_back(ctx, (number,), f"{held.node} has no further lease to send its carry with")
