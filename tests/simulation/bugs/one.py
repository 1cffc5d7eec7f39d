"""A process with one bug in it: `python -m tests.simulation.bugs.one NAME FIRST COUNT`.

Runs seeds until an invariant breaks, and says one line of JSON: the seed, the invariant and what was seen, or null.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation.bugs.catalogue import BUGS
from tests.simulation.bugs.planting import plant

if TYPE_CHECKING:
    from medley.runtimes.simulated.seeds import Seed


def main() -> None:
    name, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    plant(BUGS[name])
    weather = _weather(BUGS[name].serving)
    for seed in range(first, first + count):
        found = weather(seed)
        if found.invariant:
            print(json.dumps({"seed": seed, "invariant": found.invariant, "sentence": found.sentence[:300]}))
            return
    print("null")


def _weather(serving: bool) -> Callable[[int], Seed]:
    """Imported with the bug in it."""
    if serving:
        from medley.runtimes.simulated.serving import storm

        return storm.weather
    from medley.runtimes.simulated.faults.storm import weather

    return weather


if __name__ == "__main__":
    main()
