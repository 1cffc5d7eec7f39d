"""Jobs that need the whole pool take turns, and each turn is long enough for something to come of it."""

from __future__ import annotations

import pytest

from medley.jobs.experiments.load import load_data
from medley.jobs.experiments.world import simulate
from medley.policies.scheduling.names import NAMES

# One machine that takes almost five minutes for a lease, while a job that waits rises by one priority a minute.
JOB = {"model": {"samples": 48, "parameters": 25_000_000}, "train": {"batch_samples": 16}}
DATA = {
    "until_s": 7200,
    "fleet": {"w": {"device": "phone-snapdragon-8-gen-3", "slowness": 9}},
    "jobs": {"a": JOB, "b": JOB},
}


@pytest.mark.parametrize("name", NAMES)
def test_two_jobs_whose_leases_outlast_a_turn_both_end(name: str) -> None:
    (point,) = load_data(DATA | {"scheduler": name}, "the point").points
    row, _ = simulate(point.experiment, 0, lambda at_s: None)
    assert (row["state"], row["jobs_done"]) == ("done", 2), row["reason"]
