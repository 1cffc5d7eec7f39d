"""Speculation with a second, smaller model: how many tokens it is worth to ask it for.

A guess costs its own time before the row is sent, and saves traversals as far as it is right. The length is the one
with the most tokens a second (Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023):
of k guessed tokens, each right with chance a, come (1 - a^(k+1)) / (1 - a) tokens in one traversal and k guesses. It is
never longer than one traversal takes; where none pays, it is left alone for a while, and each time twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = 4  # tokens, while nobody knows what one takes
WEIGHT = 0.2  # of the newest guess
OUTLIER = 4.0  # one counts as at most so many usual ones
MEMORY = 0.8  # of what earlier guesses say, with each that was judged
RIGHT, WRONG = 1.5, 0.5  # tokens that are taken for known at first: a draft model that never agrees is soon left alone
PAUSE, PAUSE_MOST = 16, 256  # tokens without a guess


@dataclass(slots=True)
class GuessPace:
    """What one guessed token takes, on average; 0 until it is known."""

    token_ns: float = 0.0

    def saw(self, tokens: int, spent_ns: int) -> None:
        if tokens < 1 or spent_ns < 1:
            return
        new = spent_ns / tokens
        if not self.token_ns:
            self.token_ns = new
        self.token_ns += WEIGHT * (min(new, OUTLIER * self.token_ns) - self.token_ns)


class Guessing:
    """Of one request: how often guesses were right, and whether they pay. `extend` with every token that is known."""

    def __init__(self) -> None:
        self._right, self._wrong = RIGHT, WRONG
        self._quiet = 0
        self._pause = PAUSE
        self._trying = False  # the first one after a pause is one token, so that it is known whether more would pay

    def extend(self) -> None:
        self._quiet = max(0, self._quiet - 1)

    def length(self, token_ns: float, traversal_ns: float, most: int) -> int:
        """Tokens to ask for, at most so many; 0: go on without. A `traversal_ns` of 0 is not known yet."""
        if self._quiet or traversal_ns <= 0 or most < 1:
            return 0
        if self._trying:
            self._trying = False
            return 1
        found = best_length(self._right / (self._right + self._wrong), token_ns, traversal_ns, most)
        if not found:
            self._quiet, self._pause, self._trying = self._pause, min(PAUSE_MOST, 2 * self._pause), True
        return found

    def judged(self, proposed: int, accepted: int) -> None:
        """Of a guess of `proposed` tokens so many were right."""
        self._right = MEMORY * self._right + accepted
        self._wrong = MEMORY * self._wrong + (accepted < proposed)
        if accepted:
            self._pause = PAUSE


def best_length(agreement: float, token_ns: float, traversal_ns: float, most: int) -> int:
    """With the most tokens a second; 0 where the row alone has them. `token_ns` 0: not known."""
    affordable = min(most, int(traversal_ns / token_ns) if token_ns else UNKNOWN)
    best, best_rate = 0, 1 / traversal_ns
    chance = tokens = 1.0
    for length in range(1, affordable + 1):
        chance *= agreement
        tokens += chance
        rate = tokens / (traversal_ns + length * token_ns)
        if rate > best_rate:
            best, best_rate = length, rate
    return best
