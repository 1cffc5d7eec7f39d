"""How close an answer is to its reference, and how sure a mean is: pure functions over strings and arrays.

ROUGE-L (Lin, "ROUGE", 2004) as an F1 over words, token F1 as in SQuAD (Rajpurkar et al., 2016), and
percentile bootstrap intervals (Efron, 1979) that resample examples, so that all figures of one draw come
from the same examples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"[^\W_]+")
ARTICLES = frozenset({"a", "an", "the"})
CONFIDENCE = 0.95

Statistic = Callable[[NDArray[np.intp]], float]  # of the examples with these numbers


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits, in any script."""
    return WORD.findall(text.lower())


def rouge_l(reference: str, candidate: str) -> float:
    """F1 of the longest common subsequence of words, in [0, 1]; no stemming."""
    expected, given = words(reference), words(candidate)
    return _f1(_common_subsequence(expected, given), len(expected), len(given))


def token_f1(reference: str, candidate: str) -> float:
    """F1 of the bag of words without articles, in [0, 1]; two empty texts agree."""
    expected = [w for w in words(reference) if w not in ARTICLES]
    given = [w for w in words(candidate) if w not in ARTICLES]
    if not expected or not given:
        return float(expected == given)
    return _f1((Counter(expected) & Counter(given)).total(), len(expected), len(given))


def intervals(statistics: Mapping[str, Statistic], examples: int, draws: int, seed: int) -> dict[str, Interval]:
    """Each statistic of all examples with its 95 % percentile interval; without draws the interval is the
    value.
    """
    everything = np.arange(examples)
    rng = np.random.default_rng(seed)
    samples: dict[str, list[float]] = {name: [] for name in statistics}
    for _ in range(draws):
        drawn = rng.integers(0, examples, examples)
        for name, statistic in statistics.items():
            samples[name].append(statistic(drawn))
    return {name: _interval(statistic(everything), samples[name]) for name, statistic in statistics.items()}


def _interval(value: float, samples: list[float]) -> Interval:
    if not samples:
        return Interval(value, value, value)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _f1(common: int, expected: int, given: int) -> float:
    return 2 * common / (expected + given) if common else 0.0


def _common_subsequence(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence; O(len(left) x len(right)) time, one row of memory."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for j, other in enumerate(right, start=1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]
