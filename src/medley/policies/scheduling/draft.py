"""An allotment while it is drawn up: what each job has, what is free, what each queue uses.

Promises, whatever a scheduler does with it: a machine has one job, only machines that fit are given, no job has more
than its `workers_max`, no queue more than its quota, and a job without machines gets enough to begin or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from medley.policies.scheduling.view import Allotment, JobFacts, NodeFacts, PoolView, fits, hosts_wanted, least, most
from medley.protocol.ids import JobId, NodeId

Order = Callable[[NodeFacts], tuple[object, ...]]  # smallest first


def plainly(node: NodeFacts) -> tuple[object, ...]:
    """The smallest machine that fits, so that large ones stay free for jobs that need them; then the fastest."""
    return (node.memory_bytes, -node.work_per_s, -node.cores, node.node)


class Free:
    """Machines that nobody has, in a fixed order, taken in any."""

    def __init__(self, nodes: Iterable[NodeFacts], order: Order) -> None:
        self._order = order
        self._line = sorted(nodes, key=order)
        self._here = {node.node: node for node in self._line}
        self._first = 0

    def __len__(self) -> int:
        return len(self._here)

    def all(self) -> list[NodeFacts]:
        return list(self._here.values())

    def take(self, node: NodeFacts) -> None:
        del self._here[node.node]

    def put(self, nodes: Iterable[NodeFacts]) -> None:
        self.__init__([*self._here.values(), *nodes], self._order)  # type: ignore[misc]

    def first(self, job: JobFacts, count: int, *, hosts: bool = False) -> list[NodeFacts]:
        """At most `count` machines for this job: those near its data first, then in order."""
        near = sorted((self._here[n] for n in job.local if n in self._here), key=self._order)
        found = [node for node in near if fits(job, node) and (node.shard or not hosts)][:count]
        while self._first < len(self._line) and self._line[self._first].node not in self._here:
            self._first += 1
        at = self._first
        while len(found) < count and at < len(self._line):
            node = self._line[at]
            at += 1
            if node.node not in self._here or node.node in job.local:
                continue
            if fits(job, node) and (node.shard or not hosts):
                found.append(node)
        return found


class Draft:
    """Begins with everybody keeping what they have and may have."""

    def __init__(self, view: PoolView, order: Order = plainly) -> None:
        self.view = view
        self.jobs = {job.job: job for job in view.jobs}
        self.given: dict[JobId, dict[NodeId, NodeFacts]] = {}
        self.used: dict[str, int] = {}
        self.jobs_why: dict[JobId, str] = {}
        self._able: dict[tuple[object, ...], int] = {}  # machines that meet a need
        self._short: set[tuple[object, ...]] = set()  # wants that what is free cannot meet
        free = self._keep()
        self.had = frozenset(name for name, nodes in self.given.items() if nodes)  # who begins now loses nothing now
        self.free = Free(free, order)

    def _keep(self) -> list[NodeFacts]:
        present: dict[JobId, list[NodeFacts]] = {}
        free = []
        for node in self.view.nodes:
            job = self.jobs.get(node.job)
            if job is not None and fits(job, node):
                present.setdefault(node.job, []).append(node)
            else:
                free.append(node)
        for name in sorted(present, key=lambda n: (self.jobs[n].since_ns, n)):
            job = self.jobs[name]
            nodes = sorted(present[name], key=lambda n: (not n.holds, not n.shard, n.node))
            lacking = max(0, hosts_wanted(self.view, job) - sum(node.shard for node in nodes))
            room = self.room(job)
            kept = room if least(self.view, job) <= room or len(nodes) <= room else 0
            kept = max(0, min(kept - lacking, len(nodes)))
            self.give(job, nodes[:kept])
            free += nodes[kept:]
        return free

    # -- moves ------------------------------------------------------------------------------------------------

    def has(self, job: JobFacts) -> int:
        return len(self.given.get(job.job, ()))

    def room(self, job: JobFacts) -> int:
        """How many more machines it may have."""
        own = most(job) - self.has(job)
        quota = self.view.quotas.get(job.queue)
        return own if quota is None else max(0, min(own, quota - self.used.get(job.queue, 0)))

    def lacking(self, job: JobFacts) -> int:
        """How many of its machines must still come that can hold parameters; the others alone could not work."""
        have = self.given.get(job.job)
        return max(0, hosts_wanted(self.view, job) - sum(node.shard for node in have.values())) if have else 0

    def give(self, job: JobFacts, nodes: Iterable[NodeFacts]) -> None:
        have = self.given.setdefault(job.job, {})
        before = len(have)
        have.update((node.node, node) for node in nodes)
        self.used[job.queue] = self.used.get(job.queue, 0) + len(have) - before

    def hand_out(self, job: JobFacts, nodes: Iterable[NodeFacts]) -> None:
        """Give free machines."""
        nodes = list(nodes)
        for node in nodes:
            self.free.take(node)
        self.give(job, nodes)

    def take_back(self, job: JobFacts, nodes: Iterable[NodeFacts]) -> None:
        gone = [self.given[job.job].pop(node.node) for node in list(nodes)]
        self.used[job.queue] -= len(gone)
        self.free.put(gone)
        self._short.clear()

    def team(self, job: JobFacts) -> list[NodeFacts]:
        """Free machines with which it could begin, or []."""
        wanted = least(self.view, job)
        if self.room(job) < wanted:
            return []
        hosts = hosts_wanted(self.view, job)
        want = (job.memory_bytes, job.unfit, wanted, hosts)
        if want in self._short or len(self.free) < wanted:
            return []
        chosen = self.free.first(job, wanted)
        if sum(node.shard for node in chosen) < hosts:
            first = self.free.first(job, hosts, hosts=True)
            names = {node.node for node in first}
            rest = self.free.first(job, wanted + hosts)
            chosen = first + [node for node in rest if node.node not in names][: wanted - len(first)]
        if len(chosen) < wanted or sum(node.shard for node in chosen) < hosts:
            self._short.add(want)
            return []
        return chosen

    def begin(self, job: JobFacts) -> bool:
        """All machines that it needs to begin, or none; True if it has machines afterwards."""
        if not self.has(job):
            self.hand_out(job, self.team(job))
        return self.has(job) > 0

    def fill(self, job: JobFacts, count: int) -> int:
        """At most `count` more, for one that has begun; returns how many."""
        if not len(self.free):
            return 0
        hosts = self.free.first(job, min(self.lacking(job), self.room(job)), hosts=True)
        self.hand_out(job, hosts)
        nodes = self.free.first(job, min(count - len(hosts), self.room(job) - self.lacking(job)))
        self.hand_out(job, nodes)
        return len(hosts) + len(nodes)

    def backfill(self, order: Iterable[JobFacts]) -> None:
        """No machine stands idle that a job in this order could use."""
        order = list(order)
        for job in order:
            if not len(self.free):
                return
            self.begin(job)
        for job in order:
            if self.has(job):
                self.fill(job, len(self.free))

    # -- the result -------------------------------------------------------------------------------------------

    def allotment(self, order: Iterable[JobFacts], why: str) -> Allotment:
        """`order` is the line of jobs, first come first; `why` ends the sentences of those that have machines."""
        line = list(order)
        self._restore(line)
        nodes = {job.job: tuple(sorted(self.given[job.job])) for job in line if self.has(job)}
        for job in line:
            if job.begun:
                nodes.setdefault(job.job, ())
        if not nodes and line:
            nodes[line[0].job] = ()
        sentences = {job.job: self.jobs_why.get(job.job) or self._job_sentence(job, nodes, why) for job in line}
        return Allotment(nodes, sentences, self._node_sentences(nodes, line))

    def _restore(self, line: list[JobFacts]) -> None:
        """Where room was kept for a machine that can hold parameters and none came, a job keeps what it needs."""
        for job in line:
            if 0 < self.has(job) < least(self.view, job) and self.lacking(job):
                mine = [node for node in self.free.all() if node.job == job.job and fits(job, node)]
                mine.sort(key=lambda node: node.node)
                self.hand_out(job, mine[: min(self.room(job), least(self.view, job) - self.has(job))])

    def _job_sentence(self, job: JobFacts, nodes: dict[JobId, tuple[NodeId, ...]], why: str) -> str:
        count, total = len(nodes.get(job.job, ())), len(self.view.nodes)
        if count == total and job.job in nodes:
            return f"it has the pool now: {why}"
        if count:
            return f"it has {count} of {total} machines: {why}"
        return "it waits: " + self._lack(job)

    def _lack(self, job: JobFacts) -> str:
        wanted = least(self.view, job)
        quota = self.view.quotas.get(job.queue)
        if quota is not None and quota - self.used.get(job.queue, 0) < wanted:
            return f"queue '{job.queue}' may use {quota} machines at once, and {self.used.get(job.queue, 0)} are in use"
        if most(job) < wanted:
            return f"it needs {wanted} machines, but may use {most(job)}"
        if not len(self.free):
            return "every machine works for another job"
        need = (job.memory_bytes, job.unfit)
        if need not in self._able:
            self._able[need] = sum(fits(job, node) for node in self.view.nodes)
        able = self._able[need]
        size = f" with {job.memory_bytes / 2**30:.1f} GiB" if job.memory_bytes else ""
        return (
            f"it needs {wanted} machines{size} at once; {able} of {len(self.view.nodes)} fit, {len(self.free)} are free"
        )

    def _node_sentences(self, nodes: dict[JobId, tuple[NodeId, ...]], line: list[JobFacts]) -> dict[NodeId, str]:
        of = {node: job for job, names in nodes.items() for node in names}
        found = {}
        idle = self._idle(line)
        for node in self.view.nodes:
            job = of.get(node.node, "")
            if not job:
                found[node.node] = idle(node)
            elif job != node.job:
                before = f" (from {node.job})" if node.job in self.jobs else ""
                found[node.node] = f"works for {job} now{before}: {self._because(self.jobs[job], node)}"
        return found

    def _because(self, job: JobFacts, node: NodeFacts) -> str:
        near = "it holds the job's data already" if node.node in job.local else ""
        return near or f"the job could use {'more machines' if most(job) > 1 else 'a machine'}"

    def _idle(self, line: list[JobFacts]) -> Callable[[NodeFacts], str]:
        """Why a machine has nothing to do. The jobs that wait are looked at once, not for each machine."""
        waiting = [job for job in line if not self.has(job)]
        if not line:
            return lambda node: "idle: no job waits"
        if not waiting and len(line) > 1:
            # No job is named: thousands of idle machines would have another reason whenever one of many jobs ends.
            return lambda node: "idle: every job has as many machines as it may use, or needs larger ones"
        if not waiting:
            return lambda node: "idle: " + self._unused(line[0], node)
        first = waiting[0]

        def sentence(node: NodeFacts) -> str:
            if not fits(first, node):
                return "idle: " + _misfit(first, node)
            return f"idle: {first.job} waits for more: {self._lack(first)}"

        return sentence

    def _unused(self, job: JobFacts, node: NodeFacts) -> str:
        if not fits(job, node):
            return _misfit(job, node)
        if job.queue in self.view.quotas:
            return f"queue '{job.queue}' may use {self.view.quotas[job.queue]} machines at once"
        return f"{job.job} uses {most(job)} machines at most" if job.workers_max else f"{job.job} needs no more"


def _misfit(job: JobFacts, node: NodeFacts) -> str:
    if node.node in job.unfit:
        return f"it cannot train {job.job}"
    return f"{job.job} needs {job.memory_bytes / 2**30:.1f} GiB, this machine has {node.memory_bytes / 2**30:.1f}"


def without(view: PoolView, jobs: set[JobId]) -> PoolView:
    """The same pool as if these jobs were not there."""
    return replace(view, jobs=[job for job in view.jobs if job.job not in jobs])
