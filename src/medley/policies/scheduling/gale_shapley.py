"""Stable matching of jobs' slots and machines, both with preferences: nobody could gain by changing partners together.

How many slots a job has, its share says. A slot wants a machine that is fast, near its data, cheap, and not larger
than it needs; a machine wants the job that needs most of its memory (others can go elsewhere), then the higher
priority, then one whose data it holds, then the one that waits longest. Machines that stay where they are take no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medley.policies.decision import Decision
from medley.policies.scheduling.capability import scoring
from medley.policies.scheduling.exchange import exchange
from medley.policies.scheduling.matching import REFUSED, Scores, deferred_acceptance
from medley.policies.scheduling.shares import share
from medley.policies.scheduling.view import Allotment, JobFacts, NodeFacts, PoolView, fits
from medley.protocol.ids import JobId


def decide(view: PoolView, now_ns: int) -> Decision[Allotment]:
    draft, line = share(view, now_ns)
    if exchange(draft, line, match):
        why = "by stable matching of what jobs and machines prefer"
        reason = "a stable matching: no job and machine would both rather have each other"
    else:
        why = "by its share"
        reason = "by shares alone: after a stable matching a job would have no machine that can hold parameters"
    return Decision(draft.allotment(line, why), reason)


def match(wanted: Sequence[tuple[JobFacts, int]], nodes: Sequence[NodeFacts]) -> dict[JobId, list[NodeFacts]]:
    """Machines propose to jobs, which have as many slots as their share."""
    wishes, favours = preferences([job for job, _ in wanted], nodes)
    capacity = np.array([count for _, count in wanted], dtype=np.int64)
    matched = deferred_acceptance(wishes, favours, capacity)
    return {
        job.job: [nodes[int(i)] for i in np.flatnonzero(matched == number)] for number, (job, _) in enumerate(wanted)
    }


def preferences(jobs: Sequence[JobFacts], nodes: Sequence[NodeFacts]) -> tuple[Scores, Scores]:
    """What each machine wants of each job, and each job of each machine; both of shape (machines, jobs)."""
    score = scoring(nodes)
    able = np.array([[fits(job, node) for job in jobs] for node in nodes])
    near = np.array([[node.node in job.local for job in jobs] for node in nodes])
    favours = np.array([[score(job, node) for job in jobs] for node in nodes], dtype=np.float32)
    line = {job.job: place for place, job in enumerate(sorted(jobs, key=lambda j: (j.since_ns, j.job)))}
    first = sorted({(job.memory_bytes, job.priority) for job in jobs})
    rank = {pair: place for place, pair in enumerate(first)}
    base = np.array([rank[job.memory_bytes, job.priority] for job in jobs], dtype=np.float64)
    late = np.array([line[job.job] / (2 * len(jobs)) for job in jobs])
    wishes = (base[None, :] + 0.5 * near - late[None, :] / 2).astype(np.float32)
    return np.where(able, wishes, REFUSED), np.where(able, favours, REFUSED)
