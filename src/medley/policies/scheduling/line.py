"""Who goes first: jobs that are about to end, then by priority, to which waiting and a near deadline add.

A job that waits rises by one in each `AGEING_NS`, without limit: whatever the others are, it comes first some day. One
that runs does not rise, and must be a whole priority below a job that takes its machines. So two that both need the
whole pool take turns; one that made no version in its turn has the next one for twice as long (`hold_ns`), or leases
that last longer than a turn would be begun for ever.
"""

from __future__ import annotations

from collections.abc import Container

from medley.policies.scheduling.view import AGEING_NS, HOLD_MAX_NS, HOLD_NS, JobFacts, PoolView
from medley.protocol.ids import JobId

DEADLINE_RISE = 2.0  # priorities that a job has gained when its deadline is there
STARVING_NS = 10 * AGEING_NS  # after so long a wait nothing that may be taken is held back


def effective(job: JobFacts, waits: bool, now_ns: int) -> float:
    """Priority as it counts now."""
    rise = max(0, now_ns - job.since_ns) / AGEING_NS if waits else 0.0
    if job.deadline_ns:
        whole = max(1, job.deadline_ns - min(job.since_ns, now_ns))
        gone = whole - max(0, job.deadline_ns - now_ns)
        rise += DEADLINE_RISE * min(1.0, gone / whole)
    return job.priority + rise


def in_line(view: PoolView, having: Container[JobId], now_ns: int) -> list[JobFacts]:
    """All jobs, first come first; those in `having` have machines."""

    def place(job: JobFacts) -> tuple[object, ...]:
        rank = effective(job, job.job not in having, now_ns)
        return (not job.ending, -rank, job.submitted_ns, job.job)

    return sorted(view.jobs, key=place)


def may_lose(job: JobFacts, now_ns: int, starving: bool = False) -> bool:
    """May something be taken from this job?"""
    if job.ending or not job.preemptible:
        return False
    if starving and job.hold_ns <= HOLD_NS:
        return True
    return now_ns - job.since_ns >= job.hold_ns


def next_hold_ns(hold_ns: int, made_a_version: bool) -> int:
    """For how long a job that lost its machines keeps those that it is given next."""
    return HOLD_NS if made_a_version else min(2 * hold_ns, HOLD_MAX_NS)
