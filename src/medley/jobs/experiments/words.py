"""What the numbers say, as sentences: computed from the results, never written beforehand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf, log
from statistics import median

from medley.jobs.experiments.axes import shown
from medley.jobs.experiments.statistics import Mean
from medley.jobs.experiments.study import Axis, Metric, Study, in_words, numbers


@dataclass(frozen=True, slots=True)
class Contest:
    """One setting of the other axes: every series' mean of the main metric, best first; `open`: within uncertainty.

    Only series of which every run has a value are compared, as long as there are any: who gets there in one run of
    five, and soon, is not the fastest.
    """

    setting: dict[str, str]
    ranked: tuple[tuple[str, Mean], ...]
    unreached: tuple[str, ...]  # series without a value: it never came so far
    partly: dict[str, str]  # series that came so far in some of their runs: in how many
    open: bool

    @property
    def alike(self) -> bool:
        """Every series came so far in all its runs, and there is nothing between them."""
        return self.ratio < 1.01 and not self.unreached and not self.partly

    @property
    def ratio(self) -> float:
        """The worst over the best."""
        best, worst = self.ranked[0][1].value, self.ranked[-1][1].value
        low, high = sorted((abs(best), abs(worst)))
        return high / low if low > 0 else inf if high > 0 else 1.0


def contests(study: Study, metric: Metric) -> list[Contest]:
    found = [_contest(study, metric, study.series, setting) for setting in study.settings()] if study.series else []
    return [one for one in found if one is not None]


def _contest(study: Study, metric: Metric, series: Axis, setting: dict[str, str]) -> Contest | None:
    means = {label: study.mean(metric.column, {**setting, series.name: label}) for label in series.labels}
    known = [(label, one) for label, one in means.items() if one is not None]
    if not known:
        return None
    told = {label: study.partial(metric.column, {**setting, series.name: label}) for label, _ in known}
    partly = {label: text for label, text in told.items() if text}
    whole = [pair for pair in known if pair[0] not in partly] or known
    ranked = sorted(whole, key=lambda pair: pair[1].value, reverse=metric.more_is_better)
    first, second = ranked[0][1], ranked[1][1] if len(ranked) > 1 else None
    close = second is not None and min(first.count, second.count) > 1 and _overlap(first, second)
    missing = tuple(label for label, one in means.items() if one is None and study.at({**setting, series.name: label}))
    return Contest(setting, tuple(ranked), missing, partly, close)


def _overlap(one: Mean, other: Mean) -> bool:
    return one.low <= other.high and other.low <= one.high


def summary(study: Study) -> list[str]:
    """The head of the report: how many runs, what ended badly, who wins where."""
    lines = [_runs(study)]
    metric = study.main()
    found = contests(study, metric)
    if study.series is None:
        return [*lines, *_single(study)]
    rivals = [one for one in found if len(one.ranked) + len(one.unreached) + len(one.partly) > 1]
    if rivals:
        lines += _wins(metric, rivals, study.series)
        lines += _largest(metric, rivals)
        lines += _sensitivity(study, metric)
    return [*lines, *_behaviour(study, study.series)]


def _runs(study: Study) -> str:
    done = Counter(str(result.row["state"]) for result in study.results)
    odd = ", ".join(f"{many} {state}" for state, many in done.items() if state != "done")
    text = f"{len(study.results)} of {study.planned} runs are finished" if len(study.results) < study.planned else ""
    text = text or f"{study.planned} runs"
    return f"{text}: {done['done']} done{f', {odd}' if odd else ''}."


def _single(study: Study) -> Iterator[str]:
    for metric in study.metrics() or []:
        if (one := study.mean(metric.column, {})) is not None:
            yield f"{metric.title}: {shown(one.value, metric.kind, one.half)}."


def _wins(metric: Metric, found: Sequence[Contest], series: Axis) -> Iterator[str]:
    wins = Counter(one.ranked[0][0] for one in found)
    named = ", ".join(f"{label} in {many}" for label, many in wins.most_common())
    what = metric.title[0].lower() + metric.title[1:]
    if all(one.alike for one in found):
        yield f"The {what} is the same with all of {', '.join(series.labels)}, within 1 %."
        return
    best = "highest" if metric.more_is_better else "shortest" if metric.kind == "seconds" else "lowest"
    if len(found) == 1:
        ranked = "; ".join(f"{label} {shown(one.value, metric.kind, one.half)}" for label, one in found[0].ranked)
        yield f"The {what}, {best} first: {ranked}."
    else:
        yield f"The {what} is {best} with {named} of {len(found)} settings."
    if unsure := sum(one.open for one in found):
        where = "Here" if len(found) == 1 else f"In {unsure} of them"
        yield f"{where} the 95 % intervals of the first and the second overlap, so nothing is decided."
    never = Counter(label for one in found for label in one.unreached)
    for label, many in never.items():
        where = "" if len(found) == 1 else f" in {many} of {len(found)} settings"
        yield f"{label} has no {what}{where}: it did not get that far."
    for one in found:
        at = f"{in_words(one.setting)}, " if one.setting else ""
        for label, runs in one.partly.items():
            yield f"{at}{label} has a {what} in {runs} only, and is not compared with those that have one in all."


def _largest(metric: Metric, found: Sequence[Contest]) -> Iterator[str]:
    widest = max(found, key=lambda one: one.ratio)
    if len(widest.ranked) < 2 or widest.ratio < 1.05 or len(found) < 2:
        return
    (best, low), (worst, high) = widest.ranked[0], widest.ranked[-1]
    yield (
        f"The difference is largest at {in_words(widest.setting)}: {shown(low.value, metric.kind)} with {best}, "
        f"{shown(high.value, metric.kind)} with {worst}"
        f"{f' ({widest.ratio:.1f} times)' if widest.ratio < inf else ''}."
    )


def _sensitivity(study: Study, metric: Metric) -> Iterator[str]:
    """How much each series depends on each other axis: the geometric mean's largest over its smallest."""
    for axis in study.others:
        if len(axis.labels) < 2 or study.series is None:
            continue
        ratios: dict[str, float] = {}
        for label in study.series.labels:
            levels = [_level(study, metric, {study.series.name: label, axis.name: value}) for value in axis.labels]
            known = [level for level in levels if level is not None]
            if len(known) == len(axis.labels):
                ratios[label] = max(known) / min(known)
        if len(ratios) < 2:
            continue
        least, most = min(ratios, key=lambda label: ratios[label]), max(ratios, key=lambda label: ratios[label])
        what = metric.title[0].lower() + metric.title[1:]
        if ratios[most] < 1.1:
            yield f"{axis.title} hardly matters: the {what} changes by less than a tenth."
        else:
            yield (
                f"Across {axis.title} ({', '.join(axis.labels)}) the {what} changes least with {least} "
                f"({ratios[least]:.1f} times between best and worst) and most with {most} ({ratios[most]:.1f} times)."
            )


