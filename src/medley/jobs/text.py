"""The text of a job file as plain data, which still knows the line of each key.

YAML 1.1 as everybody writes it, with two differences: `1e-3` is a number, and a key given twice is refused. JSON
is read as JSON when the file is called so or begins with a brace. Meaning is left to `load`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from medley.protocol.errors import UserError, first_line

MAX_NBYTES = 1 << 20
MAX_VALUES = 1 << 18


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader plus numbers such as 1e-3, which YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class Lines:
    """Where each key of a file stands. A file that YAML cannot compose has no lines."""

    def __init__(self, root: yaml.Node | None = None) -> None:
        self._root = root

    def of(self, path: Sequence[str]) -> int:
        """The line of the deepest key of `path` that the file has, from 1; 0 when it has none of them."""
        node, line = self._root, 0
        for key in path:
            found = _entry(node, key)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        return line


def _entry(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next(((k, v) for k, v in node.value if isinstance(k, yaml.ScalarNode) and k.value == key), None)


def read_text(path: Path, what: str = "job file") -> str:
    """Raises UserError for a file that is missing, is no file, is too large, or is not UTF-8."""
    if path.is_dir():
        raise UserError(f"{path} is a directory; give the {what} in it")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_NBYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the path of a {what}") from error
    if len(content) > MAX_NBYTES:
        raise UserError(f"{path} has more than {MAX_NBYTES} bytes; a {what} is a page of YAML or JSON")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); a {what} is YAML or JSON") from error


def parse(text: str, name: str, is_json: bool = False) -> tuple[Any, Lines]:
    """The data of a job file called `name`, and its lines. Raises UserError with the line of what is wrong."""
    if is_json:
        return _parse_json(text, name), _lines(text)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        _refuse_twice(root, name, set())
        _refuse_endless(root, name)
        return (None if root is None else loader.construct_document(root)), Lines(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{name}{line}: this is not YAML ({error.problem or error.context})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{name} is not YAML ({first_line(error)})") from error
    except RecursionError:
        raise UserError(f"{name} is nested too deeply; a job file has at most four levels") from None


def scalar(text: str) -> Any:
    """A value of the command line, read as YAML reads it. Raises ValueError when it cannot."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        _refuse_endless(root, text[:40])
        return None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(first_line(error)) from error


def _parse_json(text: str, name: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise UserError(f"{name}: key '{twice}' is given twice; keep one of them")
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise UserError(f"{name} line {error.lineno}: this is not JSON ({error.msg.lower()})") from error
    except ValueError as error:
        raise UserError(f"{name} is not JSON ({first_line(error)})") from error
    except RecursionError:
        raise UserError(f"{name} is nested too deeply; a job file has at most four levels") from None


def _lines(text: str) -> Lines:
    try:
        return Lines(yaml.compose(text, Loader=_Loader))
    except (yaml.YAMLError, RecursionError):
        return Lines()


def _refuse_twice(node: yaml.Node | None, name: str, seen: set[int]) -> None:
    # An alias is the same node again: each is looked at once.
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item, name, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and first.setdefault(key.value, line) != line:
            before = first[key.value]
            raise UserError(f"{name} line {line}: key '{key.value}' is given twice (first in line {before})")
        _refuse_twice(value, name, seen)


def _refuse_endless(root: yaml.Node | None, name: str) -> None:
    if root is not None and _values(root, {}, name) > MAX_VALUES:
        raise UserError(f"{name} has more than {MAX_VALUES} values, aliases counted wherever they stand")


def _values(node: yaml.Node, known: dict[int, int], name: str) -> int:
    """How many values it holds once its aliases are written out. Raises UserError for one that holds itself."""
    found = known.get(id(node))
    if found == 0:
        line = node.start_mark.line + 1
        raise UserError(f"{name} line {line}: what begins here holds an alias of itself, which has no end")
    if found is None:
        known[id(node)] = 0  # under way
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        below = (one for part in parts for one in (part if isinstance(part, tuple) else (part,)))
        found = known[id(node)] = 1 + sum(_values(one, known, name) for one in below)
    return found


def split_setting(word: str, example: str) -> tuple[tuple[str, ...], Any]:
    """(path, value) of a `--set a.b=c`. Raises UserError with the example where it is none."""
    key, equals, text = word.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise UserError(f"--set {word}: write KEY=VALUE, such as --set {example}")
    try:
        return path, scalar(text)
    except ValueError as error:
        raise UserError(f"--set {word}: the value is not YAML ({error})") from error
