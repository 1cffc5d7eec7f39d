"""Checkpoints, held-out measurements, and how a run ends.

A checkpoint is a pinned version: every primary writes its part to the vault, the vault makes all of them visible in
one atomic step, and only then the ledger's position is sealed with it. A run ends with a measurement and a
checkpoint of its last version, whether it is done or cancelled.
"""

from __future__ import annotations

from math import isfinite

from medley.protocol.codec import text
from medley.protocol.effects import Compact
from medley.protocol.engine import Exported, ExportJob, Failed, PrepareJob, SealCheckpoint, Sealed
from medley.protocol.ids import NS_PER_S, NodeId
from medley.protocol.messages import Evaluate, Evaluated, Leave, PartFailed, PartWritten, WritePart
from medley.protocol.records import CheckpointSealed, HeldoutMeasured, Returned, Snapshot, StateChanged
from medley.roles import grants, ledger
from medley.roles.context import CHECKPOINT, MEASUREMENT, Context, Saving, stream

RETRY_NS = 5 * NS_PER_S
HOPELESS = 5  # checkpoints that failed in a row before the job stops with the reason
UNMEASURABLE = 20  # measurements that failed in a row before the job goes on without any
MEASURE_RETRY_NS = NS_PER_S // 2
MEASURE_PATIENCE_NS = 120 * NS_PER_S


def advance(ctx: Context, now_ns: int) -> None:
    if ctx.state.state == "running" and _over(ctx):
        reason = "every sample was used" if ledger.finished(ctx.ledger) else "the time limit is reached"
        _wind_down(ctx, reason, "finishing")
    elif ctx.state.state == "finishing" and not _over(ctx):
        ctx.persist(StateChanged(ctx.job, "running", "a rollback opened samples again", ctx.wall_ns))
    if not ctx.shards_ready():
        return
    _measure(ctx, now_ns)
    if _save_due(ctx, now_ns):
        _begin(ctx)
    if ctx.state.state in ("finishing", "cancelling"):
        _finish(ctx)


def _over(ctx: Context) -> bool:
    limit_s = ctx.prepared.spec.train.max_minutes * 60
    finished = ctx.holdings.done(ctx.ledger) >= ctx.ledger.total
    return finished or (limit_s > 0 and ctx.state.elapsed_ns / NS_PER_S >= limit_s)


def cancel(ctx: Context) -> None:
    _wind_down(ctx, "cancelled by a person", "cancelling")


def _wind_down(ctx: Context, reason: str, state: str) -> None:
    """No more work: what is leased goes back, what is in flight is dropped, what is committed stays."""
    for update in list(ctx.roster.updates):
        ctx.drop_update(update)
    held = tuple(ctx.ledger.leases)
    if held:
        ctx.persist(Returned(held, reason))
    ctx.persist(StateChanged(ctx.job, state, reason, ctx.wall_ns))  # type: ignore[arg-type]
    ctx.explain(ctx.job, reason)
    for node in ctx.roster.workers.values():
        node.wanting = 0


# -- held-out loss ------------------------------------------------------------------------------------------------


def _measure(ctx: Context, now_ns: int) -> None:
    """Ask for a measurement of the present version when one is due."""
    if ctx.measuring >= 0:
        if now_ns - ctx.measuring_ns > MEASURE_PATIENCE_NS:
            _give_up_measuring(ctx, "no answer")
        return
    if not _measure_due(ctx) or now_ns - ctx.measuring_ns < MEASURE_RETRY_NS:
        return
    free = _free_to_measure(ctx)
    if not free:
        return
    node = free[ctx.state.version % len(free)]
    ctx.measuring, ctx.measuring_node, ctx.measuring_ns = ctx.state.version, node, now_ns
    ctx.pin(ctx.state.version, MEASUREMENT)
    ctx.send(node, Evaluate(ctx.job, ctx.generation, ctx.state.version))


def _free_to_measure(ctx: Context) -> list[NodeId]:
    """Workers that wait, that are pulling the present version anyway, or that have nothing to compute.

    A busy one would keep the version pinned for as long as it computes, and everybody else from newer ones.
    """
    busy, pulling = grants.open_leases(ctx), ctx.pins.get(ctx.state.version, set())
    ready = ctx.roster.ready_workers()
    return [n for n in ready if ctx.roster.workers[n].wanting or n in pulling or n not in busy]


