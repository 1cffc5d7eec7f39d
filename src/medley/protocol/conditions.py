"""What a link does to bytes, the named presets, and what one TCP stream reaches through them.

Read by the simulator and by the shaper of real sockets, so that both mean the same by "cellular". Rates are bytes a
second in each direction; a loss is of packets, so a reliable stream pays for it in time, not in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, sqrt
from typing import Literal

MSS_NBYTES = 1448
TrafficClass = Literal["heartbeat", "task", "telemetry", "ps_sync"]
CLASSES: tuple[TrafficClass, ...] = ("heartbeat", "task", "telemetry", "ps_sync")


@dataclass(frozen=True, slots=True)
class Conditions:
    """One machine's access link, as its own traffic meets it. Zero switches a thing off; 0 bandwidth is unlimited."""

    rtt_ms: float = 0.0
    jitter_ms: float = 0.0  # standard deviation of one way's delay
    loss: float = 0.0  # fraction of packets
    duplication: float = 0.0  # fraction of packets
    up_bytes_per_s: float = 0.0
    down_bytes_per_s: float = 0.0
    up_s: float = 0.0  # seconds that the link works, then ...
    down_s: float = 0.0  # ... seconds that it carries nothing, in turn
    compute_factor: float = 1.0  # how many times slower the machine behind it computes (the straggler)


@dataclass(frozen=True, slots=True)
class Network:
    """The configuration key `network`: a preset, and what other presets single classes of traffic meet instead."""

    profile: str = "none"
    overrides: dict[str, str] = field(default_factory=dict)  # class of traffic: preset
    seed: int = 0


_MBIT = 1_000_000 / 8
PRESETS: dict[str, Conditions] = {
    "none": Conditions(),
    "good": Conditions(20, 2, 0.0001, 0.0, 100 * _MBIT, 100 * _MBIT),
    "cellular": Conditions(80, 40, 0.02, 0.0, 10 * _MBIT, 10 * _MBIT),
    "degraded": Conditions(200, 80, 0.10, 0.03, 2 * _MBIT, 2 * _MBIT),
    "brownout": Conditions(80, 40, 0.05, 0.0, 5 * _MBIT, 5 * _MBIT, up_s=5, down_s=2),
    "straggler": Conditions(20, 2, 0.0001, 0.0, 100 * _MBIT, 100 * _MBIT, compute_factor=10),
    "satellite": Conditions(400, 100, 0.01, 0.0, 5 * _MBIT, 5 * _MBIT),
}


def goodput_bytes_per_s(conditions: Conditions, direction: Literal["up", "down"] = "up") -> float:
    """What one long TCP stream reaches: MSS / RTT * sqrt(3 / (2 p)) (Mathis et al. 1997), at most the link's rate."""
    limit = conditions.up_bytes_per_s if direction == "up" else conditions.down_bytes_per_s
    rate = limit or inf
    if conditions.loss > 0 and conditions.rtt_ms > 0:
        rate = min(rate, MSS_NBYTES / (conditions.rtt_ms / 1000) * sqrt(1.5 / conditions.loss))
    if conditions.down_s > 0:
        rate *= conditions.up_s / (conditions.up_s + conditions.down_s)
    return rate
