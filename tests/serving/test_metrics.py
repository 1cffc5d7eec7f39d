"""The figures against a second implementation and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from medley.serving.metrics import intervals, rouge_l, token_f1

SCORER = RougeScorer(["rougeL"])
TEXT = st.lists(
    st.sampled_from(["the", "fever", "a", "of", "is,", "38.5", "Drink", "rest_well", "cold's", "-"]), max_size=14
).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(TEXT, TEXT)
def test_rouge_l_agrees_with_rouge_score(reference: str, candidate: str) -> None:
    expected = SCORER.score(reference, candidate)["rougeL"].fmeasure
    assert rouge_l(reference, candidate) == pytest.approx(expected, abs=1e-12)


def test_rouge_l_by_hand() -> None:
    assert rouge_l("a b c d", "a x c d y z") == pytest.approx(2 * 3 / (4 + 6))
    assert rouge_l("Drink water.", "drink WATER") == 1
    assert rouge_l("", "x") == rouge_l("x", "") == rouge_l("", "") == 0
    assert rouge_l("вода помогает", "вода") == pytest.approx(2 / 3)


def test_token_f1_by_hand() -> None:
    assert token_f1("the fever is high", "a high fever") == pytest.approx(2 * 2 / (3 + 2))
    assert token_f1("The end.", "end") == 1
    assert token_f1("", "the") == 1 and token_f1("x", "") == 0
    assert token_f1("x x y", "x y y") == pytest.approx(2 / 3)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        sample = rng.normal(3.0, 1.0, 60)
        found = intervals({"mean": lambda n, s=sample: float(s[n].mean())}, 60, 200, trial)["mean"]
        covered += found.low <= 3.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_intervals_are_paired_and_repeat() -> None:
    values = np.arange(50.0)
    statistics = {"one": lambda n: float(values[n].mean()), "double": lambda n: float(2 * values[n].mean())}
    first, again = (intervals(statistics, 50, 100, seed=7) for _ in range(2))
    assert first == again
    assert first["double"].low == pytest.approx(2 * first["one"].low)
    assert intervals(statistics, 50, 0, seed=7)["one"].low == values.mean()
