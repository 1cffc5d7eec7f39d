"""After a restart of the coordinator: jobs that had begun, and their machines until these have said Hello.

Leases and shards in the log say which machine worked for which job, and a worker says so itself; so a restart of the
coordinator moves nobody. Who stays away for long has no machine's place kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medley.protocol.ids import JobId, NodeId
from medley.protocol.messages import Hello
from medley.roles.allotment import AWAY_NS
from medley.roles.context import NodeView
from medley.roles.run import Run


@dataclass(slots=True)
class Returning:
    """`runs` had begun before this coordinator's life and are not yet in it; `had`: machines not heard of since."""

    runs: dict[JobId, Run] = field(default_factory=dict)
    had: dict[NodeId, JobId] = field(default_factory=dict)
    began_ns: int = 0

    def remember(self, run: Run) -> None:
        run.ctx.count_replicas()
        self.runs[run.ctx.job] = run
        leases = run.state.samples.leases.values() if run.state.samples is not None else ()
        for node in sorted({*run.ctx.hosts, *(lease.node for lease in leases)}):
            self.had.setdefault(node, run.ctx.job)

    def recognise(self, view: NodeView, runs: Mapping[JobId, Run]) -> None:
        """A machine is here for the first time in this life: it is the job's whose leases or shards it had."""
        run = runs.get(self.had.pop(view.node, ""))
        if run is not None and view.capability.worker and not (run.over or run.state.state == "queued"):
            view.job = run.ctx.job
            run.ctx.allotted.add(view.node)

    def take_back(self, view: NodeView, message: Hello, working: Mapping[JobId, Run]) -> None:
        """A machine that says that it works for a job goes on with it, if nobody else has it now."""
        for status in message.workers:
            run = working.get(status.job) or self.runs.get(status.job)
            if run is None or view.job or not view.capability.worker or run.ctx.unfit_reason(view.node):
                continue
            wanted = run.state.parsed_spec().schedule.workers_max
            if not wanted or len(run.ctx.allotted) < wanted:
                view.job = status.job
                run.ctx.allotted.add(view.node)

    def absent(self, now_ns: int) -> dict[NodeId, JobId]:
        """Machines that nobody waits for any longer, and whose they were; said once."""
        self.began_ns = self.began_ns or now_ns
        if not self.had or now_ns - self.began_ns <= AWAY_NS:
            return {}
        had, self.had = self.had, {}
        return had
