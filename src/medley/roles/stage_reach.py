"""How far it is from one stage to another: a few empty posts and a large one, each answered at once.

Pure; its host feeds it where posts arrive, not where passes are computed, or it would time those. One question at a
time: a newer one replaces it. An answer that is lost ends it in silence, and the front goes on without.
"""

from __future__ import annotations

from dataclasses import dataclass

from medley.protocol.ids import NS_PER_S
from medley.protocol.stages.events import Post, Said
from medley.protocol.stages.words import Echo, Knock, Reach, Reached

EMPTY = 4  # posts; the first one opens the connection, so it is not counted
LEAST_S = 1e-6


@dataclass(slots=True)
class Reaching:
    """`heard` takes what the front asks and what comes back; `echoed` is all that the other end does."""

    _asked: Reach | None = None
    _turn: int = 0
    _sent_ns: int = 0
    _rtt_ns: int = 0

    def heard(self, word: Reach | Knock | Echo, now_ns: int) -> Post | Said | None:
        match word:
            case Reach():
                self._asked, self._turn, self._rtt_ns = word, 0, 0
                return self._knock(word, now_ns)
            case Knock(number, turn, back):
                return Post(back, Echo(number, turn))
            case Echo():
                return self._back(word, now_ns)

    def _knock(self, asked: Reach, now_ns: int) -> Post:
        self._sent_ns = now_ns
        nbytes = asked.nbytes if self._turn == EMPTY else 0
        return Post(asked.to, Knock(asked.number, self._turn, asked.back, nbytes))

    def _back(self, word: Echo, now_ns: int) -> Post | Said | None:
        asked = self._asked
        if asked is None or (word.number, word.turn) != (asked.number, self._turn):
            return None
        took_ns = now_ns - self._sent_ns
        if self._turn == EMPTY:
            self._asked = None
            seconds = max(LEAST_S, (took_ns - self._rtt_ns) / NS_PER_S)
            return Said(Reached(asked.number, self._rtt_ns / NS_PER_S, asked.nbytes / seconds))
        if self._turn:
            self._rtt_ns = min(self._rtt_ns or took_ns, took_ns)
        self._turn += 1
        return self._knock(asked, now_ns)
