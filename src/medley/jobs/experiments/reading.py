"""Plain data into a tree of dataclasses, by their types; whatever does not fit becomes one sentence.

Knows `Numbers` and `Words`, which are written as a value or as `{distribution: parameters}`.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass
from math import inf, isfinite
from typing import Any, Literal, NoReturn

from medley.jobs.experiments.spec import Numbers, Words
from medley.jobs.text import Lines
from medley.jobs.words import described, hints, value_in_words
from medley.protocol.errors import UserError, did_you_mean

Path = tuple[str, ...]
_PAIRS = ("uniform", "log_uniform", "normal", "spread")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a key was written: a file with lines, or a word of the command line."""

    name: str
    lines: Lines = field(default_factory=Lines)
    sets: dict[Path, str] = field(default_factory=dict)

    def of(self, path: Sequence[str]) -> str:
        for end in range(len(path), 0, -1):
            if tuple(path[:end]) in self.sets:
                return self.sets[tuple(path[:end])]
        line = self.lines.of(path)
        return f"{self.name} line {line}" if line else self.name

    def refuse(self, path: Sequence[str], sentence: str) -> NoReturn:
        raise UserError(f"{self.of(path)}: {sentence}")


def read(value: Any, kind: Any, path: Path, origin: Origin) -> Any:
    """`value` as a `kind`. Raises UserError for a key that is unknown, a type that is wrong."""
    if kind is Numbers:
        return _numbers(value, path, origin)
    if kind is Words:
        return _words(value, path, origin)
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return _group(value, kind, path, origin)
    match typing.get_origin(kind):
        case None:
            return _scalar(value, kind, path, origin)
        case origin_kind if origin_kind is dict:
            return _mapping(value, kind, path, origin)
        case origin_kind if origin_kind is tuple:
            return _items(value, kind, path, origin)
        case _:
            return _choice(value, kind, path, origin)


def _group(value: Any, kind: type, path: Path, origin: Origin) -> Any:
    if value is None:
        return kind()  # a group whose keys are all commented out
    if not isinstance(value, dict):
        _wrong(value, f"a group of keys ({', '.join(hints(kind))})", path, origin)
    known = hints(kind)
    for key in value:
        if key not in known:
            inside = f" in {'.'.join(path)}" if path else ""
            origin.refuse((*path, str(key)), f"there is no key '{key}'{inside}; {did_you_mean(str(key), known)}")
    try:
        return kind(**{key: read(one, known[key], (*path, key), origin) for key, one in value.items()})
    except TypeError:
        needed = [key for key in known if key not in value]
        origin.refuse(path, f"{'.'.join(path)} lacks {', '.join(needed)}")


def _mapping(value: Any, kind: Any, path: Path, origin: Origin) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        _wrong(value, "a group of names and values", path, origin)
    item = typing.get_args(kind)[1]
    if odd := [key for key in value if not isinstance(key, str)]:
        origin.refuse(path, f"the name {odd[0]} in {'.'.join(path)} must be text: put it in quotes")
    return {key: read(one, item, (*path, key), origin) for key, one in value.items()}


def _items(value: Any, kind: Any, path: Path, origin: Origin) -> tuple[Any, ...]:
    args = typing.get_args(kind)
    if not isinstance(value, list | tuple) or (args[-1] is not Ellipsis and len(value) != len(args)):
        _wrong(value, described(kind), path, origin)
    return tuple(read(one, args[0], (*path, str(number)), origin) for number, one in enumerate(value))


def _choice(value: Any, kind: Any, path: Path, origin: Origin) -> Any:
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is not Literal:
        return value
    for choice in choices:
        if type(value) is type(choice) and value == choice:  # true is no 1
            return choice
    tail = did_you_mean(value, [str(one) for one in choices]) if isinstance(value, str) else ""
    _wrong(value, described(kind) + (f"; {tail}" if tail.startswith("did") else ""), path, origin)


def _scalar(value: Any, kind: type, path: Path, origin: Origin) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, int) and abs(value) >= 1 << 63:
        origin.refuse(path, f"{'.'.join(path)} is a number of more than 63 bits")
    if kind is float and number:
        return float(value)
    if kind is int and number and isfinite(value) and value == int(value):
        return int(value)  # 1e9 is a whole number, too
    if kind is str and value is None:
        return ""
    if (kind is str and isinstance(value, str)) or (kind is bool and isinstance(value, bool)):
        return value
    _wrong(value, described(kind), path, origin)


def _numbers(value: Any, path: Path, origin: Origin) -> Numbers:
    if not isinstance(value, dict):
        return Numbers(values=(read(value, float, path, origin),))
    name, given = _distribution(value, ("choice", "exponential", *_PAIRS), path, origin)
    here = (*path, name)
    match name:
        case "choice":
            values, weights = _weighted(given, float, here, origin)
            return Numbers("choice", values, weights)
        case "exponential":
            return Numbers("exponential", (read(given, float, here, origin),))
        case _:
            pair = read(given, tuple[float, float], here, origin)
            return Numbers(typing.cast(Any, name), pair)


def _words(value: Any, path: Path, origin: Origin) -> Words:
    if not isinstance(value, dict):
        return Words(values=(read(value, str, path, origin),))
    name, given = _distribution(value, ("choice",), path, origin)
    values, weights = _weighted(given, str, (*path, name), origin)
    return Words("choice", values, weights)


def _distribution(value: dict[Any, Any], known: Iterable[str], path: Path, origin: Origin) -> tuple[str, Any]:
    if len(value) != 1:
        origin.refuse(path, f"{'.'.join(path)} must have one distribution ({', '.join(known)}), not {len(value)} keys")
    name, given = next(iter(value.items()))
    if name not in tuple(known):
        sentence = f"{'.'.join(path)} has no distribution '{name}'; {did_you_mean(str(name), known)}"
        origin.refuse((*path, str(name)), sentence)
    return name, given


def _weighted(given: Any, kind: type, path: Path, origin: Origin) -> tuple[tuple[Any, ...], tuple[float, ...]]:
    if isinstance(given, dict) and given:
        values = tuple(read(_key(key, kind), kind, path, origin) for key in given)
        weights = tuple(read(one, float, (*path, str(key)), origin) for key, one in given.items())
        if not (min(weights) >= 0 and 0 < sum(weights) < inf):
            origin.refuse(path, f"the weights of {'.'.join(path)} must be numbers from 0 on, and one must be above 0")
        return values, weights
    if isinstance(given, list) and given:
        return tuple(read(one, kind, path, origin) for one in given), ()
    _wrong(given, "a list of values, or a group of values with weights", path, origin)


def _key(key: Any, kind: type) -> Any:
    """A value that is written as a key, which is always text in JSON."""
    if kind is float and isinstance(key, str):
        with suppress(ValueError):
            return float(key)
    return key


def _wrong(value: Any, wanted: str, path: Path, origin: Origin) -> NoReturn:
    name = ".".join(path) or "the experiment"
    origin.refuse(path, f"{name} is {value_in_words(value)}, but must be {wanted}")
