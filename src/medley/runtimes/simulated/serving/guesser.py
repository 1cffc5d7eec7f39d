"""A draft model of integers: goes on in the circle of `text`, one guess after the other; errs, is late, fails for good.

What it says must change no token. It always answers, as the host of a real one does, until it has failed.
"""

from __future__ import annotations

from collections.abc import Callable

from medley.protocol.stages.events import Guess, Guessed, GuessesEnd
from medley.runtimes.simulated.kernel import MS, Kernel, S
from medley.runtimes.simulated.serving.text import CIRCLE

WRONG = 0.1  # of the tokens
EMPTY, LATE = 0.05, 0.05  # of the answers
FAILS = 0.01
LATEST_NS = 5 * S


class Guesser:
    def __init__(self, kernel: Kernel, told: Callable[[Guessed | GuessesEnd], None]) -> None:
        self._kernel, self._told = kernel, told
        self._free_ns = 0
        self.failed = False

    def guess(self, effect: Guess) -> None:
        random = self._kernel.random("guesser")
        if self.failed:
            return
        if random.random() < FAILS:
            self.failed = True
            self._kernel.after(MS, self._told, GuessesEnd("it was meant to"))
            return
        tokens = _circle(effect.tokens[-1], effect.count) if random.random() >= EMPTY else ()
        said = tuple(token if random.random() >= WRONG else token % CIRCLE + 1 for token in tokens)
        spent_ns = int(effect.count * random.choice((MS // 2, 2 * MS, 8 * MS)) * random.random())
        late_ns = int(LATEST_NS * random.random()) if random.random() < LATE else 0
        self._free_ns = max(self._free_ns, self._kernel.now) + spent_ns + late_ns
        self._kernel.at(self._free_ns, self._say, Guessed(effect.opening.request, len(effect.tokens), said, spent_ns))

    def _say(self, answer: Guessed) -> None:
        if not self.failed:
            self._told(answer)


def _circle(token: int, count: int) -> tuple[int, ...]:
    return tuple((token + place) % CIRCLE + 1 for place in range(count))
