"""Jobs get machines by what these have been seen to do: the first in the line the fastest, and each machines alike.

Steps of one job wait for each other, so machines of similar speed belong together. Speeds are moving averages over all
jobs (tokens/s times parameters); of a machine that nothing was measured of, its cores are taken, at the median speed of
a core. Memory that a job does not need, spot machines for jobs that must not stop, and prices count against a machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from medley.policies.decision import Decision
from medley.policies.scheduling.draft import Draft
from medley.policies.scheduling.exchange import exchange
from medley.policies.scheduling.line import may_lose
from medley.policies.scheduling.shares import share
from medley.policies.scheduling.view import Allotment, JobFacts, NodeFacts, PoolView, fits
from medley.protocol.ids import JobId

NEAR = 0.5  # of the fastest machine's speed: what it is worth that the data is there
LOOSE = 0.1  # ... what it costs that all of a machine's memory is more than the job needs
SPOT = 0.5  # ... that it may vanish under a job that nothing shall be taken from
PRICE = 0.2  # ... that it is the dearest
FASTER = 1.5  # an idle machine that is so much faster takes the place of a job's slowest


def decide(view: PoolView, now_ns: int) -> Decision[Allotment]:
    draft, line = share(view, now_ns)
    score = scoring(view.nodes)
    exchange(draft, line, lambda wanted, nodes: best(wanted, nodes, score))
    _upgrade(draft, line, speeds(view.nodes), now_ns)
    draft.backfill(line)  # what was replaced may be just what another job waits for
    why = "by what the machines have been seen to do"
    return Decision(draft.allotment(line, why), "fast machines to the first in the line, machines alike together")


def speeds(nodes: Sequence[NodeFacts]) -> Callable[[NodeFacts], float]:
    """Measured, or from its cores."""
    seen = [node.work_per_s / max(1, node.cores) for node in nodes if node.work_per_s > 0]
    core = median(seen) if seen else 1.0
    return lambda node: node.work_per_s or core * max(1, node.cores)


def scoring(nodes: Sequence[NodeFacts]) -> Callable[[JobFacts, NodeFacts], float]:
    """How good a machine is for a job, in units of the fastest machine."""
    speed = speeds(nodes)
    fastest = max((speed(node) for node in nodes), default=1.0)
    dearest = max((node.price_per_h for node in nodes), default=0.0) or 1.0

    def score(job: JobFacts, node: NodeFacts) -> float:
        unused = 1 - job.memory_bytes / node.memory_bytes if node.memory_bytes else 0.0
        found = speed(node) / fastest - LOOSE * unused - PRICE * node.price_per_h / dearest
        found += NEAR * (node.node in job.local)
        return found - (SPOT if node.spot and not job.preemptible else 0.0)

    return score


def best(
    wanted: Sequence[tuple[JobFacts, int]], nodes: Sequence[NodeFacts], score: Callable[[JobFacts, NodeFacts], float]
) -> dict[JobId, list[NodeFacts]]:
    """Each job in turn takes the best of what is left; who needs most memory chooses first, for it can use least."""
    left = {node.node: node for node in nodes}
    found: dict[JobId, list[NodeFacts]] = {}
    for job, count in sorted(wanted, key=lambda w: -w[0].memory_bytes):
        able = [node for node in left.values() if fits(job, node)]
        able.sort(key=lambda node: (-score(job, node), node.node))
        found[job.job] = able[:count]
        for node in able[:count]:
            del left[node.node]
    return found


def _upgrade(draft: Draft, line: list[JobFacts], speed: Callable[[NodeFacts], float], now_ns: int) -> None:
    """A job that has as many machines as it may gets an idle one that is much faster for its slowest."""
    if not len(draft.free):
        return
    idle = sorted(draft.free.all(), key=lambda n: (-speed(n), n.node))
    for job in line:
        if not draft.has(job) or not may_lose(job, now_ns):
            continue
        slow = min((n for n in draft.given[job.job].values() if not n.holds), key=speed, default=None)
        fast = next((n for n in idle if fits(job, n)), None)
        if slow is None or fast is None or speed(fast) < FASTER * speed(slow) or slow.shard > fast.shard:
            continue
        draft.take_back(job, [slow])
        draft.hand_out(job, [fast])
        idle.remove(fast)
