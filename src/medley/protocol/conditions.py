"""What a link does to bytes, the named presets, and what one TCP stream reaches through them.

Read by the simulator and by the shaper of real sockets, so that both mean the same by "cellular". A machine's
conditions are those of its access link, between it and a well connected machine; two such machines meet both links
(`path`). Rates are bytes a second in each direction; a loss is of packets, so a reliable stream pays for it in time,
not in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import hypot, inf, isfinite, sqrt
from typing import Literal

from medley.protocol.errors import UserError, did_you_mean

MSS_NBYTES = 1448
PACKET_NBYTES = 1500  # of the link's bandwidth, for each segment
RTO_MIN_S = 0.2
TrafficClass = Literal["heartbeat", "task", "telemetry", "ps_sync"]
CLASSES: tuple[TrafficClass, ...] = ("heartbeat", "task", "telemetry", "ps_sync")
Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """One machine's access link, as its own traffic meets it. Zero switches a thing off; 0 bandwidth is unlimited.

    One way's delay has mean `rtt_ms` / 2 and standard deviation `jitter_ms`; it is never negative, and packets keep
    their order. `duplication` costs bandwidth and nothing else: TCP drops the second copy.
    """

    rtt_ms: float = 0.0
    jitter_ms: float = 0.0  # standard deviation of one way's delay
    loss: float = 0.0  # fraction of packets
    duplication: float = 0.0  # fraction of packets
    up_bytes_per_s: float = 0.0
    down_bytes_per_s: float = 0.0
    up_s: float = 0.0  # seconds that the link works, then ...
    down_s: float = 0.0  # ... seconds that it carries nothing, in turn
    compute_factor: float = 1.0  # how many times slower the machine behind it computes (the straggler)

    @property
    def shaped(self) -> bool:
        """Whether bytes notice this link at all."""
        return replace(self, compute_factor=1.0) != Conditions()


@dataclass(frozen=True, slots=True)
class Network:
    """The configuration key `network`: which link the machines of a job stand behind, on real sockets.

    `workers` shapes the machines that train; those that only keep parameters stand well connected, as servers do.
    """

    profile: str = "none"
    overrides: dict[str, str] = field(default_factory=dict)  # class of traffic: the preset that it meets instead
    machines: Literal["workers", "all"] = "workers"
    seed: int = 0

    @property
    def shaped(self) -> bool:
        """Whether anything at all is done to sockets or to computing."""
        return any(PRESETS.get(name) != Conditions() for name in (self.profile, *self.overrides.values()))


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


def preset(name: str) -> Conditions:
    """The conditions of that name. Raises UserError with the nearest right one."""
    if name not in PRESETS:
        raise UserError(f"there is no network preset '{name}'; {did_you_mean(name, tuple(PRESETS))}")
    return PRESETS[name]


def conditions_of(network: Network, traffic: TrafficClass) -> Conditions:
    """What this class of traffic meets. Raises UserError for an unknown preset."""
    return preset(network.overrides.get(traffic, network.profile))


def network_problems(network: Network) -> Iterator[str]:
    """A sentence for each thing that is wrong, with its key."""
    if network.profile not in PRESETS:
        yield f"network.profile is '{network.profile}', which is no preset; {did_you_mean(network.profile, PRESETS)}"
    for traffic, name in network.overrides.items():
        if traffic not in CLASSES:
            yield f"network.overrides names '{traffic}', which is no class of traffic; {did_you_mean(traffic, CLASSES)}"
        elif name not in PRESETS:
            yield f"network.overrides.{traffic} is '{name}', which is no preset; {did_you_mean(name, PRESETS)}"


def conditions_problems(conditions: Conditions) -> Iterator[str]:
    """A sentence for each value that no link can have, beginning with its key."""
    for key in ("rtt_ms", "jitter_ms", "up_bytes_per_s", "down_bytes_per_s", "up_s", "down_s"):
        value = getattr(conditions, key)
        if not (value >= 0 and isfinite(value)):
            yield f"{key} is {value:g}, but must be a number of at least 0"
    for key in ("loss", "duplication"):
        value = getattr(conditions, key)
        if not 0 <= value < 1:
            yield f"{key} is {value:g}, but must be a fraction: at least 0 and below 1"
    if conditions.jitter_ms > 0 and not conditions.rtt_ms > 0:
        yield f"jitter_ms is {conditions.jitter_ms:g}, but rtt_ms is 0: a delay that varies needs a mean, so set rtt_ms"
    if conditions.down_s > 0 and not conditions.up_s > 0:
        yield f"down_s is {conditions.down_s:g}, but up_s is 0: a link that never works; set up_s as well"
    if not (conditions.compute_factor > 0 and isfinite(conditions.compute_factor)):
        yield f"compute_factor is {conditions.compute_factor:g}, but must be above 0 (10 is ten times slower)"


def path(here: Conditions, there: Conditions) -> Conditions:
    """From one machine's link into another's: `up` is from here to there. Cycles are each link's own and left out."""
    return Conditions(
        rtt_ms=here.rtt_ms + there.rtt_ms,
        jitter_ms=hypot(here.jitter_ms, there.jitter_ms),
        loss=here.loss + there.loss - here.loss * there.loss,
        duplication=here.duplication + there.duplication - here.duplication * there.duplication,
        up_bytes_per_s=_narrower(here.up_bytes_per_s, there.down_bytes_per_s),
        down_bytes_per_s=_narrower(here.down_bytes_per_s, there.up_bytes_per_s),
    )


