"""Means with their uncertainty: Student's 95 % confidence interval over the repeats of one point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

# Two-sided 95 % points of Student's t by degrees of freedom (Fisher and Yates, table III); beyond, the normal's.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL = 1.960


@dataclass(frozen=True, slots=True)
class Mean:
    """Of `count` values; `half` is half the width of the interval, 0 where there is one value or all are equal."""

    value: float
    half: float
    count: int

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half


def mean(values: Sequence[float]) -> Mean | None:
    """None of no values."""
    count = len(values)
    if not count:
        return None
    middle = sum(values) / count
    if count == 1:
        return Mean(middle, 0.0, 1)
    deviation = sqrt(sum((value - middle) ** 2 for value in values) / (count - 1))
    return Mean(middle, t_95(count - 1) * deviation / sqrt(count), count)


def t_95(freedom: int) -> float:
    return _T[freedom - 1] if freedom <= len(_T) else _NORMAL + 2.5 / freedom
