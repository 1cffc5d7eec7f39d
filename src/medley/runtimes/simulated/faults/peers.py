"""Peers that lie or send garbage, machines that are slow or all come at once, samples that nobody can compute, people
who press every button, and a second coordinator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from medley.protocol import messages as m
from medley.protocol import wire
from medley.protocol.effects import Effect, Run
from medley.protocol.engine import Compute
from medley.protocol.events import Event
from medley.protocol.ids import JobId, NodeId
from medley.protocol.messages import Span
from medley.runtimes.simulated.engines import WorkerEngine
from medley.runtimes.simulated.faults import doing
from medley.runtimes.simulated.faults.fault import Fault, striking
from medley.runtimes.simulated.kernel import S
from medley.runtimes.simulated.stream import Parcel, Stream
from medley.runtimes.simulated.watch import Watcher

if TYPE_CHECKING:
    from medley.roles.context import Context
    from medley.runtimes.simulated.faults.storm import Storm
    from medley.runtimes.simulated.node import Node
    from medley.runtimes.simulated.world import World

HUGE = 1 << 45
SLOW = (5.0, 30.0, 100.0)
SLOW_FOR_S = (5, 20, 60)


# -- lies: each is one message that an honest machine would not send ---------------------------------------------------

Lie = Callable[["Context", NodeId, Random], m.FromNode | None]


def _update(ctx: Context, node: NodeId, leases: tuple[int, ...], *, base: int | None = None) -> m.UpdateReady:
    at = ctx.state.version if base is None else base
    name = f"{node}.lie.{len(ctx.ledger.leases)}-{at}-{'-'.join(map(str, leases))}"
    return m.UpdateReady(
        ctx.job, ctx.generation, name, leases, at, min(at, ctx.state.version), 1.0, 1.0, 0.0, 1, 10, 0.1, 2, 0.0, True
    )


def _foreign_lease(ctx: Context, node: NodeId, random: Random) -> m.FromNode | None:
    others = sorted(n for n, held in ctx.ledger.leases.items() if held.node != node)
    return _update(ctx, node, (random.choice(others),)) if others else None


def _unknown_lease(ctx: Context, node: NodeId, random: Random) -> m.FromNode | None:
    return _update(ctx, node, (random.choice([0, ctx.ledger.next_lease, HUGE]),))


def _future_base(ctx: Context, node: NodeId, random: Random) -> m.FromNode | None:
    held = sorted(n for n, h in ctx.ledger.leases.items() if h.node == node)
    return _update(ctx, node, (held[0],), base=ctx.state.version + random.randint(1, 50)) if held else None


def _huge_counts(ctx: Context, node: NodeId, random: Random) -> m.FromNode | None:
    held = sorted(n for n, h in ctx.ledger.leases.items() if h.node == node)
    return replace(_update(ctx, node, (held[0],)), tokens=HUGE, weight=1e300) if held else None


def _earlier_generation(ctx: Context, node: NodeId, random: Random) -> m.FromNode | None:
    held = sorted(n for n, h in ctx.ledger.leases.items() if h.node == node)
    if not held or ctx.generation < 2:
        return None
    return replace(_update(ctx, node, (held[0],)), generation=ctx.generation - 1)


def _foreign_shard(ctx: Context, node: NodeId, random: Random) -> m.FromNode | None:
    """It says that a shard of somebody else holds an update, has written a part, or cannot load."""
    foreign = [p for p in ctx.state.places if node not in (p.primary, p.backup)]
    if not foreign:
        return None
    shard = random.choice(foreign).shard
    update = next(iter(ctx.roster.updates), "nobody.1.1")
    job, generation, version = ctx.job, ctx.generation, ctx.state.version
    lies: list[m.FromNode] = [
        m.Staged(job, generation, shard, update, True, 1.0, 8),
        m.PartWritten(job, generation, shard, version, f"{generation}-{version}-{shard}", "d", 8),
        m.LoadFailed(job, generation, shard, ctx.state.checkpoints[-1].version, "it is a lie"),
        m.EngineDown(job, generation, shard, "it is a lie", False),
        m.Applied(job, generation, shard, version + 1),
    ]
    return random.choice(lies)


def _unasked(ctx: Context, node: NodeId, random: Random) -> m.FromNode | None:
    """A measurement that nobody asked it for."""
    if ctx.measuring_node == node:
        return None
    version = ctx.measuring if ctx.measuring >= 0 else ctx.state.version
    return m.Evaluated(ctx.job, ctx.generation, version, 0.001, 10, 1.0)


def _foreign_failure(ctx: Context, node: NodeId, random: Random) -> m.FromNode | None:
    others = tuple(sorted(n for n, held in ctx.ledger.leases.items() if held.node != node))
    return m.LeaseFailed(ctx.job, ctx.generation, others, "it is a lie", False) if others else None


def _foreign_name(ctx: Context, node: NodeId, random: Random) -> m.FromNode | None:
    """It introduces itself as another machine."""
    others = sorted(n for n in ctx.pool if n != node)
    return (
        m.Hello(random.choice(others), "lie", m.Capability(4, 1 << 30, "lie", True, True), (), ()) if others else None
    )


LIES: dict[str, Lie] = {
    "another's lease": _foreign_lease,
    "an unknown lease": _unknown_lease,
    "a base to come": _future_base,
    "huge counts": _huge_counts,
    "an earlier generation": _earlier_generation,
    "another's shard": _foreign_shard,
    "an unasked measurement": _unasked,
    "another's failure": _foreign_failure,
    "another's name": _foreign_name,
}


def _distorted(ctx: Context, node: NodeId, said: m.UpdateReady, random: Random) -> tuple[str, m.UpdateReady] | None:
    """What was computed and pushed honestly is announced as something else."""
    others = sorted(n for n, held in ctx.ledger.leases.items() if held.node != node)
    wrong = {
        "update without a lease": replace(said, leases=()),
        "update with a lease twice": replace(said, leases=(*said.leases, said.leases[0])),
        "update with a base to come": replace(said, base=said.base + NEVER),
        "update with huge counts": replace(said, tokens=HUGE, samples=HUGE),
    }
    if others:
        wrong["update with another's lease"] = replace(said, leases=(random.choice(others),))
        wrong["update with a lease too many"] = replace(said, leases=(*said.leases, random.choice(others)))
    what = random.choice(sorted(wrong))
    return what, wrong[what]


NEVER = 1 << 20  # versions from now: what a base may be is known only until a coordinator restarts
DISTORTED = (
    *("update without a lease", "update with a lease twice", "update with a base to come", "update with huge counts"),
    *("update with another's lease", "update with a lease too many"),
)


def _distort(storm: Storm, liar: NodeId) -> None:
    def meddle(stream: Stream, up: bool, message: m.Message, parcels: Sequence[Parcel]) -> Sequence[Parcel] | None:
        random = storm.random("distort")
        if not isinstance(message, m.UpdateReady) or stream.node.name != liar or random.random() < 0.5:
            return parcels
        run = storm.world.run_of(message.job)
        told = _distorted(run.ctx, liar, message, random) if run is not None and run.ctx.plan is not None else None
        if told is None:
            return parcels
        storm.strike("lies", told[0])
        return [replace(parcels[0], data=wire.encode(told[1]))]

    storm.meddlers.append(meddle)


def _lie(storm: Storm, rate: float) -> None:
    """One machine that trains tells lies between its honest words, and instead of them."""
    liar = storm.random("liar").choice(sorted(storm.world.nodes))
    _distort(storm, liar)

    def strike(storm: Storm, random: Random) -> Iterator[str]:
        node, coordinator = storm.world.nodes.get(liar), storm.world.coordinator
        if (
            node is None
            or coordinator is None
            or node.stream is None
            or not node.stream.welcomed
            or not node.stream.open
        ):
            return
        runs = [run for run in coordinator.runs.values() if run.ctx.plan is not None and not run.over]
        if not runs:
            return
        what = random.choice(sorted(LIES))
        message = LIES[what](random.choice(runs).ctx, liar, random)
        if message is not None:
            node.stream.to_coordinator(message)
            yield what

    storm.often("lies", rate, strike)


def _lie_finite(storm: Storm, rate: float) -> None:
    """What is not a number is called one, and a norm is made up."""

    def meddle(stream: Stream, up: bool, message: m.Message, parcels: Sequence[Parcel]) -> Sequence[Parcel] | None:
        if isinstance(message, m.UpdateReady) and not message.finite and storm.random("claims").random() < rate:
            storm.strike("false claims", "finite")
            return [replace(parcels[0], data=wire.encode(replace(message, finite=True)))]
        if isinstance(message, m.Staged) and storm.random("claims").random() < rate / 10:
            storm.strike("false claims", "norm")
            return [replace(parcels[0], data=wire.encode(replace(message, squared_norm=1e308)))]
        return parcels

    storm.meddlers.append(meddle)


def _garbage(storm: Storm, rate: float) -> None:
    def meddle(stream: Stream, up: bool, message: m.Message, parcels: Sequence[Parcel]) -> Sequence[Parcel] | None:
        random = storm.random("garbage")
        if not up or random.random() >= rate:
            return parcels
        storm.strike("garbage", "to coordinator")
        return [Parcel(random.randbytes(random.choice([1, 7, 300]))), *parcels]

    storm.meddlers.append(meddle)


# -- slow, many, poisoned ---------------------------------------------------------------------------------------------


def _straggle(storm: Storm, random: Random) -> Iterator[str]:
    node = storm.some_node(random)
    node.slowness = node.usual_slowness * random.choice(SLOW)
    storm.later(int(random.choice(SLOW_FOR_S) * S), _recover, node)
    yield from (what for what in doing.at_machine(node) if what.startswith("worker"))


def _recover(node: Node) -> None:
    node.slowness = node.usual_slowness


def _herd(storm: Storm, random: Random) -> Iterator[str]:
    """A switch restarts: every stream ends, and everybody knocks again."""
    streams = [node.stream for node in storm.world.nodes.values() if node.stream is not None and node.stream.open]
    for stream in streams:
        stream.cut()
    if streams:
        yield from doing.at_coordinator(storm.world)


class Poison(Watcher):
    """Samples on which every engine fails, until somebody takes them out."""

    def __init__(self, storm: Storm, first: float) -> None:
        self.storm = storm
        self.first = first

    def handled(
        self, world: World, who: NodeId, key: tuple[JobId, int] | None, event: Event, effects: Sequence[Effect]
    ) -> None:
        if key is None or key[1] >= 0 or self.storm.calm:
            return
        for effect in effects:
            match effect:
                case Run(Compute(update, span)) if self._poisoned(world, key[0], span):
                    hosted = world.nodes[who].roles.get(key)
                    if hosted is not None and isinstance(hosted.engine, WorkerEngine):
                        hosted.engine.abandoned = update
                        self.storm.strike("poison", "compute")
                case _:
                    pass

    def _poisoned(self, world: World, job: JobId, span: Span) -> bool:
        return span.start <= int(self.first * world.job_named(job).plan.samples) < span.stop


def _poison(storm: Storm, rate: float) -> None:
    storm.world.watchers = (*storm.world.watchers, Poison(storm, storm.random("poison").random()))


# -- people, and a second coordinator ---------------------------------------------------------------------------------


def _person(storm: Storm, random: Random) -> Iterator[str]:
    world = storm.world
    job = random.choice(sorted(a.job for a in world.setup.arrivals))
    state = world.states.get(job)
    if state is None or world.host is None:
        return
    what = random.choice(["cancel", "resume", "resume", "submit again"])
    match what:
        case "cancel":
            world.cancel(job)
        case "resume":
            world.resume(job)
        case _:
            world.submit(job)
    yield f"{what} when {state}"


def _second(storm: Storm, random: Random) -> Iterator[str]:
    """A second coordinator on the same log, while the first still believes; the first is turned off in the end."""
    older = storm.world.host
    if older is None or storm.older:
        return
    yield from doing.at_coordinator(storm.world)
    storm.older.append(older)
    storm.world.start_coordinator(beside=True)
    storm.later(int(random.choice([0.5, 3, 10]) * S), storm.turn_off, older)


FAULTS = (
    Fault(
        "lies",
        "a machine says what is not its own or not true",
        (10, 60),
        "strikes a minute",
        (*sorted(LIES), *DISTORTED),
        _lie,
    ),
    Fault(
        "false claims",
        "a machine calls what is not a number finite, or makes up a norm",
        (0.3, 1.0),
        "of the messages",
        ("finite", "norm"),
        _lie_finite,
    ),
    Fault("garbage", "bytes that no message has", (0.0005, 0.005), "of the messages", ("to coordinator",), _garbage),
    striking(
        "straggler",
        "a machine computes 5 to 100 times slower for 5 to 60 s",
        (2, 10),
        ("worker computing", "worker wanting", "worker pulling"),
        _straggle,
    ),
    striking("thundering herd", "every stream ends, and everybody reconnects at once", (1, 8), doing.JOB[2:6], _herd),
    Fault("poison", "samples on which every engine fails", (1, 1), "once", ("compute",), _poison),
    striking(
        "person",
        "somebody cancels, resumes and submits again, whatever the job is at",
        (2, 15),
        (
            *("cancel when running", "cancel when preparing", "cancel when finishing", "resume when cancelled"),
            *("resume when running", "submit again when running", "submit again when cancelled"),
        ),
        _person,
    ),
    striking(
        "two coordinators",
        "a second coordinator takes the log while the first still believes",
        (1, 5),
        ("leases held", "pull under way", "update under way"),
        _second,
    ),
)
