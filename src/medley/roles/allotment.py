"""What the scheduler is shown, and when it is asked: small pools at once, large ones less often the larger they are.

Facts about jobs and machines are kept until they change, so that a decision costs what has changed and one look at the
rest. Of the jobs that wait, those that wait longest (or are most urgent) are shown: enough to use every machine.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from medley.policies.scheduling.names import DEFAULT, check_quotas, scheduler, urgency
from medley.policies.scheduling.view import Allotment, JobFacts, NodeFacts, PoolView
from medley.protocol.ids import NS_PER_S, JobId, NodeId
from medley.roles.context import NodeView, Shared
from medley.roles.run import Run

AT_ONCE = 256  # jobs and machines together that are decided about at every change
GAP_NS = 300_000  # times jobs and machines: how long a larger pool waits between two decisions
RETHINK_NS = NS_PER_S
AWAY_NS = 10 * NS_PER_S  # a machine that is away for longer is nobody's
SHOWN = 256  # jobs that wait, besides two for each idle machine
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How a coordinator runs its pool. `quotas`: at most so many machines for a queue at once."""

    scheduler: str = DEFAULT
    quotas: dict[str, int] = field(default_factory=dict)
    heartbeat_ms: int = 1000


@dataclass(slots=True)
class Asking:
    """Between the coordinator and its scheduler."""

    options: PoolOptions
    pool: dict[NodeId, NodeView]
    shared: Shared
    line: list[tuple[int, JobId]] = field(default_factory=list)  # jobs that wait, most urgent first
    waits: dict[JobId, tuple[int, Run]] = field(default_factory=dict)
    jobs: dict[JobId, tuple[object, JobFacts]] = field(default_factory=dict)
    nodes: dict[NodeId, tuple[object, NodeFacts]] = field(default_factory=dict)
    idle: int = 0
    decided_ns: int = -(1 << 62)

    def __post_init__(self) -> None:
        check_quotas(self.options.quotas)
        scheduler(self.options.scheduler)

    # -- the line ---------------------------------------------------------------------------------------------

    def wait(self, run: Run, now_ns: int, wall_ns: int) -> None:
        """A job that is not over and has begun nothing yet (or gave everything up) stands in the line."""
        self.leave(run.ctx.job)
        facts = self._job(run, now_ns, wall_ns)
        key = urgency(self.options.scheduler, facts)
        self.waits[run.ctx.job] = (key, run)
        insort(self.line, (key, run.ctx.job))

    def leave(self, job: JobId) -> None:
        found = self.waits.pop(job, None)
        if found is not None:
            del self.line[bisect_left(self.line, (found[0], job))]

    def forget(self, job: JobId) -> None:
        """It is over."""
        self.leave(job)
        self.jobs.pop(job, None)

    # -- the question -----------------------------------------------------------------------------------------

    def due(self, working: int, now_ns: int) -> bool:
        if not self.shared.changed:
            return False
        size = len(self.pool) + working + min(len(self.line), SHOWN)
        return size <= AT_ONCE or now_ns - self.decided_ns >= size * GAP_NS

    def rethink(self, working: int, now_ns: int) -> None:
        """Time alone changes who is urgent and who may be asked to give something up; not where the first is served."""
        if self.options.scheduler != "fifo" and working + len(self.line) > 1 and now_ns - self.decided_ns >= RETHINK_NS:
            self.shared.changed = True

    def ask(
        self,
        working: Iterable[Run],
        vault_open: bool,
        now_ns: int,
        wall_ns: int,
        servings: Iterable[JobFacts] = (),
    ) -> Allotment:
        """`working` have begun. While there is no vault, no other job can begin; `servings` need none."""
        self.shared.changed = False
        self.decided_ns = now_ns
        jobs = [self._job(run, now_ns, wall_ns) for run in working]
        if vault_open:
            shown = self.line[: SHOWN + 2 * self.idle]
            jobs += [self._job(self.waits[job][1], now_ns, wall_ns) for _, job in shown]
        jobs += servings
        nodes = [self._node(view) for view in self.pool.values() if _counts(view, now_ns)]
        view = PoolView(jobs, nodes, self.options.quotas, len(self.shared.keepers))
        allotment = scheduler(self.options.scheduler)(view, now_ns).plan
        self.idle = len(nodes) - sum(len(names) for names in allotment.nodes.values())
        return allotment

    def _job(self, run: Run, now_ns: int, wall_ns: int) -> JobFacts:
        ctx, state = run.ctx, run.state
        unfit = frozenset(n for n, _ in ctx.unfit if ctx.unfit_reason(n)) if ctx.unfit else frozenset()
        key = (state.state, run.since_ns, run.hold_ns, unfit, len(ctx.been), frozenset(ctx.hosts))
        known = self.jobs.get(ctx.job)
        if known is not None and known[0] == key:
            return known[1]
        old = known[1] if known is not None else self._submitted(run, now_ns, wall_ns)
        facts = replace(
            old,
            since_ns=run.since_ns,
            hold_ns=run.hold_ns,
            begun=state.state != "queued",
            ending=state.state in ("finishing", "cancelling"),
            local=frozenset({*ctx.been, *ctx.hosts}),
            unfit=unfit,
        )
        self.jobs[ctx.job] = (key, facts)
        return facts

    def _submitted(self, run: Run, now_ns: int, wall_ns: int) -> JobFacts:
        """What does not change: from its job file. Times of the wall are brought to our clock."""
        spec, submitted_ns = run.state.parsed_spec(), run.state.submitted_wall_ns
        own, minutes = spec.schedule, spec.schedule.deadline_minutes
        here_ns = now_ns - max(0, wall_ns - submitted_ns) if wall_ns else now_ns
        if run.since_ns == 0:
            run.since_ns = now_ns if run.state.state != "queued" else here_ns
        return JobFacts(
            run.ctx.job,
            submitted_ns,
            priority=own.priority,
            weight=own.weight,
            queue=own.queue,
            workers_min=own.workers_min,
            workers_max=own.workers_max,
            memory_bytes=int(own.memory_gib * GIB),
            replicas=spec.placement.replication,
            preemptible=own.preemptible,
            deadline_ns=here_ns + int(minutes * 60 * NS_PER_S) if minutes else 0,
        )

    def _node(self, view: NodeView) -> NodeFacts:
        holds = view.job in self.shared.hosting.get(view.node, ())
        key = (view.boot, view.job, holds, view.work_per_s)
        known = self.nodes.get(view.node)
        if known is not None and known[0] == key:
            return known[1]
        view.told_per_s = view.work_per_s
        c = view.capability
        facts = NodeFacts(
            view.node,
            c.memory_bytes,
            c.cores,
            c.shard,
            view.job,
            view.tokens_per_s,
            view.work_per_s,
            view.step_ns,
            holds,
        )
        self.nodes[view.node] = (key, facts)
        return facts


def _counts(view: NodeView, now_ns: int) -> bool:
    """It trains, and is here or only just away."""
    if view.revoked or not view.capability.worker:
        return False
    return view.connected or now_ns - view.lost_ns <= AWAY_NS
