"""How long to wait for the slowest: median + k * MAD of what was seen lately, never a constant."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from medley.protocol.ids import NS_PER_S

FIRST_WAIT_NS = 60 * NS_PER_S  # before anything was measured; models compile, disks are cold
FLOOR_NS = NS_PER_S // 5


def allowance_ns(durations_ns: Sequence[int], mad_factor: float) -> int:
    """Time after which something of this kind is late. At least a fifth of a second; generous before three samples."""
    if len(durations_ns) < 3:
        return FIRST_WAIT_NS
    middle = median(durations_ns)
    spread = median(abs(d - middle) for d in durations_ns)
    return int(max(middle + mad_factor * max(spread, middle / 10), FLOOR_NS))
