"""Which machines go where, once it is settled how many: only machines that change hands anyway are exchanged.

Whoever works is left alone; so the counts, quotas and gangs of a draft hold whatever a rule prefers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from medley.policies.scheduling.draft import Draft
from medley.policies.scheduling.view import JobFacts, NodeFacts, fits, hosts_wanted
from medley.protocol.ids import JobId

PAIRS = 40_000  # of jobs and machines that a rule weighs up at once
Rule = Callable[[Sequence[tuple[JobFacts, int]], Sequence[NodeFacts]], Mapping[JobId, Sequence[NodeFacts]]]


def exchange(draft: Draft, line: list[JobFacts], rule: Rule) -> bool:
    """Let `rule` say who gets which of the machines that change hands; False if what it says cannot be."""
    new = {job.job: [node for node in draft.given.get(job.job, {}).values() if node.job != job.job] for job in line}
    wanted = [(job, len(new[job.job])) for job in line if new[job.job]]
    if len(wanted) < 2:
        return True
    chosen: dict[JobId, Sequence[NodeFacts]] = {}
    for part in _parts(wanted):
        nodes = sorted((node for job, _ in part for node in new[job.job]), key=lambda n: n.node)
        chosen |= rule(part, nodes)
    if not all(_may(draft, job, new[job.job], chosen.get(job.job, ()), count) for job, count in wanted):
        return False
    for job, _ in wanted:
        for node in new[job.job]:
            del draft.given[job.job][node.node]
    for job, _ in wanted:
        draft.given[job.job].update((node.node, node) for node in chosen[job.job])
    return True


def _parts(wanted: list[tuple[JobFacts, int]]) -> Iterator[list[tuple[JobFacts, int]]]:
    """Where very much changes at once, jobs that stand together in the line exchange among themselves."""
    part: list[tuple[JobFacts, int]] = []
    for one in wanted:
        part.append(one)
        if len(part) * sum(count for _, count in part) > PAIRS:
            yield part
            part = []
    if part:
        yield part


def _may(draft: Draft, job: JobFacts, old: Sequence[NodeFacts], new: Sequence[NodeFacts], count: int) -> bool:
    if len(new) != count or not all(fits(job, node) for node in new):
        return False
    stays = draft.given[job.job].keys() - {node.node for node in old}
    hosts = sum(draft.given[job.job][name].shard for name in stays) + sum(node.shard for node in new)
    return hosts >= hosts_wanted(draft.view, job)
