"""First come, first served: the job that waits longest has the whole pool, and what it cannot use goes to the next.

Nothing is ever taken from a job that runs. Priorities and weights do not count here; limits, memory and quotas do.
"""

from __future__ import annotations

from medley.policies.decision import Decision
from medley.policies.scheduling.draft import Draft
from medley.policies.scheduling.view import Allotment, JobFacts, PoolView


def decide(view: PoolView, now_ns: int) -> Decision[Allotment]:
    draft = Draft(view)
    line = sorted(view.jobs, key=place)
    for job in line:
        if not len(draft.free):
            break
        if draft.begin(job):
            draft.fill(job, len(draft.free))
    return Decision(draft.allotment(line, "it waited longest"), "the job that waits longest goes first")


def place(job: JobFacts) -> tuple[bool, int, str]:
    """Where a job stands in the line."""
    return (not job.begun, job.submitted_ns, job.job)
