"""An experiment from its file to its results: runs what is missing, then tables and report, also after Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medley.jobs.experiments import report, runner, runs, tables
from medley.jobs.experiments.load import Loaded
from medley.jobs.experiments.runner import Died, Event
from medley.jobs.experiments.runs import Result, Task
from medley.jobs.experiments.study import Study, study_of
from medley.protocol.errors import Damaged, UserError, first_line


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is there now. `missing` are runs without a result: interrupted, or died."""

    study: Study
    written: tuple[Path, ...]
    missing: tuple[Task, ...]
    died: tuple[Died, ...]
    interrupted: bool


def perform(loaded: Loaded, folder: Path, processes: int, tell: Callable[[Event | None], None]) -> Outcome:
    """Run what `folder` does not have yet and write the results there. Raises UserError if it cannot be written."""
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written ({error.strerror}); give another directory") from error
    tasks = runs.tasks_of(loaded)
    died: list[Died] = []
    interrupted = False

    def hear(event: Event | None) -> None:
        if isinstance(event, Died):
            died.append(event)
        tell(event)

    try:
        runner.run_all(folder, tasks, processes, hear)
    except KeyboardInterrupt:
        interrupted = True
    results = _results(folder, tasks)
    study = study_of(loaded.experiment, axes_of(loaded), results, len(tasks))
    written = _written(folder, study, results) if results else ()
    return Outcome(study, written, tuple(runner.missing(folder, tasks)), tuple(died), interrupted)


def _results(folder: Path, tasks: Sequence[Task]) -> list[Result]:
    """Of the runs that are finished. Raises UserError for a file that somebody changed."""
    try:
        return [found for task in tasks if (found := runs.load(folder, task)) is not None]
    except Damaged as error:
        raise UserError(str(error)) from error


def axes_of(loaded: Loaded) -> dict[str, list[str]]:
    """The labels of each swept key, in the order of the file."""
    axes: dict[str, list[str]] = {axis: [] for axis in loaded.points[0].labels}
    for point in loaded.points:
        for axis, label in point.labels.items():
            if label not in axes[axis]:
                axes[axis].append(label)
    return axes


def _written(folder: Path, study: Study, results: Sequence[Result]) -> tuple[Path, ...]:
    """Raises UserError where there is no room, or somebody else's file in the way; the runs are kept all the same."""
    names = [axis.name for axis in study.axes]
    try:
        return (*tables.write(folder, results, names), report.write(folder, study))
    except OSError as error:
        why = error.strerror or first_line(error)
        kept = f"{len(results)} runs are kept there, and the same command goes on from them"
        raise UserError(f"tables and report cannot be written to {folder} ({why}); {kept}") from error
