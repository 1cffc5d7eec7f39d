"""Tokens that may follow in one request, to be checked in one row: from its own text, else from a draft model's guess.

A guess is asked for once at a position, by a request that is about to draw; it is not sent until the answer is there or
has lapsed. While an answer is owed, no other one is asked for: a draft model that is slow (it may have a long prompt to
read) costs one wait. What is drawn depends on none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from medley.policies.pipeline.drafting import Drafter
from medley.policies.pipeline.guessing import Guessing

Source = Literal["text", "model"]
LAPSE = 2  # traversals that a guess may take; it is asked for as many tokens as it should have in one


class Drafts:
    """`extend` with every token that is known, the prompt's too. Positions are how many of them there are."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._text = Drafter(tokens)
        self._model = Guessing()
        self._asked = 0  # position
        self._until_ns = 0
        self._owed = False  # an answer, in time or not
        self._guess: tuple[int, ...] = ()  # for position `_asked`

    def extend(self, token: int) -> None:
        self._text.extend(token)
        self._model.extend()

    def propose(self, position: int, most: int) -> tuple[tuple[int, ...], Source]:
        """At most so many tokens, and whose they are."""
        found = self._text.propose(most)
        if found or self._asked != position:
            return found, "text"
        return self._guess[: max(0, most)], "model"

    def judged(self, source: Source, proposed: int, accepted: int) -> None:
        (self._text if source == "text" else self._model).judged(proposed, accepted)

    # -- the draft model ----------------------------------------------------------------------------------------------

    def wanted(self, position: int, most: int, token_ns: float, traversal_ns: float) -> int:
        """Tokens that are worth a guess here; 0 where none is, one was asked for, or the text itself says more."""
        if self._owed or self._asked == position or self._text.propose(most):
            return 0
        return self._model.length(token_ns, traversal_ns, most)

    def ask(self, position: int, traversal_ns: float, now_ns: int) -> None:
        self._asked, self._guess, self._owed = position, (), True
        self._until_ns = now_ns + int(LAPSE * traversal_ns)

    def answered(self, position: int, tokens: tuple[int, ...]) -> None:
        """One for another position than the last that was asked for is dropped."""
        self._owed = False
        if position == self._asked:
            self._guess = tokens

    def awaits(self, position: int, now_ns: int) -> bool:
        """Whether a row should wait for a guess."""
        return self._owed and self._asked == position and now_ns < self._until_ns
