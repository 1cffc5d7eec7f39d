"""How old an update may be, and how much an old one counts.

Staleness s is commits since the update's base. The fixed bound is the job's; the adaptive one is bound / relative
speed, within [1, 4 x bound], so that a slow machine on an honest fleet is never refused for being slow.
"""

from __future__ import annotations

from medley.protocol.spec import Sync


def bound(sync: Sync, relative_speed: float) -> int:
    """Largest accepted staleness for a worker of this speed (1.0: the fastest)."""
    if sync.mode == "sync":
        return 0
    if not sync.staleness_adaptive:
        return sync.staleness_bound
    wanted = round(sync.staleness_bound / max(relative_speed, 1e-3))
    return min(max(wanted, 1), 4 * sync.staleness_bound)


def weight(sync: Sync, staleness: int) -> float:
    """(1 + s) ** -p; 1 where everyone is on time."""
    return float((1 + staleness) ** -sync.staleness_power)
