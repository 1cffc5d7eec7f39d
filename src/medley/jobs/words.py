"""Types and values of a job file in a person's words, for the sentences of `load`."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal

from medley.protocol.errors import did_you_mean
from medley.protocol.spec import JobSpec


@cache
def hints(group: type) -> dict[str, Any]:
    """The keys of a group of options, with their types."""
    return typing.get_type_hints(group)


def type_at(path: Sequence[str]) -> Any:
    """The type that stands at a path of keys; None where the job file has no such key."""
    kind: Any = JobSpec
    for key in path:
        if is_dataclass(kind) and isinstance(kind, type):
            kind = hints(kind).get(key)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        else:
            return None
    return kind


def item_of(kind: Any, number: int) -> Any:
    """The type of the item at `number` of a tuple type (or of the values, 1, of a dict type)."""
    args = typing.get_args(kind)
    return args[0] if args[-1] is Ellipsis else args[min(number, len(args) - 1)]


@cache
def homes(key: str) -> tuple[str, ...]:
    """The full paths of every key that is called so, anywhere in a job file."""
    return tuple(path for path in _paths(JobSpec, "") if path.rpartition(".")[2] == key)


def _paths(group: type, prefix: str) -> list[str]:
    found: list[str] = []
    for key, kind in hints(group).items():
        found.append(prefix + key)
        if is_dataclass(kind) and isinstance(kind, type):
            found += _paths(kind, f"{prefix}{key}.")
    return found


def unknown_key(key: str, group: type, path: str) -> str:
    """The sentence for a key that a group does not have."""
    inside = f" in {path}" if path else ""
    elsewhere = homes(key)
    if elsewhere:
        return f"there is no key '{key}'{inside}; did you mean '{elsewhere[0]}'?"
    return f"there is no key '{key}'{inside}; {did_you_mean(key, hints(group))}"


def wanted(kind: Any, value: object) -> str:
    """What would be right instead of `value`, as the end of a sentence: "must be a whole number"."""
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    if choices and isinstance(value, str) and all(isinstance(one, str) for one in choices):
        return f"must be {described(kind)}{_nearest(value, choices)}"
    quotes = kind is str and not isinstance(value, (list, dict, type(None)))
    return f"must be {described(kind)}{': put it in quotes' if quotes else ''}"


def _nearest(value: str, choices: tuple[Any, ...]) -> str:
    tail = did_you_mean(value, choices)
    return f"; {tail}" if tail.startswith("did") else ""


def described(kind: Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(_shown(one) for one in args) if len(args) < 3 else f"one of {', '.join(map(_shown, args))}"
    if origin is tuple:
        many = "a list of" if args[-1] is Ellipsis else f"a list of {len(args)}"
        return f"{many} {_plural(args[0])}"
    if origin in (types.UnionType, typing.Union):
        return "a number, text, or true or false"
    if origin is dict:
        return "a group of keys and values"
    if is_dataclass(kind) and isinstance(kind, type):
        return f"a group of keys ({', '.join(one.name for one in fields(kind))})"
    return {float: "a number", int: "a whole number", str: "text", bool: "true or false"}[kind]


def _plural(kind: Any) -> str:
    return {float: "numbers", int: "whole numbers", str: "words"}[kind]


def _shown(one: object) -> str:
    return f"'{one}'" if isinstance(one, str) else str(one)


def value_in_words(value: object) -> str:
    """A wrong value, short enough for a sentence."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case str():
            return f"'{value if len(value) <= 40 else value[:37] + '...'}'"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return "a group of keys"
        case int() if abs(value) >= 1 << 63:
            return "a number of more than 63 bits"
        case _:
            return str(value)
