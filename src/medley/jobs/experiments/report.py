"""The report: one HTML file with its plots inside, no network, dark or light as the reader's system is.

Text beside the plots is the experiment's own `learn` and sentences computed from the results (`words`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from medley.jobs.experiments import svg, words
from medley.jobs.experiments.axes import shown
from medley.jobs.experiments.figures import Figure, figures
from medley.jobs.experiments.statistics import Mean
from medley.jobs.experiments.study import Axis, Metric, Study, in_words
from medley.protocol.version import __version__

MAX_ROWS = 400


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    kind: str = ""  # the class it is shown with


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    open: bool = False


def write(folder: Path, study: Study) -> Path:
    """`report.html`, and each plot as an SVG file of its own below `plots`."""
    drawn = figures(study)
    path = folder / "report.html"
    path.write_text(html(study, drawn), encoding="utf-8")
    _write_plots(folder / "plots", drawn)
    return path


def html(study: Study, drawn: Sequence[Figure]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(
        experiment=study.experiment,
        described=described(study),
        summary=words.summary(study),
        main=study.main().title,
        contest=contest_table(study),
        matrix=matrix(study),
        figures=drawn,
        points=point_table(study),
        style=Markup(svg.STYLE),
        legend=lambda names: Markup(svg.legend(names)),
        table=_table_html,
        version=__version__,
        reproduce=f"Seed {study.experiment.seed}.",
    )


def _write_plots(folder: Path, drawn: Sequence[Figure]) -> None:
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        with old.open("rb") as file:
            ours = file.read(len(svg.OURS)) == svg.OURS
        if ours:  # a directory of somebody's plots may be called so, too
            old.unlink()
    for figure in drawn:
        for number, plot in enumerate(figure.plots):
            name = figure.key if len(figure.plots) == 1 else f"{figure.key}-{number + 1}"
            (folder / f"{name}.svg").write_text(svg.alone(plot, figure.names), encoding="utf-8")


def described(study: Study) -> str:
    """The experiment in one line."""
    experiment = study.experiment
    machines = sum(group.count for group in experiment.fleet.values())
    jobs = experiment.arrivals.count or len(experiment.jobs)
    sweep = " x ".join(f"{len(axis.labels)} {axis.title}" for axis in study.axes)
    parts = [
        f"{machines} machines",
        f"{jobs} {'job' if jobs == 1 else 'jobs'}",
        f"engine {experiment.engine}",
        f"{sweep} = {_points(study)} points" if sweep else "one point",
        f"{experiment.repeats} {'run' if experiment.repeats == 1 else 'runs'} each",
    ]
    return ", ".join(parts)


def _points(study: Study) -> int:
    return study.planned // study.experiment.repeats


# -- tables -------------------------------------------------------------------------------------------------------


def contest_table(study: Study) -> Table | None:
    """The main metric: a row a setting of the other axes, a column a series."""
    metric, series = study.main(), study.series
    if series is None or not (found := words.contests(study, metric)):
        return None
    rows = []
    for one in found[:MAX_ROWS]:
        by_label = dict(one.ranked)
        best = one.ranked[0][0] if len(one.ranked) > 1 and one.ranked[0][0] not in one.partly else ""
        cells = []
        for label in series.labels:
            labels = {**one.setting, series.name: label}
            mean = by_label.get(label) or study.mean(metric.column, labels)
            text = _mean_text(mean, metric, study.partial(metric.column, labels), label == best and one.open)
            cells.append(Cell(text, _best(label, best)))
        rows.append((*(Cell(text) for text in one.setting.values()), *cells))
    head = (*(axis.title for axis in study.others), *series.labels)
    return Table("", head, tuple(rows), any(one.open for one in found))


def _best(label: str, best: str) -> str:
    return "best" if label == best else ""


def _mean_text(one: Mean | None, metric: Metric, partial: str, unsure: bool = False) -> str:
    if one is None:
        return "-"
    return f"{'~ ' if unsure else ''}{shown(one.value, metric.kind, one.half)}{f' ({partial})' if partial else ''}"


def matrix(study: Study) -> list[Table]:
    """Success by the first axis (rows) and the second (columns); one table for each setting of the rest."""
    if not study.experiment.success or not study.axes:
        return []
    first = study.axes[0]
    second = study.axes[1] if len(study.axes) > 1 else Axis("", ("",))
    tables = []
    for rest in _rest(study):
        rows = tuple(_matrix_row(study, first, label, second, rest) for label in first.labels)
        tables.append(Table(in_words(rest), (first.title, *second.labels), rows))
    return tables


def _rest(study: Study) -> Iterator[dict[str, str]]:
    seen: list[dict[str, str]] = []
    for setting in study.settings():
        rest = {axis.name: setting[axis.name] for axis in study.axes[2:]}
        if rest not in seen:
            seen.append(rest)
            yield rest


def _matrix_row(study: Study, first: Axis, label: str, second: Axis, rest: dict[str, str]) -> tuple[Cell, ...]:
    cells = [Cell(label)]
    for other in second.labels:
        labels = {first.name: label, **({second.name: other} if second.name else {}), **rest}
        cells.append(verdict(study.failures(labels)))
    return tuple(cells)


def verdict(failed: list[str] | None) -> Cell:
    """Of one point: met, the columns in which it fails, or nothing while no run of it is finished."""
    if failed is None:
        return Cell("-")
    columns = ", ".join(text.split()[0] for text in failed)
    return Cell(f"fails: {columns}", "unmet") if failed else Cell("succeeds", "met")


def point_table(study: Study) -> Table:
    metrics = study.metrics()
    combined = (
        [{}]
        if study.series is None
        else [{study.series.name: label, **setting} for setting in study.settings() for label in study.series.labels]
    )
    rows = []
    for labels in combined[:MAX_ROWS]:
        found = study.at(labels)
        if found:
            states = sorted({str(result.row["state"]) for result in found})
            means = [
                Cell(_mean_text(study.mean(one.column, labels), one, study.partial(one.column, labels)))
                for one in metrics
            ]
            names = [Cell(labels[axis.name]) for axis in study.axes]
            rows.append((*names, Cell(str(len(found))), Cell(", ".join(states)), *means))
    head = (*(axis.title for axis in study.axes), "runs", "state", *(metric.title for metric in metrics))
    return Table("", head, tuple(rows))


def _table_html(table: Table) -> Markup:
    head = "".join(f"<th>{escape(one)}</th>" for one in table.head)
    rows = "".join(
        "<tr>" + "".join(f'<td class="{cell.kind}">{escape(cell.text)}</td>' for cell in row) + "</tr>"
        for row in table.rows
    )
    caption = f"<p>{escape(table.title)}</p>" if table.title else ""
    return Markup(
        f'{caption}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
