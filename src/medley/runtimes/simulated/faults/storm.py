"""One seed: a storm of faults, then calm, in which every job must end.

A seed switches about half of the faults off and draws how often the others strike (swarm testing: a fault that is
always there hides bugs that need its absence). It also picks one boundary of the commit protocol at which the
coordinator dies for sure, and some of the strikes wait for a moment that lasts shortly, since what is rare would
hardly ever be met by chance.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from medley.protocol import messages as m
from medley.runtimes.simulated.checkers import Book, Violation, everything
from medley.runtimes.simulated.checkers.data import finished
from medley.runtimes.simulated.drawing import draw_setup
from medley.runtimes.simulated.faults import BY_CHANCE, FAULTS, doing
from medley.runtimes.simulated.kernel import MS, S
from medley.runtimes.simulated.seeds import Seed
from medley.runtimes.simulated.stream import Parcel, Stream
from medley.runtimes.simulated.world import World

if TYPE_CHECKING:
    from medley.runtimes.simulated.coordinator import CoordinatorHost
    from medley.runtimes.simulated.node import Node

STORM_NS = 30 * S
DEADLINE_NS = 900 * S
ON = 0.5  # the part of the faults that a seed has
RARE, RAREST = 6, 24  # times as likely to be picked as others are ...
SELDOM = dict.fromkeys(
    (
        *("Aborted", "Promoted", "HeldoutMeasured", "Submitted", "Prepared", "CheckpointSealed", "Snapshot"),
        *("Relay", "Drop", "Evaluate", "Evaluated", "EngineDown"),
    ),
    RARE,
) | {"Backed": RAREST}
GOLDEN = 0.6180339887498949  # its multiples leave the most even gaps: neighbouring seeds share the boundaries evenly
BRIEF = {"worker measuring", "worker computing", "seal under way", "measurement under way", "finishing"}
AIMED = 0.4  # so many of the strikes that should meet a brief moment wait for one ...
AIM_NS, AIMS = 20 * MS, 100  # ... looking so often, so many times
SURE_TIMES = 2  # how often the picked boundary is met
Strike = Callable[["Storm", Random], Iterable[str]]
Meddler = Callable[[Stream, bool, m.Message, Sequence[Parcel]], Sequence[Parcel] | None]


class Storm:
    """The faults of one world, until the calm."""

    def __init__(self, world: World, chosen: dict[str, float] | None = None, lasts_ns: int = STORM_NS) -> None:
        """`chosen`: rates of faults by name, instead of what the seed would draw."""
        self.world = world
        self.calm = False
        self.gone: set[str] = set()  # machines that never come back
        self.older: list[CoordinatorHost] = []
        self.meddlers: list[Meddler] = []
        self.rates = self._draw() if chosen is None else chosen
        self.chances = {name: self.rates[f] * factor for name, (f, factor) in BY_CHANCE.items() if f in self.rates}
        self.sure: dict[tuple[str, str], int] = self._sure() if chosen is None else {}
        self.aims = chosen is None
        self.aim = ""  # what a machine that is struck now should be at
        for name, rate in self.rates.items():
            if (arm := FAULTS[name].arm) is not None:
                arm(self, rate)
        world.strike = self._struck
        if self.meddlers:
            world.meddle = self._meddle
        world.kernel.after(lasts_ns, self._end)

    def _draw(self) -> dict[str, float]:
        random = self.random("swarm")
        drawn = {}
        for fault in FAULTS.values():
            on, where = random.random() < ON, random.random()
            if on:
                low, high = fault.rates
                drawn[fault.name] = low * (high / low) ** where
        return drawn

    def _sure(self) -> dict[tuple[str, str], int]:
        boundaries: list[tuple[str, str]] = []
        for fault in FAULTS.values():
            for chance in fault.chances:
                for operation in fault.meets:
                    boundaries += [(chance, operation)] * SELDOM.get(operation.split()[-1], 1)
        return {boundaries[int(self.world.kernel.seed * GOLDEN % 1.0 * len(boundaries))]: SURE_TIMES}

    # -- what faults use ----------------------------------------------------------------------------------------

    def random(self, use: str) -> Random:
        return self.world.kernel.random(f"fault {use}")

    def strike(self, fault: str, operation: str) -> None:
        """This fault met this operation."""
        self.world.met(fault, operation)

    def often(self, name: str, per_minute: float, strike: Strike) -> None:
        """Strike at random moments, so often on average, until the calm."""
        random, mean_ns = self.random(name), 60 * S / per_minute
        brief = [moment for moment in FAULTS[name].meets if moment in BRIEF] if self.aims else []

        def again() -> None:
            aimed = bool(brief) and random.random() < AIMED
            self._await(random.choice(brief) if aimed else "", AIMS, hit)

        def hit() -> None:
            if self.world.nodes:  # machines of an experiment may all have left
                for operation in sorted(set(strike(self, random))):
                    self.strike(name, operation)
            self.world.kernel.after(int(random.expovariate(1 / mean_ns)), again)

        self.world.kernel.after(int(random.expovariate(1 / mean_ns)), again)

    def _await(self, moment: str, looks: int, then: Callable[[], None]) -> None:
        """Do this when somebody is at this moment, or when it has been looked for often enough."""
        if self.calm:
            return
        if moment and looks and moment not in doing.everywhere(self.world):
            self.world.kernel.after(AIM_NS, self._await, moment, looks - 1, then)
            return
        self.aim = moment
        then()
        self.aim = ""

    def later(self, delay_ns: int, call: Callable[..., None], *args: Any, **named: Any) -> None:
        """Do this then, if the storm still lasts; the calm undoes everything by itself."""

        def do() -> None:
            if not self.calm:
                call(*args, **named)

        self.world.kernel.after(delay_ns, do)

    def some_node(self, random: Random) -> Node:
        nodes = self.world.nodes
        at = [name for name in sorted(nodes) if self.aim and self.aim in doing.at_machine(nodes[name])]
        return nodes[random.choice(at or sorted(nodes))]

    def back(self, node: Node) -> None:
        """A machine starts again, unless it was lost for good meanwhile."""
        if node.name not in self.gone:
            node.start()

    def turn_off(self, host: CoordinatorHost) -> None:
        """The machine of a coordinator that was replaced is switched off."""
        if host.alive and host is not self.world.host:
            self.world.coordinator_died(host, "it was replaced and is turned off")
        if host in self.older:
            self.older.remove(host)

    # -- chance -------------------------------------------------------------------------------------------------

    def _struck(self, chance: str, operation: str) -> bool:
        sure = self.sure.get((chance, operation), 0)
        if sure and self.random("sure").random() < 0.7:
            self.sure[chance, operation] = sure - 1
            return True
        rate = self.chances.get(chance, 0.0)
        return rate > 0 and self.random(chance).random() < rate

    def _meddle(self, stream: Stream, up: bool, message: m.Message, data: bytes) -> Sequence[Parcel] | None:
        parcels: Sequence[Parcel] | None = (Parcel(data),)
        for meddler in self.meddlers:
            if parcels is None:
                return None
            parcels = meddler(stream, up, message, parcels)
        return parcels

    # -- calm ---------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Everything is mended that a person would mend, and stays so."""
        world = self.world
        self.calm = True
        world.strike = world.meddle = None
        world.disk.full = False
        for source, target in sorted(world.network.blocked):
            world.network.unblock(source, target)
        for host in list(self.older):
            self.turn_off(host)
        for node in world.nodes.values():
            world.network.add(node.name, node.machine.conditions, node.machine.overrides)
            node.slowness = node.usual_slowness
            self.back(node)
        world.note("storm", "calm", "nothing fails any more")
        self._watch()

    def _watch(self) -> None:
        """A person resumes what was stopped."""
        for job, state in sorted(self.world.states.items()):
            if state in ("failed", "cancelled"):
                self.world.resume(job)
        self.world.kernel.after(S, self._watch)


