"""Figures and estimates, from events alone."""

from __future__ import annotations

from typing import Any

import pytest

from medley.jobs.progress import Progress

JOB: dict[str, Any] = {
    "name": "x", "state": "running", "reason": "", "version": 0, "samples": 0, "total": 1000, "loss": None,
    "heldout_last": None, "accuracy": None, "elapsed_s": 0.0, "tokens_per_s": 0.0,
}  # fmt: skip


def commit(version: int, elapsed_s: float) -> dict[str, Any]:
    return {
        "kind": "commit",
        "version": version,
        "loss": 5.0 / version,
        "samples": 100,
        "tokens": 800,
        "elapsed_s": elapsed_s,
    }


def test_commits_add_up_and_give_rates() -> None:
    progress = Progress.of(JOB)
    assert (progress.fraction, progress.left_s) == (0.0, None)
    for version in (1, 2, 3):
        progress.note(commit(version, 2.0 * version))
    assert (progress.samples, progress.version, progress.fraction) == (300, 3, 0.3)
    assert (progress.tokens_per_s, progress.samples_per_s, progress.left_s) == (400.0, 50.0, 14.0)


def test_a_limit_of_time_ends_sooner_than_samples() -> None:
    progress = Progress.of(JOB, max_minutes=0.1)
    progress.note(commit(1, 1.5))
    progress.note(commit(2, 3.0))
    assert progress.fraction == pytest.approx(0.5)
    assert progress.left_s == pytest.approx(3.0)


def test_measurements_states_and_strangers() -> None:
    progress = Progress.of(JOB)
    progress.note({"kind": "heldout", "version": 1, "loss": 2.0, "accuracy": 0.5, "elapsed_s": 1.0})
    progress.note({"kind": "state", "state": "finishing", "reason": "all samples are in"})
    progress.note({"kind": "something new"})
    assert (progress.heldout_loss, progress.accuracy, progress.state) == (2.0, 0.5, "finishing")


def test_a_newer_answer_corrects_what_a_rollback_counted_twice() -> None:
    progress = Progress.of({**JOB, "total": 150})
    progress.note(commit(1, 1.0))
    progress.note(commit(2, 2.0))
    assert progress.samples == 150
    progress.refresh({**JOB, "samples": 100, "version": 1})
    assert progress.samples == 100
    progress.note(commit(1, 1.0))
    assert progress.samples == 100
