"""Which late leases are computed a second time, and by whom: what everybody waits for goes to somebody who is idle.

A lease is late when it has taken longer than leases take (median + k * MAD of those lately announced, never a
constant). The copy that arrives first counts, the other is given back, so all it costs is work of idle machines.
After Dean and Ghemawat, "MapReduce" (OSDI 2004), 3.6: backup tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medley.policies.decision import Decision
from medley.protocol.ids import NS_PER_S, LeaseId, NodeId


@dataclass(frozen=True, slots=True)
class Late:
    """A lease that nobody has announced yet, and for how long its worker has had it."""

    lease: LeaseId
    node: NodeId
    taken_ns: int


@dataclass(frozen=True, slots=True)
class Idle:
    """A worker that waits for the others; its speed in tokens/s, 0 if unknown."""

    node: NodeId
    speed: float


@dataclass(frozen=True, slots=True)
class Given:
    """This lease, to this worker as well."""

    lease: LeaseId
    node: NodeId


def choose(late: Sequence[Late], idle: Sequence[Idle], limit_ns: int, room: int) -> list[Decision[Given]]:
    """The longest waited for to the fastest, at most `room` of them, each with its reason."""
    slowest = sorted((one for one in late if one.taken_ns > limit_ns), key=lambda one: (-one.taken_ns, one.lease))
    fastest = sorted(idle, key=lambda one: (-one.speed, one.node))
    return [
        Decision(
            Given(one.lease, other.node),
            f"lease {one.lease} of {one.node} has taken {one.taken_ns / NS_PER_S:.1f} s, others need "
            f"{limit_ns / NS_PER_S:.1f} s at most; {other.node}, which is idle, computes it as well",
        )
        for one, other in zip(slowest[:room], fastest, strict=False)
    ]
