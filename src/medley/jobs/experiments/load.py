"""Experiment files: YAML or JSON, `--set` words and the sweep, into the points that run.

Promises: whatever is wrong with the file or with any point of its sweep becomes one UserError before anything runs.
Points keep their plain data beside the typed experiment, so that a process of its own can read them again.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from medley.jobs.experiments.check import check
from medley.jobs.experiments.reading import Origin, read
from medley.jobs.experiments.spec import MAX_RUNS, Experiment, Numbers, Words
from medley.jobs.text import Lines, parse, read_text, split_setting
from medley.jobs.words import hints, value_in_words
from medley.protocol.errors import UserError, did_you_mean

Data = dict[str, Any]
NOT_SWEPT = ("name", "learn", "repeats", "success", "baseline", "sweep")  # of the experiment, not of a run


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the sweep: `labels` by axis, the whole experiment it stands for, and the same as plain data."""

    labels: dict[str, str]
    experiment: Experiment
    data: Data


@dataclass(frozen=True, slots=True)
class Loaded:
    experiment: Experiment
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class _Setting:
    label: str
    values: Data  # by dotted key


def load_experiment(path: Path, sets: Sequence[str] = ()) -> Loaded:
    """The experiment of a file after the overrides `sets` ("a.b=c"), with all its points. Raises UserError."""
    text = read_text(path, "file with an experiment")
    data, lines = parse(text, path.name, path.suffix.lower() == ".json")
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds {value_in_words(data)}"
        raise UserError(f"{path.name} {found}, but an experiment is a group of keys such as 'fleet' and 'jobs'")
    return load_data(data, path.name, lines, sets)


def load_data(data: Data, where: str, lines: Lines | None = None, sets: Sequence[str] = ()) -> Loaded:
    """The same, of plain data; `where` begins the sentence of the UserError it raises."""
    origin, data = Origin(where, lines or Lines()), copy.deepcopy(data)
    for word in sets:
        _override(data, word, origin)
    experiment = read(data, Experiment, (), origin)
    points = tuple(_points(experiment, data, origin))
    if len(points) * experiment.repeats > MAX_RUNS:
        many = f"{len(points)} points x {experiment.repeats} repeats"
        raise UserError(f"{where}: {many} are more than {MAX_RUNS} runs; sweep fewer values")
    return Loaded(experiment, points)


def _override(data: Data, word: str, origin: Origin) -> None:
    path, value = split_setting(word, "repeats=5")
    origin.sets[path] = f"--set {word}"
    if not exists(path, data):
        origin.refuse(path, f"there is no key '{'.'.join(path)}'; {_nearest('.'.join(path), data)}")
    _put(data, path, value)


def _points(experiment: Experiment, data: Data, origin: Origin) -> Iterator[Point]:
    base = {key: value for key, value in data.items() if key != "sweep"}
    axes = {key: list(_axis(key, values, data, origin)) for key, values in experiment.sweep.items()}
    if (many := prod(len(axis) for axis in axes.values()) * experiment.repeats) > MAX_RUNS:
        raise UserError(f"{origin.of(('sweep',))}: the sweep makes {many} runs, but at most {MAX_RUNS} are allowed")
    _check_axes(axes, origin)
    _check_baseline(experiment, axes, origin)
    for settings in product(*axes.values()):
        point, sets = copy.deepcopy(base), dict(origin.sets)
        for axis, setting in zip(axes, settings, strict=True):
            for key, value in setting.values.items():
                path = tuple(key.split("."))
                _put(point, path, copy.deepcopy(value))
                sets[path] = f"{origin.of(('sweep', axis, setting.label))}, sweep {axis}: {setting.label}"
        here = Origin(origin.name, origin.lines, sets)
        typed = replace(read(point, Experiment, (), here), sweep={})
        check(typed, here)
        labels = {axis: setting.label for axis, setting in zip(axes, settings, strict=True)}
        yield Point(labels, typed, point)


def _axis(axis: str, values: Any, data: Data, origin: Origin) -> Iterator[_Setting]:
    here = ("sweep", axis)
    one_key = exists(tuple(axis.split(".")), data) and not _is_named_settings(values, data)
    match values:
        case list() if values and one_key:
            for value in values:
                yield _Setting(label_of(value), {axis: value})
        case dict() if values and one_key:
            for label, value in values.items():
                yield _Setting(str(label), {axis: value})
        case dict() if values and all(isinstance(one, dict) for one in values.values()):
            for label, settings in values.items():
                _known(settings, (*here, str(label)), data, origin)
                yield _Setting(str(label), settings)
        case list() | dict() if values:
            origin.refuse(here, f"the sweep is over '{axis}', but there is no such key; {_nearest(axis, data)}")
        case _:
            origin.refuse(here, f"sweep {axis} is {value_in_words(values)}, but must be a list of values")


