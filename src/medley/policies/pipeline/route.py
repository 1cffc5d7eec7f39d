"""In which order a pipeline visits its machines: the first and the last are given, those between are chosen.

A path through all members with the smallest sum of hops (Held and Karp 1962, up to `EXACT` members; beyond, nearest
neighbour and 2-opt), or with the smallest largest transfer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import inf

from medley.policies.pipeline.ground import Matrix

EXACT = 8
Join = Callable[[float, float], float]


def _add(one: float, other: float) -> float:
    return one + other


def shortest(
    first: int, last: int, members: Sequence[int], cost: Matrix, transfer: Matrix, limit: float = inf
) -> tuple[float, tuple[int, ...]]:
    """(sum of `cost`, order); hops whose `transfer` is over `limit` are avoided. Infinite where that cannot be done."""

    def allowed(a: int, b: int) -> float:
        return cost[a][b] if transfer[a][b] <= limit else inf

    if first == last:
        return 0.0, (first,)
    if len(members) <= EXACT:
        return _held_karp(first, last, members, allowed, _add)
    return _two_opt(first, last, members, allowed)


def widest(first: int, last: int, members: Sequence[int], transfer: Matrix) -> float:
    """The smallest possible largest transfer on a path from first to last through all members.

    Beyond `EXACT` members the largest transfer of a short path: an upper bound.
    """

    def between(a: int, b: int) -> float:
        return transfer[a][b]

    if first == last:
        return 0.0
    if len(members) <= EXACT:
        return _held_karp(first, last, members, between, max)[0]
    order = _two_opt(first, last, members, between)[1]
    return max(transfer[a][b] for a, b in itertools.pairwise(order))


def _held_karp(
    first: int, last: int, members: Sequence[int], cost: Callable[[int, int], float], join: Join
) -> tuple[float, tuple[int, ...]]:
    between = [i for i in members if i not in (first, last)]
    reached: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {
        (1 << k, k): (cost(first, i), (first, i)) for k, i in enumerate(between)
    }
    for _ in range(len(between) - 1):
        further: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for (visited, k), (spent, order) in reached.items():
            for n, i in enumerate(between):
                if visited >> n & 1:
                    continue
                total = join(spent, cost(between[k], i))
                key = (visited | 1 << n, n)
                if key not in further or total < further[key][0]:
                    further[key] = (total, (*order, i))
        reached = further
    if not between:
        return cost(first, last), (first, last)
    return min((join(spent, cost(order[-1], last)), (*order, last)) for spent, order in reached.values())


def _two_opt(
    first: int, last: int, members: Sequence[int], cost: Callable[[int, int], float]
) -> tuple[float, tuple[int, ...]]:
    order, left = [first], set(members) - {first, last}
    while left:
        nearest = min(left, key=lambda i: (cost(order[-1], i), i))
        order.append(nearest)
        left.remove(nearest)
    order.append(last)
    for _ in range(3):  # sweeps; the first one finds most of what there is
        if not _sweep(order, cost):
            break
    return sum(cost(a, b) for a, b in itertools.pairwise(order)), tuple(order)


def _sweep(order: list[int], cost: Callable[[int, int], float]) -> bool:
    improved = False
    for i in range(1, len(order) - 2):
        for j in range(i + 1, len(order) - 1):
            now = cost(order[i - 1], order[i]) + cost(order[j], order[j + 1])
            then = cost(order[i - 1], order[j]) + cost(order[i], order[j + 1])
            if then < now - 1e-12:
                order[i : j + 1] = order[i : j + 1][::-1]
                improved = True
    return improved
