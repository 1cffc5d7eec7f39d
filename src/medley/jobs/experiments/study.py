"""All results of an experiment, by the axes of its sweep; and which column is its main question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from medley.jobs.experiments import criteria
from medley.jobs.experiments.criteria import Criterion
from medley.jobs.experiments.runs import Result
from medley.jobs.experiments.spec import Experiment
from medley.jobs.experiments.statistics import Mean, mean
from medley.jobs.experiments.tally import COLUMNS

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Metric:
    column: str
    title: str
    kind: str = "number"  # of `axes.shown`
    more_is_better: bool = False


METRICS = (
    Metric("time_to_target_s", "Time to the target loss", "seconds"),
    Metric("completion_s", "Time to completion", "seconds"),
    Metric("turnaround_mean_s", "Turnaround of a job, mean", "seconds"),
    Metric("queue_mean_s", "Wait in the queue, mean", "seconds"),
    Metric("queue_p95_s", "Wait in the queue, 95th percentile", "seconds"),
    Metric("missed_deadlines", "Deadlines missed"),
    Metric("final_loss", "Held-out loss at the end"),
    Metric("accuracy", "Held-out accuracy at the end", "percent", True),
    Metric("bytes_to_target", "Bytes moved to the target loss", "bytes"),
    Metric("bytes", "Bytes moved", "bytes"),
    Metric("utilisation", "Workers' time spent computing", "percent", True),
    Metric("staleness_mean", "Staleness of what was merged, mean"),
    Metric("refused_fraction", "Updates carried or dropped", "percent"),
    Metric("nodes_lost", "Machines lost"),
    Metric("cost_usd", "Cost of the machines", "dollars"),
    Metric("energy_wh", "Energy, watt-hours"),
)
OF_STREAMS = ("turnaround_mean_s", "queue_mean_s", "queue_p95_s")  # of one job they say nothing new


@dataclass(frozen=True, slots=True)
class Axis:
    name: str
    labels: tuple[str, ...]

    @property
    def title(self) -> str:
        """The last words of a dotted key."""
        return self.name.rpartition(".")[2].replace("_", " ")


@dataclass(frozen=True, slots=True)
class Study:
    experiment: Experiment
    axes: tuple[Axis, ...]
    results: tuple[Result, ...]
    planned: int  # runs, finished or not

    @property
    def series(self) -> Axis | None:
        """The axis whose values are told apart by colour: the first."""
        return self.axes[0] if self.axes else None

    @property
    def stream(self) -> bool:
        """Whether more than one job arrives."""
        return self.experiment.arrivals.count > 1 or len(self.experiment.jobs) > 1

    @property
    def others(self) -> tuple[Axis, ...]:
        return self.axes[1:]

    def settings(self) -> Iterator[dict[str, str]]:
        """Every combination of the axes that are not the series."""
        for labels in product(*(axis.labels for axis in self.others)):
            yield dict(zip((axis.name for axis in self.others), labels, strict=True))

    def at(self, labels: Labels) -> list[Result]:
        """Finished runs of the points that have these labels."""
        return [
            one for one in self.results if all(one.task.labels.get(axis) == label for axis, label in labels.items())
        ]

    def mean(self, column: str, labels: Labels) -> Mean | None:
        return mean(numbers(self.at(labels), column))

    def partial(self, column: str, labels: Labels) -> str:
        """`2 of 5 runs` where not every finished run has a value: a mean of those is no mean of the point."""
        found = self.at(labels)
        known = len(numbers(found, column))
        return f"{known} of {len(found)} runs" if 0 < known < len(found) else ""

    def metrics(self) -> list[Metric]:
        """Those with something to tell: known somewhere, and not the same everywhere."""
        return [metric for metric in METRICS if self._tells(metric)]

    def _tells(self, metric: Metric) -> bool:
        values = numbers(self.results, metric.column)
        if metric.column in OF_STREAMS and not self.stream:
            return False
        if not values or not any(values):
            return False
        return max(values) - min(values) > 1e-3 * max(abs(value) for value in values)

    def main(self) -> Metric:
        """What the experiment asks first: time to the target, the turnaround of a stream, or the time to the end."""
        wanted = "time_to_target_s" if self.experiment.target_loss else "completion_s"
        if self.stream:
            wanted = "turnaround_mean_s"
        return next(metric for metric in METRICS if metric.column == wanted)

    # -- success ------------------------------------------------------------------------------------------------

    def criteria(self) -> list[Criterion]:
        return [criteria.parse(text, COLUMNS) for text in self.experiment.success]

    def failures(self, labels: Labels) -> list[str] | None:
        """Criteria that a point's runs do not all meet; None where no run is finished."""
        found = self.at(labels)
        if not found:
            return None
        base = self._baseline(labels)
        return [one.text for one in self.criteria() if not all(one.met(result.row, base) for result in found)]

    def _baseline(self, labels: Labels) -> dict[str, float]:
        found = self.at({**labels, **self.experiment.baseline})
        means = {column: mean(numbers(found, column)) for column in COLUMNS}
        return {column: one.value for column, one in means.items() if one is not None}


def numbers(results: Sequence[Result], column: str) -> list[float]:
    """The known values of a column."""
    values = (result.row.get(column) for result in results)
    return [float(value) for value in values if isinstance(value, int | float)]


def study_of(
    experiment: Experiment, axes: Mapping[str, Sequence[str]], results: Sequence[Result], planned: int
) -> Study:
    named = tuple(Axis(name, tuple(labels)) for name, labels in axes.items())
    return Study(experiment, named, tuple(results), planned)


def in_words(labels: Labels, join: str = ", ") -> str:
    return join.join(labels.values())
