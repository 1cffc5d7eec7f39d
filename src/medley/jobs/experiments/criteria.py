"""Success in numbers: `completion_s <= 3600`, `refused < 10`, `bytes <= 1.5 x baseline`, `state == done`.

A criterion names a column of the runs table. `baseline` is the mean of the same column over the runs of the baseline
point that agrees with this one in everything that `baseline` leaves open.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from medley.protocol.errors import UserError, did_you_mean

_FORM = re.compile(r"\s*(\w+)\s*(<=|>=|==|<|>)\s*(?:([-+]?[\d.]+(?:e[-+]?\d+)?)(\s*x\s*baseline)?|(\w+))\s*", re.I)
TEXT = ("state", "reason", "digest")  # columns of words; all others are numbers
STATES = ("done", "failed", "cancelled", "unfinished")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
}


@dataclass(frozen=True, slots=True)
class Criterion:
    text: str
    column: str
    compare: str
    number: float = math.nan
    word: str = ""
    relative: bool = False

    def met(self, row: Mapping[str, Any], baseline: Mapping[str, Any] | None = None) -> bool:
        """Whether a run meets it; a value that is missing never does."""
        value = row.get(self.column)
        if value is None:
            return False
        if self.word:
            return _COMPARE[self.compare](str(value), self.word)
        if not isinstance(value, int | float) or math.isnan(value):
            return False
        limit: float = self.number
        if self.relative:
            base = (baseline or {}).get(self.column)
            if base is None or math.isnan(base):
                return False
            limit *= base
        return _COMPARE[self.compare](value, limit)


def parse(text: str, columns: Mapping[str, str]) -> Criterion:
    """Raises UserError, one sentence, for what is no criterion over `columns`."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise UserError(f"'{text}' is no criterion; write one such as 'completion_s <= 3600' or 'state == done'")
    column, compare, number, relative, word = found.groups()
    if column not in columns:
        raise UserError(f"'{text}': the runs table has no column '{column}'; {did_you_mean(column, columns)}")
    if (column in TEXT) != bool(word):
        right = "a word, such as 'state == done'" if column in TEXT else "a number, such as 'completion_s <= 3600'"
        raise UserError(f"'{text}': {column} can only be compared with {right}")
    if column == "state" and word not in STATES:
        raise UserError(f"'{text}': a run is never '{word}'; {did_you_mean(word, STATES)}")
    if word and compare != "==":
        raise UserError(f"'{text}': a word can only be compared with '=='")
    try:
        return Criterion(text, column, compare, float(number) if number else math.nan, word or "", bool(relative))
    except ValueError:
        raise UserError(f"'{text}': {number} is no number") from None