def _measure_due(ctx: Context) -> bool:
    if ctx.state.state == "running" and any(v != ctx.state.version for v in ctx.pins):
        return False
    return measurement_wanted(ctx)


def measurement_wanted(ctx: Context) -> bool:
    """Should the present version be measured, as soon as that is possible?"""
    if ctx.prepared.heldout == 0 or ctx.state.measured == ctx.state.version or ctx.measure_failures >= UNMEASURABLE:
        return False
    if ctx.state.state != "running":
        return ctx.state.state == "finishing"
    every = ctx.prepared.spec.train.eval_every_commits
    return every > 0 and (ctx.state.measured < 0 or ctx.state.version - ctx.state.measured >= every)


def measured(ctx: Context, node: NodeId, report: Evaluated) -> None:
    if report.version != ctx.measuring or node != ctx.measuring_node:
        return
    if report.tokens == 0 or not (isfinite(report.loss) and isfinite(report.accuracy)):
        ctx.measure_failures += 1
        _give_up_measuring(ctx, f"{node} could not")
        return
    ctx.unpin(report.version, MEASUREMENT)
    ctx.measuring, ctx.measuring_node = -1, ""
    ctx.measure_failures = 0
    record = HeldoutMeasured(report.version, report.loss, report.tokens, report.accuracy, ctx.state.elapsed_ns)
    ctx.persist(record)


def base_held(ctx: Context, node: NodeId, version: int) -> None:
    """The worker has its own copy of this version now."""
    ctx.unpin(version, node)
    if ctx.measuring == version and ctx.measuring_node == node:
        ctx.unpin(version, MEASUREMENT)


def lose_measurer(ctx: Context, node: NodeId) -> None:
    if ctx.measuring_node == node:
        _give_up_measuring(ctx, f"{node} was lost")


def _give_up_measuring(ctx: Context, reason: str) -> None:
    ctx.explain(ctx.job, f"measurement of version {ctx.measuring} is asked of somebody else: {reason}")
    ctx.unpin(ctx.measuring, MEASUREMENT)
    ctx.measuring, ctx.measuring_node = -1, ""


# -- checkpoints --------------------------------------------------------------------------------------------------


def _save_due(ctx: Context, now_ns: int) -> bool:
    if ctx.saving is not None or ctx.state.version <= _last_saved(ctx):
        return False
    if ctx.state.state in ("finishing", "cancelling") or ctx.save_now:
        return ctx.save_failures == 0 or now_ns - ctx.saved_ns > RETRY_NS
    options = ctx.prepared.spec.checkpoint
    waited = now_ns - ctx.saved_ns
    if ctx.save_failures and waited < RETRY_NS:
        return False
    fresh = ctx.state.version - _last_saved(ctx)
    by_count = 0 < options.every_commits <= fresh
    return by_count or waited > options.every_s * NS_PER_S


def _last_saved(ctx: Context) -> int:
    return ctx.state.checkpoints[-1].version


def _begin(ctx: Context) -> None:
    version = ctx.state.version
    ctx.saving = Saving(version)
    ctx.pin(version, CHECKPOINT)
    for place in ctx.state.places:
        ctx.send(place.primary, WritePart(ctx.job, ctx.generation, place.shard, version))


def part_written(ctx: Context, report: PartWritten) -> None:
    saving = ctx.saving
    if saving is None or saving.version != report.version or saving.sealing:
        return
    saving.parts[report.shard] = report
    if len(saving.parts) < len(ctx.state.places):
        return
    saving.sealing = True
    ctx.unpin(saving.version, CHECKPOINT)
    ctx.run(_seal(ctx, saving))


def _seal(ctx: Context, saving: Saving) -> SealCheckpoint:
    spans = [s for number, spans in ctx.ledger.tail if number <= saving.version for s in spans]
    base = ctx.ledger.bases[max(v for v in ctx.ledger.bases if v <= saving.version)]
    known = [c.version for c in ctx.state.checkpoints][-ctx.prepared.spec.checkpoint.keep :]
    return SealCheckpoint(
        job=ctx.job,
        generation=ctx.generation,
        version=saving.version,
        layout=ctx.prepared.layout().fingerprint,
        parts=tuple(part for _, part in sorted(saving.parts.items())),
        committed=tuple(ledger.merge([*base, *spans])),
        keep=(*known, saving.version),
    )


