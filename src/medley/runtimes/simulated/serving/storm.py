"""One seed of a serving: faults for half a minute, then calm, in which every request must end and leave nothing behind.

As in the storms of training, a seed switches about half of the faults off and draws how often the others strike; a
strike waits for a phase that was picked, since the brief ones would hardly ever be met by chance.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

from medley.runtimes.simulated.checkers.violation import Violation
from medley.runtimes.simulated.kernel import MS, S
from medley.runtimes.simulated.seeds import Seed
from medley.runtimes.simulated.serving.checkers import everything, finished
from medley.runtimes.simulated.serving.drawing import draw_serving
from medley.runtimes.simulated.serving.faults import FAULTS, Fault
from medley.runtimes.simulated.serving.phases import PHASES
from medley.runtimes.simulated.serving.world import ServingWorld

STORM_NS = 30 * S
DEADLINE_NS = 2000 * S
SETTLE_NS = 8 * S  # after the last answer, until nothing may be held any more
ON = 0.5
GOLDEN = 0.6180339887498949  # its multiples leave the most even gaps: neighbouring seeds share the pairs evenly
MOVES = ("copying", "switching")
RARE = 4  # times as likely to be picked as others are
AIM_NS, AIMS = 10 * MS, 200
STORM_LOOKS = STORM_NS // AIM_NS


class ServingStorm:
    """The faults of one world, until the calm. `chosen`: rates by name, instead of what the seed would draw."""

    def __init__(self, world: ServingWorld, chosen: dict[str, float] | None = None, lasts_ns: int = STORM_NS) -> None:
        self.world = world
        self.calm = False
        self.rates = self._draw() if chosen is None else chosen
        self._sure: tuple[str, str] = ("", "")
        if chosen is None:
            self._pick()
        for name, rate in self.rates.items():
            if FAULTS[name].strike is not None:
                self._often(FAULTS[name], rate)
        world.strike = self._struck
        world.kernel.after(lasts_ns, self.end)

    def _draw(self) -> dict[str, float]:
        random = self.world.kernel.random("swarm")
        drawn = {}
        for fault in FAULTS.values():
            on, where = random.random() < ON, random.random()
            if on:
                low, high = fault.rates
                drawn[fault.name] = low * (high / low) ** where
        return drawn

    def _pick(self) -> None:
        """One pair of fault and phase, or fault and word, that this seed is to meet for sure."""
        every = [(fault, meets) for fault in FAULTS.values() for meets in fault.meets]
        pairs = [pair for pair in every for _ in range(RARE if pair[1] in MOVES else 1)]
        fault, meets = pairs[int(self.world.kernel.seed * GOLDEN % 1.0 * len(pairs))]
        if fault.strike is None:
            self._sure = fault.name, meets
            return
        if meets in MOVES:
            self._await("decode", STORM_LOOKS, lambda: self._hit(FAULTS["machine drains"]))
        self._await(meets, STORM_LOOKS, lambda: self._hit(fault))

    # -- what faults use ----------------------------------------------------------------------------------------------

    def some_machine(self, random: Random) -> str:
        """One of those at work, mostly."""
        names = sorted(self.world.machines)
        hops = [hop.node for pipeline in self.world.front.role.pipelines for hop in pipeline.hops]
        return random.choice(hops if hops and random.random() < 0.7 else names)

    def cut(self, source: str, target: str, for_ns: int) -> None:
        self.world.cut(source, target)
        self.later(for_ns, lambda: self.world.mend(source, target))

    def later(self, delay_ns: int, call: Callable[[], None]) -> None:
        """Do this then, if the storm still lasts; the calm undoes everything by itself."""
        self.world.kernel.after(delay_ns, lambda: None if self.calm else call())

    # -- chance -------------------------------------------------------------------------------------------------------

    def _struck(self, fault: str, operation: str) -> bool:
        if (fault, operation) == self._sure:
            self._sure = "", ""
            return True
        rate = self.rates.get(fault, 0.0)
        return rate > 0 and self.world.kernel.random(f"fault {fault}").random() < rate

    def _often(self, fault: Fault, per_minute: float) -> None:
        random, mean_ns = self.world.kernel.random(f"fault {fault.name}"), 60 * S / per_minute

        def again() -> None:
            self._await(random.choice(("", *PHASES)), AIMS, hit)

        def hit() -> None:
            self._hit(fault)
            self.world.kernel.after(int(random.expovariate(1 / mean_ns)), again)

        self.world.kernel.after(int(random.expovariate(1 / mean_ns)), again)

    def _hit(self, fault: Fault) -> None:
        for phase in self.world.phases():
            self.world.met(fault.name, phase)
        assert fault.strike is not None
        fault.strike(self, self.world.kernel.random(f"fault {fault.name}"))

    def _await(self, phase: str, looks: int, then: Callable[[], None]) -> None:
        if self.calm:
            return
        if phase and looks and phase not in self.world.phases():
            self.world.kernel.after(AIM_NS, self._await, phase, looks - 1, then)
        else:
            then()

    # -- calm ---------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Everything is mended that a person would mend, and stays so."""
        world = self.world
        if self.calm:
            return
        self.calm, world.strike = True, None
        world.note("storm", "calm", "nothing fails any more")
        for source, target in sorted(world.network.blocked):
            world.mend(source, target)
        for name in world.machines:
            world.slow(name, 1.0)
            world.join(name)
            world.resume(name)


def weather(seed: int, trace: Path | None = None, chosen: dict[str, float] | None = None) -> Seed:
    """Run one seed to its end and judge it. `chosen` replaces the faults that the seed would draw."""
    setup = draw_serving(seed)
    world = ServingWorld(setup, seed=seed, trace=trace, watchers=everything(setup.shape.layers))
    invariant = sentence = ""
    try:
        _live(world, chosen)
    except Violation as broken:
        invariant, sentence = broken.invariant, broken.sentence
    except Exception as error:
        invariant, sentence = "R1", _where(error)
    digest = world.trace.digest()
    world.trace.close()
    met = {f"serving {fault}/{phase}": times for (fault, phase), times in sorted(world.struck.items())}
    return Seed(seed, digest, world.kernel.now / S, world.trace.events, met, invariant, sentence, True)


def _live(world: ServingWorld, chosen: dict[str, float] | None) -> None:
    world.start()
    storm = ServingStorm(world, chosen)
    if not world.run(DEADLINE_NS, world.answered):
        raise Violation("I5", f"not answered after {world.kernel.now / S:.0f} s: {stuck(world)}")
    storm.end()
    world.run(world.kernel.now + SETTLE_NS)
    finished(world)


def stuck(world: ServingWorld) -> str:
    """What a serving that does not go on looks like."""
    waiting = [request for request, answer in world.front.answers.items() if not answer.ended]
    states = [f"{p.name} is {p.state} with {p.load} requests" for p in world.front.role.pipelines]
    said = [f"{who}: {text}" for who, text in list(world.remarks)[-3:]]
    return f"{waiting} wait; {', '.join(states)}; last said: " + " | ".join(said)


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    name = frame.filename.replace("\\", "/").rpartition("/medley/")[2]
    return f"{type(error).__name__} in {name}, {frame.name}: {error}"