def weather(seed: int, trace: Path | None = None, chosen: dict[str, float] | None = None) -> Seed:
    """Run one seed to its end and judge it. `chosen` replaces the faults that the seed would draw."""
    book, watchers = everything()
    world = World(draw_setup(seed), seed=seed, trace=trace, watchers=watchers)
    invariant = sentence = ""
    try:
        _live(world, book, chosen)
    except Violation as broken:
        invariant, sentence = broken.invariant, broken.sentence
    except AssertionError as error:
        invariant, sentence = _blame(error), _where(error)
    except Exception as error:
        invariant, sentence = "R1", _where(error)
    digest = world.digest()
    world.trace.close()
    met: dict[str, int] = {}
    for (chance, operation), times in sorted(world.struck.items()):
        fault = BY_CHANCE[chance][0] if chance in BY_CHANCE else chance
        met[f"{fault}/{operation}"] = met.get(f"{fault}/{operation}", 0) + times
    return Seed(seed, digest, world.kernel.now / S, world.trace.events, met, invariant, sentence)


def _live(world: World, book: Book, chosen: dict[str, float] | None) -> None:
    jobs = len(world.setup.arrivals)
    world.start()
    Storm(world, chosen)

    def done() -> bool:
        return world.over >= jobs and all(state == "done" for state in world.states.values())

    if not world.run(DEADLINE_NS, done):
        raise Violation("J5", f"not done after {world.kernel.now / S:.0f} s: {stuck(world)}")
    for account in book.jobs.values():
        finished(account)
    for watcher in world.watchers:
        watcher.started(world)


def stuck(world: World) -> str:
    """What a world that does not finish looks like."""
    if world.coordinator is None:
        return "there is no coordinator"
    found = [
        f"{job} is {run.state.state} ({run.state.reason}) at version {run.state.version} of generation "
        f"{run.state.generation}"
        for job, run in world.coordinator.runs.items()
        if run.state.state != "done"
    ]
    said = [f"{who}: {effect.text}" for who, effect in list(world.remarks)[-3:] if hasattr(effect, "text")]
    return "; ".join(found) + "; last said: " + " | ".join(said)


def _blame(error: AssertionError) -> str:
    """Engines say with an assertion what they cannot do; roles what must not be."""
    frames = traceback.extract_tb(error.__traceback__)
    return "R1" if any("/roles/" in f.filename.replace("\\", "/") for f in frames[-1:]) else "E1"


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    name = frame.filename.replace("\\", "/").rpartition("/medley/")[2]
    return f"{type(error).__name__} in {name}, {frame.name}: {error}"
