"""Where parameters live: which node holds which shard, and which shard holds which block.

Blocks go on a consistent-hash ring with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018): a block goes to the
first shard clockwise that is below (1 + slack) times its fair share, so that a shard that comes or goes moves few
blocks and none is overloaded. Blocks of one placement key stay together.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medley.policies.decision import Decision
from medley.protocol.ids import NodeId
from medley.protocol.layout import Block

POINTS = 64
SLACK = 0.1


def assign_blocks(blocks: Sequence[Block], shards: Mapping[int, float]) -> dict[int, tuple[int, ...]]:
    """Block indices of each shard; `shards` maps a shard to its capacity weight (> 0)."""
    ring = sorted((_hash(f"shard{s}/{p}"), s) for s in shards for p in range(POINTS))
    points = [point for point, _ in ring]
    groups: dict[str, list[Block]] = {}
    for block in blocks:
        groups.setdefault(block.placement_key, []).append(block)
    total = sum(b.numel for b in blocks)
    largest = max((sum(b.numel for b in g) for g in groups.values()), default=0)
    room = _rooms(shards, total, largest)
    owned: dict[int, list[int]] = {s: [] for s in shards}
    for key in sorted(groups, key=lambda k: (-sum(b.numel for b in groups[k]), k)):
        size = sum(b.numel for b in groups[key])
        start = bisect_left(points, _hash(key)) % len(ring)
        shard = _first_with_room(ring, start, room, size)
        room[shard] -= size
        owned[shard].extend(b.index for b in groups[key])
    return {s: tuple(sorted(indices)) for s, indices in owned.items()}


@dataclass(frozen=True, slots=True)
class Host:
    """A node that may hold shards."""

    node: NodeId
    memory_bytes: int
    worker: bool
    load: int  # shard replicas it already holds


def choose_hosts(
    hosts: Sequence[Host], shards: int, replication: int, keep: Mapping[int, tuple[NodeId, NodeId]]
) -> Decision[dict[int, tuple[NodeId, NodeId]] | None]:
    """(primary, backup) of each shard; `keep` names hosts that stay. None while too few machines are there."""
    if len(hosts) < replication:
        return Decision(None, f"{replication} machines must hold parameters, {len(hosts)} can")
    load = {h.node: h.load for h in hosts}
    order = {h.node: (h.worker, -h.memory_bytes, h.node) for h in hosts}
    kept = {shard: tuple(n if n in load else "" for n in keep.get(shard, ("", ""))) for shard in range(shards)}
    for primary, backup in kept.values():
        for node in {primary, backup if replication == 2 else ""} - {""}:
            load[node] += 1  # before anything is chosen: who keeps a later shard is not idle
    chosen: dict[int, tuple[NodeId, NodeId]] = {}
    for shard, (primary, backup) in kept.items():
        if not primary:
            primary = _least(load, order, {backup})
            load[primary] += 1
        if replication == 2 and not backup:
            backup = _least(load, order, {primary})
            load[backup] += 1
        chosen[shard] = (primary, backup if replication == 2 else "")
    where = ", ".join(f"{s} on {p}" + (f" (backup {b})" if b else "") for s, (p, b) in chosen.items())
    return Decision(chosen, f"shards: {where}; machines that do not train come first, then the larger memory")


def _least(load: Mapping[NodeId, int], order: Mapping[NodeId, tuple[bool, int, NodeId]], taken: set[NodeId]) -> NodeId:
    return min((n for n in load if n not in taken), key=lambda n: (load[n], order[n]))


def _rooms(shards: Mapping[int, float], total: int, largest: int) -> dict[int, float]:
    weight = sum(shards.values())
    return {s: (1 + SLACK) * total * w / weight + largest / len(shards) for s, w in shards.items()}


def _first_with_room(ring: Sequence[tuple[int, int]], start: int, room: Mapping[int, float], size: int) -> int:
    for step in range(len(ring)):
        shard = ring[(start + step) % len(ring)][1]
        if room[shard] >= size:
            return shard
    return max(room, key=lambda s: (room[s], -s))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
