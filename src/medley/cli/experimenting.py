"""What a person sees of an experiment: progress while it runs, then what one learns, the tables, where files are."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medley.cli.shown import duration, table
from medley.cli.written import write_text

if TYPE_CHECKING:
    from medley.jobs.experiments.report import Table
    from medley.jobs.experiments.runner import Event
    from medley.jobs.experiments.session import Outcome
    from medley.jobs.experiments.study import Study
    from medley.runtimes.clock import Clock

DIED = 1
INTERRUPTED = 130
QUIET_S = 10.0  # between two lines of progress where there is no terminal
LISTED = 6  # missing runs that are named


def simulate(
    path: Path, out: Path | None, seed: int | None, sets: tuple[str, ...], jobs: int | None, json_path: str | None
) -> int:
    """The exit status: 0, 1 when a run died, 130 when interrupted. Raises UserError for a bad experiment."""
    from medley.jobs.experiments.load import load_experiment
    from medley.jobs.experiments.runner import missing
    from medley.jobs.experiments.runs import tasks_of
    from medley.jobs.experiments.session import perform

    loaded = load_experiment(path, (*sets, *([f"seed={seed}"] if seed is not None else [])))
    folder = out or Path("experiments") / loaded.experiment.name
    runs = len(loaded.points) * loaded.experiment.repeats
    told = Progress(len(missing(folder, tasks_of(loaded))), quiet=json_path == "-")
    outcome = perform(loaded, folder, min(jobs or os.cpu_count() or 1, runs), told.hear)
    told.end()
    if json_path != "-":
        for line in summary(outcome, folder):
            click.echo(line)
    _write_json(json_path, outcome, folder)
    if outcome.interrupted:
        click.echo(_interrupted(outcome, folder), err=True)
        return INTERRUPTED
    return DIED if outcome.died else 0


class Progress:
    """One line that moves where there is a terminal; else a line now and then."""

    def __init__(self, total: int, *, quiet: bool, clock: Clock | None = None) -> None:
        from medley.runtimes.clock import SystemClock

        self.quiet, self.live = quiet, not quiet and sys.stderr.isatty()
        self.clock = clock or SystemClock()
        self.total = total
        self.finished = 0
        self.reached: dict[str, float] = {}
        self.began_ns = self.said_ns = self.clock.now_ns()

    def hear(self, event: Event | None) -> None:
        from medley.jobs.experiments.runner import Died, Finished, Reached

        match event:
            case Died(task, said):
                self.end()
                words = ", ".join(task.labels.values()) or "the run"
                click.echo(f"medley: {words}, repeat {task.repeat + 1}, ended without a result: {said}", err=True)
                self.finished += 1
                self.reached.pop(task.key, None)
            case Finished(task):
                self.finished += 1
                self.reached.pop(task.key, None)
            case Reached(task, at_s):
                self.reached[task.key] = at_s
            case None:
                pass
        now_ns = self.clock.now_ns()
        if not self.quiet and (now_ns - self.said_ns) / 1e9 >= (0.25 if self.live else QUIET_S):
            self.said_ns = now_ns
            line = self.line(now_ns)
            click.echo(f"\r{line:100}" if self.live else line, err=True, nl=not self.live)

    def line(self, now_ns: int) -> str:
        """Runs finished, their rate, the time left, how far those under way are."""
        passed_s = (now_ns - self.began_ns) / 1e9
        parts = [f"{self.finished} runs finished"]
        if self.finished and passed_s > 0:
            rate = self.finished / passed_s
            left = max(self.total - self.finished, 0)
            parts += [f"{60 * rate:.1f}/min", f"{left} to do, about {duration(left / rate)}"]
        else:
            parts += [f"{self.total} to do", f"{duration(passed_s)} so far"]
        if self.reached:
            ahead = ", ".join(duration(at_s) for at_s in sorted(self.reached.values(), reverse=True)[:4])
            parts.append(f"virtual time {ahead}")
        return " | ".join(parts)

    def end(self) -> None:
        if self.live:
            click.echo(f"\r{'':100}\r", err=True, nl=False)


def summary(outcome: Outcome, folder: Path) -> list[str]:
    """What a person reads at the end."""
    from medley.jobs.experiments import report, words

    study = outcome.study
    if not study.results:
        return [f"{study.experiment.name}: no run is finished"]
    lines = [f"{study.experiment.name}: {report.described(study)}", ""]
    lines += [f"- {line}" for line in words.summary(study)]
    if (contest := report.contest_table(study)) is not None:
        lines += ["", f"{study.main().title} (~: its 95 % interval and the second best's overlap)", *_table(contest)]
    for one in report.matrix(study):
        criteria = "; ".join(study.experiment.success)
        lines += ["", f"Success{f', {one.title}' if one.title else ''}: {criteria}", *_table(one)]
    return [*lines, "", f"report: {folder / 'report.html'}; tables: {folder / 'runs.csv'} and others beside it"]


def _table(found: Table) -> list[str]:
    return table(found.head, [[cell.text for cell in row] for row in found.rows])


def _interrupted(outcome: Outcome, folder: Path) -> str:
    study = outcome.study
    named = [f"{', '.join(one.labels.values()) or 'the run'} ({one.repeat + 1})" for one in outcome.missing]
    more = f" and {len(named) - LISTED} more" if len(named) > LISTED else ""
    return (
        f"medley: interrupted: {len(study.results)} of {study.planned} runs are kept in {folder}, and the same command "
        f"goes on from there; missing: {', '.join(named[:LISTED])}{more}"
    )


def _write_json(json_path: str | None, outcome: Outcome, folder: Path) -> None:
    if json_path is None:
        return
    body = json.dumps(_plain(outcome, folder))
    if json_path == "-":
        click.echo(body)
    else:
        write_text("--json", Path(json_path), body + "\n")


def _plain(outcome: Outcome, folder: Path) -> dict[str, Any]:
    study = outcome.study
    return {
        "experiment": study.experiment.name,
        "seed": study.experiment.seed,
        "runs": study.planned,
        "finished": len(study.results),
        "missing": len(outcome.missing),
        "died": len(outcome.died),
        "interrupted": outcome.interrupted,
        "out": str(folder),
        "points": [_point(study, labels) for labels in _labels(study)],
    }


def _labels(study: Study) -> list[dict[str, str]]:
    seen = {tuple(one.task.labels.items()): one.task.labels for one in study.results}
    return list(seen.values())


def _point(study: Study, labels: dict[str, str]) -> dict[str, Any]:
    found = study.at(labels)
    means = {metric.column: study.mean(metric.column, labels) for metric in study.metrics()}
    figures = {
        column: {"mean": one.value, "half": one.half, "runs": one.count}
        for column, one in means.items()
        if one is not None
    }
    point: dict[str, Any] = {"labels": labels, "runs": len(found), "states": [one.row["state"] for one in found]}
    if study.experiment.success:
        point["fails"] = study.failures(labels)
    return point | {"digests": [one.row.get("digest") for one in found]} | figures
