"""Many windows in one sequence: best fit, longest first, with attention kept inside each window by segment
numbers.

A batch is four arrays [rows, length]:
    tokens      token ids, 0 where padded
    positions   restart at 0 in each window
    segments    1, 2, ... by window within the row; 0 where padded
    labels      the token to predict *from* this position (already shifted), -100 where nothing is learned
Promises: every window lies whole in one row; the result depends on the windows and their order alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medley.data.template import Window

IGNORED = -100
# Rows are padded to a multiple of this, so that matrix kernels see few odd shapes.
MULTIPLE = 8

Row = tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class Arrays:
    """One batch, int64 [rows, length] each."""

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: NDArray[np.int64]
    labels: NDArray[np.int64]


def pack(windows: Sequence[Window], context_tokens: int) -> list[Row]:
    """Rows of at most `context_tokens`, fullest first come first; O(n log n)."""
    rows: list[list[Window]] = []
    # (free tokens, row), sorted, so that the tightest row that fits is found by bisection.
    room: list[tuple[int, int]] = []
    for window in sorted(windows, key=lambda w: -len(w.tokens)):
        need = len(window.tokens)
        at = bisect_left(room, (need, -1))
        free, row = room.pop(at) if at < len(room) else (context_tokens, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(window)
        insort(room, (free - need, row))
    return [tuple(row) for row in rows]


def alone(windows: Sequence[Window]) -> list[Row]:
    """One window a row, in order: what `packing: false` trains on."""
    return [(window,) for window in windows]


def length(row: Row) -> int:
    """Tokens of a row."""
    return sum(len(window.tokens) for window in row)


def lengths(rows: Sequence[Row]) -> tuple[int, ...]:
    """Tokens of every window and of every row's padding, row after row, as `arrays` lays them out."""
    width = padded(rows)
    return tuple(n for row in rows for n in (*(len(w.tokens) for w in row), width - length(row)) if n)


def padded(rows: Sequence[Row]) -> int:
    """The common length of a batch's rows: its longest, rounded up to `MULTIPLE`."""
    return -(-max(length(row) for row in rows) // MULTIPLE) * MULTIPLE


def arrays(rows: Sequence[Row]) -> Arrays:
    """The arrays of a batch, padded to its longest row (rounded up to `MULTIPLE`)."""
    shape = (len(rows), padded(rows))
    tokens, positions, segments = (np.zeros(shape, np.int64) for _ in range(3))
    batch = Arrays(tokens, positions, segments, np.full(shape, IGNORED, np.int64))
    for number, row in enumerate(rows):
        at = 0
        for segment, window in enumerate(row, 1):
            _place(batch, number, at, segment, window)
            at += len(window.tokens)
    return batch


def _place(batch: Arrays, row: int, at: int, segment: int, window: Window) -> None:
    stop = at + len(window.tokens)
    batch.tokens[row, at:stop] = window.tokens
    batch.positions[row, at:stop] = np.arange(stop - at)
    batch.segments[row, at:stop] = segment
    # A window's first token is predicted from nothing, so learning starts at one at the earliest.
    learned = max(1, window.learned)
    batch.labels[row, at + learned - 1 : stop - 1] = window.tokens[learned:]
