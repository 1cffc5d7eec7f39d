"""Schedulers by their names, as the configuration key `scheduler` has them."""

from __future__ import annotations

from medley.policies.scheduling.view import AGEING_NS, JobFacts, Scheduler
from medley.protocol.errors import UserError, did_you_mean

DEFAULT = "fifo"
NAMES = ("fifo", "priority", "capability", "gale_shapley")


def scheduler(name: str) -> Scheduler:
    """The scheduler of this name; it is loaded only now. Raises UserError."""
    match name:
        case "fifo":
            from medley.policies.scheduling import fifo

            return fifo.decide
        case "priority":
            from medley.policies.scheduling import priority

            return priority.decide
        case "capability":
            from medley.policies.scheduling import capability

            return capability.decide
        case "gale_shapley":
            from medley.policies.scheduling import gale_shapley

            return gale_shapley.decide
        case _:
            raise UserError(f"there is no scheduler '{name}'; {did_you_mean(name, NAMES)}")


def urgency(name: str, job: JobFacts) -> int:
    """The place of a waiting job among those that wait, smallest first; it does not change while it waits."""
    if name == "fifo":
        return job.submitted_ns
    return job.since_ns - job.priority * AGEING_NS


def check_quotas(quotas: dict[str, int]) -> None:
    """Raises UserError for a quota that lets nobody work."""
    for queue, limit in quotas.items():
        if limit < 1:
            raise UserError(f"the quota of queue '{queue}' is {limit}, but must be at least 1 machine")