def goodput_bytes_per_s(conditions: Conditions, direction: Direction = "up") -> float:
    """What one long TCP stream reaches, at most what the link carries of it; infinite where nothing limits it.

    With loss p, round trip R and time-out T a stream has W = max(sqrt(3 / 2p), 1.054 (R / p)^(3/4)) segments under way
    (Mathis et al. 1997; CUBIC, RFC 9438 eq. 6) and spends T min(1, 3 sqrt(3p/8)) p (1 + 32 p^2) a segment on time-outs
    (Padhye et al., SIGCOMM 1998, eq. 30, every packet acknowledged): MSS / (R / W + that). A link that comes and goes
    carries for `up_s`, less what remains of the doubled time-out that the outage ended in.
    """
    limit = conditions.up_bytes_per_s if direction == "up" else conditions.down_bytes_per_s
    rate = (limit or inf) * MSS_NBYTES / PACKET_NBYTES / (1 + conditions.duplication)
    rtt_s, loss = conditions.rtt_ms / 1000, conditions.loss
    if loss > 0 and rtt_s > 0:
        window = max(sqrt(1.5 / loss), 1.054 * (rtt_s / loss) ** 0.75)
        timeout_s = rto_s(conditions) * min(1.0, 3 * sqrt(3 * loss / 8)) * loss * (1 + 32 * loss * loss)
        rate = min(rate, MSS_NBYTES / (rtt_s / window + timeout_s))
    if conditions.down_s > 0:
        idle_s = conditions.down_s + _overshoot_s(conditions)
        rate *= max(0.0, conditions.up_s + conditions.down_s - idle_s) / (conditions.up_s + conditions.down_s)
    return rate


def rto_s(conditions: Conditions) -> float:
    """A stream's first retransmission time-out: R + max(200 ms, 4 deviations of the round trip), as Linux has it."""
    deviation_s = hypot(conditions.jitter_ms, conditions.jitter_ms) / 1000
    return conditions.rtt_ms / 1000 + max(RTO_MIN_S, 4 * deviation_s)


def _overshoot_s(conditions: Conditions) -> float:
    """How long after an outage the next retransmission comes: the time-outs double until one gets through."""
    waited_s = step_s = rto_s(conditions)
    while waited_s < conditions.down_s:
        step_s *= 2
        waited_s += step_s
    return waited_s - conditions.down_s


def _narrower(one: float, other: float) -> float:
    return min(one or inf, other or inf) if one or other else 0.0
