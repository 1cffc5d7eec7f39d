"""Results as tables: Parquet for programs, CSV for everybody, the same rows in both (lanes in Parquet only).

runs       one row a run: its place in the sweep, then every column of `tally.COLUMNS`
commits    the curve of commits (thinned), held: of held-out evaluations
jobs       one row a job
lanes      each machine's time in bins: fraction computing, fraction moving tensors
staleness  how many members of commits had which staleness
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from medley.jobs.experiments.runs import Result
from medley.jobs.experiments.tally import COLUMNS

PARQUET_ONLY = ("lanes",)  # as text it would be a hundred times the rest
_PLACE = ("run", "point", "repeat")
_TEXT = {"state", "reason", "digest", "job", "node", "device", "run"}
_WHOLE = {
    *("point", "repeat", "jobs", "jobs_done", "missed_deadlines", "bytes", "bytes_tensors", "bytes_control"),
    *("commits", "samples", "tokens", "bytes_to_target", "refused", "nodes_lost", "faults_struck", "events"),
    *("version", "nbytes", "members", "commits_behind"),
}


def row_of(result: Result, axes: Sequence[str]) -> dict[str, Any]:
    """One line of the runs table."""
    task = result.task
    place = {"run": task.key, "point": task.point, "repeat": task.repeat}
    labels = {_column(axis): task.labels[axis] for axis in axes}
    return place | labels | {key: result.row.get(key) for key in COLUMNS}


def _column(axis: str) -> str:
    """Of an axis of the sweep, whose name may be that of something else."""
    return f"sweep.{axis}" if axis in COLUMNS or axis in _PLACE else axis


def write(folder: Path, results: Sequence[Result], axes: Sequence[str]) -> list[Path]:
    """Every table in both formats, in `folder`."""
    names = [_column(axis) for axis in axes]
    tables = {"runs": [row_of(result, axes) for result in results]}
    for name, rows in (("commits", _commits), ("held", _held), ("jobs", _jobs), ("lanes", _lanes)):
        tables[name] = [row for result in results for row in rows(result)]
    tables["staleness"] = [row for result in results for row in _staleness(result)]
    return [path for name, rows in tables.items() if rows for path in _write(folder / name, rows, names)]


def _write(stem: Path, rows: list[dict[str, Any]], axes: Sequence[str]) -> list[Path]:
    columns = {key: pa.array([row[key] for row in rows], _kind(key, axes)) for key in rows[0]}
    table = pa.table(columns)
    parquet, csv = stem.with_suffix(".parquet"), stem.with_suffix(".csv")
    pyarrow.parquet.write_table(table, parquet)
    if stem.name in PARQUET_ONLY:
        return [parquet]
    pyarrow.csv.write_csv(table, csv)
    return [parquet, csv]


def _kind(column: str, axes: Sequence[str]) -> pa.DataType:
    if column in _TEXT or column in axes:
        return pa.string()
    return pa.int64() if column in _WHOLE else pa.float64()


def _commits(result: Result) -> Iterator[dict[str, Any]]:
    for one in result.curves["commits"]:
        yield {"run": result.task.key} | one


def _held(result: Result) -> Iterator[dict[str, Any]]:
    for one in result.curves["held"]:
        yield {"run": result.task.key} | one


def _jobs(result: Result) -> Iterator[dict[str, Any]]:
    for one in result.curves["jobs"]:
        yield {"run": result.task.key} | one


def _lanes(result: Result) -> Iterator[dict[str, Any]]:
    for lane in result.curves["lanes"]:
        for number, (compute, transfer) in enumerate(zip(lane["compute"], lane["transfer"], strict=True)):
            if compute or transfer:
                start = number * lane["width_s"]
                yield {
                    "run": result.task.key,
                    "node": lane["node"],
                    "device": lane["device"],
                    "start_s": start,
                    "width_s": lane["width_s"],
                    "compute": compute,
                    "transfer": transfer,
                }


def _staleness(result: Result) -> Iterator[dict[str, Any]]:
    for age, many in result.curves["staleness"].items():
        yield {"run": result.task.key, "commits_behind": int(age), "members": many}
