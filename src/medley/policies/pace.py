"""How many local steps a worker gets, by its measured speed (DyLU, arXiv 2401.09135): H_m = H * v_m / v_max.

Everyone then finishes a round at about the same time; H stays within [H / 8, H].
"""

from __future__ import annotations


def local_steps(wanted: int, speed: float, fastest: float) -> int:
    """Steps for a worker's next lease; speeds are EWMAs in tokens/s, 0 until measured."""
    if wanted <= 1 or speed <= 0:
        return wanted
    return max(1, wanted // 8, min(wanted, round(wanted * speed / fastest)))


def relative_speed(speed: float, fastest: float) -> float:
    """1.0 for the fastest, or while nothing was measured."""
    return speed / fastest if speed > 0 else 1.0
