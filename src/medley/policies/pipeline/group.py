"""The best pipeline of exactly these machines: who is first and last, how many layers each, and in which order.

For `throughput` the slowest stage or link counts (every stage works on another micro-batch), for `latency` the sum of
all stages and hops. Exact while all pairs of ends are tried (up to `EXACT_ENDS` machines) and the order is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from medley.policies.pipeline.ground import Ground
from medley.policies.pipeline.route import shortest, widest
from medley.policies.pipeline.split import fastest_split, min_max_split

EXACT_ENDS = 6
LIKELY_ENDS = 2


@dataclass(frozen=True, slots=True)
class Group:
    """Layers of each member, by number of machine; `seconds` of a token (latency) or a micro-batch (throughput)."""

    members: tuple[int, ...]  # the first one is first, the last one last; in order once `ordered`
    counts: tuple[int, ...]
    seconds: float
    rate: float  # tokens a second


def best_group(ground: Ground, members: Sequence[int], below_s: float = inf) -> Group | None:
    """By the objective; None where these machines cannot hold the model (a layer each), or not within `below_s`."""
    return (_latency if ground.wanted.objective == "latency" else _throughput)(ground, members, below_s)


def ordered(ground: Ground, group: Group) -> Group:
    """The same group in the order of the shortest path that keeps its seconds."""
    first, last = group.members[0], group.members[-1]
    limit = group.seconds if ground.wanted.objective == "throughput" else inf
    _, order = shortest(first, last, group.members, ground.hop_s, ground.transfer_s, limit * (1 + 1e-12))
    counts = dict(zip(group.members, group.counts, strict=True))
    return Group(order, tuple(counts[i] for i in order), group.seconds, group.rate)


def _throughput(ground: Ground, members: Sequence[int], below_s: float) -> Group | None:
    best: Group | None = None
    for first, last, order in _ends(ground, members):
        caps = [ground.cap(i, i == first, i == last) for i in order]
        fixed = [ground.batch_head_s[i] if i == last else 0.0 for i in order]
        split = min_max_split(ground.model.layers, [ground.batch_s[i] for i in order], fixed, caps)
        if split is None or split[0] >= below_s:
            continue
        slowest = split[0]
        if any(ground.transfer_s[a][b] > slowest for a in order for b in order):
            slowest = max(slowest, widest(first, last, order, ground.transfer_s))
        if slowest < below_s:
            below_s = slowest
            best = Group(order, tuple(split[1]), slowest, ground.wanted.streams_at_once / slowest)
    return best


def _latency(ground: Ground, members: Sequence[int], below_s: float) -> Group | None:
    best: Group | None = None
    least = min((ground.hop_s[a][b] for a in members for b in members if a != b), default=0.0)
    for first, last, order in _ends(ground, members):
        caps = [ground.cap(i, i == first, i == last) for i in order]
        split = fastest_split(ground.model.layers, [ground.decode_s[i] for i in order], caps)
        if split is None:
            continue
        known = split[0] + ground.head_s[last] + ground.from_front_s[first] + ground.to_front_s[last][first]
        if known + (len(order) - 1) * least >= below_s:
            continue
        hops, path = shortest(first, last, order, ground.hop_s, ground.transfer_s)
        if known + hops < below_s:
            below_s = known + hops
            counts = dict(zip(order, split[1], strict=True))
            best = Group(path, tuple(counts[i] for i in path), known + hops, 1 / (known + hops))
    return best


def _ends(ground: Ground, members: Sequence[int]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """(first, last, members from first to last): all pairs, or of many members the likely ones."""
    if len(members) == 1:
        yield members[0], members[0], (members[0],)
        return
    firsts: Sequence[int] = members
    lasts: Sequence[int] = members
    if len(members) > EXACT_ENDS or (len(ground.machines) > EXACT_ENDS and len(members) > 3):
        # The head costs time: to a fast machine. The embedding costs room: to one that has it.
        lasts = sorted(members, key=lambda i: (ground.cap(i, False, True) < 1, ground.batch_head_s[i]))[:LIKELY_ENDS]
        firsts = sorted(members, key=lambda i: -ground.cap(i, True, False))[:LIKELY_ENDS]
    for last in lasts:
        for first in firsts:
            if first != last:
                yield first, last, (first, *(i for i in members if i not in (first, last)), last)
