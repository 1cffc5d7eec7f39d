"""Links: messages that are lost, said twice, out of order, damaged or old; ways that close, one by one or one way only.

A stream keeps order and loses nothing while it lives: that is TCP. So a lost message ends its stream, and what TCP
would hide happens on the way to the coordinator only, since a peer that lies or reconnects can do all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from medley.protocol import messages as m
from medley.protocol.conditions import PRESETS
from medley.runtimes.simulated.faults import doing
from medley.runtimes.simulated.faults.fault import Fault, striking
from medley.runtimes.simulated.kernel import MS, S
from medley.runtimes.simulated.stream import Parcel, Stream
from medley.runtimes.simulated.watch import COORDINATOR

if TYPE_CHECKING:
    from medley.runtimes.simulated.faults.storm import Storm

UP = ("UpdateReady", "BaseWanted", "BaseHeld", "Staged", "Heartbeat")
DOWN = ("Lease", "Base", "Outcome", "Commit", "Pin")
OLD_MAX = 64  # messages that are remembered for being said again


def _drop(storm: Storm, rate: float) -> None:
    def meddle(stream: Stream, up: bool, message: m.Message, parcels: Sequence[Parcel]) -> Sequence[Parcel] | None:
        if storm.random("drop").random() >= rate:
            return parcels
        storm.strike("drop", type(message).__name__)
        return None

    storm.meddlers.append(meddle)


def _duplicate(storm: Storm, rate: float) -> None:
    def meddle(stream: Stream, up: bool, message: m.Message, parcels: Sequence[Parcel]) -> Sequence[Parcel] | None:
        random = storm.random("duplicate")
        if random.random() >= rate or isinstance(message, m.Hello):
            return parcels
        storm.strike("duplicate", type(message).__name__)
        again = Parcel(parcels[0].data, int(random.choice([0, 5, 200]) * MS), True)
        return [*parcels, again]

    storm.meddlers.append(meddle)


def _reorder(storm: Storm, rate: float) -> None:
    def meddle(stream: Stream, up: bool, message: m.Message, parcels: Sequence[Parcel]) -> Sequence[Parcel] | None:
        random = storm.random("reorder")
        if not up or random.random() >= rate or isinstance(message, m.Hello):
            return parcels
        storm.strike("reorder", type(message).__name__)
        return [replace(p, delay_ns=int(random.choice([20, 200, 1500]) * MS), in_order=False) for p in parcels]

    storm.meddlers.append(meddle)


def _truncate(storm: Storm, rate: float) -> None:
    def meddle(stream: Stream, up: bool, message: m.Message, parcels: Sequence[Parcel]) -> Sequence[Parcel] | None:
        random = storm.random("truncate")
        if random.random() >= rate:
            return parcels
        storm.strike("truncate", "message to coordinator" if up else "message to node")
        return [replace(parcels[0], data=parcels[0].data[: random.randrange(len(parcels[0].data))])]

    storm.meddlers.append(meddle)


def _replay(storm: Storm, rate: float) -> None:
    """What was said in an earlier generation is said again."""
    old: dict[tuple[str, bool], list[tuple[int, m.Message, bytes]]] = {}

    def meddle(stream: Stream, up: bool, message: m.Message, parcels: Sequence[Parcel]) -> Sequence[Parcel] | None:
        generation = getattr(message, "generation", None)
        if generation is None:
            return parcels
        known = old.setdefault((stream.node.name, up), [])
        if len(known) < OLD_MAX:
            known.append((generation, message, parcels[0].data))
        random = storm.random("replay")
        if random.random() >= rate:
            return parcels
        chosen = [(said, data) for number, said, data in known if number < generation]
        if not chosen:
            return parcels
        said, data = random.choice(chosen)
        storm.strike("replay", type(said).__name__)
        return [Parcel(data), *parcels]

    storm.meddlers.append(meddle)


# -- ways that close --------------------------------------------------------------------------------------------------


def _ends(storm: Storm) -> list[str]:
    return [COORDINATOR, *sorted(storm.world.nodes)]


def _both(storm: Storm, a: str, b: str, *, closed: bool) -> None:
    for one, other in ((a, b), (b, a)):
        _way(storm, one, other, closed=closed)


def _way(storm: Storm, source: str, target: str, *, closed: bool) -> None:
    network = storm.world.network
    (network.block if closed else network.unblock)(source, target)


def _plane(a: str, b: str) -> str:
    return "control" if COORDINATOR in (a, b) else "tensors"


def _clog(storm: Storm, random: Random) -> Iterator[str]:
    a, b = random.sample(_ends(storm), 2)
    _both(storm, a, b, closed=True)
    storm.later(int(random.choice([0.3, 2, 8, 15]) * S), _both, storm, a, b, closed=False)
    yield _plane(a, b)


def _swizzle(storm: Storm, random: Random) -> Iterator[str]:
    """Links of a subset are clogged one by one and unclogged in another order (FoundationDB, SIGMOD 2021)."""
    ends = _ends(storm)
    pairs = [(a, b) for i, a in enumerate(ends) for b in ends[i + 1 :] if random.random() < 0.4]
    step_ns = int(random.choice([0.05, 0.3, 1]) * S)
    shut = random.sample(pairs, len(pairs))
    opened = random.sample(pairs, len(pairs))
    for i, (a, b) in enumerate(shut):
        storm.later(i * step_ns, _both, storm, a, b, closed=True)
        yield _plane(a, b)
    for i, (a, b) in enumerate(opened):
        storm.later((len(shut) + 2 + i) * step_ns, _both, storm, a, b, closed=False)


def _one_way(storm: Storm, random: Random) -> Iterator[str]:
    a, b = random.sample(_ends(storm), 2)
    _way(storm, a, b, closed=True)
    storm.later(int(random.choice([1, 5, 14]) * S), _way, storm, a, b, closed=False)
    yield "to coordinator" if b == COORDINATOR else "from coordinator" if a == COORDINATOR else "tensors"


def _flap(storm: Storm, random: Random) -> Iterator[str]:
    """One side of the pool and the other, again and again."""
    ends = _ends(storm)
    one = set(random.sample(ends, random.randint(1, len(ends) - 1)))
    pairs = [(a, b) for a in sorted(one) for b in ends if b not in one]
    period_ns = int(random.choice([0.5, 2, 6]) * S)
    for i in range(random.randint(1, 4)):
        for a, b in pairs:
            storm.later(2 * i * period_ns, _both, storm, a, b, closed=True)
            storm.later((2 * i + 1) * period_ns, _both, storm, a, b, closed=False)
    yield from {_plane(a, b) for a, b in pairs}


def _brownout(storm: Storm, random: Random) -> Iterator[str]:
    node = storm.some_node(random)
    worse = PRESETS[random.choice(["brownout", "degraded"])]
    storm.world.network.add(node.name, worse)
    storm.later(
        int(random.choice([3, 12]) * S),
        storm.world.network.add,
        node.name,
        node.machine.conditions,
        node.machine.overrides,
    )
    yield from doing.at_machine(node)


PLANES = ("control", "tensors")
FAULTS = (
    Fault("drop", "a message is lost, and with it its stream", (0.0005, 0.01), "of the messages", (*UP, *DOWN), _drop),
    Fault("duplicate", "a message is said twice", (0.005, 0.2), "of the messages", (*UP, *DOWN), _duplicate),
    Fault(
        "reorder",
        "a message to the coordinator is overtaken by later ones",
        (0.002, 0.05),
        "of the messages",
        UP,
        _reorder,
    ),
    Fault(
        "truncate",
        "a message ends in the middle",
        (0.0005, 0.005),
        "of the messages",
        ("message to coordinator", "message to node"),
        _truncate,
    ),
    Fault(
        "replay",
        "a message of an earlier generation comes again",
        (0.01, 0.2),
        "of the messages",
        ("UpdateReady", "Staged", "Ready", "Commit", "Pin", "Lease", "Outcome"),
        _replay,
    ),
    striking("clog", "a link between two machines carries nothing for 0.3 to 15 s", (2, 15), PLANES, _clog),
    striking("swizzle-clog", "links are clogged one by one and unclogged in random order", (1, 6), PLANES, _swizzle),
    striking(
        "one-way partition",
        "nothing gets from one machine to another, the other way is open",
        (2, 10),
        ("to coordinator", "from coordinator", "tensors"),
        _one_way,
    ),
    striking("flapping partition", "the pool falls into two halves, again and again", (1, 5), PLANES, _flap),
    striking(
        "brownout",
        "a machine's link becomes slow, lossy and comes and goes",
        (1, 6),
        ("worker pulling", "worker computing", "shard ready"),
        _brownout,
    ),
)
