"""When silence means absence: from the intervals between a node's own heartbeats, not from a constant."""

from __future__ import annotations

from collections.abc import Sequence

from medley.policies.grace import allowance_ns
from medley.protocol.ids import NS_PER_S

SILENCE_FLOOR_NS = 5 * NS_PER_S


def silent_too_long(intervals_ns: Sequence[int], since_last_ns: int) -> bool:
    """True once a connected node has been quiet for far longer than it ever is."""
    return since_last_ns > limit_ns(intervals_ns)


def limit_ns(intervals_ns: Sequence[int], heartbeat_ns: int = NS_PER_S) -> int:
    """How long a node may be quiet; five heartbeats until its own habits are known."""
    floor_ns = least_ns(heartbeat_ns)
    return max(floor_ns, 3 * allowance_ns(intervals_ns, 8.0)) if len(intervals_ns) >= 3 else floor_ns


def least_ns(heartbeat_ns: int) -> int:
    """Any node may be quiet for so long."""
    return max(SILENCE_FLOOR_NS, 5 * heartbeat_ns)
