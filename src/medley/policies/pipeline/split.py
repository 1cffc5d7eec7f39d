"""How many layers each member of a pipeline gets: two exact allocations of equal layers under caps.

Every member gets at least one layer; a machine that should get none is not a member. Both are greedy, and exact
because layers are equal: a stage's time grows linearly with its count, so the next layer always goes where it costs
least (marginal allocation; Fox 1966).
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace

Counts = list[int]


def min_max_split(
    layers: int, layer_s: Sequence[float], fixed_s: Sequence[float], caps: Sequence[int]
) -> tuple[float, Counts] | None:
    """The slowest stage as fast as can be: (its seconds, layers of each member); None when it cannot be done.

    Stage i takes `fixed_s[i] + count * layer_s[i]` seconds and holds at most `caps[i]` layers.
    """
    members = len(layer_s)
    if layers < members or min(caps) < 1 or sum(caps) < layers:
        return None
    counts = [1] * members
    heap = [(fixed_s[i] + 2 * layer_s[i], i) for i in range(members) if caps[i] > 1]
    heapify(heap)
    for _ in range(layers - members):
        _, i = heap[0]
        counts[i] += 1
        if counts[i] < caps[i]:
            heapreplace(heap, (fixed_s[i] + (counts[i] + 1) * layer_s[i], i))
        else:
            heapreplace(heap, (float("inf"), i))
    return max(fixed_s[i] + counts[i] * layer_s[i] for i in range(members)), counts


def fastest_split(layers: int, layer_s: Sequence[float], caps: Sequence[int]) -> tuple[float, Counts] | None:
    """The sum of the stages as small as can be, fastest filled first: (seconds of all layers, layers of each)."""
    members = len(layer_s)
    if layers < members or min(caps) < 1 or sum(caps) < layers:
        return None
    counts, left = [1] * members, layers - members
    for i in sorted(range(members), key=lambda i: layer_s[i]):
        more = min(left, caps[i] - 1)
        counts[i] += more
        left -= more
    return sum(c * s for c, s in zip(counts, layer_s, strict=True)), counts
