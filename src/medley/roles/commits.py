"""An update's way from announced to committed, carried or dropped.

Acceptance is one global decision: the coordinator alone decides, when every replica of every shard holds the
update. It persists the decision, and only then tells shards and workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Literal

from medley.policies import pace, rounds, staleness
from medley.policies.grace import allowance_ns
from medley.policies.rounds import RoundView
from medley.policies.weights import Candidate, member_weights, step_scale
from medley.protocol.effects import Reject
from medley.protocol.ids import NS_PER_S, LeaseId, NodeId, UpdateId
from medley.protocol.messages import Commit, Outcome, UpdateReady
from medley.protocol.records import Aborted, Committed, MemberRecord, StateChanged
from medley.roles import grants, ledger, saving
from medley.roles.context import Context
from medley.roles.roster import InFlight, replica_nodes

ORPHAN_NS = 60 * NS_PER_S
ORPHAN_LOOK_NS = NS_PER_S
COUNT_MAX = 1 << 40  # of tokens, samples, seconds in one update
HOPELESS = 4  # refusals for NaN in a row, without one commit between them


def announced(ctx: Context, node: NodeId, report: UpdateReady, now_ns: int) -> None:
    """A worker has computed an update (or says so again)."""
    if report.update in ctx.roster.updates:
        return
    if problem := _nonsense(ctx, report):
        ctx.out.append(Reject(node, f"update {report.update}: {problem}"))
        return
    verdict = _old_verdict(ctx, node, report)
    if verdict is not None:
        if verdict.verdict == "drop":
            ctx.roster.refuse(report.update)
        ctx.send(node, verdict)
        return
    sync, waiting = ctx.prepared.spec.train.sync, len(ctx.roster.sent_by(node))
    if sync.mode != "sync" and waiting >= sync.in_flight:  # nobody honest: more were not given a base
        ctx.out.append(Reject(node, f"update {report.update}: {waiting} of its updates wait already"))
        return
    ctx.unpin_everything_of(node)
    worker = ctx.roster.workers.get(node)
    if worker is not None:
        _measure_speed(ctx, node, report, now_ns)
        worker.residual_norm, worker.micro_batch = report.residual_norm, report.micro_batch
    ctx.roster.announce(InFlight(report, node, now_ns))


def _nonsense(ctx: Context, report: UpdateReady) -> str:
    """What no honest worker says."""
    figures = (report.weight, report.loss_sum, report.correct, report.seconds, report.residual_norm)
    if not report.leases or len(set(report.leases)) < len(report.leases):
        return "it names no lease, or one twice"
    if not 0 <= report.oldest_base <= report.base <= ctx.state.version:
        return f"it began from {report.oldest_base} and {report.base}, the present version is {ctx.state.version}"
    counts = (report.weight, report.seconds, report.tokens, report.samples)
    if not all(isfinite(f) for f in figures) or min(counts) < 0 or max(counts) > COUNT_MAX:
        return "its figures are negative, beyond all bounds or not numbers"
    return ""


def _old_verdict(ctx: Context, node: NodeId, report: UpdateReady) -> Outcome | None:
    """What was decided about this update before, if the worker did not hear it."""
    job, generation, update = ctx.job, ctx.generation, report.update
    commit = commit_of(ctx, update)
    if commit is not None:
        return Outcome(job, generation, update, "committed", commit.number, "")
    if update in ctx.state.carried:
        return Outcome(job, generation, update, "carry", ctx.state.version, "told again")
    if update in ctx.roster.refused:
        return Outcome(job, generation, update, "drop", ctx.state.version, "it was refused before")
    held = ctx.ledger.leases
    if any(n not in held or held[n].node != node for n in report.leases):
        return Outcome(job, generation, update, "drop", ctx.state.version, "its leases are no longer this worker's")
    sent = {n for flight in ctx.roster.sent_by(node) for n in flight.report.leases}
    if not sent.isdisjoint(report.leases):
        return Outcome(job, generation, update, "drop", ctx.state.version, "another update has its leases")
    return None


def commit_of(ctx: Context, update: UpdateId) -> Committed | None:
    """The commit that contains this update, as far back as the oldest checkpoint."""
    tail = ctx.state.tail
    if ctx.merged_of is not tail or ctx.merged_to > len(tail):
        ctx.merged_of, ctx.merged_to, ctx.merged = tail, 0, {}
    for commit in tail[ctx.merged_to :]:
        for member in commit.members:
            ctx.merged.setdefault(member.update, commit)
    ctx.merged_to = len(tail)
    return ctx.merged.get(update)


def _measure_speed(ctx: Context, node: NodeId, report: UpdateReady, now_ns: int) -> None:
    worker = ctx.roster.workers[node]
    begun = [worker.begun.pop(n) for n in report.leases if n in worker.begun]
    if begun:
        ctx.lease_times_ns.append(now_ns - begun[0])
    if report.seconds > 0:
        seen = report.tokens / report.seconds
        ctx.measured(node, seen, now_ns - begun[0] if begun else 0)
        worker.tokens_per_s = seen if worker.tokens_per_s == 0 else 0.8 * worker.tokens_per_s + 0.2 * seen


def advance(ctx: Context, now_ns: int) -> None:
    """Refuse what must be refused, then commit what policy says."""
    _drop_orphans(ctx, now_ns)
    if ctx.state.state != "running" or ctx.lost_shards or ctx.holding or _awaits_measurement(ctx):
        return
    complete = _complete(ctx)
    if not complete or ctx.state.state != "running":
        return
    decision = rounds.close(ctx.prepared.spec.train, _view(ctx, complete, now_ns), now_ns)
    if not decision.plan:
        ctx.explain(f"round of {ctx.job}", decision.reason)
        return
    if ctx.prepared.spec.train.sync.mode == "async":
        for update in sorted(complete, key=lambda u: ctx.roster.updates[u].arrived_ns):
            if update in ctx.roster.updates and not _refuse(ctx, update):
                _commit(ctx, [update], now_ns)
    else:
        _commit(ctx, complete, now_ns)


def only_waits(ctx: Context, update: UpdateId) -> bool:
    """True if nothing follows from the arrival of this update: it may be merged, and its round is not over yet, however
    many of those that are announced are here."""
    train, roster = ctx.prepared.spec.train, ctx.roster
    if not roster.finite(update) or _staleness(ctx, update) > _bound(ctx, update):
        return False
    return len(roster.whole) + len(roster.fresh) < rounds.least(train, _expected(ctx))


def _complete(ctx: Context) -> list[UpdateId]:
    """Updates that every replica holds and that may be merged into the present version; others are settled here."""
    roster, places = ctx.roster, ctx.state.places
    if roster.whole_at is None or roster.whole_at[0] != ctx.state.version or roster.whole_at[1] is not places:
        roster.whole_at = (ctx.state.version, places)
        roster.whole.clear()
        roster.fresh = dict.fromkeys(roster.updates)
    fresh, roster.fresh = roster.fresh, {}
    for update in [u for u in fresh if roster.complete(u, places)]:
        if not _refuse(ctx, update):
            roster.whole[update] = None
    return _one_of_each(ctx, [u for u in roster.updates if u in roster.whole])


def _one_of_each(ctx: Context, updates: list[UpdateId]) -> list[UpdateId]:
    """Of two updates with the same samples, the one that was announced first."""
    if ctx.prepared.spec.train.sync.backups == 0:
        return updates
    chosen: list[UpdateId] = []
    taken: set[LeaseId] = set()
    for update in updates:
        leases = ctx.roster.updates[update].report.leases
        if not taken & set(leases):
            chosen.append(update)
            taken.update(t for n in leases if (t := ledger.twin(ctx.ledger, n)))
    return chosen


def _awaits_measurement(ctx: Context) -> bool:
    """Where a measurement sets the learning rate of a run that must repeat exactly, the next commit waits for it."""
    train = ctx.prepared.spec.train
    return train.deterministic and train.optimizer.schedule == "plateau" and saving.measurement_wanted(ctx)


def _view(ctx: Context, complete: Sequence[UpdateId], now_ns: int) -> RoundView:
    expected = _expected(ctx)
    # Time counts only where enough are here.
    enough = len(complete) >= rounds.least(ctx.prepared.spec.train, expected)
    first = min([ctx.roster.updates[u].arrived_ns for u in complete]) if enough else now_ns
    if ctx.allowance[0] != ctx.state.version:
        grace_ns = allowance_ns(list(ctx.arrivals_ns), ctx.prepared.spec.train.sync.grace_mad)
        ctx.allowance = (ctx.state.version, grace_ns)
    return RoundView(_here(ctx, complete), expected, ctx.round_opened_ns, first, ctx.allowance[1])


def _here(ctx: Context, complete: Sequence[UpdateId]) -> int:
    """In the unit of `_expected`: slots of a round, elsewhere nodes."""
    if ctx.prepared.spec.train.sync.mode == "sync":
        return len(complete)
    return len({ctx.roster.updates[u].node for u in complete})


def _expected(ctx: Context) -> int:
    """How many updates (of a round) or nodes (elsewhere) this commit could wait for."""
    if ctx.granted[0] != ctx.records:
        ctx.granted = (ctx.records, _granted(ctx))
    if ctx.prepared.spec.train.sync.mode != "sync":
        return ctx.granted[1]
    number, granted = ctx.state.version + 1, ctx.granted[1]
    slots = ctx.prepared.spec.train.sync.slots  # what a new coordinator knows of a round that was being filled
    return granted if ledger.exhausted(ctx.ledger) else max(granted, ctx.round_size.get(number, slots))


def _granted(ctx: Context) -> int:
    """Leases of rounds up to the present one that may still be merged in it; elsewhere, nodes that hold any."""
    if ctx.prepared.spec.train.sync.mode != "sync":
        return len(ctx.holdings.look(ctx.ledger).owing)
    number, workers = ctx.state.version + 1, ctx.roster.workers.values()
    # What was begun before the last commit will be refused when it comes: nobody waits for it.
    late = {n for w in workers for n, at_ns in w.begun.items() if at_ns < ctx.round_opened_ns}
    waited = (h for n, h in ctx.ledger.leases.items() if not h.carried and not h.backs and n not in late)
    return sum(h.round <= number for h in waited)


def _staleness(ctx: Context, update: UpdateId) -> int:
    return ctx.state.version - ctx.roster.updates[update].report.base


def _bound(ctx: Context, update: UpdateId) -> int:
    sync = ctx.prepared.spec.train.sync
    worker = ctx.roster.workers.get(ctx.roster.updates[update].node) if sync.staleness_adaptive else None
    speed = pace.relative_speed(worker.tokens_per_s, ctx.roster.fastest()) if worker is not None else 1.0
    return staleness.bound(sync, speed)


def _age(ctx: Context, update: UpdateId) -> int:
    """The staleness by which it is weighted: a carry inside was refused for being older than the bound, so it counts
    as old as the bound allows, and what rides with it no less."""
    oldest = ctx.state.version - ctx.roster.updates[update].report.oldest_base
    return max(_staleness(ctx, update), min(oldest, _bound(ctx, update)))


def _refuse(ctx: Context, update: UpdateId) -> bool:
    """True if this update must not be merged; then it has been settled."""
    flight = ctx.roster.updates[update]
    if not ctx.roster.finite(update) or not isfinite(ctx.roster.squared_norm(update, ctx.state.places)):
        _abort(ctx, update, False, "it is not finite")
        _count_not_finite(ctx)
        return True
    age = _staleness(ctx, update)
    if age == 0:
        return False
    limit = _bound(ctx, update)
    if age <= limit:
        return False
    waits = any(h.carried and h.node == flight.node for h in ctx.ledger.leases.values())
    carry = not waits and not ledger.exhausted(ctx.ledger) and not _twins(ctx, [update])
    _abort(ctx, update, carry, f"staleness {age} is over the bound of {limit}")
    return True


def _drop_orphans(ctx: Context, now_ns: int) -> None:
    """Parts that arrived again after their update was decided, or whose worker died before it announced them."""
    roster = ctx.roster
    if now_ns - roster.orphans_ns < ORPHAN_LOOK_NS:
        return
    roster.orphans_ns = now_ns
    unknown = [u for u in roster.staged if u not in roster.updates]
    roster.orphans = {u: roster.orphans.get(u, now_ns) for u in unknown}
    for update, since_ns in list(roster.orphans.items()):
        if now_ns - since_ns > ORPHAN_NS:
            ctx.drop_update(update)


def _abort(ctx: Context, update: UpdateId, carry: bool, reason: str) -> None:
    flight = ctx.roster.updates[update]
    ctx.persist(Aborted(update, flight.node, flight.report.leases, carry, reason))
    ctx.drop_update(update)
    if not carry:
        ctx.roster.refuse(update)
    verdict: Literal["carry", "drop"] = "carry" if carry else "drop"
    ctx.send(flight.node, Outcome(ctx.job, ctx.generation, update, verdict, ctx.state.version, reason))
    ctx.explain(f"updates of {flight.node}", f"{update} refused: {reason}" + ("; carried" if carry else ""))


def _count_not_finite(ctx: Context) -> None:
    ctx.not_finite += 1
    if ctx.not_finite >= HOPELESS:
        rate = grants.rate(ctx)
        reason = (
            f"the loss is not a number any more at version {ctx.state.version} with learning rate {rate:.3g}; "
            "lower train.optimizer.lr or set train.optimizer.clip_norm"
        )
        ctx.persist(StateChanged(ctx.job, "failed", reason, ctx.wall_ns))
        ctx.explain(ctx.job, f"failed: {reason}")


def _twins(ctx: Context, updates: Sequence[UpdateId]) -> tuple[LeaseId, ...]:
    """Second leases of the samples in these updates."""
    if ctx.prepared.spec.train.sync.backups == 0:
        return ()
    leases = [n for u in updates for n in ctx.roster.updates[u].report.leases]
    return tuple(t for n in leases if (t := ledger.twin(ctx.ledger, n)))


def _commit(ctx: Context, updates: Sequence[UpdateId], now_ns: int) -> None:
    grants.take_back(ctx, _twins(ctx, updates), "somebody else was first with the same samples")
    held = ctx.ledger.leases
    ordered = sorted(updates, key=lambda u: held[ctx.roster.updates[u].report.leases[0]].span)
    flights = [ctx.roster.updates[u] for u in ordered]
    train = ctx.prepared.spec.train
    candidates = [Candidate(max(f.report.weight, 1e-9), _age(ctx, u)) for u, f in zip(ordered, flights, strict=True)]
    lr = 1.0 if train.sync.mode == "local-sgd" else grants.rate(ctx)  # there the shards multiply their outer rate
    weights = member_weights(train, candidates)
    members = tuple(
        MemberRecord(u, f.node, f.report.leases, w, c.staleness)
        for u, f, w, c in zip(ordered, flights, weights, candidates, strict=True)
    )
    record = _record(ctx, members, flights, lr * step_scale(train, candidates), now_ns)
    ctx.persist(record)
    _after(ctx, record, now_ns)


def _record(
    ctx: Context, members: tuple[MemberRecord, ...], flights: Sequence[InFlight], lr: float, now_ns: int
) -> Committed:
    reports = [f.report for f in flights]
    weight = sum(r.weight for r in reports)
    loss = sum(r.loss_sum for r in reports) / weight if weight > 0 else 0.0
    loss = loss if isfinite(loss) else 0.0
    elapsed = ctx.state.elapsed_ns + max(0, now_ns - (ctx.mark_ns or now_ns))
    ctx.mark_ns = now_ns
    return Committed(
        ctx.state.version + 1,
        members,
        lr,
        loss,
        sum(r.tokens for r in reports),
        sum(r.samples for r in reports),
        elapsed,
    )


def _after(ctx: Context, record: Committed, now_ns: int) -> None:
    """Tell shards, then workers; open the next round."""
    for place in ctx.state.places:
        for node in replica_nodes(place):
            ctx.send(
                node,
                Commit(ctx.job, ctx.generation, place.shard, record.number, record.wire_members(), record.lr),
            )
    for member in record.members:
        # Not how long the round took: one that waits for a slow machine would teach patience with it.
        ctx.arrivals_ns.append(max(0, ctx.roster.updates[member.update].arrived_ns - ctx.round_opened_ns))
        ctx.roster.drop(member.update)
        ctx.send(member.node, Outcome(ctx.job, ctx.generation, member.update, "committed", record.number, ""))
    ctx.not_finite = ctx.engines_ended = 0
    ctx.round_opened_ns = now_ns
