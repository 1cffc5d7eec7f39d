"""What a scheduler sees and says: jobs and machines in, machines of each job out, with a sentence for every choice.

A scheduler is a pure function `(PoolView, now_ns) -> Decision[Allotment]`. It gives machines that train; those that
only hold parameters (`keepers`) serve all jobs and are nobody's. `NodeFacts.job` is the one record of who has what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from medley.policies.decision import Decision
from medley.protocol.ids import NS_PER_S, JobId, NodeId

AGEING_NS = 60 * NS_PER_S  # a job that waits rises by one priority in this time
HOLD_NS = 30 * NS_PER_S  # what a job was given is not taken from it sooner
HOLD_MAX_NS = 8 * 3600 * NS_PER_S  # ... nor later than this, if it makes no version whatever it is given


@dataclass(frozen=True, slots=True)
class JobFacts:
    """One job that is not over. `since_ns`: when its present wait began, or when it began to have its machines."""

    job: JobId
    submitted_ns: int
    since_ns: int = 0
    begun: bool = False  # beyond the queue
    ending: bool = False  # it only measures, saves and exports: nothing is taken from it any more
    priority: int = 0
    weight: float = 1.0
    queue: str = ""
    workers_min: int = 1
    workers_max: int = 0  # 0: all
    memory_bytes: int = 0  # of each machine that trains it
    replicas: int = 1  # machines, all different, that must hold each parameter
    preemptible: bool = True
    deadline_ns: int = 0  # 0: none
    local: frozenset[NodeId] = frozenset()  # hold its data, its model or its parameters already
    unfit: frozenset[NodeId] = frozenset()  # have said that they cannot train it
    hold_ns: int = HOLD_NS  # longer for one that lost its machines before it had made a version with them


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One machine that trains. Measured figures are moving averages, 0 until there are any."""

    node: NodeId
    memory_bytes: int = 0
    cores: int = 1
    shard: bool = True  # may hold parameters as well
    job: JobId = ""
    tokens_per_s: float = 0.0
    work_per_s: float = 0.0  # tokens/s times parameters: comparable between jobs
    step_ns: int = 0
    holds: bool = False  # shards of its job: moving it costs a checkpoint
    spot: bool = False
    price_per_h: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolView:
    """Everything that a decision may depend on. `quotas`: at most so many machines for a queue at once."""

    jobs: Sequence[JobFacts]
    nodes: Sequence[NodeFacts]
    quotas: Mapping[str, int] = field(default_factory=dict)
    keepers: int = 0  # machines that only hold parameters


@dataclass(frozen=True, slots=True)
class Allotment:
    """Machines of each job that may work; () lets it be prepared meanwhile. A job that is not named waits."""

    nodes: Mapping[JobId, tuple[NodeId, ...]]
    jobs_why: Mapping[JobId, str]
    nodes_why: Mapping[NodeId, str]  # of machines that change hands or stand idle


Scheduler = Callable[[PoolView, int], Decision[Allotment]]


def fits(job: JobFacts, node: NodeFacts) -> bool:
    """May this machine train this job?"""
    return node.memory_bytes >= job.memory_bytes and node.node not in job.unfit


def hosts_wanted(view: PoolView, job: JobFacts) -> int:
    """How many of a job's own machines must be able to hold parameters."""
    return max(0, job.replicas - view.keepers)


def least(view: PoolView, job: JobFacts) -> int:
    """Machines that a job needs before it can begin: all of them or none."""
    return max(1, job.workers_min, hosts_wanted(view, job))


def most(job: JobFacts) -> int:
    """Machines that it could use at once."""
    return job.workers_max or 1 << 30
