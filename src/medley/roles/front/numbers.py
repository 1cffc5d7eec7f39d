"""Numbers that are never used twice: generations, batches, questions."""

from __future__ import annotations


class Numbers:
    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        self._last += 1
        return self._last
