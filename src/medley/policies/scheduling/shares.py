"""How many machines each job gets: enough to begin for everybody in the line, then weighted max-min shares of the rest.

What is missing for a job to begin is taken from those that have more than they need to begin, the richest first, and if
that is not enough, from whole jobs that are a priority lower. Who works is otherwise left where it is.
Max-min fairness: Bertsekas and Gallager, Data Networks, 1992; between jobs of a cluster: Ghodsi et al., NSDI 2011.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from medley.policies.scheduling.draft import Draft, Order, plainly
from medley.policies.scheduling.line import STARVING_NS, effective, in_line, may_lose
from medley.policies.scheduling.view import JobFacts, NodeFacts, PoolView, fits, hosts_wanted, least
from medley.protocol.ids import NS_PER_S, JobId

ROOMS_MAX = 32  # jobs for which others give something up in one decision; the next decision goes on
TRIES = 32  # jobs that are asked for a machine that fits, for each move
MOVES_MAX = 64  # machines that go from one running job to another in one decision


def share(view: PoolView, now_ns: int, order: Order = plainly) -> tuple[Draft, list[JobFacts]]:
    """The allotment so far, and the line it was made by."""
    draft = Draft(view, order)
    line = in_line(view, draft.had, now_ns)
    made = 0
    hopeless: set[tuple[object, ...]] = set()
    for job in line:
        want = (job.memory_bytes, job.unfit, least(view, job), hosts_wanted(view, job), job.queue)
        if draft.begin(job) or want in hopeless or made >= ROOMS_MAX:
            continue
        if _make_room(draft, job, line, now_ns):
            made += 1
        else:
            hopeless.add(want)
    _hand_out(draft, line)
    _even_out(draft, line, now_ns)
    draft.backfill(line)
    return draft, line


# -- enough to begin ------------------------------------------------------------------------------------------------


def _make_room(draft: Draft, job: JobFacts, line: list[JobFacts], now_ns: int) -> bool:
    """Take from others what this job needs to begin; nothing at all if that is not enough."""
    wanted = least(draft.view, job)
    quota = draft.view.quotas.get(job.queue)
    own_queue = draft.room(job) < wanted
    if own_queue and (quota is None or quota < wanted):
        return False
    waited_ns = now_ns - job.since_ns
    givers = [
        other
        for other in line
        if other.job in draft.had
        and draft.has(other)
        and may_lose(other, now_ns, waited_ns > STARVING_NS)
        and (other.queue == job.queue or not own_queue)
    ]
    gained = [node for node in draft.free.all() if fits(job, node)]
    missing = wanted - (min(len(gained), draft.room(job)) if own_queue else len(gained))
    taken = _surplus(draft, job, givers, missing)
    missing -= sum(len(nodes) for nodes in taken.values())
    rank = effective(job, True, now_ns)
    for other in reversed(givers):
        if missing <= 0:
            break
        if effective(other, False, now_ns) + 1 <= rank:
            before = len(taken.get(other.job, ()))
            taken[other.job] = list(draft.given[other.job].values())
            missing -= sum(fits(job, node) for node in taken[other.job]) - before
    gained += [node for nodes in taken.values() for node in nodes if fits(job, node)]
    if missing > 0 or sum(node.shard for node in gained) < hosts_wanted(draft.view, job):
        return False
    for name, nodes in taken.items():
        draft.take_back(draft.jobs[name], nodes)
        if not draft.given[name]:
            draft.jobs_why[name] = f"it gave its machines to {job.job}, which had waited {waited_ns / NS_PER_S:.0f} s"
    return draft.begin(job)


def _surplus(draft: Draft, job: JobFacts, givers: list[JobFacts], count: int) -> dict[JobId, list[NodeFacts]]:
    """At most `count` machines for `job` that their jobs could spare, from the richest first."""
    heap = [(-draft.has(other) / other.weight, other.job) for other in givers if draft.has(other) > 1]
    heapify(heap)
    spare: dict[JobId, list[NodeFacts]] = {}
    taken: dict[JobId, list[NodeFacts]] = {}
    while heap and count > 0:
        richness, name = heappop(heap)
        if name not in spare:
            spare[name] = [node for node in spared(draft, draft.jobs[name]) if fits(job, node)]
        if not spare[name]:
            continue
        taken.setdefault(name, []).append(spare[name].pop(0))
        count -= 1
        if spare[name]:
            heappush(heap, (richness + 1 / draft.jobs[name].weight, name))
    return taken


def spared(draft: Draft, job: JobFacts) -> list[NodeFacts]:
    """Machines that this job could give and still have begun: first those that hold none of its shards."""
    nodes = sorted(draft.given.get(job.job, {}).values(), key=lambda n: (n.holds, n.work_per_s, n.node))
    hosts = sum(node.shard for node in nodes) - hosts_wanted(draft.view, job)
    found: list[NodeFacts] = []
    for node in nodes:
        if len(nodes) - len(found) <= least(draft.view, job):
            break
        if node.shard and hosts <= 0:
            continue
        hosts -= node.shard
        found.append(node)
    return found


# -- the rest -------------------------------------------------------------------------------------------------------


def _hand_out(draft: Draft, line: list[JobFacts]) -> None:
    """Free machines, one by one, to the job that has least for its weight; higher priorities first."""
    jobs = [(place, job) for place, job in enumerate(line) if draft.has(job) and draft.room(job) > 0]
    heap = [(-job.priority, draft.has(job) / job.weight, place) for place, job in jobs]
    heapify(heap)
    while heap and len(draft.free):
        priority, richness, place = heappop(heap)
        job = line[place]
        if draft.fill(job, 1 if heap else len(draft.free)) and draft.room(job) > 0:
            heappush(heap, (priority, richness + 1 / job.weight, place))


def _even_out(draft: Draft, line: list[JobFacts], now_ns: int) -> None:
    """Machines from those that have much to those that have little, until no move would make it fairer."""
    poor = [job for job in line if draft.has(job) and not job.ending and draft.room(job) > 0]
    rich = [job for job in line if job.job in draft.had and may_lose(job, now_ns) and spared(draft, job)]
    moves = 0
    for job in sorted(poor, key=lambda j: (-j.priority, draft.has(j) / j.weight, j.job)) if rich else ():
        while moves < MOVES_MAX and draft.room(job) > 0 and _one_move(draft, job, rich):
            moves += 1


def _one_move(draft: Draft, job: JobFacts, rich: list[JobFacts]) -> bool:
    """From a lower priority, or from the richest of the same if it is left with no less than this job then has."""
    after = (draft.has(job) + 1) / job.weight
    low = min(rich, key=lambda j: (j.priority, -_left(draft, j), j.job))
    if low.priority > job.priority or (low.priority == job.priority and _left(draft, low) < after):
        return False
    able = [
        other
        for other in rich
        if other is not job
        and (other.priority < job.priority or (other.priority == job.priority and _left(draft, other) >= after))
    ]
    for other in sorted(able, key=lambda j: (j.priority, -_left(draft, j), j.job))[:TRIES]:
        node = next((n for n in spared(draft, other) if fits(job, n)), None)
        if node is not None:
            draft.take_back(other, [node])
            draft.hand_out(job, [node])
            return True
    return False


def _left(draft: Draft, job: JobFacts) -> float:
    """What it would have for its weight with one machine less."""
    return (draft.has(job) - 1) / job.weight