def abandon(ctx: Context) -> None:
    """Nobody failed, but the answer will never come: begin again when it is due."""
    if ctx.saving is not None:
        ctx.unpin(ctx.saving.version, CHECKPOINT)
        ctx.saving = None


def part_failed(ctx: Context, report: PartFailed | Failed, now_ns: int) -> None:
    if ctx.saving is None or (isinstance(report, PartFailed) and report.version != ctx.saving.version):
        return
    version = ctx.saving.version
    abandon(ctx)
    ctx.save_failures += 1
    ctx.saved_ns = now_ns
    ctx.explain(ctx.job, f"checkpoint {version} failed: {report.reason}")
    if ctx.save_failures >= HOPELESS:
        fail(ctx, f"checkpoints cannot be written: {report.reason}")


def sealed(ctx: Context, report: Sealed, now_ns: int) -> None:
    saving = ctx.saving
    if saving is None or saving.version != report.version or not saving.sealing:
        return
    if report.generation != ctx.generation:
        return  # what a rollback took away was sealed late; this version of the present generation is not yet
    ctx.saving = None
    ctx.save_failures = 0
    ctx.save_now = False
    ctx.saved_ns = now_ns
    ctx.persist(CheckpointSealed(report.version, ctx.generation, report.digest, report.nbytes))
    ctx.out.append(Compact(stream(ctx.job), Snapshot(text(ctx.state))))


# -- the end ------------------------------------------------------------------------------------------------------


def _finish(ctx: Context) -> None:
    """Measured, saved, then exported and done."""
    if ctx.measuring >= 0 or ctx.saving is not None or _last_saved(ctx) < ctx.state.version:
        return
    if ctx.state.state == "cancelling":
        _leave(ctx, "cancelled", ctx.state.reason)
    elif _measure_due(ctx) and ctx.roster.ready_workers():
        return
    elif not ctx.exporting:
        ctx.exporting = True
        ctx.run(ExportJob(ctx.job, ctx.state.version, ctx.state.plan, ""))


def child_failed(ctx: Context, report: Failed) -> None:
    """Preparing or exporting failed: try again, unless that cannot help."""
    if report.what == "prepare":
        ctx.preparing = False
    else:
        ctx.exporting = False
    if ctx.state.state != ("preparing" if report.what == "prepare" else "finishing"):
        return  # nobody waits for it any more
    ctx.tries += 1
    if report.fatal or ctx.tries >= HOPELESS:
        fail(ctx, report.reason)
        return
    ctx.explain(ctx.job, f"{report.what} failed and is tried again ({ctx.tries}): {report.reason}")
    if report.what == "prepare":
        prepare(ctx)


def prepare(ctx: Context) -> None:
    """Begin to prepare, unless an earlier preparer is still at it: its answer will do."""
    if not ctx.preparing:
        ctx.preparing = True
        ctx.run(PrepareJob(ctx.job, ctx.state.spec, ""))


def exported(ctx: Context, report: Exported) -> None:
    ctx.exporting = False
    if ctx.state.state == "finishing" and report.version == ctx.state.version:
        _leave(ctx, "done", ctx.state.reason)


def fail(ctx: Context, reason: str) -> None:
    _leave(ctx, "failed", reason)


def _leave(ctx: Context, state: str, reason: str) -> None:
    """The last word: everybody gives up their roles."""
    ctx.persist(StateChanged(ctx.job, state, reason, ctx.wall_ns))  # type: ignore[arg-type]
    ctx.explain(ctx.job, f"{state}: {reason}")
    release(ctx, state)


def release(ctx: Context, reason: str) -> None:
    for node, shard in list(ctx.roster.replicas):
        ctx.send(node, Leave(ctx.job, ctx.generation, shard, reason))
    for node in ctx.roster.workers:
        ctx.send(node, Leave(ctx.job, ctx.generation, -1, reason))
    ctx.roster.replicas.clear()
    ctx.roster.workers.clear()
