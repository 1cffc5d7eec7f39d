"""A language model of integers: each token follows from every token before it, by way of every layer's KV cache.

A layer's entry for a position is a hash of what comes in there; what goes out is a hash of that and of the sum of all
entries so far. One entry that is wrong, stale or missing changes all that is drawn after it, its log-probability at
once. Most tokens follow the one before them in a circle, so that drafts often hold, and sometimes do not.
"""

from __future__ import annotations

from collections.abc import Sequence

from medley.protocol.stages.events import Asked
from medley.protocol.stages.words import Draw, Opening

END = 0
CIRCLE = 7  # tokens 1 to 7 follow each other, mostly
POISON = 666  # the seed of a request whose numbers are never finite
_MASK = (1 << 61) - 1

Hidden = tuple[int, int]  # a token, and what the layers so far have made of it
Entry = int


def mixed(a: int, b: int, c: int) -> int:
    x = (a ^ (b * 0x9E3779B97F4A7C15) ^ (c * 0xC2B2AE3D27D4EB4F)) & _MASK
    x = ((x ^ (x >> 31)) * 0xD6E8FEB86659FD93) & _MASK
    return x ^ (x >> 29)


def embedded(token: int, position: int) -> Hidden:
    return token, mixed(token, position, 1)


def through(layer: int, entries: list[Entry], hidden: Sequence[Hidden]) -> list[Hidden]:
    """One layer, over tokens that follow `entries`, which grow by them."""
    total, out = sum(entries), []
    for token, state in hidden:
        entry = mixed(state, layer, len(entries) + 1)
        entries.append(entry)
        total += entry
        out.append((token, mixed(state, total & _MASK, layer)))
    return out


def drawn(opening: Opening, position: int, hidden: Hidden) -> Draw:
    """The token for this absolute position, from the last layer; by (seed, choice, position) where it is warm."""
    token, state = hidden
    choice = mixed(state, 2, 0)
    if opening.temperature > 0:
        choice = mixed(choice, opening.seed * 64 + opening.choice, position)
    logprob = -(choice >> 20 & 0xFFFFF) / 0x100000
    return Draw(opening.request, position, _next(token, choice), logprob, ())


def _next(token: int, choice: int) -> int:
    kind = choice % 16
    if kind == 0:
        return END
    return 1 + (choice >> 8) % CIRCLE if kind < 4 else token % CIRCLE + 1


class Reference:
    """What nobody who disturbs the run would change: one machine, one token at a time. `entries`: of each layer."""

    def __init__(self, asked: Asked, layers: int) -> None:
        self.asked = asked
        self.entries: list[list[Entry]] = [[] for _ in range(layers)]
        self.draws: list[Draw] = []
        opening = Opening(
            asked.request, asked.temperature, asked.top_p, asked.top_k, asked.seed, asked.choice, -1, 0, 0
        )
        feed = asked.prompt
        while len(self.draws) < asked.limit and not (self.draws and self.draws[-1].token in asked.ends):
            hidden = self._through(feed)
            self.draws.append(drawn(opening, len(self.entries[0]), hidden))
            feed = (self.draws[-1].token,)

    def _through(self, tokens: Sequence[int]) -> Hidden:
        start = len(self.entries[0])
        hidden = [embedded(token, start + i) for i, token in enumerate(tokens)]
        for layer, entries in enumerate(self.entries):
            hidden = through(layer, entries, hidden)
        return hidden[-1]


def reference(asked: Asked, layers: int) -> list[Draw]:
    return Reference(asked, layers).draws
