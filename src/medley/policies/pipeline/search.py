"""Which machines work together: all ways to part them into pipelines, or, of many machines, the promising ones.

Up to `EXACT` machines the answer is the best there is: every subset's best pipeline, and for throughput the best
partition of the machines into such pipelines (each a replica; machines may stay out). Beyond, a few dozen candidates
that differ in how many pipelines there are and which strong machines lend their memory to weaker ones; rates of
pipelines add up nearly whatever the partition is, so that memory and whole layers are what is left to get right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from math import inf

from medley.policies.pipeline.describe import Kind
from medley.policies.pipeline.ground import Ground
from medley.policies.pipeline.group import Group, best_group

EXACT = 6
PIPELINES = (1, 2, 3, 4, 6, 8)  # of a candidate, beyond `EXACT`
LENT = 3  # how many machines that could serve alone may join a pipeline instead, beyond `EXACT`
RELATIVE = 1e-9  # rates that differ by less are equal


@dataclass(frozen=True, slots=True)
class Found:
    """Pipelines that serve beside each other; their rates add up."""

    groups: tuple[Group, ...]

    @property
    def rate(self) -> float:
        return sum(g.rate for g in self.groups)

    @property
    def machines(self) -> int:
        return sum(len(g.members) for g in self.groups)

    @property
    def kind(self) -> Kind:
        if all(len(g.members) == 1 for g in self.groups):
            return "single" if len(self.groups) == 1 else "replicas"
        return "split" if len(self.groups) == 1 else "replicas of splits"


def better(one: Found | None, other: Found | None) -> Found | None:
    """The higher rate; of equal ones that with fewer machines, then the one with more, shorter pipelines."""
    if one is None or other is None:
        return one or other
    if abs(one.rate - other.rate) > RELATIVE * max(one.rate, other.rate):
        return one if one.rate > other.rate else other
    return min(one, other, key=lambda f: (f.machines, -len(f.groups), sorted(g.members for g in f.groups)))


def search(ground: Ground) -> dict[Kind, Found]:
    """The best of each kind that can be made (for latency: one pipeline only)."""
    exact = len(ground.machines) <= EXACT
    if ground.wanted.objective == "latency":
        return _one_pipeline(ground, _subsets(len(ground.machines)) if exact else _prefixes(ground))
    return _partitions(ground) if exact else _candidates(ground)


def _one_pipeline(ground: Ground, every: Iterable[tuple[int, ...]]) -> dict[Kind, Found]:
    """The best machine alone and the best split; smaller sets come first, so that of equals they win."""
    best: dict[Kind, Group] = {}
    for members in every:
        kind: Kind = "single" if len(members) == 1 else "split"
        bound = best[kind].seconds * (1 - RELATIVE) if kind in best else inf
        if group := best_group(ground, members, bound):
            best[kind] = group
    return {kind: Found((group,)) for kind, group in best.items()}


def _by_kind(found: Iterable[Found]) -> dict[Kind, Found]:
    best: dict[Kind, Found] = {}
    for one in found:
        chosen = better(best.get(one.kind), one)
        assert chosen is not None
        best[one.kind] = chosen
    return best


def _subsets(machines: int) -> list[tuple[int, ...]]:
    """Smaller ones first: their pipelines are bounds for the larger."""
    every = [tuple(i for i in range(machines) if mask >> i & 1) for mask in range(1, 1 << machines)]
    return sorted(every, key=len)


def _partitions(ground: Ground) -> dict[Kind, Found]:
    groups = {sum(1 << i for i in s): g for s in _subsets(len(ground.machines)) if (g := best_group(ground, s))}
    # parts[mask]: the best set of pipelines among exactly or fewer of these machines.
    parts: dict[int, Found | None] = {0: None}
    for mask in range(1, 1 << len(ground.machines)):
        low = mask & -mask
        best = parts[mask ^ low]  # the lowest machine stays out
        rest = mask ^ low
        others = rest
        while True:  # the lowest machine together with `others`
            group = groups.get(low | others)
            if group:
                beside = parts[rest ^ others]
                best = better(best, Found((group, *(beside.groups if beside else ()))))
            if not others:
                break
            others = (others - 1) & rest
        parts[mask] = best
    everything = [Found((g,)) for g in groups.values()]
    alone = tuple(g for g in groups.values() if len(g.members) == 1)
    if alone:
        everything.append(Found(alone))
    if top := parts[(1 << len(ground.machines)) - 1]:
        everything.append(top)
    return _by_kind(everything)


# -- many machines ------------------------------------------------------------------------------------------------


def _prefixes(ground: Ground) -> list[tuple[int, ...]]:
    """For latency: each machine alone; the fastest few and the roomiest few, some of them swapped for the next."""
    indices = range(len(ground.machines))
    usable = [i for i in indices if ground.cap(i, False, False) >= 1]
    fast = sorted(usable, key=lambda i: (ground.decode_s[i], i))
    roomy = sorted(usable, key=lambda i: (-ground.cap(i, False, False), ground.decode_s[i], i))
    found: dict[tuple[int, ...], None] = {(i,): None for i in usable}
    for order in (fast, roomy):
        enough = _enough(ground, order)
        for size in range(enough, min(enough + 3, len(order), ground.model.layers) + 1):
            chosen = order[:size]
            found[tuple(sorted(chosen))] = None
            # A far machine is swapped for the next in line.
            for one, other in ((a, b) for a in chosen for b in order[size : size + 2]):
                found[tuple(sorted({*chosen, other} - {one}))] = None
    return sorted(found, key=len)[: len(usable) + 96]


def _enough(ground: Ground, order: Sequence[int]) -> int:
    """How many of `order` it takes to hold all layers; at least two."""
    room = 0
    for size, i in enumerate(order, start=1):
        room += ground.cap(i, False, False)
        if room >= ground.model.layers and size >= 2:
            return size
    return len(order)


def _candidates(ground: Ground) -> dict[Kind, Found]:
    usable = [i for i in range(len(ground.machines)) if ground.cap(i, False, False) >= 1]
    strong = sorted((i for i in usable if ground.cap(i, True, True) >= ground.model.layers), key=_speed(ground))
    weak = sorted((i for i in usable if i not in set(strong)), key=_speed(ground))
    alone = {i: g for i in strong if (g := best_group(ground, (i,)))}
    everything = [Found((g,)) for g in alone.values()]
    for lent in range(min(LENT, len(strong)) + 1):
        singles = tuple(alone[i] for i in strong[lent:])
        pool = [*strong[:lent], *weak]
        if singles:
            everything.append(Found(singles))
        for pipelines in PIPELINES:
            if groups := _dealt(ground, pool, pipelines):
                everything.append(Found((*groups, *singles)))
                everything.extend(Found((g,)) for g in groups)
        if lent == 0 and strong and len(usable) <= ground.model.layers and (g := best_group(ground, tuple(usable))):
            everything.append(Found((g,)))
    best = _by_kind(everything)
    top = best_of(best)
    return _by_kind([*best.values(), _lean(ground, top)]) if top else best


def best_of(found: dict[Kind, Found]) -> Found | None:
    """The best of all kinds."""
    best: Found | None = None
    for one in found.values():
        best = better(best, one)
    return best


def _speed(ground: Ground) -> Callable[[int], tuple[float, int]]:
    return lambda i: (ground.batch_s[i], i)


def _dealt(ground: Ground, pool: Sequence[int], pipelines: int) -> tuple[Group, ...]:
    """The pool parted into so many pipelines of about equal room; empty where that cannot be done."""
    room = {i: ground.cap(i, False, False) for i in pool}
    if len(pool) < 2 * pipelines or sum(room.values()) < pipelines * ground.model.layers:
        return ()
    hands: list[tuple[int, int, list[int]]] = [(0, number, []) for number in range(pipelines)]
    for i in sorted(pool, key=lambda i: (-room[i], ground.batch_s[i], i)):
        held, number, hand = hands[0]
        hand.append(i)
        heapreplace(hands, (held + room[i], number, hand))
    groups = []
    for _, _, hand in sorted(hands):
        fastest = sorted(hand, key=_speed(ground))[: ground.model.layers]
        group = best_group(ground, fastest)
        if group is None:
            return ()
        groups.append(group)
    return tuple(groups)


def _lean(ground: Ground, found: Found) -> Found:
    """The same without members whose absence costs nothing."""
    groups = []
    for group in found.groups:
        lean = group
        for i in sorted(group.members, key=lambda i: -ground.batch_s[i])[: 8 if len(group.members) > 1 else 0]:
            without = best_group(ground, tuple(m for m in lean.members if m != i)) if len(lean.members) > 1 else None
            if without and without.rate >= lean.rate * (1 - RELATIVE):
                lean = without
        groups.append(lean)
    return Found(tuple(groups))
