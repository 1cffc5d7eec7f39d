"""Which plots an experiment's results make: comparisons, curves, lanes, histograms. Drawing itself is `svg`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any

from medley.jobs.experiments import svg, words
from medley.jobs.experiments.axes import Scale, scale, shown
from medley.jobs.experiments.runs import Result
from medley.jobs.experiments.statistics import Mean
from medley.jobs.experiments.study import Metric, Study, in_words, numbers

MAX_PANELS = 12
MAX_REPEATS = 3  # drawn in one panel
MAX_LANES = 4  # plots of lanes
_KINDS = {"dollars": "number"}


@dataclass(frozen=True, slots=True)
class Figure:
    """Some plots of one kind, `names` in the order of their colours, and the sentence beside them."""

    key: str
    title: str
    text: str
    plots: tuple[str, ...]
    names: tuple[str, ...] = ()


def figures(study: Study) -> list[Figure]:
    found = [*comparisons(study), *curves(study)]
    found += [one for one in (lanes(study), staleness(study), queues(study), machines(study)) if one is not None]
    return [one for one in found if one.plots]


# -- across the sweep ---------------------------------------------------------------------------------------------


def comparisons(study: Study) -> Iterator[Figure]:
    """For each metric one plot a panel: the second axis along x, the first by colour, the others by panel. With one
    axis, all metrics side by side.
    """
    if study.series is None or len(study.results) < 2:
        return
    if study.others:
        for metric in study.metrics():
            plots = tuple(_comparison(study, metric, panel, in_words(panel)) for panel in _panels(study, 1))
            text = words.comparison(study, metric)
            yield Figure(f"by-{metric.column}", metric.title, text, plots, study.series.labels)
        return
    told = [f"{metric.title}: {words.comparison(study, metric)}" for metric in study.metrics()]
    plots = tuple(_comparison(study, metric, {}, metric.title) for metric in study.metrics())
    yield Figure("comparison", "Across the sweep", " ".join(told), plots)


def _comparison(study: Study, metric: Metric, panel: dict[str, str], title: str) -> str:
    assert study.series is not None
    across = study.others[0] if study.others else study.series
    values = numbers(study.results, metric.column)
    y = scale(values, _KINDS.get(metric.kind, metric.kind), may_log=metric.kind in ("seconds", "bytes", "dollars"))
    unit = "US dollars" if metric.kind == "dollars" else ""
    series: list[tuple[str, list[Mean | None]]] = []
    for label in study.series.labels if study.others else ("",):
        chosen = {study.series.name: label, **panel} if study.others else panel
        series.append((label, [study.mean(metric.column, {**chosen, across.name: one}) for one in across.labels]))
    most = 740 if len(study.axes) == 2 else 540
    width = min(max(354, 72 + len(across.labels) * (26 + 14 * len(series))), most)
    return svg.intervals(svg.Frame(title, scale([0, 1]), y, "", unit, width, 262, 60), across.labels, series)


def _panels(study: Study, skip: int) -> Iterator[dict[str, str]]:
    axes = study.others[skip:]
    for labels in list(product(*(axis.labels for axis in axes)))[:MAX_PANELS]:
        yield dict(zip((axis.name for axis in axes), labels, strict=True))


# -- curves -------------------------------------------------------------------------------------------------------


def curves(study: Study) -> Iterator[Figure]:
    """Loss, or where nothing is computed samples, against virtual time and against bytes."""
    if any(len(result.curves["jobs"]) > 1 for result in study.results):
        return
    real = study.experiment.engine == "real" and any(result.curves["held"] for result in study.results)
    source, column = ("held", "loss") if real else ("commits", "samples")
    what, label = ("Held-out loss", "held-out loss") if real else ("Samples committed", "samples")
    for x, kind, title in (("at_s", "seconds", "virtual time"), ("nbytes", "bytes", "bytes moved")):
        plots = tuple(_curves(study, source, column, (x, kind, title), label))
        names = study.series.labels if study.series else ()
        drawn = f"Each line is one run, the further repeats of a point are faint (at most {MAX_REPEATS} are drawn)."
        yield Figure(f"{column}-by-{x}", f"{what} against {title}", f"{drawn} {_at_half(study, x, kind)}", plots, names)


def _at_half(study: Study, x: str, kind: str) -> str:
    metric = Metric("bytes" if x == "nbytes" else study.main().column, "", kind)
    return words.comparison(study, metric)


def _curves(study: Study, source: str, column: str, x: tuple[str, str, str], label: str) -> Iterator[str]:
    key, kind, title = x
    for panel in _panels(study, 0):
        series: list[svg.Series] = []
        for colour, name in enumerate(study.series.labels if study.series else ("",)):
            chosen = {**panel, study.series.name: name} if study.series else panel
            for number, result in enumerate(study.at(chosen)[:MAX_REPEATS]):
                points = [(row[key], row[column]) for row in result.curves[source] if row[column] is not None]
                series.append(svg.Series(name, colour, points, number > 0))
        every = [point for one in series for point in one.points]
        if every:
            y = scale([b for _, b in every], zero=column == "samples")
            frame = svg.Frame(in_words(panel), scale([a for a, _ in every], kind), y, title, label)
            yield svg.lines(frame, sorted(series, key=lambda one: not one.again))


# -- machines -----------------------------------------------------------------------------------------------------


def lanes(study: Study) -> Figure | None:
    """The first repeat of some points: of each series, where the main metric differs most."""
    plots, told = [], []
    for result in _telling(study):
        rows = [_stripe(lane) for lane in result.curves["lanes"]]
        x = _span(rows)
        title = in_words(result.task.labels) or study.experiment.name
        plots.append(svg.stripes(title, x, "virtual time", rows))
        if (value := result.row.get("utilisation")) is not None:
            told.append(f"{title}: workers computed {100 * value:.0f} % of the time")
    text = f"Grey is idle, red an outage. {'. '.join(told)}."
    return Figure("timeline", "What each machine did", text, tuple(plots), ("computing", "moving tensors"))


def _stripe(lane: dict[str, Any]) -> svg.Stripe:
    return svg.Stripe(lane["node"], lane["width_s"], lane["compute"], lane["transfer"], lane["downs"])


def _span(rows: Sequence[svg.Stripe]) -> Scale:
    """Up to the last bin in which anything happened."""
    ends = [
        (number + 1) * row.width_s
        for row in rows
        for number, (one, other) in enumerate(zip(row.compute, row.transfer, strict=True))
        if one or other
    ]
    nice = scale([max(ends, default=1.0)], "seconds")
    high = max(ends, default=1.0)
    return Scale(0.0, high, False, nice.unit, tuple(tick for tick in nice.ticks if tick[0] <= high))


def _telling(study: Study) -> list[Result]:
    if study.series is None:
        return list(study.results[:1])
    found = words.contests(study, study.main())
    setting = max(found, key=lambda one: one.ratio).setting if found else next(study.settings())
    points = [study.at({**setting, study.series.name: label}) for label in study.series.labels]
    return [found[0] for found in points if found][:MAX_LANES]


def staleness(study: Study) -> Figure | None:
    labels = study.series.labels if study.series else ("",)
    bars = []
    for colour, label in enumerate(labels):
        counted: Counter[int] = Counter()
        for result in study.at({study.series.name: label}) if study.series else study.results:
            for age, many in result.curves["staleness"].items():
                counted[int(age)] += many
        if counted:
            bars.append((label, colour, [(float(age), many / counted.total()) for age, many in counted.items()]))
    oldest = max((age for _, _, one in bars for age, _ in one), default=0.0)
    if oldest == 0:
        return None
    most = min(oldest, 40.0)
    bars = [(name, colour, [bar for bar in one if bar[0] <= most]) for name, colour, one in bars]
    y = scale([height for _, _, one in bars for _, height in one], "percent")
    frame = svg.Frame("", scale([0, most + 1]), y, "commits behind", "of all merged updates", 740, 250)
    behind = "; ".join(f"{name or 'all'}: {_mean_age(one):.1f} on average" for name, _, one in bars)
    text = f"How many commits came between an update's base and the commit that took it. {behind}."
    return Figure("staleness", "Staleness", text, (svg.histogram(frame, bars, 1.0),), labels if len(labels) > 1 else ())


def _mean_age(bars: Sequence[tuple[float, float]]) -> float:
    return sum(age * share for age, share in bars) / (sum(share for _, share in bars) or 1.0)


def queues(study: Study) -> Figure | None:
    """How many of the jobs had begun after which wait."""
    labels = study.series.labels if study.series else ("",)
    series = []
    for colour, label in enumerate(labels):
        found = study.at({study.series.name: label}) if study.series else study.results
        points = _begun_after(found)
        if len(points) > 1:
            series.append(svg.Series(label, colour, points[:: max(1, len(points) // 400)] + points[-1:]))
    if not any(len(result.curves["queue_s"]) > 1 for result in study.results):
        return None
    x = scale([wait for one in series for wait, _ in one.points], "seconds")
    frame = svg.Frame("", x, scale([0, 1], "percent"), "wait", "of all jobs", 740, 250)
    half = "; ".join(f"{one.name or 'half the jobs'}: {_median_wait(one)}" for one in series)
    text = f"From a job's arrival to its first computation: the share of jobs that had begun. Median: {half}."
    return Figure("queue", "Queue times", text, (svg.lines(frame, series),), labels if len(labels) > 1 else ())


def _begun_after(results: Sequence[Result]) -> list[tuple[float, float]]:
    """(wait, share of all jobs that arrived which had begun after it)."""
    jobs = sum(result.row["jobs"] for result in results) or 1
    waits = [(result.curves["queue_s"], result.curves["begun"]) for result in results]
    each = sorted((wait, begun / len(several) / jobs) for several, begun in waits for wait in several)
    return list(zip((wait for wait, _ in each), accumulate(share for _, share in each), strict=True))


def _median_wait(one: svg.Series) -> str:
    return shown(next((wait for wait, share in one.points if share >= 0.5), None), "seconds")


def machines(study: Study) -> Figure | None:
    """How many rented machines were there, of the first repeat of some points."""
    series: list[svg.Series] = []
    for result in _telling(study):
        points = _there(result)
        if len(points) > 1:
            series.append(svg.Series(in_words(result.task.labels), len(series), points))
    if not series:
        return None
    every = [point for one in series for point in one.points]
    x, y = scale([a for a, _ in every], "seconds"), scale([b for _, b in every])
    frame = svg.Frame("", x, y, "virtual time", "rented machines", 740, 230)
    taken = sum(state == "interrupted" for one in _telling(study) for _, _, state in one.curves["wanted"])
    text = (
        f"Spot machines and what the autoscaler rented, as they come and go; {taken} interruptions in the runs shown."
    )
    return Figure("machines", "Rented machines", text, (svg.lines(frame, series),), tuple(one.name for one in series))


def _there(result: Result) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = [(0.0, 0.0)]
    there: set[str] = set()
    for at_s, node, state in result.curves["wanted"]:
        before = len(there)
        if state == "up":
            there.add(node)
        elif state in ("down", "left", "interrupted"):
            there.discard(node)
        if len(there) != before:
            points += [(at_s, float(before)), (at_s, float(len(there)))]
    return points
