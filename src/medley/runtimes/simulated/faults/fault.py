"""What a fault is: a name, a sentence, how often it strikes, which operations it must meet, and how it is switched on.

Two kinds. Some strike now and then (`storm.often`) and say what was going on when they did; others are a chance at
every operation of a kind (`world.chance`, or a message on its way), which is counted where it happens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from medley.runtimes.simulated.faults.storm import Storm, Strike

Unit = Literal["strikes a minute", "of the operations", "of the messages", "once"]


@dataclass(frozen=True, slots=True)
class Fault:
    """`rates` is the range that a seed draws from, in `unit`. `chances` are the names under which the world asks for
    it; each gets the drawn rate times its factor. `meets` must all be met in a check of many seeds.
    """

    name: str
    what: str
    rates: tuple[float, float]
    unit: Unit
    meets: tuple[str, ...]
    arm: Callable[[Storm, float], None] | None = None
    chances: dict[str, float] = field(default_factory=dict)


def striking(name: str, what: str, rates: tuple[float, float], meets: tuple[str, ...], strike: Strike) -> Fault:
    """A fault of the first kind: at random moments, so often a minute as the seed drew."""

    def arm(storm: Storm, rate: float) -> None:
        storm.often(name, rate, strike)

    return Fault(name, what, rates, "strikes a minute", meets, arm)
