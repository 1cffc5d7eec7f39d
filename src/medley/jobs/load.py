"""Job files: YAML or JSON, and `--set` words, into one JobSpec.

Promises: whatever is wrong with a file becomes one UserError that says the file, the line and the key where they
are known, and what would be right. Relative paths that exist beside the job file (or, from `--set`, here) become
absolute. Whether the values make sense together is left to `check`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from types import GenericAlias
from typing import Any

import msgspec

from medley.jobs.text import Lines, parse, read_text, split_setting
from medley.jobs.words import hints, item_of, type_at, unknown_key, value_in_words, wanted
from medley.models.presets import is_preset
from medley.protocol.errors import UserError
from medley.protocol.spec import JobSpec


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a key was written: a file with lines, or a word of the command line."""

    name: str
    lines: Lines = field(default_factory=Lines)
    sets: dict[tuple[str, ...], str] = field(default_factory=dict)

    def of(self, path: Sequence[str]) -> str:
        for end in range(len(path), 0, -1):
            if tuple(path[:end]) in self.sets:
                return f"--set {self.sets[tuple(path[:end])]}"
        line = self.lines.of(path)
        return f"{self.name} line {line}" if line else self.name


def load_job(path: Path, sets: Sequence[str] = ()) -> JobSpec:
    """The job of a file, after the overrides `sets` ("a.b=c", c as YAML). Raises UserError."""
    text = read_text(path)
    data, lines = parse(text, path.name, path.suffix.lower() == ".json" or _looks_like_json(text))
    if data is None:
        raise UserError(f"{path.name} is empty; write at least 'name: my-job'")
    origin = _Origin(path.name, lines)
    if not isinstance(data, dict):
        raise UserError(
            f"{path.name} holds {value_in_words(data)}, but a job file is a group of keys such as 'name: x'"
        )
    for word in sets:
        _override(data, word, origin)
    spec = _convert(data, origin)
    return _with_paths(spec, path.absolute().parent, set(origin.sets))


def job_from_dict(data: dict[str, Any], where: str) -> JobSpec:
    """The job of plain data; `where` begins the sentence of the UserError it raises."""
    return _convert(data, _Origin(where))


def _looks_like_json(text: str) -> bool:
    # '{name: x}' is YAML; only JSON quotes its keys.
    return re.match(r'\s*\{\s*"', text) is not None


def _override(data: dict[str, Any], word: str, origin: _Origin) -> None:
    path, parsed = split_setting(word, "train.epochs=2")
    group = data
    for depth, name in enumerate(path[:-1]):
        if group.get(name) is None:
            group[name] = {}
        group = group[name]
        if not isinstance(group, dict):
            raise UserError(f"--set {word}: {'.'.join(path[: depth + 1])} is a value and has no keys below it")
    # An empty value of a text key means empty text: `--set data.path=`.
    group[path[-1]] = "" if parsed is None and type_at(path) is str else parsed
    origin.sets[path] = word


def _convert(data: dict[str, Any], origin: _Origin) -> JobSpec:
    cleaned = _known(data, JobSpec, (), origin)
    try:
        return msgspec.convert(cleaned, JobSpec)
    except msgspec.ValidationError as error:
        raise UserError(_sentence(cleaned, str(error), origin)) from error


def _known(data: dict[Any, Any], group: type, path: tuple[str, ...], origin: _Origin) -> dict[str, Any]:
    """The same data with empty groups filled in; UserError for a key that the group does not have."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        here = (*path, str(key))
        kind = hints(group).get(key) if isinstance(key, str) else None
        if kind is None:
            raise UserError(f"{origin.of(here)}: {unknown_key(str(key), group, '.'.join(path))}")
        if is_dataclass(kind) and isinstance(kind, type):
            # A group whose keys are all commented out is an empty group, not a mistake.
            value = {} if value is None else value
            if isinstance(value, dict):
                value = _known(value, kind, here, origin)
        elif isinstance(value, dict) and (odd := [one for one in value if not isinstance(one, str)]):
            raise UserError(f"{origin.of(here)}: the key {odd[0]} in {'.'.join(here)} must be text: put it in quotes")
        result[key] = value
    return result


def _sentence(data: dict[str, Any], error: str, origin: _Origin) -> str:
    found = re.search(r"at `\$\.?([^`]*)`$", error)
    path, items = _keys(found.group(1) if found else "")
    value: Any = data
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    kind = type_at(path)
    if isinstance(value, dict) and isinstance(kind, GenericAlias):
        # msgspec says that one of task_options is wrong, but not which.
        name = next(name for name, one in value.items() if not isinstance(one, int | float | str | bool))
        path, value, kind = (*path, name), value[name], item_of(kind, 1)
    key, where = ".".join(path), origin.of(path)
    if kind is None:
        return f"{where}: {key or 'the job'} is wrong ({error.partition(' - at')[0].lower()})"
    for number in items:
        if isinstance(value, list) and number < len(value):
            key, value, kind = f"item {number + 1} of {key}", value[number], item_of(kind, number)
    return f"{where}: {key} is {value_in_words(value)}, but {wanted(kind, value)}"


def _keys(text: str) -> tuple[tuple[str, ...], list[int]]:
    """msgspec's path as keys and list positions; the values of a dict are [...] and belong to its key."""
    items = [int(number) for number in re.findall(r"\[(\d+)\]", text)]
    return tuple(part for part in re.sub(r"\[[^]]*\]", "", text).split(".") if part), items


def _with_paths(spec: JobSpec, beside: Path, from_sets: set[tuple[str, ...]]) -> JobSpec:
    data, model = spec.data, spec.model
    if data.path and data.source != "hub":
        data = replace(data, path=_located(data.path, beside, ("data", "path") in from_sets))
    if model.base and not is_preset(model.base):
        model = replace(model, base=_located(model.base, beside, ("model", "base") in from_sets))
    return replace(spec, data=data, model=model)


def _located(text: str, beside: Path, typed_here: bool) -> str:
    path = Path(text).expanduser()
    for base in (Path.cwd(), beside) if typed_here else (beside, Path.cwd()):
        if (base / path).exists():
            return str(base / path)
    return text
