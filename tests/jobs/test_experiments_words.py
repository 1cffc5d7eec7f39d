"""What a study's sentences and tables make of runs that did not all get so far."""

from __future__ import annotations

from typing import Any

from medley.jobs.experiments import report, words
from medley.jobs.experiments.load import load_data
from medley.jobs.experiments.runs import Result, tasks_of
from medley.jobs.experiments.study import Study, study_of
from medley.jobs.experiments.tally import COLUMNS

DATA: dict[str, Any] = {"fleet": {"w": {}}, "jobs": {"a": {}}, "sweep": {"scheduler": ["fifo", "priority"]}}


def study(**completion_s: list[float | None]) -> Study:
    """One with these times to completion, by scheduler and repeat; None: not done."""
    repeats = max(map(len, completion_s.values()))
    loaded = load_data({**DATA, "repeats": repeats}, "x")
    results = []
    for task in tasks_of(loaded):
        took = completion_s[task.labels["scheduler"]][task.repeat]
        row = dict.fromkeys(COLUMNS) | {"completion_s": took, "state": "unfinished" if took is None else "done"}
        results.append(Result(task, row, {}))
    return study_of(loaded.experiment, {"scheduler": list(completion_s)}, results, len(results))


def test_who_got_there_once_and_soon_is_not_the_fastest() -> None:
    found = study(fifo=[10.0, None, None], priority=[20.0, 21.0, 22.0])
    (contest,) = words.contests(found, found.main())
    assert [label for label, _ in contest.ranked] == ["priority"] and contest.partly == {"fifo": "1 of 3 runs"}
    told = " ".join(words.summary(found))
    assert "shortest first: priority" in told and "fifo has a time to completion in 1 of 3 runs only" in told
    table = report.contest_table(found)
    assert table is not None and [cell.text for cell in table.rows[0]] == ["10 s (1 of 3 runs)", "21 ± 2.5 s"]
    assert words.comparison(found, found.main()) == "priority: 21 ± 2.5 s; not all runs of fifo have one."


def test_a_series_that_never_got_there_is_not_the_same_as_the_others() -> None:
    told = " ".join(words.summary(study(fifo=[10.0, 10.0], priority=[None, None])))
    assert "is the same with all of" not in told
    assert "priority has no time to completion: it did not get that far." in told


def test_overlapping_intervals_decide_nothing() -> None:
    told = " ".join(words.summary(study(fifo=[10.0, 14.0], priority=[12.0, 16.0])))
    assert "Here the 95 % intervals of the first and the second overlap, so nothing is decided." in told
