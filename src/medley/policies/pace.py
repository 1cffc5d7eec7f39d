"""How many local steps a worker gets, by its measured speed (DyLU, arXiv 2401.09135): H_m = H * v_m / v_max.

Everyone then finishes a round at about the same time; H stays within [H / 8, H].
"""

from __future__ import annotations

from collections.abc import Mapping

from medley.protocol.ids import NodeId


def local_steps(wanted: int, node: NodeId, speed: Mapping[NodeId, float]) -> int:
    """Steps for this worker's next lease; `speed` is an EWMA in tokens/s, absent until measured."""
    if wanted <= 1 or node not in speed:
        return wanted
    fastest = max(speed.values())
    return max(1, wanted // 8, min(wanted, round(wanted * speed[node] / fastest)))


def relative_speed(node: NodeId, speed: Mapping[NodeId, float]) -> float:
    """1.0 for the fastest, or while nothing was measured."""
    fastest = max(speed.values(), default=0.0)
    return speed[node] / fastest if fastest > 0 and node in speed else 1.0
