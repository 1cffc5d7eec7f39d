"""Experiments that run: the same world each time, results kept and resumed, tables and a report of one file."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from medley.jobs.experiments import figures, runner, runs, session
from medley.jobs.experiments.load import Loaded, load_data
from medley.jobs.experiments.runs import Result
from medley.jobs.experiments.tally import COLUMNS
from medley.jobs.experiments.world import simulate
from medley.protocol.errors import Damaged, UserError

DATA: dict[str, Any] = {
    "name": "tiny",
    "learn": "Whether anything <is> learnt.",
    "repeats": 2,
    "until_s": 3600,
    "heartbeat_ms": 5000,
    "fleet": {"w": {"count": 3, "device": "t4", "slowness": {"uniform": [1, 2]}}},
    "jobs": {"a": {"model": {"parameters": 1e5, "samples": 256}, "train": {"batch_samples": 32}}},
    "sweep": {"jobs.a.train.sync.mode": ["sync", "async"]},
    "success": ["state == done", "bytes <= 1.01 x baseline"],
    "baseline": {"jobs.a.train.sync.mode": "sync"},
}


def tiny(**changes: Any) -> Loaded:
    return load_data({**DATA, **changes}, "tiny.yaml")


def rows_of(outcome: session.Outcome) -> list[dict[str, Any]]:
    return [result.row for result in outcome.study.results]


def test_one_run_is_the_same_world_each_time_and_another_repeat_is_another() -> None:
    experiment = tiny().points[0].experiment
    first, curves = simulate(experiment, 0, lambda at_s: None)
    again, _ = simulate(experiment, 0, lambda at_s: None)
    other, _ = simulate(experiment, 1, lambda at_s: None)
    assert first["digest"] == again["digest"] != other["digest"]
    assert first.keys() == COLUMNS.keys()
    assert first["state"] == "done" and first["samples"] == 256 and first["bytes"] > 0
    assert first["final_loss"] is None, "a modelled run has no loss"
    assert 0 < first["utilisation"] <= 1 and first["completion_s"] > 0 and first["energy_wh"] > 0
    assert curves["commits"][-1]["samples"] == 256
    assert {lane["node"] for lane in curves["lanes"]} == {"w-0", "w-1", "w-2"}


def test_a_run_that_does_not_end_in_its_time_says_so() -> None:
    row, _ = simulate(tiny(until_s=1, sweep={}, success=[], baseline={}).points[0].experiment, 0, lambda at_s: None)
    assert row["state"] == "unfinished" and row["completion_s"] is None and "when the time was over" in row["reason"]


def test_a_deadline_that_is_still_to_come_is_not_missed_and_a_job_to_come_has_not_arrived() -> None:
    kind = {**DATA["jobs"]["a"], "deadline_s": 600}
    jobs = {"soon": {**kind, "deadline_s": 1e-3}, "late": {**kind, "at_s": 90}, "to-come": {**kind, "at_s": 500}}
    experiment = tiny(until_s=100, sweep={}, success=[], baseline={}, jobs=jobs).points[0].experiment
    row, curves = simulate(experiment, 0, lambda at_s: None)
    assert (row["jobs"], row["missed_deadlines"]) == (2, 1)
    assert curves["begun"] == len(curves["queue_s"]) <= 2


def test_jobs_that_never_began_count_among_all_jobs_of_the_queue() -> None:
    results = [Result(runs.tasks_of(tiny())[0], {"jobs": 8}, {"queue_s": [1.0, 3.0], "begun": 4})]
    assert figures._begun_after(results) == [(1.0, 0.25), (3.0, 0.5)]


def test_rented_machines_come_go_and_are_paid_for() -> None:
    loaded = tiny(
        sweep={},
        success=[],
        baseline={},
        fleet={"keeper": {"device": "cloud-2vcpu", "worker": False}},
        autoscaling={"max_nodes": 2, "drain_s": 60, "every_s": 5, "offers": {"card": {"device": "t4", "start_s": 20}}},
    )
    row, curves = simulate(loaded.points[0].experiment, 0, lambda at_s: None)
    assert row["state"] == "done" and row["cost_usd"] > 0
    assert ("card-1", "wanted") in {(node, state) for _, node, state in curves["wanted"]}
    assert any("autoscaling" in subject for _, subject, _ in curves["decisions"])


def test_a_round_that_must_not_be_whole_does_not_learn_to_wait_for_a_slow_machine() -> None:
    fleet = {"fast": {"count": 4, "device": "t4"}, "slow": {"count": 1, "device": "t4", "slowness": 20}}
    sync = {"whole": {"quorum": 1.0}, "backed": {"quorum": 1.0, "backups": 1}, "quorum": {"quorum": 0.75}}
    took = {}
    for name, options in sync.items():
        model = {"parameters": 2e6, "samples": 32768, "tokens_per_sample": 4096}
        jobs = {"a": {"model": model, "train": {"batch_samples": 128, "sync": options}}}
        loaded = tiny(sweep={}, success=[], baseline={}, heartbeat_ms=1000, fleet=fleet, jobs=jobs, until_s=30000)
        row, _ = simulate(loaded.points[0].experiment, 0, lambda at_s: None)
        assert row["state"] == "done"
        took[name] = row["completion_s"]
    assert took["quorum"] < 0.6 * took["whole"]
    assert took["backed"] < 0.6 * took["whole"]


def test_a_queue_has_no_more_machines_than_its_quota() -> None:
    job = {**DATA["jobs"]["a"], "schedule": {"queue": "research"}}
    alone = tiny(sweep={}, success=[], baseline={}, repeats=1, jobs={"a": job}, quotas={"research": 1})
    _, curves = simulate(alone.points[0].experiment, 0, lambda at_s: None)
    assert sum(max(lane["compute"]) > 0 for lane in curves["lanes"]) == 1


def test_a_machine_that_is_slowed_by_a_fault_is_slow_for_a_while() -> None:
    plain = tiny(sweep={}, success=[], baseline={}, repeats=1)
    slowed = tiny(sweep={}, success=[], baseline={}, repeats=1, faults={"straggler": 0.5})
    took = [simulate(one.points[0].experiment, 0, lambda at_s: None)[0]["completion_s"] for one in (plain, slowed)]
    assert took[0] <= took[1] < took[0] + 600


def test_faults_by_name_strike() -> None:
    loaded = tiny(sweep={}, success=[], baseline={}, faults={"machine dies": 30})
    row, _ = simulate(loaded.points[0].experiment, 0, lambda at_s: None)
    assert row["faults_struck"] > 0


def test_results_are_kept_and_only_what_is_missing_runs_again(tmp_path: Path) -> None:
    loaded = tiny()
    heard: list[runner.Event | None] = []
    outcome = session.perform(loaded, tmp_path, 2, heard.append)
    assert len([one for one in heard if isinstance(one, runner.Finished)]) == 4
    assert not outcome.missing and not outcome.died and len(outcome.study.results) == 4

    heard.clear()
    removed = runs.tasks_of(loaded)[2]
    runs.path_of(tmp_path, removed.key).unlink()
    again = session.perform(loaded, tmp_path, 2, heard.append)
    assert [one.task.key for one in heard if isinstance(one, runner.Finished)] == [removed.key]
    wall = {"wall_s": 0}
    assert [row | wall for row in rows_of(again)] == [row | wall for row in rows_of(outcome)]
    _check_files(tmp_path, again)


def _check_files(folder: Path, outcome: session.Outcome) -> None:
    table = pyarrow.parquet.read_table(folder / "runs.parquet").to_pylist()
    with (folder / "runs.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(table) == len(lines) == 4
    assert [row["jobs.a.train.sync.mode"] for row in table] == ["sync", "async", "sync", "async"]
    assert set(COLUMNS) <= table[0].keys() and float(lines[0]["completion_s"]) == table[0]["completion_s"]
    assert (folder / "commits.csv").is_file() and (folder / "lanes.parquet").is_file()
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "Whether anything &lt;is&gt; learnt." in report and "4 runs: 4 done." in report
    assert report.count("<svg") >= 4 and "prefers-color-scheme: dark" in report
    assert not re.search(r"(?:src|href)=|@import|url\(", report), "nothing comes from elsewhere"
    assert "succeeds" in report
    assert any((folder / "plots").glob("*.svg"))
    assert outcome.study.failures({"jobs.a.train.sync.mode": "sync"}) == []


def test_an_interruption_keeps_what_is_finished(tmp_path: Path) -> None:
    def tell(event: runner.Event | None) -> None:
        if isinstance(event, runner.Finished):
            raise KeyboardInterrupt

    outcome = session.perform(tiny(), tmp_path, 1, tell)
    assert outcome.interrupted and len(outcome.missing) >= 2 and len(outcome.study.results) >= 1
    assert (tmp_path / "report.html").is_file()


def test_plots_of_before_are_replaced_and_those_of_others_stay(tmp_path: Path) -> None:
    session.perform(tiny(repeats=1), tmp_path, 2, lambda event: None)
    ours, theirs = tmp_path / "plots" / "old.svg", tmp_path / "plots" / "theirs.svg"
    ours.write_bytes(next(tmp_path.glob("plots/*.svg")).read_bytes())
    theirs.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>', encoding="utf-8")
    session.perform(tiny(repeats=1), tmp_path, 2, lambda event: None)
    assert theirs.is_file() and not ours.exists()


def test_an_axis_that_is_called_like_a_column_has_one_of_its_own(tmp_path: Path) -> None:
    sweep = {"state": {"fast": {"heartbeat_ms": 5000}, "slow": {"heartbeat_ms": 6000}}, "jobs": [DATA["jobs"]]}
    session.perform(tiny(repeats=1, sweep=sweep, success=[], baseline={}), tmp_path, 2, lambda event: None)
    table = pyarrow.parquet.read_table(tmp_path / "runs.parquet").to_pylist()
    assert [(row["sweep.state"], row["state"], row["jobs"]) for row in table] == [
        ("fast", "done", 1),
        ("slow", "done", 1),
    ]


def test_results_that_cannot_be_written_are_one_sentence_and_the_runs_are_kept(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").mkdir()
    with pytest.raises(UserError, match="cannot be written to .* 2 runs are kept there"):
        session.perform(tiny(repeats=1), tmp_path, 2, lambda event: None)
    assert len(list(tmp_path.glob("runs/*.json"))) == 2 and not list(tmp_path.glob("runs/*.tmp"))


def test_a_run_that_dies_costs_itself_alone(tmp_path: Path) -> None:
    loaded = tiny(repeats=1)
    good, bad = runs.tasks_of(loaded)
    broken = runs.Task("0" * 20, 1, 0, bad.labels, {"fleet": "no fleet"})
    heard: list[runner.Event | None] = []
    runner.run_all(tmp_path, [broken, good], 1, heard.append)
    died = [one for one in heard if isinstance(one, runner.Died)]
    assert [one.task.key for one in died] == [broken.key] and "fleet is 'no fleet'" in died[0].said
    assert runs.load(tmp_path, good) is not None and runs.load(tmp_path, broken) is None


def test_a_result_that_somebody_changed_is_refused(tmp_path: Path) -> None:
    (task, *_) = runs.tasks_of(tiny())
    path = runs.path_of(tmp_path, task.key)
    path.parent.mkdir(parents=True)
    path.write_text('{"row": 1}', encoding="utf-8")
    with pytest.raises(Damaged, match="delete it"):
        runs.load(tmp_path, task)
    with pytest.raises(UserError, match="delete it"):
        session.perform(tiny(repeats=1), tmp_path, 1, lambda event: None)
