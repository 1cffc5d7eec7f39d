"""Speculation without a second model: what followed these words the last time they stood in this text.

Prompt look-up (Saxena, "Prompt Lookup Decoding", 2023): the longest of the last three or two tokens that occurred
before is found in an index that grows with the text; what followed there is the draft. Its length follows what was
accepted: twice as long after a draft that held, half as long after one that did not, a pause when drafts keep failing.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 3, 2  # tokens that must have occurred before
FIRST, MOST = 4, 16  # tokens of a draft
PAUSE = 16  # tokens without a draft after `FAILURES` in a row that were of no use
FAILURES = 3


class Drafter:
    """Of one request. `extend` with every token that is known, the prompt's too."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._length = FIRST
        self._failures = 0
        self._quiet = 0
        for token in tokens:
            self.extend(token)

    def extend(self, token: int) -> None:
        place = len(self._tokens)
        for n in range(SHORTEST, min(LONGEST, place) + 1):
            self._after[tuple(self._tokens[place - n :])] = place
        self._tokens.append(token)
        self._quiet = max(0, self._quiet - 1)

    def propose(self, most: int) -> tuple[int, ...]:
        """At most so many tokens; none where nothing was found, or drafts have failed lately."""
        wanted = min(most, self._length)
        if wanted < 1 or self._quiet:
            return ()
        for n in range(LONGEST, SHORTEST - 1, -1):
            place = self._after.get(tuple(self._tokens[-n:]))
            if place is not None:
                # Where the continuation runs into the end, the text repeats itself: so does the draft.
                period = len(self._tokens) - place
                return tuple(self._tokens[place + i % period] for i in range(wanted))
        return ()

    def judged(self, proposed: int, accepted: int) -> None:
        """Of a draft of `proposed` tokens so many were right."""
        if accepted == proposed:
            self._length, self._failures = min(MOST, 2 * self._length), 0
            return
        self._length = max(1, self._length // 2, accepted)
        self._failures = self._failures + 1 if accepted == 0 else 0
        if self._failures >= FAILURES:
            self._quiet, self._failures, self._length = PAUSE, 0, FIRST