def _level(study: Study, metric: Metric, labels: dict[str, str]) -> float | None:
    if study.partial(metric.column, labels):
        return None
    values = [value for value in numbers(study.at(labels), metric.column) if value > 0]
    return exp(sum(map(log, values)) / len(values)) if values else None


def _behaviour(study: Study, series: Axis) -> Iterator[str]:
    """Utilisation, bytes, staleness and refusals by series, where they differ."""
    for column, kind, text in (
        ("utilisation", "percent", "Workers' time spent computing: {}"),
        ("bytes", "bytes", "Bytes moved: {}"),
        ("staleness_mean", "number", "Mean staleness of what was merged, in commits: {}"),
        ("refused_fraction", "percent", "Updates carried or dropped: {}"),
        ("cost_usd", "dollars", "Cost of the machines: {}"),
    ):
        values = {label: numbers(study.at({series.name: label}), column) for label in series.labels}
        medians = {label: median(found) for label, found in values.items() if found}
        if medians and max(medians.values()) > 1.05 * min(medians.values()):
            told = ", ".join(f"{shown(value, kind)} with {label}" for label, value in medians.items())
            yield f"{text.format(told)} (medians)."


def comparison(study: Study, metric: Metric) -> str:
    """The sentence beside one plot of the comparison."""
    found = contests(study, metric)
    if not found or study.series is None:
        return ""
    widest = max(found, key=lambda one: one.ratio)
    (best, first), (worst, last) = widest.ranked[0], widest.ranked[-1]
    where = f" at {in_words(widest.setting)}" if widest.setting else ""
    if best == worst and (absent := [*widest.unreached, *widest.partly]):
        value = shown(first.value, metric.kind, first.half)
        return f"{best}: {value}{where}; not all runs of {', '.join(absent)} have one."
    if best == worst or widest.ratio < 1.02:
        return f"All lie within 2 % of {shown(first.value, metric.kind)}."
    low, high = shown(first.value, metric.kind, first.half), shown(last.value, metric.kind, last.half)
    if not where:
        return f"From {low} ({best}) to {high} ({worst})."
    return f"Widest{where}: {best} {low}, {worst} {high}."