def _check_axes(axes: dict[str, list[_Setting]], origin: Origin) -> None:
    """Raises UserError for values that a result could not be told by, and for settings that would undo others."""
    before: dict[str, str] = {}
    for axis, settings in axes.items():
        labels = [one.label for one in settings]
        if twice := next((one for one in labels if labels.count(one) > 1), None):
            origin.refuse(("sweep", axis), f"sweep {axis} has '{twice}' twice; give each value once")
        keys = dict.fromkeys(key for one in settings for key in one.values)
        for key in keys:
            if key.split(".", 1)[0] in NOT_SWEPT:
                sentence = f"sweep {axis} sets '{key}', which no run depends on: it belongs to the whole experiment"
                origin.refuse(("sweep", axis), sentence)
            undone = next((one for one in before if f"{one}.".startswith(f"{key}.")), None)
            if undone is not None:
                other = before[undone]
                sentence = f"sweep {axis} sets '{key}', which undoes what sweep {other} sets: vary it in one place"
                origin.refuse(("sweep", axis), sentence)
        before |= dict.fromkeys(keys, axis)


def _is_named_settings(values: Any, data: Data) -> bool:
    """Whether an axis that is called like a key holds settings of several keys all the same."""
    groups = list(values.values()) if isinstance(values, dict) else []
    if not any(groups) or not all(isinstance(one, dict) for one in groups):
        return False
    return all(exists(tuple(str(key).split(".")), data) for one in groups for key in one)


def _known(settings: Data, here: tuple[str, ...], data: Data, origin: Origin) -> None:
    for key in settings:
        if not exists(tuple(str(key).split(".")), data):
            sentence = f"sweep {here[1]}: {here[2]} sets '{key}', but there is no such key; {_nearest(str(key), data)}"
            origin.refuse((*here, str(key)), sentence)


def _check_baseline(experiment: Experiment, axes: dict[str, list[_Setting]], origin: Origin) -> None:
    for axis, label in experiment.baseline.items():
        if not axes:
            origin.refuse(
                ("baseline", axis), "baseline is given, but nothing is swept: add a sweep, or drop the baseline"
            )
        if axis not in axes:
            origin.refuse(("baseline", axis), f"baseline '{axis}' is not swept; {did_you_mean(axis, axes)}")
        labels = [setting.label for setting in axes[axis]]
        if label not in labels:
            origin.refuse(("baseline", axis), f"baseline {axis} has no '{label}'; {did_you_mean(label, labels)}")
    relative = [one for one in experiment.success if "baseline" in one]
    if relative and not experiment.baseline:
        origin.refuse(("success",), f"'{relative[0]}' needs a baseline, such as 'baseline: {{network.profile: good}}'")


def label_of(value: Any) -> str:
    """A swept value, short enough for the legend of a plot."""
    match value:
        case bool():
            return str(value).lower()
        case dict() if len(value) == 1:
            name, given = next(iter(value.items()))
            return f"{name} {label_of(given)}"
        case dict():
            return ", ".join(f"{key} {label_of(one)}" for key, one in value.items())
        case list():
            return " to ".join(label_of(one) for one in value)
        case int() | float():
            short = f"{value:g}"
            return short if float(short) == value else str(value)  # labels tell values apart
        case _:
            return str(value)


# -- dotted keys --------------------------------------------------------------------------------------------------


def exists(path: Sequence[str], data: Data) -> bool:
    """Whether an experiment has this key; a name below `fleet` or `jobs` only if the file itself has it."""
    kind: Any = Experiment
    for depth, key in enumerate(path):
        if kind in (Numbers, Words):
            return False
        if is_dataclass(kind) and isinstance(kind, type):
            kind = hints(kind).get(key)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
            if is_dataclass(kind) and key not in _at(data, path[:depth]):
                return False
        else:
            return False
        if kind is None:
            return False
    return path[0] != "sweep"


def keys_of(data: Data) -> list[str]:
    """Every dotted key that this experiment could set."""
    return list(_keys(Experiment, (), data))


def _keys(kind: Any, path: tuple[str, ...], data: Data) -> Iterator[str]:
    if path:
        yield ".".join(path)
    if is_dataclass(kind) and isinstance(kind, type) and kind not in (Numbers, Words):
        for key, one in hints(kind).items():
            if (*path, key) != ("sweep",):
                yield from _keys(one, (*path, key), data)
    elif typing.get_origin(kind) is dict:
        for name in _at(data, path):
            yield from _keys(typing.get_args(kind)[1], (*path, str(name)), data)


def _nearest(key: str, data: Data) -> str:
    known = keys_of(data)
    leaf = key.rpartition(".")[2]
    ends = [one for one in known if one.rpartition(".")[2] == leaf]
    if len(ends) == 1 or (ends and not did_you_mean(key, known).startswith("did")):
        return f"did you mean '{ends[0]}'?"
    tail = did_you_mean(key, known)
    return tail if tail.startswith("did") else f"keys begin with {', '.join(sorted(hints(Experiment)))}"


def _at(data: Data, path: Sequence[str]) -> Data:
    found: Any = data
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _put(data: Data, path: Sequence[str], value: Any) -> None:
    group = data
    for key in path[:-1]:
        if not isinstance(group.get(key), dict):
            group[key] = {}
        group = group[key]
    group[path[-1]] = value
