"""Packing keeps every window whole and loses none."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medley.data.pack import IGNORED, alone, arrays, length, pack
from medley.data.template import Window


def window(size: int, first: int = 1) -> Window:
    return Window(tuple(range(first, first + size)), min(2, size - 1))


@given(st.lists(st.integers(2, 64), min_size=1, max_size=60))
def test_every_window_is_in_exactly_one_row_that_has_room(sizes: list[int]) -> None:
    windows = [window(size, number * 100) for number, size in enumerate(sizes)]
    rows = pack(windows, 64)
    assert sorted(w.tokens for row in rows for w in row) == sorted(w.tokens for w in windows)
    assert all(length(row) <= 64 for row in rows)
    # Best fit leaves at most one row half empty.
    assert sum(length(row) <= 32 for row in rows) <= 1


def test_arrays_restart_positions_and_shift_labels_inside_each_window() -> None:
    made = arrays([(window(4, 10), window(3, 20)), (window(5, 30),)])
    assert made.tokens[0].tolist() == [10, 11, 12, 13, 20, 21, 22, 0]
    assert made.positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert made.segments[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 0]
    assert made.labels[0].tolist() == [IGNORED, 12, 13, IGNORED, IGNORED, 22, IGNORED, IGNORED]
    assert made.labels[1].tolist() == [IGNORED, 32, 33, 34, *[IGNORED] * 4]


def test_unpacked_rows_hold_one_window_each() -> None:
    rows = alone([window(4), window(9)])
    assert [len(row) for row in rows] == [1, 1]
    assert np.count_nonzero(arrays(rows).segments) == 13
