"""How many tokens a draft model is asked for: never more than pay, and none for a while where none do."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.policies.pipeline.guessing import PAUSE, PAUSE_MOST, UNKNOWN, Guessing, GuessPace, best_length

MS = 1e6


@given(
    st.floats(0, 1),
    st.floats(0.01, 50).map(lambda ms: ms * MS),
    st.floats(0.01, 500).map(lambda ms: ms * MS),
    st.integers(0, 16),
)
def test_a_guess_never_takes_longer_than_a_traversal_and_pays(
    agreement: float, token_ns: float, traversal_ns: float, most: int
) -> None:
    length = best_length(agreement, token_ns, traversal_ns, most)
    assert 0 <= length <= most
    assert length * token_ns <= traversal_ns

    def rate(k: int) -> float:
        return sum(agreement**i for i in range(k + 1)) / (traversal_ns + k * token_ns)

    assert all(rate(length) >= rate(k) * (1 - 1e-9) for k in range(min(most, int(traversal_ns / token_ns)) + 1))


@pytest.mark.parametrize(
    ("agreement", "token_ms", "traversal_ms", "length"),
    [
        (0.9, 1, 100, 16),
        (0.5, 1, 100, 5),
        (0.5, 60, 100, 0),
        (0.9, 60, 100, 1),
        (1.0, 101, 100, 0),
        (0.01, 1, 1000, 1),
        (0.0, 1, 1000, 0),
    ],
)
def test_lengths(agreement: float, token_ms: float, traversal_ms: float, length: int) -> None:
    assert best_length(agreement, token_ms * MS, traversal_ms * MS, 16) == length


def test_nothing_is_guessed_until_a_traversal_is_known_and_few_until_a_guess_is() -> None:
    guessing = Guessing()
    assert guessing.length(0.0, 0.0, 16) == 0
    assert guessing.length(0.0, 100 * MS, 16) == UNKNOWN
    assert guessing.length(0.0, 100 * MS, 2) == 2
    assert guessing.length(0.0, 100 * MS, 0) == 0


def test_guesses_that_are_always_wrong_stop_and_are_tried_ever_more_rarely() -> None:
    guessing, asked = Guessing(), []
    for position in range(2000):
        guessing.extend()
        length = guessing.length(10 * MS, 100 * MS, 16)
        if length:
            asked.append(position)
            guessing.judged(length, 0)
    assert len(asked) < 40
    gaps = [b - a for a, b in pairwise(asked)]
    assert max(gaps) >= PAUSE_MOST and min(gap for gap in gaps if gap > 1) >= PAUSE


@pytest.mark.parametrize("token_ms", [1, 5, 20, 60])
@pytest.mark.parametrize("right", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_nobody_waits_much_longer_with_a_draft_model_and_many_far_less(right: float, token_ms: float) -> None:
    random, guessing, spent_ms, tokens = Random(1), Guessing(), 0.0, 0
    while tokens < 96:
        length = guessing.length(token_ms * MS, 100 * MS, 16)
        accepted = next((n for n in range(length) if random.random() >= right), length)
        spent_ms += 100 + length * token_ms
        if length:
            guessing.judged(length, accepted)
        for _ in range(accepted + 1):
            guessing.extend()
        tokens += accepted + 1
    gain = tokens * 100 / spent_ms
    assert gain > 0.97
    if right >= 0.7 and token_ms <= 5:
        assert gain > 2


def test_guesses_that_hold_again_come_back() -> None:
    guessing = Guessing()
    for wrong in range(400):
        guessing.extend()
        if length := guessing.length(10 * MS, 100 * MS, 16):
            guessing.judged(length, 0 if wrong < 200 else length)
    assert guessing.length(10 * MS, 100 * MS, 16) > 4


def test_what_a_guess_takes_is_an_average_that_one_pause_does_not_move_far() -> None:
    pace = GuessPace()
    pace.saw(0, 5)
    pace.saw(4, 0)
    assert pace.token_ns == 0
    for _ in range(20):
        pace.saw(4, 8_000_000)
    assert pace.token_ns == pytest.approx(2e6)
    pace.saw(1, 10_000_000_000)
    assert pace.token_ns < 4e6
