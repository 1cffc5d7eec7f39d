"""How fast hops compute while they serve, against what their machines were measured at.

A machine that is measured once, idle, may be slower an hour later: somebody works on it. `Pace` keeps a moving average
of a pipeline's decoding batches, `watch` turns it into each machine's slowness; whether layers move is for `drift`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from medley.policies.pipeline.describe import Machine
from medley.policies.pipeline.drift import slowed
from medley.protocol.ids import NS_PER_S, NodeId
from medley.protocol.stages.events import Explain
from medley.protocol.stages.words import Hop
from medley.roles.front.machines import MachineView

WEIGHT = 0.2  # of the newest batch
OUTLIER = 4.0  # one batch counts as at most so many usual ones: a pause is not a pace
BATCHES_LEAST = 32  # of a layout, until something follows from them
LEAST, MOST = 0.25, 20.0
SMOOTHING = 0.5  # of what was seen since the last look
UNSEEN_MOST = 1.5  # that a machine which does not serve is taken to be slower than measured, as those are that do
EIGHT = 8.0  # tokens, as machines are measured with
NOISE = 2.0  # so many times slower than the quickest that serves, until layers move for it
TOLD = 1.5  # a change by this factor is worth a sentence


@dataclass(slots=True)
class Pace:
    """Of the decoding batches since the layout began: what each hop computed, tokens in one, and what the quickest of
    them took beside the computing.
    """

    spent_ns: list[float] = field(default_factory=list)
    tokens: float = 0.0
    batches: int = 0
    way_ns: int = 0

    @property
    def alone_ns(self) -> float:
        """The whole way of a batch that waits for no other; what one waits grows with how many there are."""
        return sum(self.spent_ns) + self.way_ns

    def saw(self, spent_ns: tuple[int, ...], tokens: int, latency_ns: int) -> None:
        way_ns = max(1, latency_ns - sum(spent_ns))
        self.way_ns = min(self.way_ns or way_ns, way_ns)
        self.batches += 1
        if len(self.spent_ns) != len(spent_ns):
            self.spent_ns, self.tokens = list(map(float, spent_ns)), float(tokens)
            return
        bounded = [min(new, OUTLIER * old) if old else new for old, new in zip(self.spent_ns, spent_ns, strict=True)]
        self.spent_ns = [old + WEIGHT * (new - old) for old, new in zip(self.spent_ns, bounded, strict=True)]
        self.tokens += WEIGHT * (tokens - self.tokens)


def watch(
    hops: Iterable[Hop], pace: Pace, known: Mapping[NodeId, MachineView], layers: int, now_ns: int
) -> list[Explain]:
    """Each working machine's slowness, as these batches show it."""
    out: list[Explain] = []
    for node, factor in _factors(hops, pace, known, layers).items():
        view = known[node]
        view.slowness += SMOOTHING * (min(MOST, max(LEAST, factor)) - view.slowness)
        view.paced_ns = now_ns
        if not 1 / TOLD < view.slowness / view.told_slowness < TOLD:
            view.told_slowness = view.slowness
            out.append(Explain(node, f"takes {view.slowness:.2g} times as long as when it was measured"))
    return out


def _factors(hops: Iterable[Hop], pace: Pace, known: Mapping[NodeId, MachineView], layers: int) -> dict[NodeId, float]:
    if pace.batches < BATCHES_LEAST:
        return {}
    seen: dict[NodeId, float] = {}
    expected: dict[NodeId, float] = {}
    for hop in hops:
        view = known.get(hop.node)
        if view is None or view.measured is None or hop.place >= len(pace.spent_ns):
            continue
        seconds = _expected_s(view.described(), hop, pace.tokens, layers)
        seen[hop.node] = seen.get(hop.node, 0.0) + pace.spent_ns[hop.place] / NS_PER_S
        expected[hop.node] = expected.get(hop.node, 0.0) + seconds
    return {node: seen[node] / expected[node] for node in seen if expected[node] > 0}


def _expected_s(machine: Machine, hop: Hop, tokens: float, layers: int) -> float:
    head = machine.head.over(tokens) if hop.end == layers else 0.0
    return (hop.end - hop.first) * machine.layer.over(tokens) + head


def as_seen(views: Iterable[MachineView], working: Iterable[NodeId]) -> list[Machine]:
    """Machines with their slowness. What all that serve have in common (other work on one computer, longer contexts
    than were measured) would be found on the others as well, so it is no reason to move there.
    """
    views, at_work = list(views), set(working)
    common = min((view.slowness for view in views if view.node in at_work), default=1.0)
    unseen = min(UNSEEN_MOST, common)
    return [slowed(v.described(), _counted(v, common) if v.node in at_work else v.slowness * unseen) for v in views]


def _counted(view: MachineView, common: float) -> float:
    """Small differences between machines that serve are noise, on a busy computer above all."""
    return view.slowness if view.slowness > NOISE * common else common


def slowest_s(hops: Iterable[Hop], known: Mapping[NodeId, MachineView], layers: int) -> float:
    """What eight tokens take on the slowest of these hops; 1 where a machine was not measured, as with pins."""
    times = [1e-9]
    for hop in hops:
        view = known.get(hop.node)
        if view is None or view.measured is None:
            return 1.0
        times.append(_expected_s(view.described(), hop, EIGHT, layers) * view.slowness)
    return max(times)
